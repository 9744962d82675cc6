"""Soft targets that somebody has shared, on the Hub or in a folder, which teach in a teacher's place."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_distill.data.processors import processor_settings
from hf_distill.hub.card.lineage import NOWHERE
from hf_distill.hub.client import failure_of
from hf_distill.hub.destination import check_destination_words
from hf_distill.hub.portable import is_local
from hf_distill.runs.recipe.schema import Recipe, Teacher
from hf_distill.runs.teacher_info import INFO_FILE, read_info
from hf_distill.teachers.cache.key import ABOUT, KEY_FILE, key_differences, read_key
from hf_distill.teachers.cache.store import SoftTargets
from hf_distill.teachers.cache.target_form import check_key_form, check_targets
from hf_distill.training.config import DistillationConfig

_DESCRIPTION = [KEY_FILE, INFO_FILE]
_SHOWN = 4


class UnreachableError(ValueError):
    """The Hub cannot be asked just now, and what was asked for is not in the cache."""


@dataclass(frozen=True)
class SharedTargets:
    """Soft targets that somebody has shared.

    Attributes:
        source: the folder or data set, as the recipe names it.
        commit: of the data set; None for a folder.
        folder: where they are on this machine.
        key: how they were made.
        info: what is known of their teachers; see `teacher_info.read_info`.
        recipe: of the run that learns from them.
    """

    source: str
    commit: str | None
    folder: Path
    key: dict[str, Any]
    info: dict[str, Any]
    recipe: Recipe

    @property
    def repo_id(self) -> str | None:
        """Return the name of the data set on the Hub, None for a folder."""
        return None if self.commit is None else self.source

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """Return what is known of each teacher."""
        found: list[dict[str, Any]] = self.info["teachers"]
        return found

    @property
    def views(self) -> int | None:
        """Return of how many views of each augmented row there are soft targets, None if that is not known."""
        views: int | None = self.info["views"]
        return views

    @property
    def max_length(self) -> int | None:
        """Return how many tokens of a text were kept, None if that is not known."""
        length = self.info["data"].get("max_length")
        return length if isinstance(length, int) and length > 0 else None

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash by which other soft targets are noticed: of how they were made, not of how many there are."""
        told = {name: value for name, value in self.key.items() if name != ABOUT}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def check_no_others(
        self,
        args: DistillationConfig,
        *,
        labels: list[str],
        processor: Any,
        columns: Sequence[str],
        is_token_level: bool,
    ) -> None:
        """Refuse soft targets that are not of the labels, or not of the inputs, of a run.

        Raises:
            ValueError: the message says what differs.
        """
        wanted: dict[str, Any] = {"labels": labels, "level": "tokens" if is_token_level else "rows"}
        if self.key["student_processor"] is not None:
            wanted["student_processor"] = processor_settings(processor)
        if self.key.get("teacher_columns") is not None:
            wanted["teacher_columns"] = list(columns)
        given = {"dtype": args.teacher_logits_dtype, "top_k": args.teacher_logits_top_k}
        wanted["logits"] = {**self.key["logits"], **{name: value for name, value in given.items() if value is not None}}
        differing = key_differences(self.key, wanted)
        if differing:
            raise ValueError(
                f"teacher.logits: {self.source} holds soft targets that do not fit this recipe: {differing}. Labels "
                "must be the same in the same order (data.label_names), and so must the texts of a pair; and the "
                "student must read as the one did that they were made for (its processor, data.processor)."
            )
        if self.views is not None and (args.teacher_logits_views or 0) > self.views:
            raise ValueError(
                f"teacher.logits: {self.source} holds soft targets of {self.views} views of each row, and "
                f"training.teacher_logits_views is {args.teacher_logits_views}: set it to {self.views}, or leave it out"
            )

    def missing(self, count: int, total: int) -> str:
        """Say that rows have no soft targets, and what may be the reason."""
        data, stated = self.recipe.data, self.info["data"]
        same: tuple[str, ...] = ("name", "revision", "train_split", "eval_split", "test_split")
        same += ("max_train_rows", "max_length", "background")
        here: dict[str, Any] = {
            "data.dataset": data.dataset,
            **{f"data.{name}": getattr(data, name) for name in same},
            "data.augment": None if data.augment is None else data.augment.model_dump(),
            "training.seed": self.recipe.training.get("seed", 42),
        }
        there = {
            "data.dataset": stated.get("id"),
            **{f"data.{name}": stated.get(name) for name in (*same, "augment")},
            "training.seed": self.info["seed"],
        }
        is_known = {name: there[name] is not None for name in here}
        is_known["data.revision"] &= data.revision is not None  # what is there is a commit
        # None is a value of these, and not one that is not known. All rows there, and fewer here, are no reason.
        is_known |= {f"data.{name}": bool(stated) for name in ("name", "eval_split", "test_split", "augment")}
        if data.max_length is None:  # that of the soft targets is taken then
            is_known["data.max_length"] = False
        others = [
            f"{name} {there[name]!r} there and {here[name]!r} here"
            for name in here
            if is_known[name] and there[name] != here[name]
        ]
        remedy = f" (made with {'; '.join(others)})" if others else ""
        return (
            f"teacher.logits: {count} of {total} rows have no soft targets in {self.source}, and there is no teacher "
            f"to compute them: the data must be those that are cached, prepared in the same way{remedy}"
        )


