"""Whether a student is better than its baseline, from several folds and seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.predictions import Predictions

BETTER, WORSE, NO_DIFFERENCE = "BETTER", "WORSE", "NO DIFFERENCE SHOWN"
_LEVEL = 0.05
_RESAMPLES = 2000


@dataclass(frozen=True)
class Trial:
    """One training of student and baseline.

    Attributes:
        fold: from 1; 0 where the data have their own evaluation split.
        seed: of the training.
        num_labels: labels of the student's training rows.
        num_train: those of its teacher.
        predictions: of teacher, student and baseline.
    """

    fold: int
    seed: int
    num_labels: int
    num_train: int
    predictions: Predictions

    @property
    def right(self) -> dict[str, np.ndarray]:
        """Return by model in which of the rows that all of them predict it is right, `(rows,)`."""
        same = self.predictions.comparable
        return {name: each.argmax(-1) == same.labels for name, each in same.logits.items()}


@dataclass(frozen=True)
class Comparison:
    """Student against baseline, by accuracy.

    Attributes:
        num_labels: labels of the student's training rows, the mean over the folds.
        means: by model, over folds and seeds.
        deviations: likewise; NaN for one alone.
        difference: the student's accuracy less the baseline's, the mean.
        deviation: of the differences of the folds (each the mean over its seeds), or without folds of the seeds.
        low: end of the 95% interval of a bootstrap over the rows, each with its mean over the seeds.
        high: the other end.
        t: of the corrected resampled t-test over the folds; without folds of a paired t-test over the seeds. None if
            there is one alone.
        p: of that, two-sided.
        verdict: BETTER or WORSE if interval and test both say so, or there is no test; else NO DIFFERENCE SHOWN.
    """

    num_labels: int
    means: dict[str, float]
    deviations: dict[str, float]
    difference: float
    deviation: float
    low: float
    high: float
    t: float | None
    p: float | None
    verdict: str


def compare(trials: Sequence[Trial]) -> Comparison:
    """Compare students with their baselines.

    References:
        Nadeau and Bengio, "Inference for the Generalization Error", 2003 (training sets of folds overlap, so that the
        variance of their mean is `1 / k + n_test / n_train` times that of one, not `1 / k`).

    Raises:
        ValueError: there is no trial, or one without a baseline.
    """
    if not trials or any("baseline" not in trial.predictions.logits for trial in trials):
        raise ValueError("there is nothing to compare: no trial, or one without a baseline")
    accuracies = {
        name: [float(trial.right[name].mean()) for trial in trials] for name in ("teacher", "student", "baseline")
    }
    by_fold: dict[int, list[float]] = defaultdict(list)
    gains: dict[tuple[int, int], list[float]] = defaultdict(list)  # by fold and row
    for trial in trials:
        right = trial.right
        gain = right["student"].astype(float) - right["baseline"]
        by_fold[trial.fold if trial.fold else -trial.seed - 1].append(float(gain.mean()))
        for row, value in zip(trial.predictions.comparable.rows, gain, strict=True):
            gains[trial.fold, int(row)].append(float(value))
    differences = np.array([np.mean(each) for each in by_fold.values()])
    of_rows = np.array([np.mean(each) for each in gains.values()])
    drawn = np.random.default_rng(0).multinomial(len(of_rows), np.full(len(of_rows), 1 / len(of_rows)), _RESAMPLES)
    low, high = np.percentile(drawn @ of_rows / len(of_rows), (2.5, 97.5))
    ratio = np.mean([len(t.predictions.comparable.labels) / t.num_train for t in trials]) if trials[0].fold else 0.0
    t, p = _t_test(differences, float(ratio))
    is_certain = p is None or p < _LEVEL
    verdict = BETTER if low > 0 and is_certain else WORSE if high < 0 and is_certain else NO_DIFFERENCE
    return Comparison(
        num_labels=round(float(np.mean([trial.num_labels for trial in trials]))),
        means={name: float(np.mean(each)) for name, each in accuracies.items()},
        deviations={name: _deviation(each) for name, each in accuracies.items()},
        difference=float(np.mean(differences)),
        deviation=_deviation(differences),
        low=float(low),
        high=float(high),
        t=t,
        p=p,
        verdict=verdict,
    )


def _t_test(differences: np.ndarray, ratio: float) -> tuple[float | None, float | None]:
    """Return t and its two-sided p of a mean; `ratio` is that of test rows to training rows where these overlap."""
    from scipy.stats import t as student_t

    count = len(differences)
    if count < 2:
        return None, None
    variance = float(np.var(differences, ddof=1)) * (1 / count + ratio)
    mean = float(np.mean(differences))
    if variance == 0:
        return (0.0, 1.0) if mean == 0 else (float(np.sign(mean)) * np.inf, 0.0)
    t = mean / float(np.sqrt(variance))
    return t, float(2 * student_t.sf(abs(t), count - 1))


def _deviation(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def folds_of(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into folds with equal shares of the classes, and equal inputs in one fold.

    Args:
        labels: `(rows,)`, class indices; rows of -100 are in no fold and are trained on in all.
        groups: `(rows,)`, the same number for equal inputs.
        count: of folds.
        seed: of the shuffling.

    Returns:
        for each fold the rows that are trained on, and those that are evaluated on.

    Raises:
        ValueError: a class has fewer rows than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    known = np.flatnonzero(labels != MISSING_LABEL)
    others = np.flatnonzero(labels == MISSING_LABEL)
    counts = np.bincount(labels[known]) if len(known) else np.zeros(1, dtype=int)
    few = [place for place, number in enumerate(counts) if 0 < number < count]
    if few or count < 2 or len(known) < count:
        what = f"class {few[0]} has {counts[few[0]]} rows" if few else f"there are {len(known)} labelled rows"
        raise ValueError(f"--folds {count}: {what}; from 2 folds on each class needs a row in each")
    is_unique = len(np.unique(groups[known])) == len(known)
    splitter = (StratifiedKFold if is_unique else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)
    found = splitter.split(known, labels[known], None if is_unique else groups[known])
    return [(np.sort(np.concatenate([known[train], others])), known[test]) for train, test in found]
