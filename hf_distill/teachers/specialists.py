"""A generalist teacher helped by specialists, each for a few classes that it confuses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.teachers.consensus import closest_distribution


@dataclass(frozen=True)
class Specialist:
    """A teacher for some of the generalist's classes, with one more label, the dustbin, for all others.

    Args:
        model: the model, or the Hub id or folder of one.
        oversampling: how many times more often a row of its own classes was shown when it was trained than a row of
            the others, against their shares in the data. If half of the rows shown were of its classes, which are a
            share `r` of the data, it is `(1 - r) / r`. 1 is a specialist that was trained on the data as they are.
        dustbin: the name of its dustbin label; case does not matter.

    Raises:
        ValueError: the oversampling is not a finite number above 0.
    """

    model: Any
    oversampling: float = 1.0
    dustbin: str = "dustbin"

    def __post_init__(self) -> None:
        _check_oversampling(self.oversampling)


# ---- Inference ----


def combine_specialists(
    generalist: Tensor,
    specialists: Sequence[Tensor],
    classes: Sequence[Sequence[int]],
    temperature: float,
    *,
    num_top_classes: int = 1,
) -> Tensor:
    """Compute the logits of the distribution that agrees best with a generalist and the specialists for a row.

    It is the `q` that minimises `KL(p_g || q)` plus, for each active specialist, `KL(p_m || q)`, where `p_m` lives on
    the specialist's classes and a dustbin, and `q` gives the dustbin what it gives all other classes together. A
    specialist is active on a row if one of the generalist's top classes is among its classes; a row without one keeps
    the generalist's distribution. All distributions are softmaxes of `logits / T`.

    A class that the generalist and all active specialists for it rule out (`-inf`) stays ruled out, and a dustbin
    with nothing but such classes, or none at all, is left out of its specialist's distribution.

    Args:
        generalist: `(..., num_labels)`. Not differentiated, like the rest.
        specialists: for each specialist `(..., len(classes[m]) + 1)`, the dustbin last, already corrected for
            oversampling (`corrected_dustbin`).
        classes: for each specialist the generalist's class that each of its logits but the last stands for.
        temperature: above 0; that of the soft-target loss, for which alone the result is made.
        num_top_classes: how many of the generalist's most probable classes call for specialists. The paper uses 1.

    Returns:
        `(..., num_labels)` logits `z` with `softmax(z / T) = q`, in single precision or better.

    Raises:
        ValueError: the shapes, classes or settings do not fit each other.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 5.4 and
        equation 5, which the paper minimises by gradient descent on the logits of `q` for each row.
    """
    member = _check_specialists(generalist, specialists, classes, temperature, num_top_classes)
    num_labels = generalist.shape[-1]
    logits = generalist.detach().reshape(-1, num_labels)
    dtype = torch.promote_types(generalist.dtype, torch.float32)
    own = F.log_softmax(logits.double() / temperature, dim=-1)
    others = [
        F.log_softmax(x.detach().reshape(len(logits), x.shape[-1]).double() / temperature, dim=-1) for x in specialists
    ]
    result = logits.to(dtype, copy=True)
    if not specialists or not len(logits):
        return result.view(generalist.shape)
    # Rows with the same active specialists pose problems of one shape.
    active_sets, problem_of_row = torch.unique(_active(own, member, num_top_classes), dim=0, return_inverse=True)
    for number, active_set in enumerate(active_sets):
        active = active_set.nonzero().flatten().tolist()
        rows = (problem_of_row == number).nonzero().flatten()
        if active:
            log_q = closest_distribution(
                own[rows], [others[m][rows] for m in active], [list(classes[m]) for m in active]
            )
            result[rows] = (temperature * log_q).to(dtype)
    return result.view(generalist.shape)


def _active(own: Tensor, member: Tensor, num_top_classes: int) -> Tensor:
    """Tell which specialists each row calls for: boolean `(rows, specialists)`."""
    top = own.topk(num_top_classes, dim=-1)
    called_for = torch.zeros_like(own).scatter_(-1, top.indices, (~top.values.isneginf()).to(own.dtype))
    return called_for @ member.T.to(own.dtype) > 0


def _check_specialists(
    generalist: Tensor,
    specialists: Sequence[Tensor],
    classes: Sequence[Sequence[int]],
    temperature: float,
    num_top_classes: int,
) -> Tensor:
    """Refuse what does not fit; return which classes each specialist knows: boolean `(specialists, num_labels)`."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
    num_labels = generalist.shape[-1]
    if not 1 <= num_top_classes <= num_labels:
        raise ValueError(
            f"num_top_classes must be from 1 to the {num_labels} labels, got {num_top_classes}. 1 is usual."
        )
    if len(specialists) != len(classes):
        raise ValueError(
            f"got logits of {len(specialists)} specialists and classes of {len(classes)}: give both for each"
        )
    member = torch.zeros(len(classes), num_labels, dtype=torch.bool, device=generalist.device)
    for m, (logits, subset) in enumerate(zip(specialists, classes, strict=True)):
        _check_classes(subset, num_labels)
        expected = (*generalist.shape[:-1], len(subset) + 1)
        if logits.shape != expected:
            raise ValueError(
                f"the logits of specialist {m} have shape {tuple(logits.shape)}, expected {tuple(expected)}: the "
                f"generalist's rows, its {len(subset)} classes and the dustbin"
            )
        member[m, list(subset)] = True
    return member


