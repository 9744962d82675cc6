"""Whether a teacher's predictions say more about the labels than chance does."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.targets import ProblemType, label_mask

# An AUC of 0.7, a rank correlation of 0.4: this share of the way from chance to a ranking without an error.
_USEFUL = 0.4
_MOST_CLASSES_TO_ORDER = 3000  # finding the best order takes the cube of their number
_MAX_ENTRIES = 2**23  # of rows times labels that are ranked; more would sharpen nothing


@dataclass(frozen=True)
class TeacherQuality:
    """How a teacher does on labelled rows.

    Accuracy rises with the share of the commonest class, whatever the teacher knows, and falls with a threshold that
    does not suit the data. What is compared with chance is therefore how well the logits rank the rows: the AUC of
    each class against the rest, a class weighing as much as it has pairs of rows to rank; in regression the rank
    correlation of each output.

    Attributes:
        measure: `accuracy`, or `correlation` for regression.
        value: the teacher's; NaN for a correlation with labels that are all the same.
        num_labels: how many labels it was measured on.
        ranking: the AUC, or for regression the rank correlation; None if the labels leave nothing to rank, all rows
            being of one class.
        margin: two standard errors of `ranking` for predictions that do not depend on the rows.
        order: None, or for each class the one that it would have to be read as, if that ranks the rows far better.
        ranking_in_order: `ranking` with the classes in that order.
    """

    measure: str
    value: float
    num_labels: int
    ranking: float | None
    margin: float = 0.0
    order: tuple[int, ...] | None = None
    ranking_in_order: float | None = None

    @property
    def chance(self) -> float:
        """Return the `ranking` of predictions that do not depend on the rows."""
        return 0.5 if self.measure == "accuracy" else 0.0

    @property
    def is_chance(self) -> bool:
        """Tell whether the teacher is surely useless: no better than chance, or with its classes in another order.

        Surely means that a useful teacher's `ranking` lies outside of the margin. With few labels nothing does.
        """
        return self.order is not None or (self._may_be_chance and not self._may_be_useful)

    @property
    def is_better(self) -> bool:
        """Tell whether the teacher is surely better than chance, in the order of its classes."""
        return self.ranking is not None and self.order is None and not self._may_be_chance

    def doubt(self, who: str) -> str | None:
        """Return why a teacher that is not refused may be useless all the same, and what to do; None: no doubt."""
        if self.is_chance:
            return f"{who} {self.fault}: {self.cause}"
        if self.ranking is None:
            return (
                f"how good {who} is cannot be told, the evaluation labels do not differ between rows ({self}): "
                "evaluate on rows with different labels (shuffle sorted data before they are split)"
            )
        if self._may_be_chance:
            return (
                f"{who} may be no better than chance, the evaluation set has too few labels to tell ({self}): evaluate "
                f"on more rows{', of the rarer classes above all' if self.measure == 'accuracy' else ''}"
            )
        if not self._may_be_useful:
            return (
                f"{who} is little better than chance ({self}): one that was trained longer, or on more rows, has more "
                "to teach"
            )
        return None

    @property
    def fault(self) -> str:
        """Say what is wrong with a teacher that `is_chance`."""
        if self.order is not None:
            return f"does not predict the evaluation labels in their order ({self})"
        return f"predicts the evaluation labels no better than chance ({self})"

    @property
    def cause(self) -> str:
        """Name the likeliest causes of the fault, the likeliest first."""
        if self.order is not None:
            moved = [f"class {own} fits label {other}" for own, other in enumerate(self.order) if own != other]
            shown = ", ".join(moved[:4]) + (" ..." if len(moved) > 4 else "")
            return (
                f"most likely its labels are in another order (its {shown}; read so, {self._ranking_name} "
                f"{self.ranking_in_order:.3f}): correct its id2label, or the numbers of the data's labels"
            )
        assert self.ranking is not None
        if self.ranking - self.chance <= -_USEFUL * (1 - self.chance):
            return "most likely its labels are in another order, or of the opposite sign"
        return (
            "most likely its head is untrained, its inputs are not the ones it was trained on, or its predictions "
            "belong to other rows; else its labels are in another order"
        )

    @property
    def _ranking_name(self) -> str:
        return "AUC" if self.measure == "accuracy" else "rank correlation"

    @property
    def _may_be_chance(self) -> bool:
        return self.ranking is not None and self.ranking <= self.chance + self.margin

    @property
    def _may_be_useful(self) -> bool:
        return self.ranking is None or self.ranking + self.margin >= self.chance + _USEFUL * (1 - self.chance)

    def __str__(self) -> str:
        value = "undefined" if math.isnan(self.value) else f"{self.value:.3f}"
        text = f"{self.measure} {value} on {self.num_labels} label{'' if self.num_labels == 1 else 's'}"
        if self.ranking is None:
            return text
        return f"{text}, {self._ranking_name} {self.ranking:.3f}, chance {self.chance} +- {self.margin:.3f}"


class ChanceTeacherError(ValueError):
    """A teacher is surely useless."""

    def __init__(self, who: str, quality: TeacherQuality) -> None:
        super().__init__(
            f"{who} {quality.fault}: {quality.cause}. Pass allow_untrained_teacher=True to use it all the same."
        )
        self.who = who
        self.quality = quality


def check_quality(who: str, found: Mapping[str | None, TeacherQuality]) -> None:
    """Refuse a teacher that is surely useless, and warn of one that may be.

    On one evaluation set of several a good teacher may be at chance: it is refused if it is better on none.

    Raises:
        ChanceTeacherError: the teacher is useless.
    """
    is_better = any(quality.is_better for quality in found.values())
    for name, quality in found.items():
        where = who if name is None else f"{who} (evaluation set {name})"
        if quality.is_chance and not is_better:
            raise ChanceTeacherError(where, quality)
        doubt = quality.doubt(where)
        if doubt is not None:
            warnings.warn(doubt, UserWarning, stacklevel=2)


def measure_quality(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> TeacherQuality | None:
    """Compare a teacher's predictions with the labels, and with chance.

    The standard error is that of the ranking when the rows' labels are shuffled: of one class the Mann-Whitney
    test's, and between classes as they go together in the logits and in the labels.

    Args:
        logits: `(..., num_labels)`, in the order of the labels. Where they are NaN, nothing is compared.
        labels: as for `hf_distill.training.losses.soft.label_loss`.
        problem_type: the kind of target.

    Returns:
        None if no label is present.

    Raises:
        ValueError: a class label is none of the teacher's.
    """
    if problem_type == "single_label_classification":
        present = label_mask(labels, problem_type) & ~logits.isnan().any(-1)
        true, predicted = labels[present].long(), logits[present]
        if len(true) == 0:
            return None
        _check_classes(true, logits.shape[-1])
        value = float((predicted.argmax(-1) == true).double().mean())
        some = _some_rows(predicted)
        scores = predicted[some].double().log_softmax(-1)
        targets = F.one_hot(true[some], logits.shape[-1]).double()
        return _quality("accuracy", value, len(true), scores, targets, torch.ones_like(scores, dtype=torch.bool))
    logits = logits.reshape(labels.shape)
    present = label_mask(labels, problem_type) & ~logits.isnan()
    count = int(present.sum())
    if count == 0:
        return None
    scores, targets, present = (values.reshape(len(labels), -1) for values in (logits, labels, present))
    if problem_type == "regression":
        measure, value = "correlation", _mean_correlation(scores, targets, present)
    else:
        targets = targets > 0.5
        measure, value = "accuracy", float(((scores > 0) == targets)[present].double().mean())
    some = _some_rows(scores)
    return _quality(measure, value, count, scores[some].double(), targets[some].double(), present[some])


def _check_classes(labels: Tensor, num_classes: int) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"the evaluation labels run from {lowest} to {highest}, the teacher has {num_classes} classes: "
            f"labels must be 0 to {num_classes - 1}, or -100 where one is missing"
        )


def _some_rows(scores: Tensor) -> Tensor:
    """Draw the rows to rank, all of them unless they are very many."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(len(scores), generator=generator)[: max(_MAX_ENTRIES // scores.shape[-1], 1)]


