"""The teacher, as it teaches, over a data set: its logits and the labels, and whether it is fit to teach."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.teacher_quality import TeacherQuality, check_quality, measure_quality
from hf_distill.teachers.source import SoftTargetSource, TeacherOutput, check_logits
from hf_distill.training.objective import Objective

logger = logging.get_logger(__name__)


def teacher_logits(
    batches: Iterable[dict[str, Any]],
    source: SoftTargetSource,
    compute: Callable[[Mapping[str, Any]], TeacherOutput],
    *,
    objective: Objective,
    accelerator: Any,
    prepare_inputs: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Run a teacher over a data set.

    Args:
        batches: of the data set.
        source: the teacher.
        compute: runs it, or returns what it gave for the same batch before.
        objective: tells which rows have soft targets.
        accelerator: the run's.
        prepare_inputs: moves a batch to the device.

    Returns:
        logits `(rows, num_labels)` or `(rows, tokens, num_labels)` by the name of who gives them, and the labels, -100
        where the teacher has no soft target; None if there are none. On the CPU, of all processes.

    Raises:
        ValueError: the logits are not numbers.
    """
    gathered = _Gathered(accelerator, objective.is_token_level)
    with torch.random.fork_rng(devices=[]):  # a data loader draws a seed, and training must not notice
        for batch in batches:
            batch = prepare_inputs(batch)
            labels, mask = batch.get("labels"), objective.soft_mask(batch, source)
            with accelerator.autocast():
                output = compute(batch)
            output = TeacherOutput([logits.float() for logits in output.logits])
            for who, logits in source.by_teacher(output, objective.kind(labels)).items():
                check_logits(logits)
                gathered.add(who, logits)
            if labels is not None:
                if mask is not None:
                    mask = mask.view(*mask.shape, *[1] * (labels.dim() - mask.dim()))
                    labels = labels.masked_fill(~mask, MISSING_LABEL)
                gathered.add("labels", labels)
    found = gathered.joined()
    labels = found.pop("labels", None)
    return found, labels


class _Gathered:
    """Batches of all processes, put together on the CPU."""

    def __init__(self, accelerator: Any, is_token_level: bool) -> None:
        self._accelerator = accelerator
        self._is_token_level = is_token_level
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, name: str, values: Tensor) -> None:
        if self._is_token_level:
            values = self._accelerator.pad_across_processes(values, dim=1, pad_index=MISSING_LABEL)
        self._parts.setdefault(name, []).append(self._accelerator.gather_for_metrics(values).cpu())

    def joined(self) -> dict[str, Tensor]:
        """Return each name's rows; those of fewer tokens are filled up with -100."""
        return {name: torch.cat(self._of_one_width(parts)) for name, parts in self._parts.items()}

    def _of_one_width(self, parts: list[Tensor]) -> list[Tensor]:
        if not self._is_token_level:
            return parts
        width = max(part.shape[1] for part in parts)
        return [
            F.pad(part, (*(0, 0) * (part.dim() - 2), 0, width - part.shape[1]), value=MISSING_LABEL) for part in parts
        ]


def check_teacher(
    found: Mapping[str | None, tuple[dict[str, Tensor], Tensor | None]], objective: Objective, *, allow_untrained: bool
) -> TeacherQuality | None:
    """Compare a teacher with the labels of the evaluation sets.

    Args:
        found: what `teacher_logits` has returned, by the name of the set; None if there is but one.
        objective: tells the kind of labels.
        allow_untrained: accept any teacher.

    Returns:
        the quality of the whole on the last set that has labels.

    Raises:
        ChanceTeacherError: the teacher is surely useless.
    """
    qualities: dict[str, dict[str | None, TeacherQuality]] = {}
    last = None
    for name, (logits_by_teacher, labels) in found.items():
        if labels is None:
            continue
        for who, logits in logits_by_teacher.items():
            quality = measure_quality(logits, labels, objective.kind(labels))
            if quality is not None:
                last = quality  # the whole comes last
                logger.info(f"{who.capitalize()}: {quality}")
                qualities.setdefault(who, {})[name] = quality
    if not allow_untrained:
        for who, of_sets in qualities.items():
            check_quality(who, of_sets)
    return last