def _check_classes(classes: Sequence[int], num_labels: int | None = None) -> None:
    limit = math.inf if num_labels is None else num_labels
    if not classes or len(set(classes)) != len(classes) or not all(0 <= index < limit for index in classes):
        bound = "0 or more" if num_labels is None else f"from 0 to {num_labels - 1}"
        raise ValueError(f"a specialist's classes must be one or more different indices, {bound}, got {list(classes)}")


# ---- Logits of a specialist ----


def corrected_dustbin(logits: Tensor, oversampling: float) -> Tensor:
    """Undo in a specialist's logits that its own classes were shown more often than the data have them.

    Args:
        logits: `(..., classes + 1)`, the dustbin last.
        oversampling: as for `Specialist`.

    Returns:
        the logits with the logarithm of the oversampling added to the last, in single precision or better.

    Raises:
        ValueError: the oversampling is not a finite number above 0.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 5.2.
    """
    _check_oversampling(oversampling)
    corrected = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    corrected[..., -1] += math.log(oversampling)
    return corrected


def specialist_columns(
    specialist_labels: Sequence[str], label_names: Sequence[str], dustbin: str
) -> tuple[list[int], list[int]]:
    """Find what a specialist's logits stand for, by name; case does not matter.

    Raises:
        ValueError: the specialist has no dustbin or nothing else, a class that is none of `label_names`, or names that
            differ in nothing but case.
    """
    both = f"The specialist has {', '.join(specialist_labels)}; the generalist has {', '.join(label_names)}."
    position = {name.casefold(): index for index, name in enumerate(specialist_labels)}
    index_of = {name.casefold(): index for index, name in enumerate(label_names)}
    if len(position) != len(specialist_labels) or len(index_of) != len(label_names):
        raise ValueError(f"some labels are the same or differ in nothing but case: rename them. {both}")
    if dustbin.casefold() not in position:
        raise ValueError(
            f"the specialist has no label named {dustbin!r} for all classes that are not its own: name the label that "
            f"it has for them as its dustbin. {both}"
        )
    own = [name for name in specialist_labels if name.casefold() != dustbin.casefold()]
    unknown = [name for name in own if name.casefold() not in index_of]
    if unknown:
        raise ValueError(
            f"the specialist's {', '.join(map(repr, unknown))} is no label of the generalist: rename it in the "
            f"specialist's id2label. {both}"
        )
    if not own:
        raise ValueError(f"the specialist has no label but its dustbin: it needs at least one class. {both}")
    columns = [position[name.casefold()] for name in own] + [position[dustbin.casefold()]]
    return columns, [index_of[name.casefold()] for name in own]


