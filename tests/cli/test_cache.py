"""Soft targets made by `hf-distill cache`, and runs that go on from there."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import tiny
import torch
import transformers
import yaml
from safetensors.torch import load_file
from sharing import TARGETS, asked_about, recipe_file

from hf_distill.cli import main as cli
from hf_distill.evaluation.results import Results
from hf_distill.hub.card.dataset_card import target_card
from hf_distill.hub.destination import Destination
from hf_distill.runs.cache import cache_soft_targets, share_soft_targets
from hf_distill.runs.recipe.describe import plan
from hf_distill.runs.recipe.reading import load_recipe, with_all
from hf_distill.runs.stages import Run
from hf_distill.runs.teacher_info import read_info
from hf_distill.runs.train import distill
from hf_distill.teachers.cache.key import read_key
from hf_distill.training.trainer import DistillationTrainer
from tests.runs.test_teachers_in_recipes import ensemble_recipe
from tests.runs.test_train import SMALL, digits_recipe, run, save_base, text_recipe

pytest_plugins = ["pushing_fixture"]

ON = "training.precompute_teacher_logits=true"
SWITCH_ON = {**SMALL, "num_train_epochs": 2, "precompute_teacher_logits": True}
ANY = {"allow_untrained_teacher": True}
COMPARED = 8  # rows of each data set that a run looks at again, at most


def weights(run: str = "out", stage: str = "student") -> dict:
    return load_file(f"{run}/{stage}/model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def shards(folder: str | Path = TARGETS) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.safetensors")}


class TestCommand:
    @pytest.mark.slow
    def test_train_goes_on_from_there_and_asks_about_no_row(self, command, caplog, monkeypatch):
        """A night of the teacher's answers that `train` looks for elsewhere, or under another key."""
        count = asked_about(monkeypatch)
        recipe = recipe_file(digits_recipe())
        code, out, err = command("cache", recipe)
        assert (code, err) == (0, "")
        size = sum(map(len, shards().values()))
        lines = out.splitlines()[-2:]
        assert (
            lines[0]
            == f"Soft targets of 850 rows are in {TARGETS}: {size / 2**20:.2f} MiB, {size / 850:.0f} bytes a row."
        )
        assert re.fullmatch(
            r"Teacher accuracy 0\.\d{4}, f1 0\.\d{4}\. Soft targets: 850 computed, 0 already cached \(.+ s\)\.",
            lines[1],
        )
        assert count.total - 850 <= 2 * 2 * COMPARED
        assert not Path("out/student").exists()
        before, teacher = shards(), weights(stage="teacher")
        code, out, err = command("cache", recipe)
        assert (code, err) == (0, "")
        assert "Soft targets: 0 computed, 850 already cached (" in out.splitlines()[-1]
        transformers.logging.set_verbosity_info()
        count.total = 0
        try:
            assert command("train", recipe, ON)[0] == 0
        finally:
            transformers.logging.set_verbosity_error()
        assert count.total <= 2 * 2 * COMPARED
        assert not [line for line in caplog.messages if line.startswith("Soft targets: made")]
        assert shards() == before
        assert same(weights(stage="teacher"), teacher)
        found = Results.read(Path("out"))
        again = run(digits_recipe(training=SWITCH_ON, output_dir="again"))
        assert same(weights(), weights("again"))
        assert same(weights(stage="baseline"), weights("again", "baseline"))
        assert found.teacher.metrics == again.teacher.metrics
        assert found.agreement == again.agreement

    def test_train_without_them_keeps_the_teacher(self, command):
        """The folder refused, or the teacher trained once more, because soft targets were made for another recipe."""
        recipe = recipe_file(digits_recipe(baseline=False))
        assert command("cache", recipe)[0] == 0
        stamp = Path("out/teacher/model.safetensors").stat().st_mtime_ns
        code, _, err = command("train", recipe)
        assert (code, err) == (0, "")
        assert Path("out/teacher/model.safetensors").stat().st_mtime_ns == stamp
        assert "precompute_teacher_logits" not in load_recipe("out/recipe.yaml").training

    @pytest.mark.slow
    def test_other_students_learn_from_the_teachers_that_are_there_until_one_is_begun(self, command, monkeypatch):
        """An hour's teachers to be trained again for one who tries another student; or a run of two students."""
        recipe = text_recipe(training={**SMALL, "num_train_epochs": 2, **ANY})
        first = recipe["teacher"]
        recipe["teacher"] = [first, {**first, "training": {**first["training"], "seed": 1}}]
        recipe_file({**recipe, "stages": [{"model": "base", "training": {"seed": 5}}]})
        assert command("cache", "recipe.yaml")[0] == 0
        before, teachers = shards(), [weights(stage=f"teacher-{number}") for number in (1, 2)]
        stamps = [Path(f"out/teacher-{number}").stat().st_mtime_ns for number in (1, 2)]
        count = asked_about(monkeypatch)
        other = {**recipe, "student": {"from_teacher": {"layers": [1]}}, "baseline": False}
        other["training"] |= {"num_train_epochs": 1, "temperature": 3.0, "precompute_teacher_logits": True}
        code, out, err = command("cache", recipe_file(other), "training.learning_rate=0.5")
        assert (code, err) == (0, "")
        assert "Soft targets: 0 computed, " in out
        assert command("train", "recipe.yaml")[::2] == (0, "")
        assert count.total <= 2 * 2 * 2 * COMPARED
        assert shards() == before
        assert all(same(weights(stage=f"teacher-{number}"), teachers[number - 1]) for number in (1, 2))
        assert [Path(f"out/teacher-{number}").stat().st_mtime_ns for number in (1, 2)] == stamps
        assert load_recipe("out/recipe.yaml") == with_all(load_recipe("recipe.yaml"))
        found = weights()
        run({**other, "output_dir": "again"})
        assert same(found, weights("again"))
        code, _, err = command("train", recipe_file(other), "training.temperature=4.0")
        assert code == 2
        assert "holds a run with other settings (training.temperature: 3.0 -> 4.0)" in err
        assert command("cache", "recipe.yaml", "training.temperature=4.0")[0] == 0  # the teacher is the same
        assert "temperature: 3.0" in Path("out/recipe.yaml").read_text()

    @pytest.mark.slow
    def test_a_student_for_whom_the_teacher_would_read_otherwise_is_refused(self, command):
        """A teacher trained on whole sentences that hears four of their tokens, since a student takes no more."""
        assert command("cache", recipe_file(text_recipe(baseline=False, training={**SMALL, **ANY})))[0] == 0
        save_base("short", max_position_embeddings=4)
        code, _, err = command("train", "recipe.yaml", "student.model=short")
        assert code == 2
        assert "(teacher.max_length is 32 there and 4 here): keep the students' models and processors, choose" in err
        assert not Path("out/student").exists()
        assert command("train", "recipe.yaml", "student.model=short", "--overwrite")[0] == 0

    @pytest.mark.slow
    def test_a_finished_run_stays_as_it_is(self, command):
        """A recipe.yaml that says that the student learnt from soft targets which were made after it."""
        recipe = recipe_file(digits_recipe(baseline=False))
        assert command("train", recipe)[0] == 0
        kept = {name: Path("out", name).read_bytes() for name in ("recipe.yaml", "results.json")}
        assert command("cache", recipe)[0] == 0
        assert shards()
        assert {name: Path("out", name).read_bytes() for name in kept} == kept
        assert command("train", recipe)[0] == 0
        code, _, err = command("train", recipe, ON)
        assert code == 2
        assert "training.precompute_teacher_logits: 'unset' -> True" in err

    def test_what_is_mended_was_asked_about(self, command):
        """`0 computed`, where the teacher had to be run over all of them again."""
        recipe = recipe_file(digits_recipe(baseline=False))
        assert command("cache", recipe)[0] == 0
        (shard,) = Path(TARGETS).glob("*.safetensors")
        content = shard.read_bytes()
        shard.write_bytes(content[:-8])
        code, out, _ = command("cache", recipe)
        assert code == 0
        assert shard.read_bytes() == content
        assert "Soft targets: 850 computed, 0 already" in out

    def test_the_folder_that_the_recipe_names_is_filled(self, command):
        """Two places for one thing."""
        training = {**SMALL, "num_train_epochs": 1, "precompute_teacher_logits": True, "teacher_logits_dir": "kept"}
        recipe = recipe_file(digits_recipe(baseline=False, training=training))
        assert command("cache", recipe, "training.teacher_logits_dtype=float32")[0] == 0
        assert json.loads(Path("kept/key.json").read_text())["logits"]["dtype"] == "float32"
        assert not Path(TARGETS).exists()

    @pytest.mark.slow
    def test_overwriting_a_run_removes_soft_targets_of_a_teacher_that_is_trained_again(self, command):
        """A refusal, after the training, of soft targets that nobody has asked to keep."""
        recipe = recipe_file(digits_recipe(baseline=False))
        assert command("cache", recipe)[0] == 0
        code, _, err = command("cache", recipe, "teacher.training.seed=7")
        assert code == 2
        assert err.endswith("or make again what they change (`hf-distill train ... --overwrite` does)")
        code, _, err = command("train", recipe, ON, "teacher.training.seed=7", "--overwrite")
        assert (code, err) == (0, "")

    @pytest.mark.slow
    def test_views_of_augmented_rows_are_all_made(self, command, monkeypatch):
        """The second epoch's rows are asked about by `train`."""
        recipe = digits_recipe(baseline=False, training={**SWITCH_ON, "teacher_logits_views": 2, **ANY})
        recipe["data"] |= {"augment": {"crop_padding": 1}, "max_train_rows": 60}
        _, out, _ = command("cache", recipe_file(recipe))
        assert "Soft targets of 570 rows" in out
        before = shards()
        code, _, err = command("train", "recipe.yaml")
        assert (code, err) == (0, "")
        assert shards() == before

    @pytest.mark.slow
    def test_the_first_stage_is_the_one_that_is_taught(self, command):
        """Soft targets for the last student, whom the teacher does not teach."""
        recipe = digits_recipe(baseline=False)
        recipe["stages"] = [{"config": recipe["student"]["config"], "training": {"seed": 3}}]
        assert command("cache", recipe_file(recipe))[0] == 0
        before = shards()
        assert command("train", "recipe.yaml", ON)[0] == 0
        assert shards() == before
        assert not Path("out/checkpoints/stage-1").exists()

    def test_rows_to_judge_on_are_asked_about_too(self, command):
        """The results at the end of `train` need a teacher that is not there any more."""
        recipe = text_recipe(baseline=False, training={**SMALL, "num_train_epochs": 1, **ANY})
        recipe["data"] |= {"eval_split": 0.45, "test_split": "validation"}  # of the 80 rows that have labels
        assert command("cache", recipe_file(recipe))[0] == 0
        known = json.loads(Path(TARGETS, "teacher.json").read_text())["data"]
        assert known["num_rows"] == {"train": 60, "evaluation": 36, "test": 40}
        key = read_key(Path(TARGETS))
        card = target_card(key, read_info(Path(TARGETS), key), num_rows=136, num_bytes=1, repo_id="ada/x").text
        assert ": train, a held-out 45% of train, validation |" in card
        assert "\n  eval_split: 0.45\n" in card
        before = shards()
        code, _, err = command("train", "recipe.yaml", ON)
        assert (code, err) == (0, "")
        assert shards() == before

    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            ({"column": "teacher_probs"}, "teacher.column: these are soft targets already, there is no teacher to ask"),
            ({"logits": "ada/x"}, "teacher.logits: these are soft targets already, there is no teacher to ask"),
        ],
    )
    def test_a_recipe_without_a_teacher_is_refused(self, command, teacher, message):
        """An empty folder, or a traceback."""
        code, _, err = command("cache", recipe_file(digits_recipe(teacher=teacher, baseline=False)))
        assert (code, err) == (2, f"error: {message}")
        assert not Path("out").exists()

    @pytest.mark.parametrize("option", ["--private", "--revision=x", "--create-pr", "--overwrite", "--dry-run"])
    def test_options_of_the_hub_need_one(self, command, option):
        """`--private` for something that is then shared by hand; `--dry-run`, and the teacher is asked all the same."""
        code, _, err = command("cache", recipe_file(digits_recipe()), option)
        assert code == 2
        assert err.endswith("--create-pr, --overwrite and --dry-run belong to --push REPO_ID")
        assert not Path("out").exists()

    @pytest.mark.slow
    def test_killed_in_the_middle_it_goes_on(self):
        """All of a night's work done again, or half of it taken for the whole."""
        recipe = recipe_file(digits_recipe())
        program = (
            "import sys, time; from hf_distill.cli import main as cli; from hf_distill.teachers.cache import builder\n"
            "from hf_distill.teachers.cache import shards\n"
            "run = builder.CacheBuilder._run_teacher\n"
            "builder.CacheBuilder._run_teacher = lambda *a: (time.sleep(0.3), run(*a))[1]\n"
            "shards._FLUSH_BYTES = 0\n"
            "sys.argv = ['hf-distill', 'cache', 'recipe.yaml']; cli.main()"
        )
        process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(shards()) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        left, teacher = shards(), weights(stage="teacher")
        found = cache_soft_targets(load_recipe(recipe, [ON]), "recipe")
        assert found.num_rows == 850
        assert 0 < found.num_computed < 850 - 3 * 32 + 1
        assert left.items() <= shards().items()
        assert same(weights(stage="teacher"), teacher)

    @pytest.mark.slow
    def test_two_processes_share_the_work_and_train_goes_on_from_there(self):
        """A process that waits for ever for one that has come to its end; a folder of half of the rows."""
        recipe_file(digits_recipe(baseline=False))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        for verb in ("cache", "train"):
            ended = subprocess.run(
                [*command, "-m", "hf_distill", verb, "recipe.yaml", ON],
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert ended.returncode == 0, ended.stderr
            if verb == "cache":
                assert ended.stdout.count("Soft targets of 850 rows are in") == 1
                before = shards()
        assert len(before) >= 2
        assert shards() == before
        assert Path("out/student").is_dir()


class TestWhatIsRefused:
    @pytest.mark.parametrize("name", ["out", "out/student", "out/baseline/x", "out/checkpoints", "out/teacher", "."])
    def test_soft_targets_where_the_run_has_its_models(self, name):
        """`train` puts the student in their place, and they are gone."""
        recipe = digits_recipe(training={**SWITCH_ON, "teacher_logits_dir": name})
        with pytest.raises(ValueError, match=r"training\.teacher_logits_dir: .* is where the run has its models"):
            run(recipe)
        assert not Path("out").exists()
        with pytest.raises(ValueError, match=r"training\.teacher_logits_dir: .* is where the run has its models"):
            plan(load_recipe("recipe.yaml"))

    @pytest.mark.slow
    def test_a_run_is_not_deleted_for_one_that_finds_another_teachers_soft_targets(self):
        """The teacher is trained anew for an hour, and only then is the folder refused."""
        training = {**SWITCH_ON, "teacher_logits_dir": "kept"}
        recipe = digits_recipe(training=training, baseline=False)
        run(recipe)
        before = weights()
        recipe["teacher"]["training"] |= {"num_train_epochs": 1}
        with pytest.raises(
            ValueError, match=r"training\.teacher_logits_dir: kept holds soft targets, and the teacher of"
        ):
            run(recipe, overwrite=True)
        assert same(weights(), before)
        recipe["training"]["teacher_logits_dir"] = "others"
        run(recipe, overwrite=True)

    def test_a_teacher_at_chance_is_told_and_not_shared(self, monkeypatch, capsys):
        """`train` refuses it, after somebody has waited for its answers, or downloaded them."""
        recipe = text_recipe(training=SWITCH_ON)
        rows = Path("data/validation.jsonl")
        turned = {"positive": "negative", "negative": "positive"}
        rows.write_text(re.sub("positive|negative", lambda found: turned[found[0]], rows.read_text()))
        monkeypatch.setattr(sys, "argv", ["hf-distill", "cache", str(recipe_file(recipe))])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert "\nwarning: the teacher does not predict the evaluation labels in their order (accuracy 0" in (
            f"\n{capsys.readouterr().err}"
        )
        cached = cache_soft_targets(load_recipe("recipe.yaml"), "sentences")
        with pytest.raises(
            ValueError, match=r"nothing was pushed, the teacher .*class 0 fits label 1.*_teacher=true to use"
        ):
            share_soft_targets(cached, Destination("ada/x", kind="dataset"))
        recipe["training"]["allow_untrained_teacher"] = True
        assert cache_soft_targets(load_recipe(recipe_file(recipe)), "digits").warning is None


class TestTheTeacherIsGone:
    """Its memory is free while students are trained."""

    @pytest.fixture
    def watched(self, monkeypatch) -> list[tuple[str, list[bool]]]:
        """Return what is left of the teachers whenever a training begins: which of their models are still there."""
        models: list[weakref.ref] = []
        seen: list[tuple[str, list[bool]]] = []
        teachers, train = Run.teachers, DistillationTrainer.train

        def noted(stages: Run) -> list:
            members = teachers(stages)
            models.extend(weakref.ref(member.model) for member in members)
            return members

        def listening(trainer: DistillationTrainer, *args: object, **kwargs: object) -> object:
            if models:
                seen.append((Path(trainer.args.output_dir).name, [model() is not None for model in models]))
            return train(trainer, *args, **kwargs)

        monkeypatch.setattr(Run, "teachers", noted)
        monkeypatch.setattr(DistillationTrainer, "train", listening)
        return seen

    @pytest.mark.slow
    def test_in_the_training_of_the_student_and_of_the_baseline(self, watched):
        """A teacher of 30 GiB in the memory of a training that does not run it."""
        run(digits_recipe(training=SWITCH_ON))
        assert watched == [("student", [False]), ("baseline", [False])]

    @pytest.mark.slow
    def test_each_of_several(self, watched):
        """One of them is let go, and the other stays."""
        run(ensemble_recipe(training={"precompute_teacher_logits": True}))
        assert watched == [("student", [False, False]), ("baseline", [False, False])]

    @pytest.mark.slow
    def test_a_ready_one_with_stages(self, watched):
        """A later stage is taught by the one before it, and needs no teacher."""
        recipe = digits_recipe(training=SWITCH_ON)
        run({**recipe, "baseline": False, "output_dir": "first"})
        watched.clear()
        run({**recipe, "teacher": {"model": "first/teacher"}, "stages": [recipe["student"]]})
        assert watched[0][0] == "stage-1"
        assert [alive[-1] for _, alive in watched] == [False, False, False]

    @pytest.mark.slow
    @pytest.mark.parametrize("is_ready", [False, True])
    def test_one_that_the_student_is_made_of_is_loaded_again_for_that_alone(self, watched, is_ready):
        """Kept for its layers it takes the memory all along; lost, the student starts from other weights."""
        recipe = text_recipe(training={**SWITCH_ON, **tiny.SGD, "temperature": 2.0, "teacher_logits_dtype": "float32"})
        if is_ready:
            run(text_recipe(output_dir="first", baseline=False))
            recipe["teacher"] = {"model": "first/teacher"}
            watched.clear()
        run(recipe)
        assert [alive[-1] for _, alive in watched] == [False, False]
        student = weights()
        online = {name: value for name, value in recipe["training"].items() if "logits" not in name}
        run({**recipe, "training": online, "output_dir": "online"})
        torch.testing.assert_close(weights("online"), student, rtol=0, atol=1e-5)  # to the last bits of other batches

    def test_it_stays_where_it_is_asked_in_each_step(self, watched):
        """What the other tests see is not the whim of a garbage collector."""
        run(digits_recipe(baseline=False))
        assert watched == [("student", [True])]

    @pytest.mark.slow
    def test_a_run_that_is_started_again_ends_the_same(self):
        """Its student, stopped on the way, learns on without a teacher, and from the same soft targets."""
        first = run(digits_recipe(training=SWITCH_ON))
        student, before = weights(), shards()
        shutil.rmtree("out/student")
        Path("out/stages/student.json").unlink()
        second = run(digits_recipe(training=SWITCH_ON))
        assert same(weights(), student)
        assert shards() == before
        assert second.teacher.metrics == first.teacher.metrics
        assert second.agreement == first.agreement

    @pytest.mark.slow
    def test_it_is_not_asked_about_training_rows_for_results_that_are_there(self):
        """The folder was deleted to save room, and a finished run makes all of it once more."""
        run(digits_recipe(training=SWITCH_ON))
        shutil.rmtree(TARGETS)
        distill(load_recipe("recipe.yaml"), "recipe")
        assert not shards()  # the results are there, and nothing is computed
        Path("out/results.json").unlink()
        distill(load_recipe("recipe.yaml"), "recipe")
        assert yaml.safe_load(Path("out/recipe.yaml").read_text())["training"]["precompute_teacher_logits"]
        assert len(next(iter(shards().values()))) < 450 * 60  # of the evaluation rows alone
