"""A run's output folder: what is finished in it, where to go on, and whose it is."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from hf_distill.runs.recipe.reading import differences, is_of_the_cache, is_of_the_students, read_resolved, to_yaml
from hf_distill.runs.recipe.schema import SOFT_TARGETS, Recipe
from hf_distill.teachers.cache.key import KEY_FILE, key_differences

_MARK = "# Written by hf-distill: all settings of the run in this folder.\n"
_DATA = ".data_fingerprint"
_READING = ".teachers_reading.json"
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's events in a run's output folder, with a folder in it for each stage."""

_NOTES = ("recipe.yaml", _DATA, _READING, TENSORBOARD)
_STAGE = re.compile(r"teacher|student|baseline|(teacher|stage)-\d+")


class Workspace:
    """The output folder of one run, held until `release`; `begin` is the first to write or delete anything in it.

    A stage's model appears under its final name only when it is whole (it is written beside and renamed), and a
    record of the stage in `stages/` only after that, so a run killed at any moment finds out where it was.

    Raises:
        ValueError: the folder cannot be written, holds a run with other settings or files that a run would replace, or
            is in use by another process.
    """

    def __init__(self, path: Path, recipe: Recipe, *, overwrite: bool = False, makes_targets: bool = False) -> None:
        self.path = path
        self._recipe = recipe
        self._overwrite = overwrite
        self._makes_targets = makes_targets
        self._leaves_no_trace = not path.exists()  # until the run begins
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"output_dir: another process is working in {path}: wait for it, or stop it") from error
        except OSError as error:
            raise ValueError(
                f"output_dir: cannot write to {path}: {error.strerror or error}. Choose another folder."
            ) from error
        try:
            self._check_not_foreign_recipe()
            if not overwrite:
                self._check_other_runs()
        except ValueError:
            self.release()
            raise

    @classmethod
    def attached(cls, path: Path) -> "Workspace":
        """Return the workspace that the main process of this run has opened already."""
        workspace = cls.__new__(cls)
        workspace.path = path
        workspace._lock = FileLock(path / ".lock")
        workspace._leaves_no_trace = False
        return workspace

    def begin(self, data_fingerprint: str, reading: Mapping[str, Any]) -> None:
        """Make room for the run, and note its settings and data: from here on the folder is its own.

        Raises:
            ValueError: the folder holds work on other data, or teachers that were trained to read in another way.
        """
        noted = self.path / _DATA
        is_other = noted.exists() and noted.read_text(encoding="utf-8") != data_fingerprint
        if is_other and not self._overwrite and _holds_work(self.path):
            raise ValueError(
                f"output_dir: {self.path} holds a run on other data{self._or_other_targets()}, the recipe's have "
                f"changed since: choose another folder, or {self._how_to_delete('that run')}"
            )
        has_students = _holds_students(self.path)
        if not self._overwrite and not has_students:
            self._check_reading(reading)
        if self._overwrite:
            self._check_targets_of_another()
            if self._recipe.teacher_stages() or self._is_of_another_teacher():
                shutil.rmtree(self.path / SOFT_TARGETS, ignore_errors=True)
            for entry in _entries(self.path):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        for stage in self._recipe.stage_names():
            shutil.rmtree(self._part(stage), ignore_errors=True)
        for stage in finished_stages(self.path):  # killed between its last two steps, `finish` leaves them
            shutil.rmtree(self.checkpoints(stage), ignore_errors=True)
        self._leaves_no_trace = False
        if not (self._makes_targets and has_students):
            self._write("recipe.yaml", _MARK + to_yaml(self._recipe))
        self._write(_DATA, data_fingerprint)
        if self._overwrite or not has_students:
            self._write(_READING, json.dumps(reading))

    def _how_to_delete(self, what: str) -> str:
        # `cache` has an --overwrite, too, but it is about a data set on the Hub.
        if self._makes_targets:
            return f"delete {what} (`hf-distill train ... --overwrite` does)"
        return f"pass --overwrite to delete {what}"

    def _check_reading(self, reading: Mapping[str, Any]) -> None:
        """Raise ValueError if teachers were trained, or begun, on rows that were read in another way."""
        if not (self.path / _READING).exists() or not _holds_work(self.path):
            return
        differing = key_differences(json.loads((self.path / _READING).read_text(encoding="utf-8")), reading)
        if differing:
            raise ValueError(
                f"output_dir: {self.path} holds teachers that read in another way than beside this recipe's students "
                f"({differing}): keep the students' models and processors, choose another folder, or "
                f"{self._how_to_delete('that run')}"
            )

    def _or_other_targets(self) -> str:
        if self._recipe.teachers[0].logits is None:
            return ""
        return " or from other soft targets (those of a commit are named by teacher.revision)"

    def _check_targets_of_another(self) -> None:
        """Raise ValueError, before anything is deleted, if the run would find soft targets of the teacher that goes."""
        named = self._recipe.training.get("teacher_logits_dir")
        if named is None or not (Path(named).expanduser() / KEY_FILE).exists():
            return
        if (self.path / "recipe.yaml").exists() and self._is_of_another_teacher():
            raise ValueError(
                f"training.teacher_logits_dir: {named} holds soft targets, and the teacher of the run in {self.path} "
                "was another one: name another folder, or delete that one"
            )

    def _is_of_another_teacher(self) -> bool:
        """Tell whether the run that is here may have had other teachers than this one."""
        if not (self.path / "recipe.yaml").exists():
            return True
        try:
            changed = differences(read_resolved(self.path / "recipe.yaml"), self._recipe)
        except ValueError:
            return True
        return any(line.startswith("teacher") for line in changed)

    def _check_not_foreign_recipe(self) -> None:
        file = self.path / "recipe.yaml"
        if file.exists() and not file.read_bytes().startswith(_MARK.encode()):
            raise ValueError(
                f"output_dir: {file} was not written by a run, and this one would replace it: choose another folder"
            )

    def _check_other_runs(self) -> None:
        if not (self.path / "recipe.yaml").exists():
            present = [entry.name for entry in _entries(self.path) if entry.exists()]
            if present:
                raise ValueError(
                    f"output_dir: {self.path} holds {', '.join(present)}, which no run recorded here has made and this "
                    f"run would replace: choose another folder, or {self._how_to_delete('them')}"
                )
            return
        try:
            changed = _differing(self.path, self._recipe, makes_targets=self._makes_targets)
        except (ValidationError, ValueError) as error:
            raise ValueError(
                f"output_dir: {self.path / 'recipe.yaml'} is not a recipe that this version can read, so its settings "
                f"cannot be compared: choose another folder, or {self._how_to_delete('that run')}"
            ) from error
        if changed and _holds_work(self.path):
            raise ValueError(
                f"output_dir: {self.path} holds a run with other settings ({'; '.join(changed)}): choose another "
                f"folder, or {self._how_to_delete('that run')}"
            )

    def release(self) -> None:
        """Let other processes in; a folder that was made for a run that never began is removed."""
        if self._leaves_no_trace:
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
                self.path.rmdir()
        self._lock.release()

    def model_folder(self, stage: str) -> Path:
        """Return where a stage's model is, or will be."""
        return self.path / stage

    def checkpoints(self, stage: str) -> Path:
        """Return where a stage's checkpoints are."""
        return self.path / "checkpoints" / stage

    def record(self, stage: str) -> dict[str, Any] | None:
        """Return what a finished stage has recorded, or None if it is not finished."""
        if stage not in finished_stages(self.path):
            return None
        return json.loads((self.path / "stages" / f"{stage}.json").read_text(encoding="utf-8"))

    def finish(self, stage: str, save: Callable[[Path], None], record: dict[str, Any]) -> None:
        """Save a stage's model and record, and drop the checkpoints that led to it."""
        part = self._part(stage)
        shutil.rmtree(part, ignore_errors=True)
        save(part)
        shutil.rmtree(self.model_folder(stage), ignore_errors=True)
        part.rename(self.model_folder(stage))
        self._write(f"stages/{stage}.json", json.dumps(record, indent=2) + "\n")
        shutil.rmtree(self.checkpoints(stage), ignore_errors=True)

    def write_results(self, text: str) -> Path:
        """Write results.json."""
        return self._write("results.json", text)

    def last_checkpoint(self, stage: str) -> "Checkpoint | None":
        """Return the newest checkpoint of a stage that was written to its end."""
        found = [Checkpoint.read(folder) for folder in self.checkpoints(stage).glob("checkpoint-*")]
        return max((c for c in found if c is not None), key=lambda c: c.step, default=None)

    def _part(self, stage: str) -> Path:
        return self.path / f".{stage}.part"

    def _write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        write_whole(file, text)
        return file


