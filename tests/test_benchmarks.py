"""The scripts whose figures are published must run, and measure what they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(script: str, *options: str) -> str:
    """Run a benchmark in a process of its own, and return what it has printed."""
    ended = subprocess.run(
        [sys.executable, str(FOLDER / script), "--threads", "1", *options],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def numbers(text: str, line: str) -> list[float]:
    """Return the numbers of the first line that begins so."""
    found = next(each for each in text.splitlines() if each.startswith(line))
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", found[len(line) :])]


@pytest.mark.slow
def test_speed_of_images():
    """A ratio to another base than the plain trainer's time says nothing."""
    said = run("speed.py", "--task", "image", "--rows", "128", "--rounds", "1")
    seconds = {name: numbers(said, name) for name in ("plain ", "cached", "online ", "tutorial ")}
    assert seconds["plain "][1] == seconds["plain "][3] == 1
    for found in seconds.values():
        base = seconds["plain "][0]
        rounding = 0.005 / found[0] + 0.005 / base + 0.001  # of two decimals, and of the ratio's three
        assert found[1] == pytest.approx(found[0] / base, rel=1.1 * rounding)
    assert min(numbers(said, f"{name} evaluation, online")[0] for name in ("first", "later")) > 0
    # Of a ResNet with 9 blocks and of one with 3, a third of whose step is its forward.
    assert numbers(said, "F_T / (3 F_S), the least that online adds")[0] == pytest.approx(0.9, abs=0.05)
    assert 30 < numbers(said, "soft targets, bytes a row")[0] < 60  # ten numbers of two bytes, a digest of sixteen


@pytest.mark.slow
def test_parts_of_a_step():
    """A part that is not timed is counted as overhead."""
    said = run("overhead.py", "--task", "image", "--rows", "320", "--rounds", "1")
    for name, has_teacher in (("plain", False), ("cached", False), ("online", True)):
        forward, teacher, backward, optimizer, data, overhead, total, *_ = numbers(said, f"{name}  ")
        assert min(forward, backward, optimizer, data, overhead) > 0
        assert (teacher > 0) == has_teacher
        assert forward + teacher + backward + optimizer + data + overhead == pytest.approx(total, rel=0.5)  # medians


@pytest.mark.slow
def test_views(test_data):
    """Sixteen views that are one and the same would take the room of one."""
    options = ["--rows", "200", "--test-rows", "100", "--epochs", "2", "--teacher-epochs", "8", "--seeds", "1"]
    said = run("views.py", "--data", str(test_data / "data" / "mnist"), *options, "--views", "1", "2")
    assert 0 < numbers(said, "online")[0] <= 1
    assert numbers(said, "2 views")[-1] == pytest.approx(2 * numbers(said, "1 view")[-1], rel=0.1)
