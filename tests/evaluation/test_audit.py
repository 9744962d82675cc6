"""Rows whose labels are worth a second look."""

import numpy as np
import pytest

from hf_distill.evaluation.audit import Finding, conflicts, doubts, inherited
from hf_distill.evaluation.predictions import Predictions


def given() -> Predictions:
    labels = np.array([0, 1, 0, -100, 1, 0])
    teacher = np.log([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [np.nan, np.nan], [0.2, 0.8]])
    student = np.log([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.5, 0.5], [0.7, 0.3]])
    return Predictions(["a", "b"], np.arange(6), None, labels, {"teacher": teacher, "student": student})


def test_the_surest_doubt_comes_first():
    """A label that is right above one that is wrong."""
    found = doubts(given(), "evaluation")
    assert [(each.kind, each.row) for each in found] == [
        *(("label", 1), ("label", 5), ("label", 2)),
        *(("student", 1), ("student", 5), ("student", 3)),
    ]
    assert found[0] == Finding("label", "evaluation", 1, "b", "a", "b", pytest.approx(0.6))
    assert found[-1].label is None
    bare = Predictions(["a", "b"], np.arange(6), None, given().labels, {"teacher": given().logits["teacher"]})
    assert {each.kind for each in doubts(bare, "train")} == {"label"}


def test_equal_inputs_with_other_labels_are_found_across_splits():
    """A row that is trained on with one label and evaluated with another."""
    places = [("train", 0), ("train", 1), ("evaluation", 0), ("evaluation", 1)]
    found = conflicts([b"x", b"y", b"x", b"y"], ["a", "b", "b", "b"], places)
    assert [(each.split, each.row, each.label) for each in found] == [("train", 0, "a"), ("evaluation", 0, "b")]
    assert conflicts([b"x", b"x"], ["a", None], places[:2]) == []


def test_the_errors_that_a_student_inherits_are_counted_by_class():
    """A student blamed for what its teacher taught it."""
    assert inherited(given()) == [("a", 3, 2, 1), ("b", 1, 1, 0)]
