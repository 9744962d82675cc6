"""predictions.parquet: what is written is what is read, whatever the models could say."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_distill.evaluation.predictions import PREDICTIONS, Predictions


def test_rows_come_back_as_they_were(tmp_path):
    """Classes in another order, or logits that were rounded."""
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels, its = np.array([0, 1, -100, 2, 1]), np.array([0, -100, -100, 2, 1])
    made = Predictions.of({"student": (logits, labels), "teacher": (2 * logits, its)}, ["b", "a", "c"])
    made.write(tmp_path / PREDICTIONS)
    found = Predictions.read(tmp_path)
    assert found.label_names == ["b", "a", "c"]
    assert found.words is None
    assert (found.rows == range(5)).all()
    assert (found.labels == labels).all()
    assert (found.logits["student"] == logits).all()
    assert np.isnan(found.logits["teacher"][1]).all()  # a class that the teacher does not know
    assert (found.logits["teacher"][[0, 2, 3, 4]] == 2 * logits[[0, 2, 3, 4]]).all()
    assert (found.comparable.rows == [0, 3, 4]).all()


def test_words_of_models_that_cut_rows_at_other_places(tmp_path):
    """The third word of one compared with the fourth of the other."""
    labels = np.array([[-100, 0, -100, 1], [-100, 2, -100, -100]])
    its = np.array([[0, 1, 2, -100], [2, -100, -100, -100]])
    logits = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    made = Predictions.of({"student": (logits, labels), "teacher": (-logits, its)}, ["x", "y", "z"])
    made.write(tmp_path / PREDICTIONS)
    found = Predictions.read(tmp_path)
    assert (found.rows == [0, 0, 0, 1]).all()
    assert (found.words == [0, 1, 2, 0]).all()
    assert (found.labels == [0, 1, 2, 2]).all()
    assert (found.logits["student"][[0, 1, 3]] == [logits[0, 1], logits[0, 3], logits[1, 1]]).all()
    assert np.isnan(found.logits["student"][2]).all()
    assert (found.logits["teacher"] == [-logits[0, 0], -logits[0, 1], -logits[0, 2], -logits[1, 0]]).all()


@pytest.mark.parametrize("kind", ["none", "text", "other", "narrow"])
def test_a_file_that_no_run_has_written_is_refused(kind, tmp_path):
    """A traceback of a library, or figures of anything."""
    file = tmp_path / PREDICTIONS
    if kind == "text":
        file.write_text("row,label\n")
    if kind == "other":
        pq.write_table(pa.table({"row": [0], "label": [0]}), file)
    if kind == "narrow":
        Predictions(["a"], np.arange(2), None, np.zeros(2), {"student": np.zeros((2, 2))}).write(file)
    expected = "has no predictions.parquet" if kind == "none" else "was not written by a run of this version"
    with pytest.raises(ValueError, match=expected):
        Predictions.read(Path(tmp_path))
