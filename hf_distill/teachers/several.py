"""Several teachers as one: an ensemble, and specialists beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from hf_distill.data.targets import ProblemType
from hf_distill.teachers.ensemble import check_weights, combine_logits
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.source import SoftTargetSource, TeacherOutput
from hf_distill.teachers.specialists import combine_specialists, corrected_dustbin


@dataclass(frozen=True)
class Combination:
    """How the logits of several teachers become one set of soft targets; it needs no models.

    Attributes:
        num_generalists: how many of the members know all labels; they come first.
        specialists: for each of the others the student's classes that it knows, and its oversampling.
        weights: of the generalists; they sum to 1.
        combination: the kind of mean, `arithmetic` or `geometric`.
    """

    num_generalists: int
    specialists: tuple[tuple[list[int], float], ...]
    weights: tuple[float, ...]
    combination: Literal["arithmetic", "geometric"]

    def combine(self, members: list[Tensor], temperature: float, problem_type: ProblemType) -> Tensor:
        """Make one teacher's logits of the members', at the temperature at which the soft targets will be taken.

        Raises:
            ValueError: there are specialists, and the problem is something other than one class of several.
        """
        generalists, specialists = members[: self.num_generalists], members[self.num_generalists :]
        if len(generalists) == 1:
            together = generalists[0]
        else:
            together = combine_logits(generalists, self.weights, temperature, problem_type, self.combination)
        if not specialists:
            return together
        if problem_type != "single_label_classification":
            raise ValueError(f"specialists tell classes apart that exclude each other; {problem_type} has none")
        corrected = [
            corrected_dustbin(logits, oversampling)
            for logits, (_, oversampling) in zip(specialists, self.specialists, strict=True)
        ]
        return combine_specialists(together, corrected, [classes for classes, _ in self.specialists], temperature)

    def by_teacher(self, members: list[Tensor], problem_type: ProblemType) -> dict[str, Tensor]:
        """Return the logits of each generalist, and of all together."""
        count = self.num_generalists
        each = {f"teacher {place + 1} of {count}": members[place] for place in range(count)}
        if count == 1:  # with specialists beside it
            each = {"the teacher of all classes": members[0]}
        return {**each, "all teachers together": self.combine(members, 1.0, problem_type)}


class TeacherEnsemble(SoftTargetSource):
    """One set of soft targets from several teachers.

    Raises:
        ValueError: the weights do not fit, or there are specialists alone.

    References:
        Hinton, Vinyals, Dean, arXiv 1503.02531, section 1 (both means) and equation 5 (specialists).
    """

    def __init__(
        self,
        generalists: Sequence[TeacherModel],
        specialists: Sequence[tuple[TeacherModel, list[int], float]] = (),
        *,
        weights: Sequence[float] | None = None,
        kind: Literal["arithmetic", "geometric"] = "arithmetic",
    ) -> None:
        if not generalists:
            raise ValueError(
                "specialists teach beside a teacher that knows all the labels, and there is none: add one to the list"
            )
        self.generalists = list(generalists)
        self.members = [*generalists, *(teacher for teacher, _, _ in specialists)]
        self.combination = Combination(
            len(self.generalists),
            tuple((classes, oversampling) for _, classes, oversampling in specialists),
            check_weights(weights, len(generalists)),
            kind,
        )
        self.batch_keys = frozenset().union(*(member.batch_keys for member in self.members))
        self.can_be_remembered = all(member.can_be_remembered for member in self.members)

    def __call__(self, batch: Mapping[str, Any]) -> TeacherOutput:
        """Run the teachers one after the other; generalists come first."""
        return TeacherOutput([logits for member in self.members for logits in member(batch).logits])

    def combine(self, output: TeacherOutput, temperature: float, problem_type: ProblemType) -> Tensor:
        """See `Combination.combine`."""
        return self.combination.combine(output.logits, temperature, problem_type)

    def by_teacher(self, output: TeacherOutput, problem_type: ProblemType) -> dict[str, Tensor]:
        """See `Combination.by_teacher`."""
        return self.combination.by_teacher(output.logits, problem_type)

    def mask(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Tell which rows, or tokens, all members have a soft target for."""
        masks = [mask for mask in (member.mask(batch) for member in self.members) if mask is not None]
        return reduce(torch.logical_and, masks) if masks else None
