"""Whose an output folder is, what is finished in it, and where a run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill.runs.checkpoint import Checkpoint
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.workspace import Workspace, state_of

OUT = Path("out")
READING = {"teacher": {"processor": {"padding_side": "right"}, "max_length": 128}}


def recipe(**training) -> Recipe:
    values = load_recipe("vision/digits").model_dump()
    return Recipe.model_validate({**values, "training": {"alpha": 0.1, **training}})


def with_another_teacher(**training) -> Recipe:
    values = recipe(**training).model_dump()
    values["teacher"]["training"]["seed"] = 9
    return Recipe.model_validate(values)


def begun(settings: Recipe | None = None, **options) -> Workspace:
    workspace = Workspace(OUT, settings or recipe(), **options)
    workspace.begin("data", READING)
    return workspace


def leave_a_run() -> None:
    """Leave what a run leaves that is finished but for its baseline, and a file of the user's."""
    workspace = begun()
    for stage in ("teacher", "student"):
        workspace.finish(stage, save_model, {"train_seconds": 1.5})
    workspace.checkpoints("baseline").mkdir(parents=True)
    workspace.write_results("{}\n")
    workspace.release()
    (OUT / "notes.txt").write_text("mine")


def save_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")


def make_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


def contents() -> dict[str, str]:
    return {
        path.relative_to(OUT).as_posix(): path.read_text() if path.is_file() else "folder"
        for path in sorted(OUT.rglob("*"))
        if path.name not in (".lock", ".stages.json")
    }


