"""Recipes in which soft targets teach that others have shared, `teacher: {logits: ...}`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from sharing import TARGETS, recipe_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_distill.evaluation.latency import Speed
from hf_distill.evaluation.results import ModelResult
from hf_distill.runs import building as casting
from hf_distill.runs.cache import cache_soft_targets
from hf_distill.runs.recipe.describe import plan
from hf_distill.runs.recipe.reading import RecipeError, load_recipe
from hf_distill.runs.run_card import published, read_run
from tests.runs.test_teachers_in_recipes import DECISIVE, SENTIMENT, ensemble_recipe, vocabulary_turned
from tests.runs.test_train import SMALL, digits_recipe, run, save_base, sentences, text_recipe

pytest_plugins = ["pushing_fixture"]

ONE = {**SMALL, "num_train_epochs": 1, "allow_untrained_teacher": True}
ON = {**ONE, "precompute_teacher_logits": True}


def taught(recipe: dict, **changes) -> dict:
    """Return a recipe whose student learns from what the teacher of another one has said."""
    of_making = ("precompute_teacher_logits", "teacher_logits_views")
    training = {name: value for name, value in recipe["training"].items() if name not in of_making}
    shared = {"teacher": {"logits": TARGETS}, "training": training, "output_dir": "shared"}
    if "stages" in recipe:
        shared["stages"] = [{**stage, "training": {}} for stage in recipe["stages"]]
    return {**recipe, **shared, **changes}


def images() -> dict:
    """Colour images for a teacher of twice their size."""
    names = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_channels=1, **shape, **names))
    vit.save_pretrained("vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4], image_std=[0.3]).save_pretrained("vit")
    recipe = digits_recipe(teacher={"model": "vit"}, training=ON)
    recipe["data"] |= {"augment": {"crop_padding": 1}, "max_train_rows": 56}
    recipe["training"] = {**ON, "num_train_epochs": 3, "teacher_logits_views": 2}
    return recipe


def vit() -> dict:
    """A teacher whose config is another one, in its words, when it has been saved and loaded."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, **shape}
    return digits_recipe(teacher={"config": config, "training": ONE}, training=ON)


def own_tokenizer() -> dict:
    recipe = text_recipe(student={"model": "other"}, training=ON)
    save_base("other")
    vocabulary_turned("other")
    return recipe


def without_segments() -> dict:
    """A student that takes no token_type_ids, and a teacher that does; both share a tokenizer that makes none."""
    recipe = text_recipe(student={"model": "small"}, training=ON)
    tiny.distilbert(3, num_layers=1, **SENTIMENT).save_pretrained("small")
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained("small")
    return recipe


