"""Rows whose labels are worth a second look, by what a teacher says that has not learned from them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.quality import log_softmax


@dataclass(frozen=True)
class Finding:
    """A row to look at.

    Attributes:
        kind: `label` (the teacher says another class), `conflict` (an equal input has another label), or `student`
            (student and teacher differ).
        split: of the row.
        row: its number in the split, from 0.
        label: its class; None without one.
        teacher: the class that the teacher says; None where it says nothing.
        student: likewise.
        doubt: how much likelier the teacher takes its class than the label (of `student`: than the student's class),
            from 0 to 1; 1 for a conflict.
    """

    kind: str
    split: str
    row: int
    label: str | None
    teacher: str | None
    student: str | None
    doubt: float


def doubts(predictions: Predictions, split: str) -> list[Finding]:
    """Return the rows of whose label the teacher doubts, and those in which the student differs from it.

    The teacher must not have been trained on these rows. The most doubtful come first, of each kind.

    References:
        Northcutt et al., "Confident Learning", arXiv 1911.00068 (ranking by the out-of-sample margin).
    """
    shares = np.exp(log_softmax(predictions.logits["teacher"]))
    found: list[Finding] = []
    says = shares.argmax(-1)
    student = predictions.logits.get("student")
    own = None if student is None else np.where(np.isnan(student[:, 0]), -1, np.nan_to_num(student).argmax(-1))
    names = predictions.label_names
    for place in np.flatnonzero(~np.isnan(shares[:, 0])):
        label, teacher = int(predictions.labels[place]), int(says[place])
        mine = None if own is None or own[place] < 0 else int(own[place])
        known = None if label == MISSING_LABEL else names[label]
        rest = (split, int(predictions.rows[place]), known, names[teacher], None if mine is None else names[mine])
        if known is not None and label != teacher:
            found.append(Finding("label", *rest, float(shares[place, teacher] - shares[place, label])))
        if mine is not None and mine != teacher:
            found.append(Finding("student", *rest, float(shares[place, teacher] - shares[place, mine])))
    return sorted(found, key=lambda each: (each.kind, -each.doubt))


def conflicts(groups: Sequence[Any], labels: Sequence[str | None], places: Sequence[tuple[str, int]]) -> list[Finding]:
    """Return the rows whose input is that of a row with another label.

    Args:
        groups: what is equal for equal inputs, of each row.
        labels: the class of each, None without one.
        places: its split and number.
    """
    by_input: dict[Any, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        if labels[place] is not None:
            by_input[group].append(place)
    several = [each for each in by_input.values() if len({labels[place] for place in each}) > 1]
    return [Finding("conflict", *places[place], labels[place], None, None, 1.0) for each in several for place in each]


def inherited(predictions: Predictions) -> list[tuple[str, int, int, int]]:
    """Return of each class its rows, the errors of the teacher among them, and how many of these the student makes.

    Classes whose teacher makes no error are left out; the one with the most errors comes first.
    """
    same = predictions.comparable
    teacher, student = (same.logits[name].argmax(-1) for name in ("teacher", "student"))
    found = []
    for place, name in enumerate(same.label_names):
        rows = same.labels == place
        wrong = rows & (teacher != place)
        if wrong.any():
            found.append((name, int(rows.sum()), int(wrong.sum()), int((wrong & (student == teacher)).sum())))
    return sorted(found, key=lambda each: -each[2])
