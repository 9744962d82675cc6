"""Results on disk and in tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_distill.evaluation.metrics import difference
from hf_distill.evaluation.results import Difference, ModelResult, Results, Threshold, gap_closed
from hf_distill.evaluation.tables import markdown_table, results_table, stands_alone, summary, verdict


def results(*, with_baseline: bool = True, ready_teacher: bool = False, teacher_accuracy: float = 0.9) -> Results:
    return Results(
        task="text-classification",
        recipe="text/x",
        teacher=ModelResult(
            {"accuracy": teacher_accuracy, "f1": 0.8}, 1_234_567, 4.7, None if ready_teacher else 12.345
        ),
        student=ModelResult({"accuracy": 0.87654, "f1": 0.7}, 1000, 0.004, 3.0),
        baseline=ModelResult({"accuracy": 0.8, "f1": 0.6}, 1000, 0.004, 2.0) if with_baseline else None,
        agreement=0.91234,
        gap_closed=0.7654 if with_baseline else None,
        environment={"torch": "2.6"},
        data={"num_train_rows": 10, "unlabelled_share": 0.5, "label_names": ["no", "yes"]},
    )


def with_origins() -> Results:
    origin = {"model": "a/b", "revision": "0" * 40, "license": "mit", "seed": 42}
    lineage = {"teachers": [origin], "stages": [], "student": origin, "dataset": {"id": "a/c", "revision": None}}
    return replace(results(), lineage=lineage, curves={"student": [{"step": 10, "loss": 0.1 + 0.2}]})


@pytest.mark.parametrize("found", [results(), results(with_baseline=False, ready_teacher=True), with_origins()])
def test_results_come_back_from_json_as_they_were(found):
    """A model's results that come back as a dictionary, or numbers that are rounded."""
    text = found.to_json()
    assert Results.from_json(text) == found
    assert json.loads(text)["student"]["metrics"]["accuracy"] == 0.87654
    Path("run").mkdir()
    Path("run/results.json").write_text(text)
    assert Results.read(Path("run")) == found


def test_results_of_a_run_before_lineage_and_curves_are_read():
    """A card that can no longer be made of a run that took hours."""
    kept = json.loads(results().to_json())
    for name in ("lineage", "curves", "teachers", "stages"):
        del kept[name]
    assert Results.from_json(json.dumps(kept)) == results()


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "{}", "null", '{"student": {"metrics": {}}}', results().to_json().replace('"task"', '"mission"')],
)
def test_what_is_no_results_is_a_line_to_read(text):
    """A KeyError for a file that was cut off, or that a later version has written."""
    with pytest.raises(ValueError, match=r"^results\.json (is not valid JSON|was not written by)"):
        Results.from_json(text)


@pytest.mark.parametrize(
    ("teacher", "student", "baseline", "share"),
    [
        (0.9, 0.9, 0.5, 1.0),
        (0.9, 0.5, 0.5, 0.0),
        (0.9, 0.7, 0.5, 0.5),
        (0.9, 1.0, 0.5, 1.25),
        (0.9, 0.4, 0.5, -0.25),
        (0.9, 0.95, 0.9, None),
        (0.8, 0.95, 0.9, None),
    ],
)
def test_gap_closed_is_the_way_from_baseline_to_teacher(teacher, student, baseline, share):
    """A division by zero, or a negative gap whose quotient looks like a success."""
    found = gap_closed(teacher, student, baseline)
    assert found == (None if share is None else pytest.approx(share))


def test_the_table_has_a_row_for_each_model_and_a_share_of_the_teacher():
    """A student's number in the baseline's row."""
    header, rows = results_table(results())
    assert header == ["model", "accuracy", "macro F1", "of teacher", "parameters", "MiB", "train s"]
    assert rows == [
        ["teacher", "0.9000", "0.8000", "100.0%", "1,234,567", "4.70", "12.3"],
        ["student", "0.8765", "0.7000", "97.4%", "1,000", "0.00", "3.0"],
        ["baseline", "0.8000", "0.6000", "88.9%", "1,000", "0.00", "2.0"],
    ]


def test_a_table_without_baseline_and_with_a_ready_teacher():
    """A ready teacher's time is unknown and not 0."""
    _, rows = results_table(results(with_baseline=False, ready_teacher=True))
    assert [row[0] for row in rows] == ["teacher", "student"]
    assert [row[-1] for row in rows] == ["-", "3.0"]


