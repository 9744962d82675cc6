"""How good classifiers are beyond accuracy: calibration and likeness to a teacher, each with its uncertainty."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.predictions import Predictions

NUM_BINS = 15
"""Bins of the expected calibration error, of equally many rows each."""

_RESAMPLES = 1000
_LEAST = -1e4  # log probability, in the place of minus infinity
_AT_ONCE = 2**24  # counts of a bootstrap in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, of a bootstrap over the rows."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.3f}, {self.high:.3f}]"


TITLES = {
    "accuracy": "accuracy",
    "f1": "macro F1",
    "agreement": "agreement",
    "kl": "KL to it",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "ece_scaled": "ECE, scaled",
}
"""The measures of `quality`, as people read them."""


def quality(predictions: Predictions, against: str | None = None) -> dict[str, dict[str, Estimate]]:
    """Measure models on the rows of which all of them say something.

    Args:
        predictions: of one model or several.
        against: the model with which the others are compared.

    Returns:
        by model and measure: `accuracy` and `f1` (macro); `nll`, the mean negative log-likelihood of the labels, and
        `brier`, the mean squared distance of the probabilities from them, 0 to 2; `ece`, the expected calibration
        error in 15 bins of equally many rows, and `ece_scaled`, the same after temperature scaling, whose temperature
        is fitted on one half of the rows for the other; `agreement`, the share of rows in which the most likely class
        is the same as the other model's, and `kl`, the mean Kullback-Leibler divergence from its probabilities, in
        nats. Where no row has a label there are the last two alone.

    Raises:
        ValueError: there are no such rows.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599 (calibration error, temperature
        scaling); Nixon et al., "Measuring Calibration in Deep Learning", arXiv 1904.01685 (bins of equal mass); Efron,
        "Bootstrap methods", 1979 (intervals: percentiles of 1,000 resamples of rows).
    """
    same = predictions.comparable
    if not len(same.labels):
        raise ValueError("there is no row of which all models say something")
    has_labels = bool((same.labels != MISSING_LABEL).all())
    reference = None if against is None else same.logits[against].astype(np.float64)
    found: dict[str, dict[str, Estimate]] = {}
    for name, logits in same.logits.items():
        rows: dict[str, np.ndarray] = {}
        counts: dict[str, np.ndarray] = {}
        log_p = log_softmax(logits)
        if has_labels:
            rows |= _of_labels(log_p, same.labels)
            counts |= {"f1": _confusions(logits, same.labels)}
            counts |= {"ece": _gaps(log_p, same.labels), "ece_scaled": _gaps(scaled(logits, same.labels), same.labels)}
        if reference is not None and name != against:
            log_q = log_softmax(reference)
            rows["agreement"] = (logits.argmax(-1) == reference.argmax(-1)).astype(float)
            rows["kl"] = (np.exp(log_q) * (np.maximum(log_q, _LEAST) - np.maximum(log_p, _LEAST))).sum(-1)
        found[name] = _estimates(rows, counts, len(same.labels)) if rows else {}
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def calibration_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that makes the labels most likely, from 0.05 to 20 (arXiv 1706.04599, section 4.2)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature))[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def scaled(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return log probabilities after temperature scaling; each half of the rows by the temperature of the other."""
    order = np.random.default_rng(0).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    found = log_softmax(logits)
    if len(labels) < 2:
        return found
    for own, other in (halves, halves[::-1]):
        found[own] = log_softmax(logits[own] / calibration_temperature(logits[other], labels[other]))
    return found


def _of_labels(log_p: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return of each row the measures that are means over rows."""
    truth = np.eye(log_p.shape[1])[labels]
    return {
        "accuracy": (log_p.argmax(-1) == labels).astype(float),
        "nll": -np.maximum(log_p[np.arange(len(labels)), labels], _LEAST),
        "brier": ((np.exp(log_p) - truth) ** 2).sum(-1),
    }


def _confusions(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return of each row and class whether it is predicted, is the label, or is both, `(rows, 3 * num_labels)`."""
    one_hot = np.eye(logits.shape[1])
    predicted, truth = one_hot[logits.argmax(-1)], one_hot[labels]
    return np.concatenate([predicted, truth, predicted * truth], axis=1)


def _f1(totals: np.ndarray) -> np.ndarray:
    """Return the macro F1 of the totals of `_confusions`: the mean over the classes that occur or are predicted."""
    predicted, truth, both = np.split(totals, 3, axis=-1)
    occurring = predicted + truth > 0
    of_class = np.where(occurring, 2 * both / np.maximum(predicted + truth, 1e-300), 0.0)
    return of_class.sum(-1) / occurring.sum(-1)  # type: ignore[no-any-return]


def bins_of(confidence: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each bin of a reliability diagram: equally many, by their confidence."""
    return [each for each in np.array_split(np.argsort(confidence, kind="stable"), NUM_BINS) if len(each)]


def _gaps(log_p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return of each row its confidence less whether it is right, in the column of its bin, `(rows, bins)`."""
    confidence = np.exp(log_p.max(-1))
    gap = confidence - (log_p.argmax(-1) == labels)
    bins = bins_of(confidence)
    found = np.zeros((len(labels), len(bins)))
    for place, rows in enumerate(bins):
        found[rows, place] = gap[rows]
    return found


def _estimates(rows: dict[str, np.ndarray], counts: dict[str, np.ndarray], number: int) -> dict[str, Estimate]:
    """Return what the rows give, and the percentiles of what resamples of them give."""
    of_counts = {"f1": _f1, "ece": _ece, "ece_scaled": _ece}
    columns = np.concatenate([*(each[:, None] for each in rows.values()), *counts.values()], axis=1)
    sizes = [*(1 for _ in rows), *(each.shape[1] for each in counts.values())]
    places = np.cumsum(sizes)[:-1]

    def figures(totals: np.ndarray) -> dict[str, np.ndarray]:
        parts = dict(zip([*rows, *counts], np.split(totals, places, axis=-1), strict=True))
        return {name: of_counts[name](part) if name in of_counts else part[..., 0] for name, part in parts.items()}

    whole = figures(columns.mean(0))
    drawn = figures(np.concatenate([weights @ columns / number for weights in _resamples(number)]))
    return {
        name: Estimate(float(whole[name]), *(float(bound) for bound in np.percentile(drawn[name], (2.5, 97.5))))
        for name in TITLES
        if name in whole
    }


def _ece(totals: np.ndarray) -> np.ndarray:
    return np.abs(totals).sum(-1)  # type: ignore[no-any-return]


def _resamples(number: int) -> Iterator[np.ndarray]:
    """Return how often each row is in each resample, some resamples at a time."""
    random = np.random.default_rng(0)
    at_once = max(_AT_ONCE // number, 1)
    for start in range(0, _RESAMPLES, at_once):
        count = min(at_once, _RESAMPLES - start)
        yield random.multinomial(number, np.full(number, 1 / number), size=count).astype(np.float64)
