"""Make soft targets alone, for `train` to find and for others to learn from."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import safe_open

from hf_distill.evaluation.teacher_quality import ChanceTeacherError, check_quality, measure_quality
from hf_distill.hub.commit import PushResult
from hf_distill.hub.destination import Destination
from hf_distill.hub.files import Outgoing
from hf_distill.hub.push import Content, preview, push
from hf_distill.hub.soft_targets import soft_target_content
from hf_distill.runs.opening import open_run
from hf_distill.runs.progress import Progress
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.settings import StageSettings
from hf_distill.runs.stages import chance_message
from hf_distill.runs.teacher_info import read_info
from hf_distill.runs.teacher_results import evaluate_teachers, targets_folder
from hf_distill.teachers.cache.key import key_differences
from hf_distill.teachers.cache.store import SoftTargets, shards_in


@dataclass(frozen=True)
class Cached:
    """Soft targets in a folder.

    Attributes:
        folder: where they are.
        num_rows: how many rows have some, those of other runs in the same folder among them.
        num_bytes: of all of them.
        num_computed: rows whose soft targets were computed now.
        seconds: that this took.
        metrics: of the teachers on the evaluation rows.
        warning: why `train` would refuse the teacher, None if it would not.
    """

    folder: Path
    num_rows: int
    num_bytes: int
    num_computed: int
    seconds: float
    metrics: dict[str, float]
    warning: str | None = None


def cache_soft_targets(recipe: Recipe, name: str, *, progress: Progress | None = None) -> Cached:
    """Compute and cache a recipe's soft targets of all rows that its first student needs; train no student.

    Teachers that the recipe trains are trained first. All is left where `train` of the same recipe finds it.

    Raises:
        ValueError: there is no teacher to ask; or something in the data, the models, the output folder or the folder of
            soft targets is not as it should be.
    """
    for key in ("column", "logits"):
        if getattr(recipe.teachers[0], key) is not None:
            raise ValueError(f"teacher.{key}: these are soft targets already, there is no teacher to ask")
    with open_run(recipe, name, StageSettings(recipe), stages=list(recipe.teacher_stages()), progress=progress) as run:
        run.progress.begin(len(recipe.teacher_stages()))
        run.prepare(needs_labels=False)
        members = run.teachers()
        folder = targets_folder(run)
        before = {(file.name, file.stat().st_mtime_ns) for file in shards_in(folder)}  # one that is mended has its name
        start = time.perf_counter()
        evaluated = evaluate_teachers(run, members, is_caching=True)
        seconds = time.perf_counter() - start
        metrics = run.metrics(evaluated.together, evaluated.labels)
        quality = measure_quality(
            torch.from_numpy(evaluated.together), torch.from_numpy(evaluated.labels), "single_label_classification"
        )
        PartialState().wait_for_everyone()
        run.progress.done()
    warning = None
    if quality is not None and not recipe.training.get("allow_untrained_teacher"):
        try:
            check_quality("the teacher", {None: quality})
        except ChanceTeacherError as error:
            warning = chance_message(error, members)
    files = shards_in(folder)
    return Cached(
        folder=folder,
        num_rows=len(SoftTargets(folder)),
        num_bytes=sum(file.stat().st_size for file in files),
        num_computed=sum(_num_rows(file) for file in files if (file.name, file.stat().st_mtime_ns) not in before),
        seconds=seconds,
        metrics=metrics,
        warning=warning,
    )


def share_soft_targets(cached: Cached, to: Destination) -> PushResult:
    """Share soft targets as a data set on the Hub, in one commit.

    Raises:
        ValueError: they are not fit to go out, or the Hub did not take them.
    """
    return push(_content(cached), to)


def preview_soft_targets(cached: Cached, to: Destination) -> list[Outgoing]:
    """Return what `share_soft_targets` would send into an empty data set; the Hub is not asked.

    Raises:
        ValueError: they are not fit to go out.
    """
    return preview(_content(cached), to)


def _content(cached: Cached) -> Content:
    if cached.warning is not None:
        raise ValueError(f"nothing was pushed, {cached.warning}")
    targets = SoftTargets(cached.folder)
    info = read_info(cached.folder, targets.key)
    return soft_target_content(
        cached.folder, key=targets.key, info=info, num_rows=len(targets), differences=key_differences
    )


def _num_rows(shard: Path) -> int:
    """Return for how many rows there are soft targets in a file."""
    with safe_open(shard, framework="numpy") as tensors:
        return int(tensors.get_slice("digests").get_shape()[0])