def _quality(
    measure: str, value: float, num_labels: int, scores: Tensor, targets: Tensor, present: Tensor
) -> TeacherQuality:
    """Rank `(rows, classes)` scores against targets of 0 and 1, or numbers."""
    ranks, true = _centred_ranks(scores, present), _centred_ranks(targets, present)
    counts, total = present.sum(dim=0), float(true.square().sum())
    if total == 0:
        return TeacherQuality(measure, value, num_labels, None)
    agreement = ranks.T @ true / total  # of each class's scores with each class's labels; a flawless diagonal sums to 1
    ranking, error = float(agreement.trace()), _standard_error(ranks, true, counts) / total
    order = _better_order(agreement)
    in_order = float(agreement[range(len(order)), order].sum())
    gain_by_luck = _standard_error(ranks, true[:, order] - true, counts) / total
    gain_by_luck *= math.sqrt(2 * (math.lgamma(len(order) + 1) + 7))  # one in a thousand, of any of all orders
    is_moved = order != list(range(len(order)))
    is_reordered = is_moved and in_order - ranking > gain_by_luck and 1 - in_order < (1 - ranking) / 2
    scale, chance = (0.5, 0.5) if measure == "accuracy" else (1.0, 0.0)
    return TeacherQuality(
        measure,
        value,
        num_labels,
        ranking=chance + scale * ranking,
        margin=2 * scale * error,
        order=tuple(order) if is_reordered else None,
        ranking_in_order=chance + scale * in_order if is_reordered else None,
    )