def shared_targets(recipe: Recipe, *, whole: bool = True) -> SharedTargets | None:
    """Return the soft targets that teach in a recipe, None if a teacher does.

    Nothing but JSON and safetensors is downloaded.

    Raises:
        ValueError: they are not there, cannot be read, or are damaged. `UnreachableError` if that is not known.
    """
    section = recipe.teachers[0]
    if section.logits is None:
        return None
    folder, commit = _located(section, [*_DESCRIPTION, "*.safetensors"] if whole else _DESCRIPTION)
    key = _key(section.logits, folder, commit)
    if whole:
        _check_fit(section.logits, commit, SoftTargets(folder))
    return SharedTargets(section.logits, commit, folder, key, read_info(folder, key), recipe)


def origin_of_shared(shared: SharedTargets) -> dict[str, Any]:
    """Tell where soft targets come from, as `lineage.model_origin` tells it of a model."""
    members = [
        {name: each[name] for name in ("words", "model", "revision", "license", "license_name", "license_link")}
        for each in shared.teachers
    ]
    alone = {name: value for name, value in members[0].items() if name != "words" and value is not None}
    return {
        **NOWHERE,
        **(alone if len(members) == 1 else {}),
        "soft_targets": {"id": shared.repo_id, "revision": shared.commit},
        "members": members,
    }


def _located(section: Teacher, patterns: list[str]) -> tuple[Path, str | None]:
    """Return the folder of soft targets, which are downloaded if need be, and their commit on the Hub."""
    source = str(section.logits)
    folder = Path(source).expanduser()
    if is_local(source) or folder.exists():
        if not folder.is_dir():
            what = (
                f"{source} is a file, and they are in a folder" if folder.exists() else f"there is no folder {source}"
            )
            raise ValueError(f"teacher.logits: {what}")
        if section.revision is not None:
            raise ValueError(f"teacher.revision: belongs to a data set on the Hub, and {source} is a folder here")
        return folder, None
    try:
        check_destination_words(source, None, create_pr=False)
    except ValueError as error:
        raise ValueError(f"teacher.logits: there is no folder {source}, and {error}") from error
    try:
        found = snapshot_download(source, repo_type="dataset", revision=section.revision, allow_patterns=patterns)
    except Exception as error:
        # The client says that a file is not in its cache, and what went wrong before it looked there is the cause.
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        failure = failure_of(cause)
        if failure is None:
            raise
        if failure.is_transient or isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            raise UnreachableError(
                f"teacher.logits: the data set {source} is not in the cache, and the Hub cannot be reached"
            ) from error
        reason = _reason(cause) or failure.text
        raise ValueError(f"teacher.logits: the Hub does not give the data set {source}: {reason}") from error
    return Path(found), Path(found).name


def _reason(error: BaseException) -> str | None:
    """Say what is wrong and what to do about it, where more is known than the Hub's own words."""
    if isinstance(error, GatedRepoError):
        return "its owner chooses who may have it: ask on its page, and log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such branch, tag or commit (teacher.revision)"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            "there is none of that name, or the token may not see it: look whether the name is right; if it is "
            "private, log in with `hf auth login`, or set HF_TOKEN to a token that may"
        )
    return None


def _key(source: str, folder: Path, commit: str | None) -> dict[str, Any]:
    key = None
    if (folder / KEY_FILE).is_file():
        try:
            key = read_key(folder)
        except ValueError as error:
            raise ValueError(f"teacher.logits: {source}: {str(error).removeprefix('teacher_logits_dir: ')}") from error
    if key is None:
        raise ValueError(
            f"teacher.logits: {source} has no {KEY_FILE}, so it holds no soft targets that hf-distill has kept: name a "
            "data set of `hf-distill cache --push`, or a folder of soft targets"
        )
    check_key_form(key, f"teacher.logits: {source}", _remedy(folder, commit))
    return key


def _check_fit(source: str, commit: str | None, targets: SoftTargets) -> None:
    if targets.damaged:
        names = ", ".join(file.name for file in targets.damaged[:_SHOWN])
        mending = "copy the folder anew, or let `hf-distill cache` mend it"
        raise ValueError(
            f"teacher.logits: of {source} {names} {'is' if len(targets.damaged) == 1 else 'are'} damaged, not what the "
            f"name says: {mending if commit is None else _remedy(targets.path, commit)}"
        )
    check_targets(targets, f"teacher.logits: {source}", _remedy(targets.path, commit))


def _remedy(folder: Path, commit: str | None) -> str:
    """Say what to do about soft targets that are not as they were made."""
    if commit is None:
        return "copy the folder anew, or delete it and let `hf-distill cache` make it again"
    return f"delete {folder} and start again with the Hub in reach; if it is so there too, its owner must push it anew"