def test_a_teacher_of_zero_has_no_share():
    """A division by zero at the end of the run."""
    _, rows = results_table(results(teacher_accuracy=0.0))
    assert [row[3] for row in rows] == ["-"] * 3


def test_the_markdown_table_has_as_many_cells_in_each_line():
    """A table that GitHub shows as text."""
    lines = markdown_table(results()).splitlines()
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {8}
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"


def test_the_summary_speaks_of_the_gap_only_where_there_is_one():
    """`closes None of the gap`."""
    assert summary(results()) == (
        "The student agrees with the teacher on 91.23% of the predictions and closes 76.5% of the gap between baseline "
        "and teacher."
    )
    assert summary(results(with_baseline=False)) == "The student agrees with the teacher on 91.23% of the predictions."


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("student", None, "student: Input should be .*, got .None"),
        ("data", None, "data: Input should be .*, got .None"),
        ("environment", [], "environment: Input should be "),
        ("lineage", [], "lineage: Input should be "),
        ("student.metrics", {}, "student.metrics: Dictionary should have at least 1 item"),
        ("baseline.metrics", {"accuracy": None}, "baseline.metrics.accuracy"),
        ("student.metrics", {"accuracy": "0.9"}, "student.metrics.accuracy.* got .0.9"),
    ],
)
def test_a_file_that_somebody_has_edited_is_refused_with_the_reason(key, value, words):
    """The card ended with a TypeError somewhere in its table."""
    found = json.loads(results().to_json())
    section, _, name = key.partition(".")
    if name:
        found[section][name] = value
    else:
        found[section] = value
    with pytest.raises(
        ValueError, match=f"results.json was not written by a run of this version of hf_distill: {words}"
    ):
        Results.from_json(json.dumps(found))


@pytest.mark.parametrize(
    ("right", "other", "value", "is_certain"),
    [
        ([1] * 90 + [0] * 10, [1] * 80 + [0] * 20, 0.1, True),
        ([1] * 51 + [0] * 49, [0] * 49 + [1] * 51, 0.0, False),
        ([1, 1, 0, 1], [1, 0, 1, 1], 0.0, False),
    ],
)
def test_a_difference_is_certain_only_if_the_rows_are_enough(right, other, value, is_certain):
    """A gain of two rows in twenty told as a success."""
    found = difference(np.asarray(right, bool), np.asarray(other, bool))
    assert found.value == pytest.approx(value)
    assert found.is_certain is is_certain
    pairs = np.asarray(right, float) - np.asarray(other, float)
    assert found.standard_error == pytest.approx(np.sqrt(np.mean((pairs - pairs.mean()) ** 2) / len(pairs)))


def test_the_verdict_says_what_was_gained_and_what_it_is_worth():
    """A student that lost to its baseline, with no word about it; a share of a gap that may be none."""
    found = results()
    lost = replace(
        found,
        differences={
            "student_baseline": Difference(-0.05, 0.01, 400),
            "teacher_baseline": Difference(0.01, 0.02, 400),
        },
        teacher=replace(found.teacher, latency_ms=8.0),
        student=replace(found.student, latency_ms=2.0),
    )
    first, second = verdict(lost)
    assert first.startswith("Student against baseline: -5.0 points of accuracy (95% interval -7.0 to -3.0, 400 rows")
    assert first.endswith("the student lost to its own baseline.")
    assert second.startswith("The student is 4.0x faster and ")
    assert "of the gap" not in summary(lost)
    assert "of the gap" in summary(found)
    weak = replace(lost, differences={"teacher_baseline": Difference(-0.02, 0.01, 400)})
    assert "The teacher is less accurate than the baseline" in verdict(weak)[0]


def test_the_highest_share_that_is_worth_it_is_told():
    """A threshold from which on the student predicts nothing, on a card."""
    found = results()
    assert stands_alone(found) is None
    shares = {0.9: 1.0, 0.98: 0.6, 0.99: 0.2}
    given = [
        Threshold(target, "agreement", 0.5 + target / 9, share, 1.0, 1.0, None) for target, share in shares.items()
    ]
    given.append(Threshold(0.999, "agreement", None, 0.0, 1.0, 1.0, None))
    found = replace(found, thresholds=given)
    told = stands_alone(found)
    assert told.startswith("From a confidence of 0.6089 on, as in 60.0% of these rows, it may predict alone")
    assert "98.0% of all predictions" in told
    assert Results.from_json(found.to_json()) == found
    assert stands_alone(replace(found, thresholds=given[2:])) is None
