"""What may be wrong with a student, and that nothing is said of one that is well."""

import re
from dataclasses import replace

import numpy as np
import pytest

from hf_distill.evaluation.diagnosis import diagnose
from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.results import Difference, ModelResult, Results


def results(student: float, *, gain: float, steps: int = 5000) -> Results:
    models = {name: ModelResult({"accuracy": value}, 1, 1.0, 1.0) for name, value in (("student", student), ("t", 0.9))}
    return Results(
        task="text-classification",
        recipe="x",
        teacher=models["t"],
        student=models["student"],
        baseline=models["student"],
        agreement=0.9,
        gap_closed=None,
        environment={},
        data={},
        curves={"student": [{"step": steps, "loss": 1.0}]},
        differences={"student_baseline": Difference(gain, 0.01, 100)},
    )


def predictions(scale: float, *, one_class: bool = False) -> Predictions:
    labels = np.arange(40) % 4
    student = np.eye(4)[0 * labels if one_class else labels]
    return Predictions(
        [*"abcd"], np.arange(40), None, labels, {"student": student, "teacher": scale * np.eye(4)[labels]}
    )


BAD = results(0.89, gain=-0.02)


@pytest.mark.parametrize(
    ("found", "given", "training", "expected"),
    [
        (results(0.89, gain=0.02), predictions(8), {}, []),
        (BAD, predictions(8), {}, []),
        (BAD, predictions(100), {}, ["at temperature 4 the soft targets hardly differ .*training.temperature=8"]),
        (BAD, predictions(0.1), {"temperature": 2.0}, ["at temperature 2 .* nearly uniform .*training.temperature=1"]),
        (BAD, predictions(8), {"alpha": 0.9}, ["alpha 0.9 leaves little to the teacher"]),
        (BAD, predictions(8, one_class=True), {}, ["predicts one class for all rows"]),
        (results(0.89, gain=-0.02, steps=50), None, {}, ["the student made 50 steps"]),
        (results(0.7, gain=0.1), None, {}, ["the student may be too small"]),
        (replace(results(0.7, gain=0.1), differences={}), None, {}, ["the student may be too small"]),
    ],
)
def test_what_is_said_names_the_setting(found, given, training, expected):
    """A user left alone with a student that is worse than none; or hints where all is well."""
    told = diagnose(found, given, {"training": training})
    assert len(told) == len(expected)
    for line, pattern in zip(told, expected, strict=True):
        assert re.search(pattern, line)
