"""A run as a pipe and a terminal show it."""

import re

import pytest

from hf_distill.cli import progress as shown
from hf_distill.cli.progress import Bars, Lines, duration, progress_for


def go_through(progress) -> None:
    progress.begin(3, {"teacher": 100, "student": 200, "baseline": 300})
    progress.data([("rows", "train 4"), ("files", "x.csv")], ["2 rows are odd"])
    progress.found("teacher", "trained before (3.0 s)")
    progress.stage("soft targets", "computing the teacher's soft targets", 40, unit="rows")
    progress.step(40)
    progress.stage("student", "distilling", 200, start=100)
    for step in range(101, 201):
        progress.step(step, 2.0 / step)
        if step % 10 == 0:
            progress.evaluated(step, {"loss": 0.5, "accuracy": step / 200})
    progress.done("All done.")


def test_a_pipe_gets_a_line_for_each_stage_and_each_tenth_of_it(capsys):
    """A log of ten thousand carriage returns, or one that is silent for an hour."""
    go_through(Lines())
    out, err = capsys.readouterr()
    lines = [re.sub(r"[\d.]+ s( left, run [\d.]+ s)?$", "T", line) for line in out.splitlines()]
    assert err == "warning: data: 2 rows are odd\n"
    assert lines[:6] == [
        "rows      train 4",
        "[1/3] teacher: trained before (3.0 s)",
        "      soft targets: computing the teacher's soft targets, 40 rows",
        "      done in T",
        "[2/3] student: distilling, 200 steps (goes on at step 100)",
        "      50 %, loss 0.0198, T",
    ]
    assert lines[6] == "      60 %, loss 0.0167, accuracy 0.5500, T"
    assert len(lines) == 12
    assert lines[-1] == "All done."
    assert out.count("\n") == 12
    assert "\r" not in out


def test_a_terminal_shows_a_bar_and_some_evaluations(capsys, monkeypatch):
    """Bars without a name, one below the other."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    go_through(Bars())
    out = capsys.readouterr().out
    assert "[2/3] student: distilling, 200 steps (goes on at step 100)" in out
    assert "step 200: loss 0.5000, accuracy 1.0000" in out
    assert 3 <= out.count(": loss 0.5000") <= 10
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    bars = [line.strip() for line in re.split(r"[\r\n]", plain) if "/s  " in line]
    assert bars
    assert max(map(len, bars)) < 80
    assert any(line.startswith("student ") and "  loss 0.0" in line and " left, run " in line for line in bars)


def test_where_it_was_stopped_is_known():
    """A night's run stopped, and nobody knows what of it is left."""
    lines = Lines()
    assert lines.where == "before the first stage"
    lines.begin(2)
    lines.stage("student", "distilling", 200)
    lines.step(30)
    assert lines.where == "in stage student at 30 of 200 steps"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (61.2, "1 min 01 s"),
        (3_599.9, "1 h 00 min"),
        (7_260, "2 h 01 min"),
    ],
)
def test_a_time_has_two_units_at_most(seconds, text):
    """60 min 00 s."""
    assert duration(seconds) == text


def test_quiet_shows_nothing(capsys, monkeypatch):
    """A script that asked for results alone."""
    go_through(progress_for(quiet=True))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(shown.sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress_for(quiet=False), Bars)
    monkeypatch.setenv("RANK", "1")
    go_through(progress_for(quiet=False))
    assert capsys.readouterr() == ("", "")
