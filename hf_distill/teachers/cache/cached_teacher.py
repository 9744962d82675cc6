"""A teacher whose soft targets were cached: they come with the batch, and no model is run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.data.soft_targets import CACHED_LOGITS, CACHED_MASK
from hf_distill.data.targets import ProblemType
from hf_distill.teachers.ensemble import Combination
from hf_distill.teachers.source import SoftTargetSource, TeacherOutput


class CachedTeacher(SoftTargetSource):
    """Soft targets that a data set brings along: the logits of each member."""

    def __init__(
        self, device: torch.device, combination: Combination | None = None, batch_keys: frozenset[str] = frozenset()
    ) -> None:
        self.batch_keys = batch_keys | {CACHED_LOGITS, CACHED_MASK}
        self.combination = combination
        self._device = device

    def __call__(self, batch: Mapping[str, Any]) -> TeacherOutput:
        """Return the soft targets of a batch."""
        members = batch.get(CACHED_LOGITS)
        if members is None:
            raise ValueError(
                f"the batch has no {CACHED_LOGITS!r}, only {', '.join(batch)}: the teacher was released, and its soft "
                "targets come with the data sets of this trainer's own data loaders alone"
            )
        return TeacherOutput([member.to(self._device) for member in members])

    def combine(self, output: TeacherOutput, temperature: float, problem_type: ProblemType) -> Tensor:
        """See `Combination.combine`."""
        if self.combination is None:
            return output.logits[0]
        return self.combination.combine(output.logits, temperature, problem_type)

    def by_teacher(self, output: TeacherOutput, problem_type: ProblemType) -> dict[str, Tensor]:
        """See `Combination.by_teacher`."""
        if self.combination is None:
            return super().by_teacher(output, problem_type)
        return self.combination.by_teacher(output.logits, problem_type)

    def mask(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Tell which rows, or tokens, have soft targets."""
        return batch.get(CACHED_MASK)
