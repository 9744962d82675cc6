"""A run's output folder: what is finished in it, where to go on, and whose it is."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_distill.evaluation.predictions import PREDICTIONS
from hf_distill.runs.checkpoint import Checkpoint
from hf_distill.runs.recipe.reading import to_yaml
from hf_distill.runs.recipe.schema import SOFT_TARGETS, Recipe
from hf_distill.runs.recipe.settings import decisive_settings
from hf_distill.teachers.cache.key import KEY_FILE, key_differences

_MARK = "# Written by hf-distill: all settings of the run in this folder.\n"
_MADE_OF = ".stages.json"
_RESULTS = "results"  # noted beside the stages
TENSORBOARD = "tensorboard"
"""The folder of TensorBoard's events in a run's output folder, with a folder in it for each stage."""

_SHOWN = 6  # settings that differ, of which a message names so many
REPORT = "report.html"
"""The page of a run, in its output folder."""

PICTURES = "report"
"""The folder of its pictures, beside it."""

_FOUND = ("results.json", PREDICTIONS, REPORT, PICTURES)
_NOTES = ("recipe.yaml", _MADE_OF, TENSORBOARD)
_STAGE = re.compile(r"teacher|student|baseline|(teacher|stage)-\d+")


class Workspace:
    """The output folder of one run, held until `release`; `begin` is the first to write or delete anything in it.

    A stage's model appears under its final name only when it is whole (it is written beside and renamed), and a
    record of the stage in `stages/` only after that, so a run killed at any moment finds out where it was.

    Raises:
        ValueError: the folder cannot be written, holds a run with other settings or files that a run would replace, or
            is in use by another process.
    """

    def __init__(
        self, path: Path, recipe: Recipe, *, overwrite: bool = False, stages: Sequence[str] | None = None
    ) -> None:
        self.path = path
        self._recipe = recipe
        self._overwrite = overwrite
        self._stages = recipe.stage_names() if stages is None else list(stages)
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
            self._check_not_foreign()
            if not overwrite:
                self._check_settings()
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
        """Make room for the run, and note what its stages are made of: from here on the folder is its own.

        Args:
            data_fingerprint: of all rows.
            reading: how each teacher that is trained here reads them, by its stage.

        Raises:
            ValueError: the folder holds work on other data, or teachers that were trained to read in another way.
        """
        noted, now = _made_of(self.path), {stage: self._of(stage, data_fingerprint, reading) for stage in self._stages}
        self.check_work(data_fingerprint, reading)
        if self._overwrite:
            self._delete([stage for stage in self._worked_on() if noted.get(stage) != now[stage]])
        for stage in self._recipe.stage_names():
            shutil.rmtree(self._part(stage), ignore_errors=True)
        for stage in finished_stages(self.path):  # killed between its last two steps, `finish` leaves them
            shutil.rmtree(self.checkpoints(stage), ignore_errors=True)
        self._leaves_no_trace = False
        if set(self._recipe.student_stages()) <= set(self._stages) or not _holds_students(self.path):
            self._write("recipe.yaml", _MARK + to_yaml(self._recipe))
        self._write(_MADE_OF, json.dumps({**noted, **now}))

    def check_work(self, data_fingerprint: str, reading: Mapping[str, Any]) -> None:
        """Raise ValueError if work was done here on other data, or by teachers that read in another way."""
        for stage in [] if self._overwrite else self._worked_on():
            noted, now = _made_of(self.path)[stage], self._of(stage, data_fingerprint, reading)
            if noted != now:
                self._check_same(noted, now)

    def is_finished(self, data_fingerprint: str, reading: Mapping[str, Any]) -> bool:
        """Tell whether the results are there, and the models of all stages, of these settings and data."""
        if self._overwrite or not (self.path / "results.json").exists():
            return False
        noted, finished = _made_of(self.path), finished_stages(self.path)
        return all(
            noted.get(stage) == self._of(stage, data_fingerprint, reading) and (stage in finished or stage == _RESULTS)
            for stage in [*self._stages, _RESULTS]
        )

    def _of(self, stage: str, data_fingerprint: str, reading: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fingerprint of a stage, in full, so that what differs can be named."""
        settings = decisive_settings(self._recipe, stage)
        return {"settings": settings, "data": data_fingerprint, "reading": {stage: reading.get(stage)}}

    def _worked_on(self) -> list[str]:
        """Name the stages of this run on which work has been done."""
        return [stage for stage in self._stages if _holds_work(self.path, stage)]

    def _delete(self, changed: Sequence[str]) -> None:
        """Delete what was made of other settings or data, and what learned from it; all there is if nothing was."""
        stages = [stage for stage in self._recipe.stage_names() if stage in changed]
        if set(stages) & set(self._recipe.teacher_stages()):
            stages += [stage for stage in self._recipe.student_stages() if stage not in stages]
        teachers, student = set(self._recipe.teacher_stages()), _made_of(self.path).get("student")
        of_others = student is not None and _of_teachers(student["settings"]) != _of_teachers(
            decisive_settings(self._recipe, "student")
        )
        if of_others or teachers & set(stages):
            self._check_no_named_targets()
        if of_others or teachers & set(stages or teachers):
            shutil.rmtree(self.path / SOFT_TARGETS, ignore_errors=True)
        entries = [
            *(self.path / name for name in _FOUND),
            *(self.path / folder / stage for stage in stages for folder in ("", "checkpoints", TENSORBOARD)),
            *(self.path / "stages" / f"{stage}.json" for stage in stages),
        ]
        for entry in entries if stages else _entries(self.path):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def _check_no_named_targets(self) -> None:
        """Raise ValueError, before anything is deleted, if the run would find soft targets of the teacher that goes."""
        named = self._recipe.training.get("teacher_logits_dir")
        if named is not None and (Path(named).expanduser() / KEY_FILE).exists():
            raise ValueError(
                f"training.teacher_logits_dir: {named} holds soft targets, and the teacher of the run in {self.path} "
                "was another one: name another folder, or delete that one"
            )

    def _check_same(self, noted: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise ValueError if work was done on other data, or by teachers that read in another way."""
        if noted["data"] != now["data"]:
            targets = ""
            if self._recipe.teachers[0].logits is not None:
                targets = " or from other soft targets (those of a commit are named by teacher.revision)"
            raise ValueError(
                f"output_dir: {self.path} holds a run on other data{targets}, the recipe's have changed since: choose "
                f"another folder, or {self._how_to_delete('make that again')}"
            )
        differing = key_differences(noted["reading"], now["reading"])
        raise ValueError(
            f"output_dir: {self.path} holds teachers that read in another way than beside this recipe's students "
            f"({differing}): keep the students' models and processors, choose another folder, or "
            f"{self._how_to_delete('train them again')}"
        )

    def _how_to_delete(self, what: str) -> str:
        # `cache` has an --overwrite, too, but it is about a data set on the Hub.
        if "student" not in self._stages:
            return f"{what} (`hf-distill train ... --overwrite` does)"
        return f"pass --overwrite to {what}"

    def _check_not_foreign(self) -> None:
        file = self.path / "recipe.yaml"
        if file.exists() and not file.read_bytes().startswith(_MARK.encode()):
            raise ValueError(
                f"output_dir: {file} was not written by a run, and this one would replace it: choose another folder"
            )
        if (self.path / _MADE_OF).exists():
            noted = _made_of(self.path)
            names = [stage for stage in self._worked_on() if stage not in noted]
        else:
            entries = [entry for entry in _entries(self.path) if entry != file]
            names = [entry.name for entry in entries if entry.exists() or entry.is_symlink()]
        if names:
            raise ValueError(
                f"output_dir: {self.path} holds {', '.join(names)}, which no run of this version has made and this one "
                "would replace; --overwrite deletes only what a run has made: choose another folder, or move them away"
            )

    def _check_settings(self) -> None:
        """Raise ValueError if there is work of other settings."""
        changed = _differing(self.path, self._recipe, self._stages)
        if changed:
            raise ValueError(
                f"output_dir: {self.path} holds a run with other settings ({'; '.join(changed)}): choose another "
                f"folder, or {self._how_to_delete('make again what they change')}"
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
        file, noted = self._write("results.json", text), _made_of(self.path)
        of_all = {"settings": decisive_settings(self._recipe, _RESULTS), "reading": {_RESULTS: None}}
        self._write(_MADE_OF, json.dumps({**noted, _RESULTS: {**of_all, "data": noted["student"]["data"]}}))
        return file

    def last_checkpoint(self, stage: str) -> Checkpoint | None:
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
    """Look at an output folder without touching it: settings that differ, None if no work is there; finished stages."""
    if not (path / _MADE_OF).exists() or not any(_holds_work(path, stage) for stage in recipe.stage_names()):
        return None, []
    return _differing(path, recipe, recipe.stage_names()), finished_stages(path)


def _differing(path: Path, recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """List the settings that decide what stages make, and are others than those of the work that is there."""
    noted, lines = _made_of(path), dict[str, str]()
    for stage in stages:
        if stage in noted and _holds_work(path, stage):
            old, new = noted[stage]["settings"], decisive_settings(recipe, stage)
            lines |= {
                key: f"{key}: {old.get(key, 'unset')!r} -> {new.get(key, 'unset')!r}"
                for key in old.keys() | new.keys()
                if old.get(key) != new.get(key)
            }
    shown = [lines[key] for key in sorted(lines)]
    return shown if len(shown) <= _SHOWN else [*shown[:_SHOWN], f"and {len(shown) - _SHOWN} more"]


def _made_of(path: Path) -> dict[str, Any]:
    """Return what a run has noted of its stages: settings, data and how they read."""
    file = path / _MADE_OF
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _of_teachers(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.startswith("teacher.")}


def _entries(path: Path) -> list[Path]:
    """Return what a run, of whatever recipe, may have written; its notes about itself come first, and are no work."""
    models = sorted(entry for entry in path.glob("*") if _STAGE.fullmatch(entry.name))
    return [path / name for name in (*_NOTES, *_FOUND, "stages", "checkpoints")] + models


def _holds_work(path: Path, stage: str) -> bool:
    """Tell whether a stage has been begun or finished in a folder; an empty folder is no work."""
    entries = (path / "checkpoints" / stage, path / stage)
    return any(file.is_file() for entry in entries for file in entry.rglob("*"))


def _holds_students(path: Path) -> bool:
    """Tell whether a run has begun to train a student there, or has made one."""
    names = {entry.name for entry in (*path.glob("checkpoints/*"), *path.glob("*")) if _STAGE.fullmatch(entry.name)}
    return any(_holds_work(path, name) for name in names if not name.startswith("teacher"))


def finished_stages(path: Path) -> list[str]:
    """Name the stages that are finished in an output folder, the first first: those with a model and a record."""
    records = sorted(path.glob("stages/*.json"), key=lambda record: record.stat().st_mtime_ns)
    return [record.stem for record in records if (path / record.stem).is_dir()]
