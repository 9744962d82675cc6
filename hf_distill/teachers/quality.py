"""Whether a teacher's predictions say more about the labels than chance does."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_distill.objective.losses import ProblemType, label_mask

_FEW_LABELS = 30


@dataclass(frozen=True)
class TeacherQuality:
    """How a teacher does on labelled rows.

    Attributes:
        measure: `accuracy`, or `correlation` for regression.
        value: the teacher's.
        chance: what predictions of the same frequencies would reach if they did not depend on the rows.
        margin: two standard errors of `chance` for this number of labels.
        num_labels: how many labels it was measured on.
    """

    measure: str
    value: float
    chance: float
    margin: float
    num_labels: int

    @property
    def is_chance(self) -> bool:
        """Tell whether the value cannot be told from chance; never true of a teacher without an error.

        With few labels the margin would refuse good teachers too, so there only the value itself counts.
        """
        is_perfect = math.isclose(self.value, 1)  # a correlation is rounded
        margin = self.margin if self.num_labels >= _FEW_LABELS else 0.0
        return not is_perfect and self.value <= self.chance + margin

    def __str__(self) -> str:
        return (
            f"{self.measure} {self.value:.3f} on {self.num_labels} labels, chance {self.chance:.3f} "
            f"+- {self.margin:.3f}"
        )


def measure_quality(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> TeacherQuality | None:
    """Compare a teacher's predictions with the labels, and with chance.

    Chance is the agreement of two independent draws with the frequencies of the predictions and of the labels (the
    expected agreement of Cohen's kappa), so a teacher that always says the commonest class counts as chance.

    Args:
        logits: `(..., num_labels)`, in the order of the labels.
        labels: as for `hf_distill.objective.losses.label_loss`.
        problem_type: the kind of target.

    Returns:
        None if no label is present.

    Raises:
        ValueError: a class label is none of the teacher's.
    """
    present = label_mask(labels, problem_type)
    count = int(present.sum())
    if count == 0:
        return None
    if problem_type == "single_label_classification":
        lowest, highest = int(labels[present].min()), int(labels[present].max())
        if lowest < 0 or highest >= logits.shape[-1]:
            raise ValueError(
                f"the evaluation labels run from {lowest} to {highest}, the teacher has {logits.shape[-1]} classes: "
                f"labels must be 0 to {logits.shape[-1] - 1}, or -100 where one is missing"
            )
    if problem_type == "regression":
        predicted = logits.reshape(labels.shape)[present].double()
        return _correlation(predicted, labels[present].double(), count)
    if problem_type == "multi_label_classification":
        predicted, true = (logits > 0)[present].long(), (labels > 0.5)[present].long()
        classes = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)[present]
        agreements = [
            _expected_agreement(predicted[classes == c], true[classes == c]) * int((classes == c).sum())
            for c in range(labels.shape[-1])
            if bool((classes == c).any())
        ]
        chance = sum(agreements) / count
    else:
        predicted, true = logits.argmax(-1)[present], labels[present]
        chance = _expected_agreement(predicted, true)
    accuracy = float((predicted == true).double().mean())
    return TeacherQuality("accuracy", accuracy, chance, 2 * math.sqrt(chance * (1 - chance) / count), count)


def _expected_agreement(predicted: Tensor, true: Tensor) -> float:
    size = int(max(predicted.max(), true.max())) + 1
    frequencies = predicted.bincount(minlength=size).double() * true.bincount(minlength=size).double()
    return float(frequencies.sum()) / len(true) ** 2


def _correlation(predicted: Tensor, true: Tensor, count: int) -> TeacherQuality:
    value = float(torch.corrcoef(torch.stack([predicted, true]))[0, 1]) if count > 1 else math.nan
    return TeacherQuality("correlation", 0.0 if math.isnan(value) else value, 0.0, 2 / math.sqrt(count), count)
