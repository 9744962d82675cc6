"""The exact normalisation, on the cases that the benchmark prints."""

import functools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gradients

# Of one batch, which several cases are compared with.
full_gradient = functools.cache(lambda family, kind, count: gradients.gradient(family, kind, count, count, 1))

ONE_PROCESS = [name for name, case in gradients.CASES.items() if case[3] == 1]
SEVERAL_PROCESSES = [name for name, case in gradients.CASES.items() if case[3] > 1]


def test_there_are_cases_of_every_kind():
    """Without this, an emptied table of cases would pass all that follows."""
    assert len(ONE_PROCESS) >= 3
    assert len(SEVERAL_PROCESSES) >= 5
    assert {gradients.CASES[name][3] for name in SEVERAL_PROCESSES} == {2, 3}
    assert {kind for _, kind in gradients.combinations()} == {"single", "multi", "regression", "token", "unlabelled"}


@pytest.mark.parametrize("case", ONE_PROCESS)
@pytest.mark.parametrize(("family", "kind"), gradients.combinations())
def test_accumulated_gradient_is_the_full_batchs(family, kind, case):
    """A mean per micro-batch is up to four times too large, or weighs uneven ones wrongly."""
    count, batch, accumulated, _ = gradients.CASES[case]
    full = full_gradient(family, kind, count)
    _, distance = gradients.compare(gradients.gradient(family, kind, count, batch, accumulated), full)
    assert distance <= gradients.LIMIT


@pytest.mark.slow
def test_gradient_of_several_processes_is_the_full_batchs(tmp_path):
    """DDP averages gradients, which is wrong where processes have different numbers of labels.

    Rows that are repeated to fill up the last batch would count twice.
    """
    gradients.start_processes(tmp_path, ("bert",))  # the benchmark has ViT, too
    for family, kind in [pair for pair in gradients.combinations() if pair[0] == "bert"]:
        for case in SEVERAL_PROCESSES:
            value = torch.load(tmp_path / f"{family}-{kind}-{case}.pt")
            full = full_gradient(family, kind, gradients.CASES[case][0])
            assert gradients.compare(value, full)[1] <= gradients.LIMIT, (family, kind, case)
