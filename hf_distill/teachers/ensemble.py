"""Several teachers as one: the mean of their soft targets, and specialists beside it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.targets import PROBLEM_TYPES, ProblemType
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.source import SoftTargetSource, TeacherOutput
from hf_distill.teachers.specialists import combine_specialists, corrected_dustbin

Mean = Literal["arithmetic", "geometric"]
MEANS: tuple[str, ...] = get_args(Mean)


def combine_logits(
    members: Sequence[Tensor],
    weights: Sequence[float] | None,
    temperature: float,
    problem_type: ProblemType,
    combination: Mean,
) -> Tensor:
    """Compute the logits of the mean of several teachers' soft targets.

    - `single_label_classification`: `softmax(result / T)` is the weighted mean of `softmax(member / T)`, arithmetic
      (a class is as likely as the members find it on average) or geometric and normalised (a class is only likely if
      no member finds it unlikely).
    - `multi_label_classification`: the same with a Bernoulli distribution for each class.
    - `regression`: the weighted mean of the outputs; `arithmetic` only.

    The geometric mean is the mean of the logits at any temperature. The arithmetic one depends on the temperature, so
    the result is to be used with the temperature that it was made for.

    Args:
        members: logits `(..., num_labels)` of each teacher, in one label order and on one device; half precision is
            computed in single precision. Not differentiated. `-inf` rules a class out: for the whole, in the
            geometric mean; in the arithmetic one if all members rule it out. Members of weight zero have no say.
        weights: as for `check_weights`.
        temperature: above 0; that of the soft-target loss.
        problem_type: the kind of target.
        combination: the kind of mean.

    Returns:
        `(..., num_labels)`, in single precision or better.

    Raises:
        ValueError: members, weights or settings are not as above, or in a row the members of a geometric mean rule
            out all classes between them.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 1 (soft
        targets from either mean of an ensemble's predictions) and section 5.4 (which divergence each minimises).
    """
    normalised = check_weights(weights, len(members))
    _check(members, temperature, problem_type, combination)
    dtype = reduce(torch.promote_types, (member.dtype for member in members), torch.float32)
    used = [
        (member.detach().to(dtype), weight) for member, weight in zip(members, normalised, strict=True) if weight > 0
    ]
    if problem_type == "regression" or combination == "geometric":
        mean = sum((weight * logits for logits, weight in used[1:]), start=used[0][1] * used[0][0])
        if problem_type == "single_label_classification" and bool(mean.isneginf().all(dim=-1).any()):
            raise ValueError(
                "each class is ruled out (-inf) by some teacher, so their geometric mean has none left: use the "
                "arithmetic mean, or teachers that rule out less"
            )
        return mean
    if problem_type == "single_label_classification":
        return temperature * _log_mean((F.log_softmax(x / temperature, dim=-1), weight) for x, weight in used)
    positive = _log_mean((F.logsigmoid(x / temperature), weight) for x, weight in used)
    negative = _log_mean((F.logsigmoid(-x / temperature), weight) for x, weight in used)
    return temperature * (positive - negative)


def check_weights(weights: Sequence[float] | None, num_members: int) -> tuple[float, ...]:
    """Return the weights of an ensemble's members, made to sum to 1.

    Raises:
        ValueError: there is no member, or the weights are not as above.
    """
    if num_members < 1:
        raise ValueError("an ensemble needs at least one teacher, got none")
    if weights is None:
        return (1 / num_members,) * num_members
    given = list(weights)
    if len(given) != num_members:
        raise ValueError(f"got {len(given)} weights for {num_members} teachers: give one for each, or none at all")
    if not all(_is_number(weight) and weight >= 0 for weight in given) or not 0 < sum(given) < math.inf:
        raise ValueError(f"weights must be finite numbers, at least 0 and not all 0, got {given}")
    total = sum(given)
    return tuple(weight / total for weight in given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(members: Sequence[Tensor], temperature: float, problem_type: str, combination: str) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
    if combination not in MEANS:
        raise ValueError(f"combination must be one of {', '.join(MEANS)}, got {combination!r}")
    if problem_type == "regression" and combination == "geometric":
        raise ValueError("a geometric mean is one of probabilities, regression has none: use combination='arithmetic'")
    shapes = [tuple(member.shape) for member in members]
    if len(set(shapes)) > 1:
        raise ValueError(f"the teachers' logits have the shapes {shapes}: all need the same rows and the same labels")


def _log_mean(terms: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return `log(sum(weight * exp(term)))`, one term in memory at a time."""
    return reduce(torch.logaddexp, (term + math.log(weight) for term, weight in terms))


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
    combination: Mean

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
        kind: Mean = "arithmetic",
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
