"""The teacher, as it teaches, over a data set: its logits and the labels, and whether it is fit to teach."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.teacher_quality import TeacherQuality, check_quality, measure_quality
from hf_distill.teachers.source import TeacherOutput, check_logits
from hf_distill.training.checks import note_problem_type
from hf_distill.training.objective import Objective

logger = logging.get_logger(__name__)


Logits = tuple[dict[str, Tensor], Tensor | None]


def predict(trainer: Any, dataset: Any) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """See `DistillationTrainer.predict_with_teacher`."""
    if trainer.soft_targets is None:
        raise ValueError("there is no teacher: alpha is 1, so none was loaded")
    if trainer.cache is not None and dataset not in trainer.cache:
        raise ValueError(
            "no cached soft targets for this data set, and the teacher was released: pass it as eval_dataset, or "
            "call predict_with_teacher before train()"
        )
    logits, labels = _logits_of(trainer, trainer.get_test_dataloader(dataset), trainer.soft_targets)
    return {who: each.numpy() for who, each in logits.items()}, None if labels is None else labels.numpy()


def check_teacher(trainer: Any) -> TeacherQuality | None:
    """Compare a trainer's teacher with the labels of its evaluation sets; its outputs are remembered.

    Raises:
        ChanceTeacherError: the teacher is surely useless, and `allow_untrained_teacher` is not set.
    """
    names = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else [None]
    remembered = partial(trainer._reader.remembered, trainer.soft_targets)
    found = {name: _logits_of(trainer, trainer.get_eval_dataloader(name), remembered) for name in names}
    return _compare(found, trainer.loss_objective, allow_untrained=trainer.args.allow_untrained_teacher)


def _logits_of(trainer: Any, batches: Any, compute: Callable[[Mapping[str, Any]], TeacherOutput]) -> Logits:
    """Run a teacher over a data set.

    Returns:
        logits `(rows, num_labels)` or `(rows, tokens, num_labels)` by the name of who gives them, and the labels, -100
        where the teacher has no soft target; None if there are none. On the CPU, of all processes.
    """
    objective, source, accelerator = trainer.loss_objective, trainer.soft_targets, trainer.accelerator
    gathered = _Gathered(accelerator, objective.is_token_level)
    with torch.random.fork_rng(devices=[]):  # a data loader draws a seed, and training must not notice
        for batch in batches:
            batch = trainer._prepare_inputs(batch)
            labels, mask = batch.get("labels"), objective.soft_mask(batch, source)
            note_problem_type(trainer, labels)
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


def _compare(
    found: Mapping[str | None, Logits], objective: Objective, *, allow_untrained: bool
) -> TeacherQuality | None:
    """Return the quality of the whole on the last set that has labels, and refuse a useless teacher."""
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