class TestWhoseFolder:
    def test_other_data_are_refused(self):
        """The file under data.path was changed, and yesterday's models come back as if trained on it."""
        leave_a_run()
        workspace = Workspace(OUT, recipe())
        with pytest.raises(ValueError, match="holds a run on other data"):
            workspace.begin("other data", READING)
        workspace.release()
        again = Workspace(OUT, recipe(), overwrite=True)
        again.begin("other data", READING)
        again.release()
        assert not (OUT / "student").exists()

    def test_the_same_settings_go_on_with_what_is_there(self):
        """Hours of training deleted by the same command."""
        leave_a_run()
        before = contents()
        begun().release()
        assert contents() == before

    def test_other_settings_are_refused_named_and_touch_nothing(self):
        """A student of one temperature beside the results of another."""
        leave_a_run()
        before = contents()
        with pytest.raises(ValueError, match=r"other settings \(training\.temperature: [24]\.0 -> 8\.0\).*--overwrite"):
            Workspace(OUT, recipe(temperature=8.0))
        assert contents() == before
        begun().release()  # and the refused one has not kept the lock

    def test_settings_that_change_no_result_may_change(self):
        """A stopped run of hours given up, to see it in TensorBoard or to save it more often."""
        leave_a_run()
        free = {
            "logging_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 7,
            "save_steps": 7,
            "save_total_limit": 2,
            "report_to": ["tensorboard"],
        }
        begun(recipe(**free)).release()
        assert "logging_steps: 3" in contents()["recipe.yaml"]
        with pytest.raises(
            ValueError, match=r"training\.eval_steps: 'unset' -> 7; .*and 2 more"
        ):  # by its steps the best is chosen
            Workspace(OUT, recipe(**free, load_best_model_at_end=True))

    def test_a_run_that_came_to_nothing_gives_way_to_other_settings(self):
        """A mistake found in the first step would call for --overwrite, where there is nothing to delete."""
        workspace = begun()
        workspace.checkpoints("student").mkdir(parents=True)
        workspace.release()
        assert state_of(OUT, recipe(temperature=8.0)) == (None, [])
        begun(recipe(temperature=8.0)).release()
        assert "temperature: 8.0" in contents()["recipe.yaml"]

    @pytest.mark.parametrize(
        ("stage", "setting", "is_kept"),
        [
            *(("teacher", setting, True) for setting in ("seed", "temperature", "learning_rate", "tf32")),
            *(("student", setting, False) for setting in ("seed", "temperature", "learning_rate", "tf32")),
            *(("baseline", setting, setting == "temperature") for setting in ("seed", "temperature", "learning_rate")),
        ],
    )
    @pytest.mark.parametrize("is_finished", [False, True])
    def test_work_is_given_up_for_settings_that_reach_its_stage_alone(self, stage, setting, is_kept, is_finished):
        """Hours of training found by a run that would train otherwise; or refused to one that tries another alpha."""
        workspace = begun()
        if is_finished:
            workspace.finish(stage, save_model, {})
        else:
            save_model(make_parents(workspace.checkpoints(stage) / "checkpoint-1"))
        workspace.release()
        before, other = contents(), recipe(**{setting: 3})
        if is_kept:
            assert state_of(OUT, other) == ([], [stage] * is_finished)
            begun(other).release()
            after = contents()
            assert f"{setting}: 3" in after["recipe.yaml"]
            assert {**after, "recipe.yaml": before["recipe.yaml"]} == before
        else:
            with pytest.raises(ValueError, match=rf"other settings \(training\.{setting}: .* -> 3"):
                Workspace(OUT, other)
            assert contents() == before

    def test_overwriting_makes_again_what_the_settings_change(self):
        """A teacher of hours and a baseline trained again for another temperature of the student."""
        leave_a_run()
        workspace = Workspace(OUT, recipe(), overwrite=False)
        workspace.begin("data", READING)
        workspace.finish("baseline", save_model, {})
        workspace.release()
        soft_targets = make_parents(OUT / "_teacher_logits" / "key.json")
        soft_targets.write_text("{}")
        begun(recipe(temperature=8.0), overwrite=True).release()
        assert {path.name for path in OUT.iterdir() if path.is_dir()} >= {"teacher", "baseline", "_teacher_logits"}
        assert not (OUT / "student").exists()
        assert not (OUT / "results.json").exists()
        workspace = begun(recipe(temperature=8.0))
        workspace.finish("student", save_model, {})
        workspace.release()
        begun(with_another_teacher(temperature=8.0), overwrite=True).release()
        left = {path.name for path in OUT.iterdir() if path.is_dir()}
        assert left & {"teacher", "student", "baseline", "_teacher_logits"} == {"baseline"}

    def test_students_by_which_the_teachers_would_read_otherwise_are_refused(self):
        """A teacher trained on 128 tokens of a text, asked about 16 of them because a smaller student takes no more."""
        workspace = begun()
        workspace.finish("teacher", save_model, {})
        workspace.release()
        before = contents()
        workspace = Workspace(OUT, recipe(temperature=8.0))
        with pytest.raises(ValueError, match=r"\(teacher\.max_length is 128 there and 16 here\): keep .*--overwrite"):
            workspace.begin("data", {"teacher": {**READING["teacher"], "max_length": 16}})
        workspace.release()
        assert contents() == before
        (OUT / ".stages.json").unlink()
        with pytest.raises(ValueError, match=r"holds .*teacher, which no run of this version has made"):
            Workspace(OUT, recipe(temperature=8.0))

    def test_who_makes_soft_targets_is_told_what_can_be_done(self):
        """`cache` has an --overwrite, which is about a data set on the Hub and deletes no run."""
        leave_a_run()
        remedy = r"choose another folder, or make .*again.* \(`hf-distill train \.\.\. --overwrite` does\)$"
        with pytest.raises(ValueError, match=remedy):
            Workspace(OUT, with_another_teacher(), stages=["teacher"])
        Workspace(OUT, recipe(temperature=8.0), stages=["teacher"]).release()
        workspace = Workspace(OUT, recipe(), stages=["teacher"])
        with pytest.raises(ValueError, match=remedy):
            workspace.begin("other data", READING)
        workspace.release()
        (OUT / ".stages.json").unlink()
        with pytest.raises(ValueError, match=r"choose another folder, or move them away$"):
            Workspace(OUT, recipe(), stages=["teacher"])

    def test_overwrite_without_other_settings_deletes_the_run_and_leaves_the_users_files(self):
        """A folder deleted with all that is in it."""
        leave_a_run()
        workspace = begun(overwrite=True)
        assert set(contents()) == {"notes.txt", "recipe.yaml"}
        workspace.release()

    def test_nothing_is_deleted_before_the_run_begins(self):
        """A mistake in the new recipe, found on loading the data, would cost the old run."""
        leave_a_run()
        before = contents()
        Workspace(OUT, recipe(temperature=8.0), overwrite=True).release()
        assert contents() == before

    def test_a_run_that_never_began_leaves_no_trace(self):
        """The corrected recipe would be refused for the settings of the one with the mistake."""
        Workspace(OUT, recipe()).release()
        assert not OUT.exists()
        OUT.mkdir()
        Workspace(OUT, recipe()).release()
        assert OUT.exists()

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["student", "results.json", "checkpoints", "stages"])
    def test_a_folder_that_no_run_has_made_is_refused(self, name, overwrite):
        """A folder student/ with somebody's work would be replaced, and --overwrite deleted it without a word."""
        (OUT / name).mkdir(parents=True)
        with pytest.raises(ValueError, match=f"out holds {name}, which no run of this version has made.*--overwrite"):
            Workspace(OUT, recipe(), overwrite=overwrite)
        assert (OUT / name).is_dir()

    def test_a_student_that_is_not_the_runs_is_not_deleted_with_it(self):
        """Beside a teacher that a run has made there was a folder student/ of somebody's."""
        begun(stages=["teacher"]).release()
        thesis = make_parents(OUT / "student" / "thesis.tex")
        thesis.write_text("mine")
        with pytest.raises(ValueError, match="out holds student, which no run of this version has made"):
            Workspace(OUT, recipe(), overwrite=True)
        assert thesis.read_text() == "mine"

    def test_tensorboards_events_go_with_their_run_and_are_no_work(self):
        """Curves taken for a stranger's files, for hours of training, or left beside those of the next run."""
        begun().release()
        events = make_parents(OUT / "tensorboard" / "student" / "events")
        events.write_text("")
        begun().release()
        assert state_of(OUT, recipe(temperature=8.0)) == (None, [])
        begun(recipe(temperature=8.0)).release()
        assert events.exists()
        workspace = begun(recipe(temperature=8.0))
        workspace.finish("student", save_model, {})
        workspace.release()
        assert events.exists()
        begun(overwrite=True).release()
        assert not events.exists()

    def test_other_files_are_no_obstacle(self):
        """Notes and logs beside the results."""
        OUT.mkdir()
        (OUT / "notes.txt").write_text("mine")
        begun().release()
        assert contents()["notes.txt"] == "mine"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_users_own_recipe_is_never_replaced(self, overwrite):
        """With output_dir: . the run would write its settings over the recipe that it was started with."""
        OUT.mkdir()
        (OUT / "recipe.yaml").write_text("task: mine  # with my notes\n")
        with pytest.raises(ValueError, match="was not written by a run"):
            Workspace(OUT, recipe(), overwrite=overwrite)
        assert contents() == {"recipe.yaml": "task: mine  # with my notes\n"}

    @pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
    def test_a_path_that_is_a_file_or_below_one_is_refused(self, path):
        """A traceback, or the file replaced by a folder."""
        Path("file").write_text("mine")
        with pytest.raises(ValueError, match=f"output_dir: cannot write to {path}: .*Choose another folder"):
            Workspace(Path(path), recipe())
        assert Path("file").read_text() == "mine"


