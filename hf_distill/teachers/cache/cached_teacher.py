"""A teacher that has answered beforehand: its soft targets come with the batch, and no model is run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.data.soft_targets import CACHED_LOGITS, CACHED_MASK
from hf_distill.data.targets import ProblemType
from hf_distill.teachers.several import Panel


class CachedTeacher:
    """Soft targets that a data set brings along: those of each teacher, as it has given them.

    Args:
        device: the student's.
        panel: how several teachers become one; None: there is one.
        own_entries: entries of a batch that only the teacher has read.
    """

    def __init__(self, device: torch.device, panel: Panel | None = None, own_entries: set[str] | None = None) -> None:
        self.own_entries = {CACHED_LOGITS, CACHED_MASK} | (own_entries or set())
        self._device = device
        self._panel = panel

    def start(self, inputs: Mapping[str, Any]) -> Callable[[], list[Tensor]]:
        """See `Teaching.start`.

        Raises:
            ValueError: the batch brings no soft targets.
        """
        members = inputs.get(CACHED_LOGITS)
        if members is None:
            raise ValueError(
                f"the batch has no {CACHED_LOGITS!r}, only {', '.join(inputs)}: the teacher has been let go, and its "
                "answers come with the data sets of this trainer's own data loaders alone"
            )
        return lambda: [member.to(self._device) for member in members]

    def combine(self, members: list[Tensor], temperature: float, problem_type: ProblemType) -> Tensor:
        """See `Teaching.combine`."""
        return members[0] if self._panel is None else self._panel.combine(members, temperature, problem_type)

    def judged(self, members: list[Tensor], problem_type: ProblemType) -> dict[str, Tensor]:
        """See `Teaching.judged`."""
        return {"the teacher": members[0]} if self._panel is None else self._panel.judged(members, problem_type)

    def mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """See `Teaching.mask`: rows, or tokens, that the teacher has an answer for."""
        return inputs.get(CACHED_MASK)
