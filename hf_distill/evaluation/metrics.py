"""Compute metrics from logits: those of the table below, or, with consent to run their code, any by its Hub id."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.evaluation.results import Difference

MISSING_LABEL = -100
_OF_BARE_NAMES = "evaluate-metric"  # the namespace on the Hub of metrics such as seqeval

Metric = str | Mapping[str, Any]
"""A metric's name, or that with its revision and with consent to run its code (trust_remote_code)."""


@dataclass(frozen=True)
class LocalMetric:
    """A metric that needs no network: its function of predicted and true classes, and its name for people."""

    compute: Callable[[np.ndarray, np.ndarray], float]
    title: str
    higher_is_better: bool = True


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the share of the predictions that equal their reference, from 0 to 1."""
    return float(np.mean(predictions == references))


def _f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Return the mean of the F1 scores of the classes that occur, from 0 to 1; one never predicted counts 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, average="macro", zero_division=0))


# Agreement is that of a student with its teacher, right or wrong; called fidelity in arXiv 2106.05945.
LOCAL_METRICS = {
    "accuracy": LocalMetric(_accuracy, "Accuracy"),
    "agreement": LocalMetric(_accuracy, "Agreement"),
    "f1": LocalMetric(_f1, "macro F1"),
}
_OF_THE_HUB = ("precision", "recall", "matthews_correlation")


def is_higher_better(metric: str) -> bool:
    """Tell whether a larger value of a metric is known to be better."""
    name = metric.removeprefix("overall_")
    return LOCAL_METRICS[name].higher_is_better if name in LOCAL_METRICS else name in _OF_THE_HUB


def refusal(metric: Metric) -> str | None:
    """Say why a metric is not loaded: it is code of others, and nobody has consented to run it. None: it is loaded."""
    name, revision, is_trusted = _parts(metric)
    if name in LOCAL_METRICS:
        if revision is None and not is_trusted:
            return None
        return f"{name} comes with hf_distill: write {name} alone, or {_OF_BARE_NAMES}/{name} for the Hub's"
    if _is_path(name) and revision is not None:
        return f"revision belongs to a metric on the Hub, and {name} is a folder: leave it out"
    if is_trusted:
        return None
    near = difflib.get_close_matches(name, list(LOCAL_METRICS), n=1)
    others = f"did you mean {near[0]}?" if near else f"{', '.join(LOCAL_METRICS)} need none"
    where = "in a folder" if _is_path(name) else f"on the Hub, in the Space {_space(name)}"
    return (
        f"{name} is Python code of others ({where}), which runs only with consent: look at it, and write "
        f"{{name: {name}, trust_remote_code: true}}; {others}"
    )


class Metrics:
    """A recipe's metrics, computed from logits and labels.

    Raises:
        ValueError: a metric cannot be loaded, or its code may not run.
    """

    def __init__(self, metrics: Sequence[Metric], label_names: Sequence[str]) -> None:
        self.label_names = tuple(label_names)
        self._metrics = [_load(metric) for metric in metrics]

    def __call__(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Compute all metrics over the labels that are present.

        Returns:
            every number that the metrics give, by its name.
        """
        present = labels != MISSING_LABEL
        if not present.any():
            raise ValueError("no row of the evaluation data has a label, so there is nothing to measure against")
        predictions = logits.argmax(-1)
        found: dict[str, float] = {}
        for name, metric in self._metrics:
            if isinstance(metric, LocalMetric):
                found[name] = metric.compute(predictions[present], labels[present])
                continue
            if _wants_names(metric):
                given = self._as_names(predictions, present), self._as_names(labels, present)
            else:
                given = predictions[present], labels[present]
            computed = metric.compute(predictions=given[0], references=given[1])
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
    return LOCAL_METRICS["agreement"].compute(student, teacher)


