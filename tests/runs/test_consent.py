"""Code of others runs with consent for the very source that it comes from, and never without."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
import yaml
from huggingface_hub import HfApi
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.cli import main as cli
from hf_distill.data.loading import load_rows, prepare_splits
from hf_distill.evaluation.metrics import Metrics
from hf_distill.evaluation.results import Results
from hf_distill.hub.card.parts import code_of_others
from hf_distill.runs.building import Member, ModelBuilder
from hf_distill.runs.recipe.describe import plan
from hf_distill.runs.recipe.reading import RecipeError, command_for, load_recipe, read_resolved
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.settings import StageSettings, training_arguments
from hf_distill.runs.train import distill
from hf_distill.teachers.loading import load_teacher
from tests.runs.test_train import SMALL, sentences

pytest_plugins = ["local_hub.fixture"]

SENTIMENT = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
MODEL = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""
WORDS = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
METRIC = """
import datasets
import evaluate

class Own(evaluate.Metric):
    def _info(self):
        kinds = datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=kinds)

    def _compute(self, predictions, references):
        return {"own": sum(a == b for a, b in zip(predictions, references)) / len(predictions)}
"""
TINY = {**SMALL, "max_steps": 1, "allow_untrained_teacher": True}


@pytest.fixture(autouse=True)
def _modules_cache(monkeypatch, tmp_path) -> None:
    """Keep the code that Transformers copies out of the user's cache."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def code(name: str, text: str) -> str:
    """Return Python code that leaves a file behind when it runs."""
    return f"from pathlib import Path\n\nPath({str(Path(f'{name}.ran').resolve())!r}).touch()\n{text}"


def ran() -> set[str]:
    """Name the sources whose code has run."""
    return {path.stem for path in Path().glob("*.ran")}


def has_run(name: str) -> bool:
    found = Path(f"{name}.ran").exists()
    Path(f"{name}.ran").unlink(missing_ok=True)
    return found


def edit(file: str, **changes: Any) -> None:
    values = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps({**values, **changes}))


def save_model(folder: str, seed: int = 0, *, at: str | None = None) -> str:
    """Save a model with code of its own, which lies in another repository if `at` names one."""
    tiny.bert(seed, **SENTIMENT).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    of_others = "" if at is None else f"{at}--"
    classes = {"AutoConfig": "OwnConfig", "AutoModelForSequenceClassification": "OwnModel"}
    auto_map = {kind: f"{of_others}own_model.{name}" for kind, name in classes.items()}
    edit(f"{folder}/config.json", model_type="own", architectures=["OwnModel"], auto_map=auto_map)
    if at is None:
        Path(folder, "own_model.py").write_text(code(folder, MODEL))
    return folder


def save_words(folder: str) -> str:
    """Save a tokenizer with code of its own."""
    tiny.tokenizer().save_pretrained(folder)
    changes = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_words.OwnTokenizer"]}}
    edit(f"{folder}/tokenizer_config.json", **changes)
    Path(folder, "own_words.py").write_text(code(folder, WORDS))
    return folder


def save_metric(folder: str) -> str:
    Path(folder).mkdir(parents=True)
    Path(folder, f"{Path(folder).name}.py").write_text(code(Path(folder).name, METRIC))
    return folder


def save_rows() -> None:
    Path("data").mkdir()
    for split, count in (("train", 32), ("validation", 16)):
        Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, sentences(count))))


def recipe(**changes: Any) -> dict[str, Any]:
    """Return a recipe whose teacher, student, processors and metric are all code of others, with consent for each."""
    save_rows()
    save_metric("its_metric")
    trusted = {"trust_remote_code": True, "processor_trust_remote_code": True}
    return {
        "task": "text-classification",
        "data": {"path": "data"},
        "teacher": {"model": save_model("its_teacher"), "processor": save_words("teachers_words"), **trusted},
        "student": {"model": save_model("its_student", 1), "processor": save_words("students_words"), **trusted},
        "metrics": ["accuracy", {"name": "./its_metric", "trust_remote_code": True}],
        "training": TINY,
        "baseline": False,
        "output_dir": "out",
        **changes,
    }


def loaded(values: dict[str, Any]) -> Recipe:
    Path("x.yaml").write_text(yaml.safe_dump(values))
    return load_recipe("x.yaml")


def run(values: dict[str, Any]) -> Results:
    return distill(loaded(values), "x")