def write_whole(file: Path, text: str) -> None:
    """Write a file so that a kill, whenever it comes, leaves the old one or the new one, never a part."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def check_folders_apart(recipe: Recipe) -> None:
    """Refuse soft targets in a folder that a run writes, moves or deletes for other reasons.

    Raises:
        ValueError: the message names the setting.
    """
    run = Path(recipe.output_dir).expanduser().resolve()
    for setting, named in (
        ("teacher.logits", recipe.teachers[0].logits),
        ("training.teacher_logits_dir", recipe.training.get("teacher_logits_dir")),
        *(
            (f"stages.{i}.training.teacher_logits_dir", stage.training.get("teacher_logits_dir"))
            for i, stage in enumerate(recipe.stages)
        ),
    ):
        if named is None or (setting == "teacher.logits" and not Path(named).expanduser().exists()):
            continue
        folder = Path(named).expanduser().resolve()
        inside = folder.parts[len(run.parts) :] if folder.is_relative_to(run) else None
        is_own = inside is not None and (not inside or not inside[0].startswith("_"))
        if setting == "teacher.logits" and (inside is not None or run.is_relative_to(folder)):
            raise ValueError(
                f"{setting}: {named} lies in the run's own folder {recipe.output_dir}, or that in it, and --overwrite "
                "would delete what the student learns from: set another output_dir"
            )
        if is_own or run.is_relative_to(folder):
            raise ValueError(
                f"{setting}: {named} is where the run has its models and checkpoints: name a folder that is not in "
                f"{recipe.output_dir}, or one whose name begins with _"
            )


def state_of(path: Path, recipe: Recipe) -> tuple[list[str] | None, list[str]]:
    """Look at an output folder without touching it."""
    if not (path / "recipe.yaml").exists() or not _holds_work(path):
        return None, []
    try:
        changed = _differing(path, recipe)
    except ValueError:
        changed = ["recipe.yaml cannot be read"]
    return changed, finished_stages(path)


def _differing(path: Path, recipe: Recipe, *, makes_targets: bool = False) -> list[str]:
    """List the settings in which a recipe differs from that of the run in a folder, as far as they matter there.

    The students' settings do not matter before there is one, if it is noted how the teachers read; nor, to who makes
    nothing else, how soft targets are kept.
    """
    but = is_of_the_cache if makes_targets else None
    if not _holds_students(path):
        but = is_of_the_students if (path / _READING).exists() else is_of_the_cache
    return differences(read_resolved(path / "recipe.yaml"), recipe, but=but)


def _entries(path: Path) -> list[Path]:
    """Return what a run, of whatever recipe, may have written; its notes about itself come first, and are no work."""
    models = sorted(entry for entry in path.glob("*") if _STAGE.fullmatch(entry.name))
    return [path / name for name in (*_NOTES, "results.json", "stages", "checkpoints")] + models


def _holds_work(path: Path) -> bool:
    """Tell whether a run has left more than its settings and empty folders: a checkpoint, a model, results."""
    return any(file.is_file() for entry in _entries(path)[len(_NOTES) :] for file in (entry, *entry.rglob("*")))


def _holds_students(path: Path) -> bool:
    """Tell whether a run has begun to train a student there, or has made one."""
    folders = [entry for entry in (*path.glob("checkpoints/*"), *path.glob("*")) if _STAGE.fullmatch(entry.name)]
    begun = {folder.name for folder in folders if any(file.is_file() for file in folder.rglob("*"))}
    return (path / "results.json").exists() or any(not stage.startswith("teacher") for stage in begun)


def finished_stages(path: Path) -> list[str]:
    """Name the stages that are finished in an output folder, the first first: those with a model and a record."""
    records = sorted(path.glob("stages/*.json"), key=lambda record: record.stat().st_mtime_ns)
    return [record.stem for record in records if (path / record.stem).is_dir()]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that `Trainer` has written to its end, and where training stood."""

    path: Path
    step: int
    state: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint | None":
        """Read a checkpoint; None if the process was killed while writing it.

        `Trainer` writes trainer_state.json last, so a checkpoint is whole if that file is.
        """
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            return cls(folder, int(state["global_step"]), state)
        except (OSError, ValueError, KeyError):
            return None

    @property
    def is_final(self) -> bool:
        """Tell whether training was over when it was written."""
        return self.step >= int(self.state["max_steps"])

    @property
    def seconds(self) -> float:
        """Return the time that training had taken, 0.0 if the process was killed before it was noted."""
        try:
            return float(json.loads((self.path / "seconds.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return 0.0
