"""How fast models are, measured side by side."""

import contextlib
import time

import torch
from torch import nn

from hf_distill.evaluation.latency import BATCH_SIZE, Timed, measure_speed


class Slow(nn.Module):
    """A model that takes so many milliseconds for each row."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds
        self.seen: list[int] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.seen.append(len(rows))
        time.sleep(self.milliseconds * len(rows) / 1000)
        return rows


def timed(model: nn.Module) -> Timed:
    return Timed(model, lambda numbers: {"rows": torch.tensor(numbers)})


def test_models_are_as_fast_as_they_are_and_an_ensemble_takes_their_sum():
    """A student that is told to be faster than it is; a teacher of two that counts as one."""
    quick, slow = Slow(0.2), Slow(1.0)
    found = measure_speed(
        {"teacher": [timed(quick), timed(slow)], "student": [timed(quick)]},
        100,
        torch.device("cpu"),
        contextlib.nullcontext,
    )
    assert 1.2 <= found["teacher"].latency_ms < 3.0
    assert 0.2 <= found["student"].latency_ms < 1.0
    assert 3 < found["student"].rows_per_second / found["teacher"].rows_per_second < 9
    assert set(quick.seen) == {1, BATCH_SIZE}
