"""Compute metrics from logits, by local `evaluate` modules or by any from the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np

MISSING_LABEL = -100
_LOCAL_MODULES = Path(__file__).parent / "metrics"


def local_metrics() -> list[str]:
    """Name the metrics that load with no network."""
    return sorted(folder.name for folder in _LOCAL_MODULES.iterdir() if (folder / f"{folder.name}.py").exists())


class Metrics:
    """A recipe's metrics, computed from logits and labels.

    Args:
        names: `accuracy`, `f1` (macro), or the Hub id of a metric of class indices or, as seqeval is, of sequences of
            label names.
        label_names: the labels, in the order of the logits.

    Raises:
        ValueError: a metric cannot be loaded.
    """

    def __init__(self, names: Sequence[str], label_names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.label_names = tuple(label_names)
        self._modules = [_load(name) for name in names]

    def __call__(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Compute all metrics over the labels that are present.

        Args:
            logits: `(rows, num_labels)`, or `(rows, tokens, num_labels)`.
            labels: `(rows,)` or `(rows, tokens)` class indices, -100 where missing.

        Returns:
            every number that the metrics give, by its name.

        Raises:
            ValueError: no label is present.
        """
        present = labels != MISSING_LABEL
        if not present.any():
            raise ValueError("no row of the evaluation data has a label, so there is nothing to measure against")
        predictions = logits.argmax(-1)
        found: dict[str, float] = {}
        for module in self._modules:
            if _wants_names(module):
                given = self._as_names(predictions, present), self._as_names(labels, present)
            else:
                given = predictions[present], labels[present]
            computed = module.compute(predictions=given[0], references=given[1])
            found |= {
                name: float(value) for name, value in computed.items() if isinstance(value, int | float | np.number)
            }
        return found

    def _as_names(self, indices: np.ndarray, present: np.ndarray) -> list[list[str]]:
        rows = zip(np.atleast_2d(indices), np.atleast_2d(present), strict=True)
        return [[self.label_names[index] for index in row[kept]] for row, kept in rows]


def agreement(student_logits: np.ndarray, teacher_logits: np.ndarray, labels: np.ndarray | None = None) -> float:
    """Compute the share of predictions in which a student agrees with its teacher.

    Args:
        student_logits: `(rows, num_labels)`, or `(rows, tokens, num_labels)`.
        teacher_logits: the same, in the same order of rows and labels.
        labels: `(rows, tokens)`, for tokens: those labelled -100 are no predictions.
    """
    student, teacher = student_logits.argmax(-1), teacher_logits.argmax(-1)
    if student.ndim > 1 and labels is not None:
        student, teacher = student[labels != MISSING_LABEL], teacher[labels != MISSING_LABEL]
    return float(_load("agreement").compute(predictions=student, references=teacher)["agreement"])


def of_the_same(
    logits: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray, answered: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what student and teacher say of the same rows, or words, `(count, num_labels)`.

    Their tokens may be others, but the labelled ones are the first of each word in both, in the same order; a row may
    be cut off sooner for one of the two.
    """
    if logits.ndim == 2:
        both = ~((answered == MISSING_LABEL) & (labels != MISSING_LABEL))
        return logits[both], teacher_logits[both]
    of_student, of_teacher = [], []
    for row in range(len(logits)):
        words, same_words = (
            logits[row][labels[row] != MISSING_LABEL],
            teacher_logits[row][answered[row] != MISSING_LABEL],
        )
        count = min(len(words), len(same_words))
        of_student.append(words[:count])
        of_teacher.append(same_words[:count])
    return np.concatenate(of_student), np.concatenate(of_teacher)


def _load(name: str) -> Any:
    local = _LOCAL_MODULES / name
    source = str(local) if name in local_metrics() else name
    try:
        # In memory: two processes that share a cache folder would otherwise lock each other out.
        return evaluate.load(source, keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(
            f"metrics: cannot load {name!r}: {str(error).splitlines()[0].rstrip('.')}. With no network there are "
            f"{', '.join(local_metrics())}."
        ) from error


def _wants_names(module: Any) -> bool:
    features = module.features[0] if isinstance(module.features, list) else module.features
    return "string" in str(features["predictions"])
