"""Combine the logits of several teachers into those of one."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.targets import PROBLEM_TYPES, ProblemType

Combination = Literal["arithmetic", "geometric"]
COMBINATIONS: tuple[str, ...] = get_args(Combination)


def combine_logits(
    members: Sequence[Tensor],
    weights: Sequence[float] | None,
    temperature: float,
    problem_type: ProblemType,
    combination: Combination,
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
    if combination not in COMBINATIONS:
        raise ValueError(f"combination must be one of {', '.join(COMBINATIONS)}, got {combination!r}")
    if problem_type == "regression" and combination == "geometric":
        raise ValueError("a geometric mean is one of probabilities, regression has none: use combination='arithmetic'")
    shapes = [tuple(member.shape) for member in members]
    if len(set(shapes)) > 1:
        raise ValueError(f"the teachers' logits have the shapes {shapes}: all need the same rows and the same labels")


def _log_mean(terms: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return `log(sum(weight * exp(term)))`, one term in memory at a time."""
    return reduce(torch.logaddexp, (term + math.log(weight) for term, weight in terms))