def of_the_same(
    logits: np.ndarray, labels: np.ndarray, teacher_logits: np.ndarray, teacher_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of student and teacher for the same rows, or words, `(count, num_labels)`.

    Their tokens may be others, but the labelled ones are the first of each word in both, in the same order; a row may
    be cut off sooner for one of the two.
    """
    if logits.ndim == 2:
        both = ~((teacher_labels == MISSING_LABEL) & (labels != MISSING_LABEL))
        return logits[both], teacher_logits[both]
    of_student, of_teacher = [], []
    for row in range(len(logits)):
        words, same_words = (
            logits[row][labels[row] != MISSING_LABEL],
            teacher_logits[row][teacher_labels[row] != MISSING_LABEL],
        )
        count = min(len(words), len(same_words))
        of_student.append(words[:count])
        of_teacher.append(same_words[:count])
    return np.concatenate(of_student), np.concatenate(of_teacher)


def per_class(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int | float]]:
    """Return rows, precision, recall and F1 of each class, of the rows or words that have a label; see `Results`."""
    from sklearn.metrics import precision_recall_fscore_support

    known = labels != MISSING_LABEL
    found = precision_recall_fscore_support(
        labels[known], logits[known].argmax(-1), labels=range(len(names)), zero_division=0
    )
    return {
        name: {"rows": int(rows), "precision": float(precision), "recall": float(recall), "f1": float(f1)}
        for name, precision, recall, f1, rows in zip(names, *found, strict=True)
    }


def right_in_the_same(
    logits: np.ndarray, labels: np.ndarray, other: np.ndarray, other_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tell in which rows, or words, that have a label each of two models is right, `(count,)`; see `of_the_same`."""
    if logits.ndim == 2:
        both = (labels != MISSING_LABEL) & (other_labels != MISSING_LABEL)
        logits, other, labels = logits[both], other[both], labels[both]
    else:
        truths = [
            row[row != MISSING_LABEL][: np.sum(same != MISSING_LABEL)]
            for row, same in zip(labels, other_labels, strict=True)
        ]
        logits, other = of_the_same(logits, labels, other, other_labels)
        labels = np.concatenate(truths)
    return logits.argmax(-1) == labels, other.argmax(-1) == labels


def difference(is_right: np.ndarray, other_is_right: np.ndarray) -> Difference | None:
    """Return how much more accurate one model is than another.

    Args:
        is_right: `(count,)`, whether the one is right in a row or word.
        other_is_right: `(count,)`, whether the other is, in the same ones.
    """
    found = is_right.astype(float) - other_is_right.astype(float)
    return Difference(float(found.mean()), float(found.std() / np.sqrt(len(found))), len(found)) if len(found) else None


def _load(metric: Metric) -> tuple[str, Any]:
    problem = refusal(metric)
    if problem is not None:
        raise ValueError(f"metrics: {problem}")
    name, revision, _ = _parts(metric)
    if name in LOCAL_METRICS:
        return name, LOCAL_METRICS[name]
    import evaluate

    try:
        # In memory: two processes that share a cache folder would otherwise lock each other out.
        return name, evaluate.load(str(_script(name, revision)), keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        hint = f" (a folder is written ./{name})" if not _is_path(name) and Path(name).exists() else ""
        raise ValueError(
            f"metrics: cannot load {name!r}: {str(error).splitlines()[0].rstrip('.')}{hint}. With no network there are "
            f"{', '.join(LOCAL_METRICS)}."
        ) from error


def _parts(metric: Metric) -> tuple[str, str | None, bool]:
    settings = {"name": metric} if isinstance(metric, str) else metric
    return settings["name"], settings.get("revision"), bool(settings.get("trust_remote_code"))


def _is_path(name: str) -> bool:
    return name.startswith((".", "~")) or Path(name).is_absolute()


def _space(name: str) -> str:
    return name if "/" in name else f"{_OF_BARE_NAMES}/{name}"


def _script(name: str, revision: str | None) -> Path:
    """Return the file, or the folder, of a metric.

    `evaluate` would take a name, and even a Hub id, for a file of the working folder wherever there is one.
    """
    from huggingface_hub import snapshot_download

    if _is_path(name):
        return Path(name).expanduser().resolve()
    folder = snapshot_download(_space(name), repo_type="space", revision=revision, allow_patterns="*.py")
    return Path(folder, f"{_space(name).split('/')[1]}.py")


def _wants_names(module: Any) -> bool:
    features = module.features[0] if isinstance(module.features, list) else module.features
    return "string" in str(features["predictions"])
