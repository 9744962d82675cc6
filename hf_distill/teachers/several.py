"""Several teachers at work as one: an ensemble, and specialists beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hf_distill.data.targets import ProblemType
from hf_distill.teachers.ensemble import check_weights, combine_logits
from hf_distill.teachers.model import FrozenTeacher
from hf_distill.teachers.specialists import combine_specialists, corrected_dustbin


@dataclass(frozen=True)
class SpecialistAtWork:
    """A specialist, whose logits end with the dustbin's, and the student's classes that the others speak of."""

    teacher: FrozenTeacher
    classes: list[int]
    oversampling: float


@dataclass(frozen=True)
class Panel:
    """How what several teachers say becomes one set of soft targets; it needs no models.

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
        """See `Teaching.combine`.

        Raises:
            ValueError: specialists are asked about something other than one class of several.
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

    def judged(self, members: list[Tensor], problem_type: ProblemType) -> dict[str, Tensor]:
        """See `Teaching.judged`: each generalist, and all together."""
        count = self.num_generalists
        each = {f"teacher {place + 1} of {count}": members[place] for place in range(count)}
        if count == 1:  # with specialists beside it
            each = {"the teacher of all classes": members[0]}
        return {**each, "all teachers together": self.combine(members, 1.0, problem_type)}


class SeveralTeachers:
    """One set of soft targets from several teachers.

    Args:
        generalists: teachers that know all labels; the mean of their probabilities counts.
        specialists: teachers of some of the classes, which correct that mean where it speaks of their classes.
        weights: of the generalists; None: all the same.
        combination: the kind of mean, `arithmetic` or `geometric`.

    Raises:
        ValueError: the weights do not fit, or there are specialists alone.

    References:
        Hinton, Vinyals, Dean, arXiv 1503.02531, section 1 (both means) and equation 5 (specialists).
    """

    def __init__(
        self,
        generalists: Sequence[FrozenTeacher],
        specialists: Sequence[SpecialistAtWork] = (),
        *,
        weights: Sequence[float] | None = None,
        combination: Literal["arithmetic", "geometric"] = "arithmetic",
    ) -> None:
        if not generalists:
            raise ValueError(
                "specialists teach beside a teacher that knows all the labels, and there is none: add one to the list"
            )
        self.generalists = list(generalists)
        self.specialists = list(specialists)
        self.weights = check_weights(weights, len(generalists))
        self.combination = combination
        self.panel = Panel(
            len(self.generalists),
            tuple((specialist.classes, specialist.oversampling) for specialist in specialists),
            self.weights,
            combination,
        )
        self.own_entries = set().union(*(teacher.own_entries for teacher in self.members()))

    def start(self, inputs: Mapping[str, Any]) -> Callable[[], list[Tensor]]:
        """See `Teaching.start`; generalists come first."""
        started = [teacher.start(inputs) for teacher in self.members()]
        return lambda: [logits for pending in started for logits in pending()]

    def combine(self, members: list[Tensor], temperature: float, problem_type: ProblemType) -> Tensor:
        """See `Teaching.combine` and `Panel.combine`."""
        return self.panel.combine(members, temperature, problem_type)

    def judged(self, members: list[Tensor], problem_type: ProblemType) -> dict[str, Tensor]:
        """See `Teaching.judged` and `Panel.judged`."""
        return self.panel.judged(members, problem_type)

    def mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """See `Teaching.mask`: what all members have a soft target for."""
        masks = [mask for mask in (teacher.mask(inputs) for teacher in self.members()) if mask is not None]
        if not masks:
            return None
        together = masks[0]
        for mask in masks[1:]:
            together = together & mask
        return together

    def members(self) -> list[FrozenTeacher]:
        """Return the teachers in the order of what `start` leads to: generalists come first."""
        return [*self.generalists, *(specialist.teacher for specialist in self.specialists)]