# Where the consent for each source stands in the recipe above.
CONSENTS = {
    "its_teacher": ("teacher", "trust_remote_code"),
    "teachers_words": ("teacher", "processor_trust_remote_code"),
    "its_student": ("student", "trust_remote_code"),
    "students_words": ("student", "processor_trust_remote_code"),
    "its_metric": ("metrics", 1, "trust_remote_code"),
}


def without(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a recipe with every consent but one."""
    values = copy.deepcopy(values)
    *path, last = CONSENTS[source]
    section: Any = values
    for part in path:
        section = section[part]
    del section[last]
    return values


def check(capsys, *arguments: str) -> tuple[int, list[str], str]:
    sys.argv = ["hf-distill", "check", *arguments]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out.splitlines(), printed.err


class TestARun:
    def test_it_runs_all_code_that_it_has_consent_for(self):
        """A setting of consent that reaches no loader; a student that cannot be loaded again from its own run."""
        values = recipe()
        found = run(values)
        assert ran() == set(CONSENTS)
        assert found.student.metrics.keys() == {"accuracy", "own"}
        assert Path("out/student/own_model.py").exists()
        assert run(values).student.metrics == found.student.metrics  # all is loaded from the run's folder

    @pytest.mark.parametrize("source", CONSENTS)
    def test_consent_for_all_other_sources_is_none_for_this_one(self, source):
        """One yes for a model runs the code of its processor, which somebody else has written, or of a metric."""
        values = without(recipe(), source)
        with pytest.raises(ValueError, match=f"{source}.*trust_remote_code") as refused:
            run(values)
        assert source not in ran()
        assert not Path("out").exists()
        apart = source.endswith("words")
        assert ("set processor_trust_remote_code to true" in str(refused.value)) == apart
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("section", ["teacher", "student"])
    def test_a_processor_of_the_models_own_repository_goes_with_the_model(self, section):
        """Two settings for one source; or a processor that runs without the model's consent."""
        values = recipe()
        for each in ("teacher", "student"):
            for key in ("processor", "processor_trust_remote_code"):
                del values[each][key]
        folder = values[section]["model"]
        save_words("words")
        for file in Path("words").iterdir():
            Path(folder, file.name).write_bytes(file.read_bytes())
        run(values)
        assert ran() == {"its_teacher", "its_student", "its_metric", "words"}
        assert has_run("words")
        values[section]["trust_remote_code"] = False
        with pytest.raises(ValueError, match="trust_remote_code to true"):
            run({**values, "output_dir": "again"})
        assert not has_run("words")

    @pytest.mark.parametrize("is_given", [True, False])
    def test_a_processor_of_the_data_has_its_own_consent(self, is_given):
        """`data.processor` run with the consent for the first model that reads with it."""
        values = recipe()
        for section in ("teacher", "student"):
            for key in ("processor", "processor_trust_remote_code"):
                del values[section][key]
        values["data"] = {"path": "data", "processor": "teachers_words", "processor_trust_remote_code": is_given}
        if is_given:
            run(values)
        else:
            with pytest.raises(ValueError, match="set processor_trust_remote_code to true"):
                run(values)
        assert has_run("teachers_words") == is_given

    def test_a_student_made_of_layers_has_the_code_of_its_teacher(self):
        """A run that cannot go on: its student is refused for want of a consent that there is no place for."""
        values = recipe(student={"from_teacher": {"layers": [0]}})
        found = run(values)
        assert "its_student" not in ran()
        assert has_run("its_teacher")
        Path("out/results.json").unlink()
        assert run(values).student.metrics == found.student.metrics
        usage = Path("out/student/README.md").read_text()
        assert 'AutoModelForSequenceClassification.from_pretrained("out/student", trust_remote_code=True)' in usage

    def test_a_stage_that_teaches_is_loaded_with_its_own_consent(self):
        """An assistant with code of its own, refused when its student is trained in another process."""
        values = recipe(stages=[recipe_of_stage()], student={"from_teacher": {"layers": [1]}})
        run(values)
        assert {"its_stage", "its_teacher"} <= ran()
        Path("out/stages/student.json").unlink()
        assert run(values).stages.keys() == {"stage-1"}


def recipe_of_stage() -> dict[str, Any]:
    return {"model": save_model("its_stage", 2), "trust_remote_code": True}


class TestCodeOfAnotherRepository:
    def test_on_the_hub_too_a_repository_stands_for_its_own_code_alone(self, hub):
        """Files that are looked for in folders only; or a model that names its own repository, refused."""
        api = HfApi(hub.url, token=hub.token)
        for name, at in (("own", "ada/own"), ("pointing", "ada/stranger"), ("stranger", None)):
            Path(save_model(name, at=at), "own_model.py").write_text(code(name, MODEL))
            api.create_repo(f"ada/{name}")
            api.upload_folder(folder_path=name, repo_id=f"ada/{name}")
        values = recipe(student={"from_teacher": {"layers": [0]}})
        with pytest.raises(ValueError, match=r"it would run the code of ada/stranger, and .* of ada/pointing alone"):
            run({**values, "teacher": {"model": "ada/pointing", "trust_remote_code": True}})
        assert not {"pointing", "stranger"} & ran()
        values["teacher"] = {"model": "ada/own", "trust_remote_code": True}
        run(values)
        Path("out/results.json").unlink()
        run(values)  # the student's folder has the code
        assert "own" in ran()

    def test_it_does_not_run_with_the_consent_for_the_model_that_names_it(self):
        """A config that points at somebody else's code, at whatever commit is there now."""
        save_model("stranger")
        values = recipe()
        values["teacher"]["model"] = save_model("pointing", at="stranger")
        with pytest.raises(ValueError, match=r"it would run the code of stranger, and .* of pointing alone"):
            run(values)
        assert "stranger" not in ran()
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("file", "auto_map"),
        [
            ("tokenizer_config.json", {"AutoTokenizer": [None, "stranger--own_words.OwnTokenizer"]}),
            ("tokenizer_config.json", ["stranger--own_words.OwnTokenizer", None]),
            ("preprocessor_config.json", {"AutoImageProcessor": "stranger--own_words.OwnTokenizer"}),
        ],
    )
    def test_nor_do_the_classes_of_a_processor(self, file, auto_map):
        """The config of the model is looked at alone."""
        save_words("stranger")
        values = recipe()
        Path("teachers_words", file).touch()
        Path("teachers_words", file).write_text(json.dumps({"auto_map": auto_map}))
        with pytest.raises(ValueError, match="it would run the code of stranger"):
            run(values)
        assert "stranger" not in ran()

    def test_nor_does_the_base_of_an_adapter(self):
        """Consent for an adapter, and the model that it is for is loaded with its code."""
        save_model("stranger")
        Path("adapter").mkdir()
        Path("adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "stranger"}))
        with pytest.raises(ValueError, match="it would run the code of stranger"):
            load_teacher("adapter", "text-classification", trust_remote_code=True)
        assert "stranger" not in ran()

    def test_saved_beside_the_weights_it_is_the_models_own(self):
        """A remedy that does not help."""
        save_model("stranger")
        save_model("pointing", at="stranger")
        model = AutoModelForSequenceClassification.from_pretrained("pointing", trust_remote_code=True)
        model.save_pretrained("whole")
        has_run("stranger")
        again = load_teacher("whole", "text-classification", trust_remote_code=True)
        assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


class TestMetrics:
    @pytest.mark.parametrize("place", ["bleu/bleu.py", "bleu.py", "evaluate-metric/bleu/bleu.py"])
    def test_a_bare_name_is_never_a_file_of_the_working_folder(self, place):
        """Somebody's folder of data holds bleu/bleu.py, and it runs because the recipe trusts the Hub's bleu."""
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(code("bleu", METRIC))
        save_rows()
        tiny.bert(0, **SENTIMENT).save_pretrained("teacher")
        tiny.tokenizer().save_pretrained("teacher")
        values = {
            "task": "text-classification",
            "data": {"path": "data"},
            "teacher": {"model": "teacher"},
            "student": {"from_teacher": {"layers": [0]}},
            "training": TINY,
            "output_dir": "out",
        }
        name = "evaluate-metric/bleu" if "/bleu/" in place else "bleu"
        with pytest.raises(ValueError, match=f"metrics: cannot load '{name}': "):
            run({**values, "metrics": [{"name": name, "trust_remote_code": True}]})
        with pytest.raises(RecipeError, match=rf"metrics\.0: {name} is Python code of others \(on the Hub"):
            run({**values, "metrics": [name]})
        assert ran() == set()

    def test_a_hub_id_is_never_a_folder_and_a_folder_is_written_as_a_path(self):
        """`mine/metric`, which may be either."""
        save_metric("mine/metric")
        values = recipe(metrics=[{"name": "mine/metric", "trust_remote_code": True}])
        with pytest.raises(ValueError, match=r"cannot load 'mine/metric': .* \(a folder is written \./mine/metric\)"):
            run(values)
        assert "metric" not in ran()
        run({**values, "metrics": [{"name": "./mine/metric", "trust_remote_code": True}]})
        assert "metric" in ran()

    @pytest.mark.parametrize("name", ["sum", "ada/sum"])
    def test_one_of_the_hub_is_loaded_at_its_commit(self, hub, name):
        """Another version than the one whose code was looked at."""
        repo_id = name if "/" in name else f"evaluate-metric/{name}"
        token = hub.add_user("owner", orgs=["evaluate-metric", "ada"])
        api = HfApi(hub.url, token=token)
        api.create_repo(repo_id, repo_type="space", space_sdk="static")
        commits = []
        for version in (1, 2):
            text = METRIC.replace('"own"', f'"own_{version}"') + "\nfrom .helper import nothing\n"
            for file, content in (("sum.py", code(f"version_{version}", text)), ("helper.py", "nothing = None\n")):
                done = api.upload_file(
                    path_or_fileobj=content.encode(), path_in_repo=file, repo_id=repo_id, repo_type="space"
                )
            commits.append(done.oid)
        metric = {"name": name, "trust_remote_code": True}
        labels = np.array([0, 1])
        assert Metrics([{**metric, "revision": commits[0]}], "ab")(np.eye(2), labels) == {"own_1": 1.0}
        assert ran() == {"version_1"}
        assert Metrics([metric], "ab")(np.eye(2), labels) == {"own_2": 1.0}

    @pytest.mark.parametrize(
        ("metric", "problem"),
        [
            ("acuracy", "did you mean accuracy?"),
            ("./its_metric", r"\./its_metric is Python code of others \(in a folder\), which runs only with consent"),
            ({"name": "seqeval"}, r"in the Space evaluate-metric/seqeval\), which .* write \{name: seqeval, trust"),
            ({"name": "a/b", "trust_remote_code": False}, r"in the Space a/b\)"),
            ({"name": "f1", "trust_remote_code": True}, "f1 comes with hf_distill: write f1 alone, or evaluate-metric"),
            ({"name": "./x", "revision": "v1", "trust_remote_code": True}, "revision belongs to a metric on the Hub"),
            ({"trust_remote_code": True}, r"metrics\.0\.name: is missing"),
            ({"name": "a/b", "trust_remote_cod": True}, "unknown key; did you mean trust_remote_code"),
            ({"name": "a/b", "trust_remote_code": "yes"}, "metrics.0.trust_remote_code: expected a valid boolean"),
            (1, r"metrics\.0: expected a valid string, got 1"),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_is_loaded(self, metric, problem):
        """Found out after the data have been read."""
        with pytest.raises(RecipeError, match=problem) as refused:
            loaded(recipe(metrics=[metric]))
        assert str(refused.value).startswith("x.yaml: metrics.0")
        assert ran() == set()


class TestDataSets:
    @pytest.mark.parametrize("script", ["data.py", "other.py"])
    @pytest.mark.parametrize("named", ["path", "dataset"])
    def test_no_code_of_theirs_ever_runs(self, script, named):
        """A loading script, run because it lies beside the rows; or a traceback that does not say what to do."""
        save_rows()
        Path("data", script).write_text(code("data", ""))
        source = {named: "data"}
        if script == "data.py" or named == "dataset":
            refused = "data is a Hub id, and there is a file or folder of that name here"
            refused = (
                refused if named == "dataset" else r"data: cannot read data: .*found data\.py\. No code of a data set"
            )
            with pytest.raises(ValueError, match=refused):
                load_rows(**source)
        else:
            assert load_rows(**source)["train"].num_rows == 32
        assert ran() == set()


class TestCheck:
    @pytest.mark.parametrize("source", CONSENTS)
    def test_it_runs_nothing_that_train_would_run_with_consent_only(self, capsys, source):
        """A recipe that is looked at before it is trusted."""
        values = without(recipe(), source)
        Path("x.yaml").write_text(yaml.safe_dump(values))
        status, lines, error = check(capsys, "x.yaml")
        assert source not in ran()
        assert (status, "trust_remote_code" in error) == (2, True)  # as `train` would end
        is_seen = (2, True) if not source.endswith("words") else (0, False)  # a processor is only loaded for the data
        status, _, error = check(capsys, "x.yaml", "--no-data")
        assert (status, "trust_remote_code" in error) == is_seen
        assert source not in ran()
        assert source not in (lines[0] if lines else "")
        assert Path("out").exists() is False

    def test_without_any_consent_nothing_runs(self, capsys):
        """All of them at once, and the first one's refusal hides the others'."""
        values = recipe()
        for source in CONSENTS:
            values = without(values, source)
        Path("x.yaml").write_text(yaml.safe_dump(values))
        assert check(capsys, "x.yaml")[0] == 2
        assert check(capsys, "x.yaml", "metrics=[f1]")[0] == 2
        assert ran() == set()

    def test_its_first_line_says_whose_code_the_recipe_runs(self, capsys):
        """A recipe from elsewhere, whose one word in line forty runs a stranger's code."""
        values = recipe(stages=[{**recipe_of_stage(), "revision": "v1"}])
        values["data"] |= {"processor": "teachers_words", "processor_trust_remote_code": True}
        Path("x.yaml").write_text(yaml.safe_dump(values))
        _, lines, _ = check(capsys, "x.yaml")
        assert lines[0] == (
            "This recipe runs code of others: teacher its_teacher, teacher's processor teachers_words, stage-1 "
            "its_stage at v1, student its_student, student's processor students_words, processor teachers_words, "
            "metric ./its_metric."
        )
        assert lines[1].startswith("task ")

    def test_a_recipe_without_code_of_others_says_nothing_of_it(self, capsys):
        """A line that everybody sees is one that nobody reads."""
        status, lines, _ = check(capsys, "vision/digits")
        assert (status, lines[0].split()[0]) == (0, "task")

    def test_code_of_another_repository_is_refused(self, capsys):
        """A plan that looks good, and a run that is refused."""
        save_model("stranger")
        values = recipe()
        values["student"]["model"] = save_model("pointing", at="stranger")
        with pytest.raises(ValueError, match="it would run the code of stranger"):
            plan(loaded(values))
        assert "stranger" not in ran()


class TestTheCard:
    def test_it_says_whose_code_the_recipe_runs(self):
        """Who repeats the run runs it, too."""
        run(recipe())
        sentence = (
            "This recipe runs code of others: teacher its_teacher, teacher's processor teachers_words, student "
            "its_student, student's processor students_words, metric ./its_metric."
        )
        card = Path("out/student/README.md").read_text()
        assert f"\n\n{sentence}\n\nTo repeat it: " in card
        assert "metrics:\n- accuracy\n" in card  # a folder of this machine is no metric of the Hub

    def test_the_command_that_repeats_a_run_names_its_metrics(self):
        """Settings of a metric, written as ones of a list of names that has none."""
        given = ("metrics=[accuracy, {name: seqeval, trust_remote_code: true}]", "output_dir=out")
        recipe = load_recipe("vision/digits", given)
        command = command_for(recipe, "vision/digits")
        override = command.removeprefix("hf-distill train vision/digits ").strip("'").replace("'\"'\"'", "'")
        assert load_recipe("vision/digits", [override, "output_dir=out"]).metrics == recipe.metrics


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"student": {"from_teacher": {"layers": [0]}, "trust_remote_code": True}}, "without student.model"),
            ({"student": {"model": "x", "processor_trust_remote_code": True}}, "without student.processor"),
            ({"stages": [{"model": "x", "processor_trust_remote_code": True}]}, "without stages.0.processor"),
            ({"teacher": [{"model": "x", "processor_trust_remote_code": True}]}, "without teacher.0.processor"),
            ({"data": {"path": "data", "processor_trust_remote_code": True}}, "without the name of a data.processor"),
        ],
    )
    def test_consent_to_nothing_is_refused(self, changes, problem):
        """A yes that waits for whoever adds a name beside it."""
        with pytest.raises(RecipeError, match=f"trust_remote_code: has no effect {problem}"):
            loaded(recipe(**changes))

    @pytest.mark.parametrize("name", ["trust_remote_code", "teacher_trust_remote_code"])
    def test_in_the_training_it_is_consent_for_the_only_teacher(self, name):
        """The old name refused; or a setting that reaches nothing, and the teacher is refused all the same."""
        values = without(recipe(training={**TINY, name: True}), "its_teacher")
        found = loaded(values)
        assert found.teachers[0].trust_remote_code
        assert found.training == {**TINY, "teacher_trust_remote_code": True}
        assert training_arguments(found, "student", Path("out")).teacher_trust_remote_code
        assert "teacher its_teacher" in (code_of_others(found.model_dump()) or "")
        with pytest.raises(ValueError, match=r"its_student.*trust_remote_code to true"):
            run(without(values, "its_student"))
        assert "its_student" not in ran()

    @pytest.mark.parametrize(
        "changes",
        [
            {"teacher": [{"model": "x"}, {"model": "y"}], "training": {"trust_remote_code": True}},
            {"teacher": {"column": "teacher_logits"}, "training": {"teacher_trust_remote_code": True}},
            {"stages": [{"model": "x", "training": {"trust_remote_code": True}}]},
            {"teacher": {"model": "x", "training": {"trust_remote_code": True}}},
        ],
    )
    def test_elsewhere_it_is_refused(self, changes):
        """One yes for whichever of several teachers is loaded."""
        with pytest.raises(RecipeError, match=r"training\.teacher_trust_remote_code: (is consent|belongs to)"):
            loaded(recipe(**changes))

    @pytest.mark.parametrize("is_given", [True, False])
    def test_a_quantised_teacher_is_named_to_the_trainer_with_its_own_consent(self, is_given):
        """It is loaded a second time, by another setting than the recipe's."""
        values = recipe(training={**TINY, "teacher_quantization": "4bit"})
        found = loaded(values if is_given else without(values, "its_teacher"))
        args = training_arguments(found, "student", Path("out"))
        members = [Member(found.teachers[0], tiny.bert(0), "its_teacher", None)]
        assert ModelBuilder(
            found, prepare_splits(load_rows(path="data"), found.task), StageSettings(found)
        ).for_trainer(members, args) == ["its_teacher"]
        assert args.teacher_trust_remote_code is is_given

    def test_a_run_that_was_begun_by_the_old_name_is_read(self):
        """A run's folder that its own recipe no longer fits."""
        found = loaded(recipe(training={**TINY, "trust_remote_code": True}))
        values = found.model_dump()
        values["training"] = {**TINY, "trust_remote_code": True}
        Path("old.yaml").write_text(yaml.safe_dump(values))
        assert read_resolved(Path("old.yaml")) == found