class TestLock:
    HOLD = """
import sys
from pathlib import Path
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.workspace import Workspace
workspace = Workspace(Path("out"), load_recipe("vision/digits"))
workspace.begin("data", {})
print("held", flush=True)
sys.stdin.read()
"""

    @pytest.mark.slow
    def test_a_second_process_is_refused_until_the_first_has_ended(self):
        """Two runs that write checkpoints over each other; a lock that outlives a killed run."""
        with subprocess.Popen(
            [sys.executable, "-c", self.HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as first:
            try:
                assert first.stdout.readline() == "held\n"
                for overwrite in (False, True):
                    with pytest.raises(ValueError, match="output_dir: another process is working in out"):
                        Workspace(OUT, load_recipe("vision/digits"), overwrite=overwrite)
                assert (OUT / "recipe.yaml").exists()
            finally:
                first.kill()
        begun(load_recipe("vision/digits")).release()

    def test_other_processes_of_the_same_run_need_no_lock(self):
        """Two processes on two GPUs would wait for each other."""
        main = begun()
        other = Workspace.attached(OUT)
        assert other.model_folder("student") == main.model_folder("student")
        other.release()
        with pytest.raises(ValueError, match="another process"):
            Workspace(OUT, recipe())
        main.release()


class TestStages:
    @pytest.fixture
    def workspace(self):
        workspace = begun()
        yield workspace
        workspace.release()

    def test_a_finished_stage_has_its_model_and_record_and_no_checkpoints(self, workspace):
        """Checkpoints are several times the size of the model."""
        workspace.checkpoints("student").mkdir(parents=True)
        assert workspace.record("student") is None
        workspace.finish("student", save_model, {"train_seconds": 1.5})
        assert workspace.record("student") == {"train_seconds": 1.5}
        assert (workspace.model_folder("student") / "model.safetensors").read_text() == "weights"
        assert not workspace.checkpoints("student").exists()

    def test_a_model_without_its_record_is_not_finished(self, workspace):
        """Killed between the two: the time that training took would be lost."""
        save_model(workspace.model_folder("student"))
        assert workspace.record("student") is None
        workspace.finish("student", save_model, {"train_seconds": 2.0})
        assert workspace.record("student") == {"train_seconds": 2.0}

    def test_a_record_without_its_model_is_not_finished(self, workspace):
        """A model deleted to have it trained again."""
        workspace.finish("teacher", save_model, {})
        workspace.model_folder("teacher").rename(OUT / "elsewhere")
        assert workspace.record("teacher") is None

    def test_a_model_that_was_not_saved_to_its_end_never_has_its_name(self, workspace):
        """Half a model taken for a whole one after a restart."""

        def killed(folder: Path) -> None:
            save_model(folder)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            workspace.finish("student", killed, {})
        assert not workspace.model_folder("student").exists()
        assert workspace.record("student") is None
        workspace.release()
        begun().release()
        assert set(contents()) == {"recipe.yaml"}  # the half is gone

    def test_the_state_of_a_folder_is_told_without_touching_it(self):
        """`check` must not make what it only looks at."""
        assert state_of(OUT, recipe()) == (None, [])
        assert not OUT.exists()
        leave_a_run()
        before = contents()
        assert state_of(OUT, recipe()) == ([], ["teacher", "student"])
        assert state_of(OUT, recipe(seed=3)) == (["training.seed: 42 -> 3"], ["teacher", "student"])
        assert contents() == before


class TestCheckpoints:
    @pytest.fixture
    def workspace(self):
        workspace = begun()
        yield workspace
        workspace.release()

    def checkpoint(self, workspace: Workspace, step: int, *, max_steps: int = 100) -> Path:
        folder = workspace.checkpoints("student") / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": max_steps}))
        return folder

    def test_the_newest_is_the_one_with_most_steps(self, workspace):
        """By name checkpoint-9 comes after checkpoint-10."""
        for step in (9, 10, 8):
            self.checkpoint(workspace, step)
        assert workspace.last_checkpoint("student").step == 10
        assert workspace.last_checkpoint("teacher") is None

    @pytest.mark.parametrize("state", ['{"global_step": 20, "max_st', "", "{}", None])
    def test_one_that_is_half_written_is_passed_over(self, workspace, state):
        """A run killed while saving could never go on."""
        self.checkpoint(workspace, 10)
        half = self.checkpoint(workspace, 20)
        if state is None:
            (half / "trainer_state.json").unlink()
        else:
            (half / "trainer_state.json").write_text(state)
        assert workspace.last_checkpoint("student").step == 10

    def test_it_knows_the_time_that_it_took_and_whether_it_is_the_last(self, workspace):
        """A finished training that is trained one step more; seconds before the restart forgotten."""
        first, last = self.checkpoint(workspace, 10), self.checkpoint(workspace, 100)
        (last / "seconds.json").write_text("12.5")
        assert (Checkpoint.read(first).is_final, Checkpoint.read(first).seconds) == (False, 0.0)
        assert (Checkpoint.read(last).is_final, Checkpoint.read(last).seconds) == (True, 12.5)

    @pytest.mark.parametrize("seconds", ["", "1", None])
    def test_a_run_goes_on_though_it_was_killed_before_its_time_was_noted(self, workspace, seconds):
        """Killed between opening and writing seconds.json, a run was refused at every restart."""
        folder = self.checkpoint(workspace, 10)
        if seconds is not None:
            (folder / "seconds.json").write_text(seconds)
        checkpoint = workspace.last_checkpoint("student")
        assert (checkpoint.step, checkpoint.seconds) == (10, float(seconds or 0))
