"""The verdict about student and baseline, against formulas of others."""

import numpy as np
import pytest
from scipy.stats import t as student_t
from scipy.stats import ttest_rel

from hf_distill.evaluation.comparison import BETTER, NO_DIFFERENCE, WORSE, Trial, compare, folds_of
from hf_distill.evaluation.predictions import Predictions


def trial(fold: int, seed: int, student: float, baseline: float, count: int = 200) -> Trial:
    """A trial whose student and baseline are right in some of the rows, the first of a shuffled order."""
    random = np.random.default_rng((fold, seed))
    labels = random.integers(2, size=count)

    def logits(share: float) -> np.ndarray:
        right = np.zeros(count, dtype=bool)
        right[random.permutation(count)[: round(share * count)]] = True
        return np.eye(2)[np.where(right, labels, 1 - labels)]

    found = {"teacher": logits(0.95), "student": logits(student), "baseline": logits(baseline)}
    return Trial(fold, seed, 400, 800, Predictions(["a", "b"], np.arange(count), None, labels, found))


def test_folds_are_tested_as_nadeau_and_bengio_do():
    """Five folds that share their training rows, taken for five independent samples."""
    shares = [(0.90, 0.86), (0.92, 0.85), (0.91, 0.88), (0.89, 0.84), (0.93, 0.87)]
    found = compare([trial(fold, seed, *each) for fold, each in enumerate(shares, 1) for seed in (0, 1)])
    gains = np.array([round(200 * a) / 200 - round(200 * b) / 200 for a, b in shares])
    expected = gains.mean() / np.sqrt((1 / 5 + 200 / 800) * gains.var(ddof=1))
    assert found.t == pytest.approx(expected)
    assert found.p == pytest.approx(2 * student_t.sf(expected, 4))
    assert found.difference == pytest.approx(gains.mean())
    assert found.deviation == pytest.approx(gains.std(ddof=1))
    assert found.means["student"] == pytest.approx(np.mean([round(200 * a) / 200 for a, _ in shares]))
    assert found.deviations["teacher"] == pytest.approx(0)
    assert found.verdict == BETTER
    assert found.low > 0


def test_seeds_alone_are_paired():
    """The spread of the seeds counted in, though student and baseline rise and fall together."""
    shares = [(0.90, 0.86), (0.80, 0.77), (0.85, 0.80)]
    found = compare([trial(0, seed, *each) for seed, each in enumerate(shares)])
    assert found.t == pytest.approx(ttest_rel(*zip(*shares, strict=True)).statistic)
    assert found.p == pytest.approx(ttest_rel(*zip(*shares, strict=True)).pvalue)


def test_the_interval_is_of_rows_and_has_the_usual_size():
    """Seeds of the same rows taken for more rows."""
    trials = [trial(0, seed, 0.85, 0.80, 1000) for seed in range(4)]
    found = compare(trials)
    gains = np.mean([each.right["student"].astype(float) - each.right["baseline"] for each in trials], axis=0)
    half = 1.96 * gains.std() / np.sqrt(1000)
    assert (found.low, found.high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=half / 8)


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([(0.95, 0.80)], BETTER),
        ([(0.80, 0.95)], WORSE),
        ([(0.80, 0.80)], NO_DIFFERENCE),
        ([(0.95, 0.70), (0.71, 0.70)], NO_DIFFERENCE),  # the rows say better, the two folds do not agree
        ([(0.9, 0.8)] * 3, BETTER),  # no spread at all
    ],
)
def test_the_verdict_needs_both(shares, verdict):
    """BETTER by one fold, or by chance."""
    assert compare([trial(fold, 0, *each) for fold, each in enumerate(shares, 1)]).verdict == verdict


def test_nothing_to_compare_is_refused():
    """A table of nothing."""
    with pytest.raises(ValueError, match="there is nothing to compare"):
        compare([])


def test_folds_have_the_classes_in_equal_shares_and_equal_inputs_in_one():
    """A row that is trained on and evaluated on, or a fold without a class."""
    random = np.random.default_rng(0)
    labels = np.array([0] * 60 + [1] * 30 + [-100] * 10)
    for groups in (np.arange(100), np.concatenate([np.repeat(np.arange(45), 2), np.arange(90, 100)])):
        found = folds_of(labels, groups, 5, 1)
        assert sorted(np.concatenate([test for _, test in found])) == list(range(90))
        for train, test in found:
            assert not {*train} & {*test}
            assert {*range(90, 100)} <= {*train}
            assert len(train) + len(test) == 100
            assert not {*groups[train]} & {*groups[test]}
            assert np.mean(labels[test]) == pytest.approx(1 / 3, abs=0.12)
    others = folds_of(labels, np.arange(100), 5, 2)
    assert any((a[1] != b[1]).any() for a, b in zip(others, folds_of(labels, np.arange(100), 5, 1), strict=True))
    labels[random.permutation(60)[:57]] = 1
    with pytest.raises(ValueError, match="--folds 5: class 0 has 3 rows"):
        folds_of(labels, np.arange(100), 5, 1)