class TestInPython:
    def trainer(self, teacher: Any, **settings: Any) -> DistillationTrainer:
        args = DistillationConfig("out", use_cpu=True, report_to="none", **settings)
        return DistillationTrainer(
            tiny.bert(0, **SENTIMENT),
            teacher,
            args,
            train_dataset=tiny.text_rows(4, num_labels=2),
            processing_class=tiny.tokenizer(),
        )

    def test_a_named_teachers_code_runs_with_its_consent_only(self):
        """A setting under a new name that nothing reads."""
        save_model("its_teacher")
        with pytest.raises(ValueError, match=r"set trust_remote_code \(in Python teacher_trust_remote_code\) to true"):
            self.trainer("its_teacher")
        assert ran() == set()
        self.trainer("its_teacher", teacher_trust_remote_code=True)
        assert ran() == {"its_teacher"}

    def test_it_is_consent_for_one_teacher(self):
        """The code of a second one, or of the processor of a model that was passed."""
        save_model("its_teacher")
        save_words("words")
        tiny.bert(2, **SENTIMENT).save_pretrained("words")
        other = AutoModelForSequenceClassification.from_pretrained("words")
        for teachers in (["its_teacher", "words"], ["its_teacher", other]):
            with pytest.raises(ValueError, match="teacher_trust_remote_code is consent for the code of one teacher"):
                self.trainer(teachers, teacher_trust_remote_code=True)
        assert ran() == set()

    def test_a_named_processor_with_code_is_not_run(self):
        """The consent for the teacher, taken for that of its `teacher_processing_class`."""
        save_model("its_teacher")
        save_words("words")
        args = DistillationConfig("out", use_cpu=True, report_to="none", teacher_trust_remote_code=True)
        with pytest.raises(ValueError, match="or none without code of its own: load that one by from_pretrained"):
            DistillationTrainer(
                tiny.bert(0, **SENTIMENT),
                "its_teacher",
                args,
                train_dataset=tiny.text_rows(4, num_labels=2),
                processing_class=tiny.tokenizer(),
                teacher_processing_class="words",
            )
        assert "words" not in ran()
        assert AutoTokenizer.from_pretrained("words", trust_remote_code=True) is not None
