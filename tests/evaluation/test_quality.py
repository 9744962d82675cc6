"""Calibration and likeness, against formulas of others."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, log_loss

from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.quality import NUM_BINS, calibration_temperature, quality, scaled


def made(count: int = 400, num_labels: int = 4, seed: int = 0) -> Predictions:
    random = np.random.default_rng(seed)
    labels = random.integers(num_labels, size=count)
    logits = {
        name: (2.0 * np.eye(num_labels)[labels] + noise * random.normal(size=(count, num_labels))).astype(np.float32)
        for name, noise in (("student", 2.0), ("teacher", 1.0))
    }
    return Predictions([*"abcd"][:num_labels], np.arange(count), None, labels, logits)


def ece(shares: np.ndarray, labels: np.ndarray) -> float:
    """Sum over bins, one after the other: the share of the rows times the gap of their means."""
    order, total = np.argsort(shares.max(-1), kind="stable"), 0.0
    for rows in np.array_split(order, NUM_BINS):
        right = np.mean(shares[rows].argmax(-1) == labels[rows])
        total += len(rows) / len(labels) * abs(right - np.mean(shares[rows].max(-1)))
    return total


def test_the_values_are_those_of_other_libraries():
    """A figure on a card that nobody else can find."""
    given = made()
    found = quality(given, "teacher")
    for name, logits in given.logits.items():
        shares = softmax(logits.astype(float), axis=-1)
        truth = np.eye(4)[given.labels]
        expected = {
            "accuracy": np.mean(shares.argmax(-1) == given.labels),
            "f1": f1_score(given.labels, shares.argmax(-1), average="macro"),
            "nll": log_loss(given.labels, shares, labels=range(4)),
            "brier": np.mean(np.sum((shares - truth) ** 2, -1)),
            "ece": ece(shares, given.labels),
            "ece_scaled": ece(np.exp(scaled(logits, given.labels)), given.labels),
        }
        if name == "student":
            theirs = softmax(given.logits["teacher"].astype(float), axis=-1)
            expected["kl"] = rel_entr(theirs, shares).sum(-1).mean()
            expected["agreement"] = np.mean(theirs.argmax(-1) == shares.argmax(-1))
        assert {key: each.value for key, each in found[name].items()} == pytest.approx(expected, rel=1e-9)
        assert all(each.low <= each.high for each in found[name].values())


def test_the_intervals_are_those_of_a_bootstrap_over_rows():
    """Intervals of another size: a difference that is none, or one that is not seen."""
    given = made()
    found = quality(given, "teacher")["student"]
    shares = softmax(given.logits["student"].astype(float), axis=-1)

    def interval(statistic) -> tuple[float, float]:
        rows = (np.arange(len(given.labels)),)
        drawn = bootstrap(rows, statistic, vectorized=False, n_resamples=2000, method="percentile", rng=1)
        return tuple(drawn.confidence_interval)

    predicted = shares.argmax(-1)
    for name, statistic in {
        "accuracy": lambda rows: np.mean(predicted[rows] == given.labels[rows]),
        "f1": lambda rows: f1_score(given.labels[rows], predicted[rows], average="macro"),
        "nll": lambda rows: log_loss(given.labels[rows], shares[rows], labels=range(4)),
    }.items():
        assert (found[name].low, found[name].high) == pytest.approx(interval(statistic), abs=0.02)


def test_scaling_finds_the_temperature_that_spoilt_the_logits():
    """A student ten times too sure, told to be well calibrated."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5)) * 2
    labels = (logits + random.gumbel(size=logits.shape)).argmax(-1)  # drawn from softmax(logits)
    assert calibration_temperature(logits * 3, labels) == pytest.approx(3, rel=0.03)
    given = Predictions([*"abcde"], np.arange(len(labels)), None, labels, {"student": logits * 3})
    found = quality(given)["student"]
    assert found["ece"].value > 0.1
    assert found["ece_scaled"].value < 0.02


def test_rows_of_which_one_model_says_nothing_are_left_out_for_all():
    """A teacher that is asked the easy rows alone, compared with a student that is asked all."""
    given = made()
    given.logits["teacher"][:100] = np.nan
    given.labels[100:150] = -100
    found = quality(given, "teacher")["student"]
    rows = np.s_[150:]
    right = given.logits["student"][rows].argmax(-1) == given.labels[rows]
    assert found["accuracy"].value == pytest.approx(right.mean())


def test_without_labels_there_is_likeness_alone():
    """Labels of -100 taken for a class."""
    given = made()
    given.labels[:] = -100
    found = quality(given, "teacher")
    assert set(found["student"]) == {"agreement", "kl"}
    assert found["teacher"] == {}
    given.logits["teacher"][:] = np.nan
    with pytest.raises(ValueError, match="there is no row of which all models say something"):
        quality(given, "teacher")
