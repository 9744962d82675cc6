"""Metrics from logits, with no network."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from hf_distill.evaluation.metrics import LOCAL_METRICS, Metrics, agreement, per_class, right_in_the_same

NAMES = ("red", "green", "blue")
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(200, 3)).astype(np.float32)
LABELS = RANDOM.integers(0, 3, 200)
TAGGING = """
import datasets
import evaluate


class Tagging(evaluate.Metric):
    def _info(self):
        names = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({"predictions": names, "references": names}),
        )

    def _compute(self, predictions, references):
        return {
            "rows": len(predictions),
            "is_predicted": predictions == [["red", "green"], ["blue", "blue"]],
            "is_labelled": references == [["red", "red"], ["blue", "green"]],
            "red": {"precision": 1.0},
        }
"""


def test_local_metrics_are_those_that_are_documented():
    """A module that is not found is looked for on the Hub."""
    assert list(LOCAL_METRICS) == ["accuracy", "agreement", "f1"]


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_f1_are_those_of_scikit_learn(seed):
    """Predictions and references swapped, or F1 of another average."""
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(50, 3)), random.integers(0, 3, 50)
    found = Metrics(["accuracy", "f1"], NAMES)(logits, labels)
    predictions = logits.argmax(-1)
    assert found["accuracy"] == accuracy_score(labels, predictions)
    assert found["f1"] == f1_score(labels, predictions, average="macro")
    assert all(type(value) is float for value in found.values())


def test_f1_counts_a_class_that_is_never_predicted_as_zero():
    """Left out of the mean, a model that always says the same looks good."""
    logits = np.array([[9.0, 0, 0]] * 4)
    assert Metrics(["f1"], NAMES)(logits, np.array([0, 0, 1, 2]))["f1"] == pytest.approx((2 * 0.5 / 1.5) / 3)


def test_missing_labels_are_not_counted():
    """-100 counted as a wrong prediction."""
    labels = LABELS.copy()
    labels[::3] = -100
    kept = labels != -100
    metrics = Metrics(["accuracy", "f1"], NAMES)
    assert metrics(LOGITS, labels) == metrics(LOGITS[kept], labels[kept])


def test_tokens_are_counted_one_by_one():
    """Padding counted, or the mean over rows of means over tokens."""
    logits, labels = LOGITS.reshape(20, 10, 3), LABELS.reshape(20, 10).copy()
    labels[:, 6:] = -100
    labels[0, 1:] = -100
    kept = labels != -100
    expected = accuracy_score(labels[kept], logits.argmax(-1)[kept])
    assert Metrics(["accuracy"], NAMES)(logits, labels) == {"accuracy": expected}


def test_no_label_at_all_is_an_error():
    """The mean of nothing is NaN, with a warning at best."""
    with pytest.raises(ValueError, match="no row of the evaluation data has a label"):
        Metrics(["accuracy"], NAMES)(LOGITS, np.full(200, -100))


def test_a_metric_of_label_names_gets_the_names_of_each_row():
    """Tags as seqeval reads them: indices would be one class each, and rows joined make other entities."""
    Path("tagging").mkdir()
    Path("tagging/tagging.py").write_text(TAGGING)
    logits = np.eye(3)[[[0, 1, 2], [2, 2, 2]]]
    labels = np.array([[0, 0, -100], [-100, 2, 1]])
    found = Metrics([{"name": "./tagging", "trust_remote_code": True}, "accuracy"], NAMES)(logits, labels)
    assert found == {"rows": 2.0, "is_predicted": 1.0, "is_labelled": 1.0, "accuracy": 0.5}


def test_a_metric_that_cannot_be_loaded_is_named_before_anything_is_trained():
    """Found out after the teacher has been trained."""
    with pytest.raises(
        ValueError, match=r"^metrics: cannot load 'acuracy': .*there are accuracy, agreement, f1\.$"
    ) as e:
        Metrics(["f1", {"name": "acuracy", "trust_remote_code": True}], NAMES)
    assert "\n" not in str(e.value)


class TestAgreement:
    def test_it_is_the_share_of_equal_predictions(self):
        """Right predictions counted in place of equal ones."""
        student = np.eye(3)[[0, 1, 2, 0]]
        teacher = 5 * np.eye(3)[[0, 1, 1, 2]]
        assert agreement(student, teacher) == 0.5
        assert agreement(student, student) == 1.0
        assert agreement(student, teacher, np.array([2, 2, 2, -100])) == 0.5  # rows without a label count

    def test_tokens_without_a_label_are_no_predictions(self):
        """Padding, on which both say anything."""
        student, teacher = np.eye(3)[[[0, 1, 2]]], np.eye(3)[[[0, 2, 2]]]
        assert agreement(student, teacher, np.array([[0, 1, -100]])) == 0.5


def test_each_class_is_measured_on_rows_that_have_a_label():
    """A class without rows that divides by zero; a row without a label counted as a mistake."""
    logits = np.eye(3)[[0, 0, 1, 1, 0]]
    found = per_class(logits, np.asarray([0, 1, 1, 1, -100]), ["a", "b", "c"])
    assert found["a"] == {"rows": 1, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    assert found["b"] == {"rows": 3, "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    assert found["c"] == {"rows": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_two_models_are_compared_on_the_same_rows_and_words():
    """A student of words cut off sooner than its teacher, compared with another word's label."""
    logits, other = np.eye(2)[[0, 1, 1]], np.eye(2)[[0, 0, 1]]
    one, two = right_in_the_same(logits, np.asarray([0, 1, -100]), other, np.asarray([0, 1, 1]))
    assert (one.tolist(), two.tolist()) == ([True, True], [True, False])
    tokens = np.eye(2)[[[0, 1, 0], [1, 1, 0]]]
    labels = np.asarray([[-100, 1, 0], [1, -100, -100]])
    longer = np.eye(2)[[[0, 0, 1, 0], [0, 1, 1, 0]]]
    of_longer = np.asarray([[-100, -100, 1, 0], [1, 1, -100, -100]])
    one, two = right_in_the_same(tokens, labels, longer, of_longer)
    assert (one.tolist(), two.tolist()) == ([True, True, True], [True, True, False])