def specialists() -> dict:
    shape = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [16]}
    run(digits_recipe(baseline=False, output_dir="ready", training=ONE))
    names = ["3", "8", "9", "dustbin"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    special = AutoModelForImageClassification.from_pretrained(
        "ready/student", num_labels=4, ignore_mismatched_sizes=True, **labels
    )
    special.save_pretrained("special")
    AutoImageProcessor.from_pretrained("ready/student").save_pretrained("special")
    recipe = digits_recipe(student={"config": shape}, training=ON)
    settings = {"model": "special", "specialist": {"oversampling": 2}}
    return {**recipe, "teacher": [settings, {"model": "ready/teacher"}]}


def words() -> dict:
    save_base()
    Path("data").mkdir()
    for split, count in (("train", 48), ("validation", 24)):
        rows = [row["text"].split() for row in sentences(count)]
        lines = [{"tokens": row, "ner_tags": ["OPINION" if word in DECISIVE else "O" for word in row]} for row in rows]
        Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {
        "task": "token-classification",
        "data": {"path": "data"},
        "teacher": {"model": "base", "training": ONE},
        "student": {"model": "base"},
        "training": ON,
        "output_dir": "out",
    }


MAKERS = {
    "digits": lambda: digits_recipe(training=ON),
    "vit": vit,
    "text": lambda: text_recipe(student={"model": "base"}, training=ON),
    "stages": lambda: text_recipe(
        stages=[{"model": "base", "training": {"precompute_teacher_logits": True}}],
        student={"from_teacher": {"layers": [0]}},
        training=ONE,
    ),
    "several": lambda: ensemble_recipe(training={"precompute_teacher_logits": True, "teacher_weights": [2, 1]}),
    "own tokenizer": own_tokenizer,
    "without segments": without_segments,
    "views of larger images": images,
    "words": words,
    "specialists": specialists,
}


SLOW = ("digits", "several", "specialists")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in MAKERS])
def test_the_student_is_that_of_the_teacher(kind, monkeypatch):
    """Soft targets of other rows, of other members, or without weights: a worse student, and no error."""
    recipe = MAKERS[kind]()
    first = run({**recipe, "baseline": False})
    assert cache_soft_targets(load_recipe("recipe.yaml"), "recipe").num_computed == 0  # teachers are loaded this time
    for folder in ("out/teacher", "out/teacher-1", "out/teacher-2", "vit", "special", "ready"):
        shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.delattr(casting, "load_teacher")
    second = run(taught(recipe, baseline=False))
    one, other = (load_file(f"{folder}/student/model.safetensors") for folder in ("out", "shared"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    untimed = replace(first.teacher, **dict.fromkeys(Speed._fields))  # there is no model to time
    assert untimed == second.teacher
    assert list(second.teachers.values()) == list(first.teachers.values())
    assert [each.metrics for each in second.stages.values()] == [each.metrics for each in first.stages.values()]
    assert (second.student.metrics, second.agreement) == (first.student.metrics, first.agreement)


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Return the folder of a run of sentences whose teacher has answered beforehand, which no test may change."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(text_recipe(student={"model": "base"}, training=ON, baseline=False))
    return folder


@pytest.fixture
def recipe(kept) -> dict:
    """Return a recipe that learns from these, in a folder of its own."""
    for name in ("base", "data"):
        shutil.copytree(kept / name, name)
    shutil.copytree(kept / TARGETS, TARGETS)
    return taught(yaml.safe_load((kept / "recipe.yaml").read_text()))


class TestWhatIsKnown:
    def test_of_the_teacher(self, recipe):
        """A card that says nothing of who has taught, or of where on this machine."""
        found = run({**recipe, "teacher": {"logits": str(Path(TARGETS).absolute())}})
        assert found.teacher.num_parameters == found.student.num_parameters
        (origin,) = found.lineage["teachers"]
        assert origin["soft_targets"] == {"id": None, "revision": None}
        assert origin["members"][0]["words"] == "`base`"
        card = Path("shared/student/README.md").read_text()
        assert "distilled with hf_distill from `base`, by its soft targets `_teacher_logits` into" in card
        assert "base_model" not in card
        assert str(Path.cwd()) not in card
        assert published(*read_run(Path("shared"))).teachers[0].logits == "_teacher_logits"

    def test_of_one_that_is_not_described(self, recipe):
        """An error, or the parameters of somebody else."""
        Path(TARGETS, "teacher.json").unlink()
        found = run(recipe)
        assert found.teacher == ModelResult(found.teacher.metrics, None, None, None)
        card = Path("shared/student/README.md").read_text()
        assert "distilled with hf_distill from a `bert`, by its soft targets" in card

    @pytest.mark.parametrize(
        "text", ["[1]", "{", '{"format": 1, "teachers": 3}', '{"format": 1, "teachers": [{"words": 7}]}']
    )
    def test_of_one_that_is_described_wrongly(self, recipe, text):
        """The file may come from anywhere."""
        Path(TARGETS, "teacher.json").write_text(text)
        assert run({**recipe, "baseline": False}).teacher.num_parameters is None

    def test_check_tells_it_and_reads_no_soft_targets(self, recipe):
        """Gigabytes downloaded to be told that a key is misspelt."""
        for shard in Path(TARGETS).glob("*.safetensors"):
            shard.unlink()
        lines = dict(plan(load_recipe(recipe_file(recipe))))
        assert lines["teacher"] == (
            f"none is loaded: soft targets {TARGETS}, of `base`, 136 rows, 2 labels (negative, positive), float16"
        )

    def test_a_run_that_is_started_again_with_other_soft_targets_is_refused(self, recipe, kept):
        """A student that learns from two teachers, one after the other."""
        run({**recipe, "baseline": False})
        key = json.loads(Path(TARGETS, "key.json").read_text())
        key["about"]["torch"] = "another"
        Path(TARGETS, "key.json").write_text(json.dumps(key))
        run({**recipe, "baseline": False})
        key["teachers"][0]["weights"] = "0" * 64
        Path(TARGETS, "key.json").write_text(json.dumps(key))
        with pytest.raises(ValueError, match="holds a run on other data"):
            run({**recipe, "baseline": False})


def refusal(recipe: dict) -> str:
    with pytest.raises(ValueError) as found:  # noqa: PT011 - the caller looks at the message
        run(recipe)
    assert not list(Path("shared").glob("student/*")) + list(Path("shared").glob("checkpoints/*/*"))
    return str(found.value)


class TestWhatDoesNotFit:
    """Found out before anything is computed."""

    def test_labels_in_another_order(self, recipe):
        """A student that says the opposite of its teacher."""
        recipe["data"]["label_names"] = ["positive", "negative"]
        message = refusal(recipe)
        assert message.startswith(
            f"teacher.logits: {TARGETS} holds soft targets that do not fit this recipe: labels.0 is "
            '"negative" there and "positive" here; labels.1 is'
        )
        assert "(data.label_names)" in message

    def test_another_tokenizer(self, recipe):
        """Rows of the same ids that mean other words."""
        vocabulary_turned("base")
        assert "student_processor.vocabulary is" in refusal(recipe)

    def test_a_pair_in_another_order(self, recipe):
        """Premise and hypothesis, which the teacher read the other way round."""
        key = json.loads(Path(TARGETS, "key.json").read_text())
        Path(TARGETS, "key.json").write_text(json.dumps({**key, "teacher_columns": ["second", "text"]}))
        assert 'teacher_columns is ["second", "text"] there and ["text"] here' in refusal(recipe)

    def test_another_type_than_was_kept(self, recipe):
        """A setting that has no effect."""
        recipe["training"] |= {"precompute_teacher_logits": True, "teacher_logits_dtype": "float32"}
        assert 'logits.dtype is "float16" there and "float32" here' in refusal(recipe)

    def test_foreign_rows_are_counted(self, recipe):
        """A student that learns from a part of its rows, and nobody knows."""
        lines = Path("data/train.jsonl").read_text().splitlines()
        lines[3] = json.dumps({"text": "very very very very good", "label": "positive"})
        Path("data/train.jsonl").write_text("\n".join(lines))
        message = refusal(recipe)
        assert message.startswith("teacher.logits: 1 of 13")
        assert f"rows have no soft targets in {TARGETS}, and there is no teacher" in message

    def test_what_was_another_in_their_making_is_named(self, recipe):
        """All rows are missing, and a user looks for the reason in the data."""
        recipe["data"]["max_length"] = 4
        assert "(made with data.max_length 32 there and 4 here)" in refusal(recipe)
        info = json.loads(Path(TARGETS, "teacher.json").read_text())
        others = {"id": "ada/rows", "name": "small", "revision": "f" * 40, "max_train_rows": 8, "eval_split": "dev"}
        Path(TARGETS, "teacher.json").write_text(json.dumps({**info, "data": {**info["data"], **others}}))
        assert (
            "(made with data.dataset 'ada/rows' there and None here; data.name 'small' there and None here; "
            "data.eval_split 'dev' there and None here; "
            "data.max_train_rows 8 there and None here; data.max_length 32 there and 4 here)"
        ) in refusal(recipe)

    @pytest.mark.parametrize("change", ["truncated", "flipped"])
    def test_a_damaged_file_is_named(self, recipe, change):
        """Soft targets that nobody has given."""
        (shard,) = Path(TARGETS).glob("*.safetensors")
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content if change == "flipped" else content[:-9])
        assert refusal(recipe) == (
            f"teacher.logits: of {TARGETS} {shard.name} is damaged, not what the name says: copy the folder anew, or "
            "let `hf-distill cache` mend it"
        )

    def test_a_folder_without_a_key(self, recipe):
        """Any folder of weights taken for soft targets."""
        Path(TARGETS, "key.json").unlink()
        assert f"teacher.logits: {TARGETS} has no key.json, so it holds no soft targets" in refusal(recipe)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["logits"], {}),
            (["logits", "dtype"], "bfloat16"),
            (["logits", "dtype"], "float32"),
            (["logits", "top_k"], -3),
            (["about", "teachers"], 5),
            (["about", "teachers"], [5]),
            (["teachers", 0], {}),
            (["teachers", 0, "processor"], "x"),
            (["teachers", 0, "specialist"], 5),
            (["teachers", 0, "specialist"], {"classes": "ab", "oversampling": 1}),
            (["teachers"], []),
            (["columns"], 5),
        ],
    )
    def test_a_key_that_says_what_ours_never_does(self, recipe, path, value):
        """Anybody can put a key on the Hub: a traceback, or a student of soft targets that nobody understands."""
        key = json.loads(Path(TARGETS, "key.json").read_text())
        entry = key
        for part in path[:-1]:
            entry = entry[part]
        entry[path[-1]] = value
        Path(TARGETS, "key.json").write_text(json.dumps(key))
        message = refusal(recipe)
        assert message.startswith(f"teacher.logits: {TARGETS}: key.json ")
        assert "was not written by hf-distill" in message or "they are float16" in message
        assert message.endswith("; copy the folder anew, or delete it and let `hf-distill cache` make it again")

    @pytest.mark.parametrize("name", ["key.json", "teacher.json"])
    def test_json_of_great_depth(self, recipe, name):
        """Python gives up on it by an error of its own."""
        Path(TARGETS, name).write_text("[" * 200_000)
        if name == "key.json":
            assert "cannot be read" in refusal(recipe)
        else:
            assert run({**recipe, "baseline": False}).teacher.num_parameters is None

    def test_soft_targets_in_the_folder_of_the_run_itself(self, recipe):
        """--overwrite, which is asked for, would delete the teacher that the student is to learn from."""
        for output in ("out", TARGETS, f"{TARGETS}/run"):
            with pytest.raises(ValueError, match=r"teacher\.logits: .* lies in the run's own folder"):
                run({**recipe, "output_dir": output}, overwrite=True)
        assert list(Path(TARGETS).glob("*.safetensors"))

    def test_how_they_are_kept_is_compared_without_a_second_switch(self, recipe):
        """Two refusals that contradict each other."""
        recipe["training"]["teacher_logits_top_k"] = 1
        assert "logits.top_k is null there and 1 here" in refusal(recipe)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "cannot be read"),
            ('{"format": 1}', "was not written by hf-distill: it does not say what columns, labels"),
            ('{"format": 99}', "was written in format 99"),
            ('{"format": true}', "was written in format True"),
        ],
    )
    def test_a_key_that_cannot_be_read(self, recipe, text, message):
        """A traceback."""
        Path(TARGETS, "key.json").write_text(text)
        found = refusal(recipe)
        assert found.startswith(f"teacher.logits: {TARGETS}: ")
        assert message in found

    def test_a_folder_that_is_not_there(self, recipe):
        """Taken for a repository of three parts, in the Hub's words."""
        message = refusal({**recipe, "teacher": {"logits": "runs/x/_teacher_logits"}})
        assert message.startswith("teacher.logits: there is no folder runs/x/_teacher_logits, and 'runs/x/_teacher_log")
        assert refusal({**recipe, "teacher": {"logits": "./x"}}) == "teacher.logits: there is no folder ./x"

    def test_weights_of_several_where_there_is_one(self, recipe):
        """Weights that weigh nothing."""
        recipe["training"]["teacher_weights"] = [1, 2]
        assert "teacher_weights and teacher_combination are for several teachers" in refusal(recipe)

    @pytest.mark.slow
    def test_more_views_than_were_kept(self):
        """Rows of the third epoch that nobody was asked about, at its beginning."""
        recipe = images()
        run({**recipe, "baseline": False})
        recipe["training"]["teacher_logits_views"] = 3
        recipe["training"]["precompute_teacher_logits"] = True
        again = {**taught(recipe), "training": recipe["training"]}
        assert refusal(again).endswith("teacher_logits_views is 3: set it to 2, or leave it out")
        del again["training"]["teacher_logits_views"], again["training"]["precompute_teacher_logits"]
        again["training"]["seed"] = 5
        assert "(made with training.seed 42 there and 5 here)" in refusal(again)
        del again["training"]["seed"]
        again["data"] = {**again["data"], "background": "black"}
        assert "(made with data.background 'white' there and 'black' here)" in refusal(again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"logits": "a/b", "model": "base"}}, "teacher: give exactly one of model, config, column, logits"),
        (
            {"teacher": {"logits": "a/b", "training": {"num_train_epochs": 1}}},
            "teacher: soft targets are no model, theirs is not loaded: leave out all but logits and revision",
        ),
        ({"teacher": {"logits": "a/b", "processor": "x"}}, "leave out all but logits and revision"),
        ({"teacher": {"logits": "a/b", "specialist": {}}}, "a specialist must be a ready model"),
        ({"teacher": [{"logits": "a/b"}, {"model": "base"}]}, "teacher.0.logits: are a teacher on their own"),
        ({"student": {"from_teacher": {"layers": [0]}}}, "student.from_teacher: the first teacher is no model of all"),
        (
            {"stages": [{"from_teacher": {"layers": [0]}}]},
            "stages.0.from_teacher: the first teacher is no model of all",
        ),
        *(
            (
                {"training": {name: value}},
                f"training.{name}: has no effect, teacher.logits are soft targets and no model",
            )
            for name, value in {
                "teacher_quantization": "8bit",
                "teacher_placement": "cpu",
                "teacher_dtype": "bfloat16",
                "teacher_label_map": {"a": "b"},
            }.items()
        ),
        *(
            (changes, f"{section}.precompute_teacher_logits: false has no effect, teacher.logits are soft targets made")
            for section, changes in {
                "training": {"training": {"precompute_teacher_logits": False}},
                "stages.0.training": {"stages": [{"model": "base", "training": {"precompute_teacher_logits": False}}]},
            }.items()
        ),
        (
            {"training": {"precompute_teacher_logits": True, "teacher_logits_dir": "x"}},
            "training.teacher_logits_dir: has no effect",
        ),
        (
            {"training": {"precompute_teacher_logits": True, "teacher_logits_views": 2}},
            "training.teacher_logits_views: has no effect, the training rows are the same in each epoch",
        ),
        (
            {"stages": [{"model": "b", "training": {"teacher_dtype": "float16"}}]},
            "stages.0.training.teacher_dtype: has no effect",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    """A setting that is silently left out."""
    recipe = digits_recipe(teacher={"logits": "a/b"}, training={})
    with pytest.raises(RecipeError) as found:
        load_recipe(recipe_file({**recipe, **changes}))
    assert message in str(found.value)


def test_naming_them_on_the_command_line_takes_the_place_of_the_teacher():
    """Two sources of one teacher, and an error about both."""
    recipe = digits_recipe(teacher={"model": "base"})
    loaded = load_recipe(recipe_file(recipe), ["teacher.logits=a/b"])
    assert (loaded.teachers[0].model, loaded.teachers[0].logits) == (None, "a/b")