def _standard_error(ranks: Tensor, true: Tensor, counts: Tensor) -> float:
    """Return that of the sum of `ranks * true` over shuffled rows; ties in the ranks count as none, to be safe."""
    lengths = (counts * (counts + 1) / 12).sqrt()
    directions = F.normalize(ranks, dim=0)
    if len(ranks) < ranks.shape[1]:  # many classes: the same sum over pairs of rows
        alike = ((directions * lengths) @ true.T).square().sum()
        constant = ~ranks.any(dim=0)  # a column that is always the same still counts as going with itself
        alike += (lengths[constant].square() * true[:, constant].square().sum(dim=0)).sum()
        return math.sqrt(float(alike))
    cosines = (directions.T @ directions).fill_diagonal_(1.0)
    return math.sqrt(max(float((lengths[:, None] * lengths * cosines * (true.T @ true)).sum()), 0.0))


def _better_order(agreement: Tensor) -> list[int]:
    """Return for each class the label that it agrees with, each once; its own if nothing speaks for another."""
    from scipy.optimize import linear_sum_assignment

    if len(agreement) > _MOST_CLASSES_TO_ORDER:
        return list(range(len(agreement)))
    _, labels = linear_sum_assignment((agreement + 1e-9 * torch.eye(len(agreement))).numpy(), maximize=True)
    return [int(label) for label in labels]


def _centred_ranks(values: Tensor, present: Tensor) -> Tensor:
    """Return the rank of each value in its column, ties sharing theirs, less the mean; 0 where none is present."""
    ranks = torch.zeros(values.shape, dtype=torch.double)
    for column in range(values.shape[-1]):
        rows = present[:, column]
        _, places, counts = torch.unique(values[rows, column], return_inverse=True, return_counts=True)
        middle = counts.cumsum(dim=0) - (counts - 1) / 2
        ranks[rows, column] = (middle - (len(places) + 1) / 2).double()[places]
    return ranks


def _mean_correlation(predicted: Tensor, true: Tensor, present: Tensor) -> float:
    """Return the mean over the outputs whose labels differ; an output that is always the same has correlation 0."""
    found = []
    for column in range(true.shape[-1]):
        rows = present[:, column]
        pair = torch.stack([predicted[rows, column], true[rows, column]]).double()
        is_same, has_one_label = (bool((line == line[:1]).all()) for line in pair)
        if not has_one_label:
            found.append(0.0 if is_same else float(torch.corrcoef(pair)[0, 1]))
    return sum(found) / len(found) if found else math.nan