def _check_oversampling(oversampling: float) -> None:
    is_number = isinstance(oversampling, int | float) and not isinstance(oversampling, bool)
    if not is_number or not 0 < oversampling < math.inf:
        raise ValueError(
            f"oversampling must be a finite number > 0, got {oversampling!r}. 1 is a specialist trained on the data as "
            "they are."
        )


# ---- Making specialists ----


def confusable_classes(probabilities: Tensor, num_groups: int, *, seed: int = 0) -> list[list[int]]:
    """Group the classes that a generalist's predictions confuse: those for one specialist each.

    The columns of the covariance matrix of the predictions are clustered by K-means. A class in a cluster of its own
    is confused with none, so no specialist is needed for it and it is in no group: there may be fewer groups than
    asked for.

    Args:
        probabilities: `(rows, num_labels)`, the generalist's predictions, each row summing to 1. Those of a generalist
            that is all but certain of its training rows show more at a temperature above 1, or on other rows.
        num_groups: how many clusters are made, 1 to `num_labels`.
        seed: decides where K-means starts.

    Returns:
        class indices of two or more classes per group, in rising order, groups in the order of their first class.

    Raises:
        ValueError: the predictions are no probabilities of two or more rows, or do not tell so many classes apart.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 5.3, which
        uses an on-line K-means.
    """
    from sklearn.cluster import KMeans  # takes a second to import

    shape = tuple(probabilities.shape)
    if len(shape) != 2 or shape[0] < 2 or not 1 <= num_groups <= shape[1]:
        raise ValueError(
            f"num_groups must be from 1 to the number of labels, got {num_groups} for predictions of shape {shape}: "
            "expected (rows, num_labels) with two rows or more"
        )
    values = probabilities.detach().cpu().double()
    if not bool((values >= 0).all() & ((values.sum(dim=-1) - 1).abs() < 1e-2).all()):
        raise ValueError("the predictions must be probabilities, each row summing to 1: take the softmax of logits")
    columns = torch.cov(values.T).reshape(shape[1], shape[1])
    num_different = len(torch.unique(columns, dim=0))
    if num_different < num_groups:
        raise ValueError(
            f"the predictions tell only {num_different} of {shape[1]} classes apart, got num_groups={num_groups}: ask "
            "for fewer, or give predictions on more rows"
        )
    clusters = KMeans(num_groups, n_init=20, random_state=seed).fit_predict(columns.numpy()).tolist()
    groups = [[c for c, cluster in enumerate(clusters) if cluster == number] for number in range(num_groups)]
    return sorted(group for group in groups if len(group) > 1)


def specialist_labels(labels: Sequence[int], classes: Sequence[int]) -> list[int]:
    """Turn the generalist's class labels into those that a specialist is trained on.

    Args:
        labels: class indices, -100 where one is missing.
        classes: the specialist's classes.

    Returns:
        each label's place in `classes`, `len(classes)`, the dustbin, for all other classes, and -100 for -100.

    Raises:
        ValueError: a label is negative and not -100, or the classes are not one or more different indices.
    """
    _check_classes(classes)
    wrong = [label for label in labels if label < 0 and label != MISSING_LABEL]
    if wrong:
        raise ValueError(f"labels must be class indices, or {MISSING_LABEL} where one is missing, got {wrong[0]}")
    place = {index: position for position, index in enumerate(classes)} | {MISSING_LABEL: MISSING_LABEL}
    return [place.get(label, len(classes)) for label in labels]


def model_of(member: Any) -> Any:
    """Return the model of a specialist, or the member itself."""
    return member.model if isinstance(member, Specialist) else member
