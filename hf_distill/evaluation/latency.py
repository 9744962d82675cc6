"""How fast classifiers are, measured in turns on the same rows, so that a busy machine is fair to all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hf_distill.evaluation.predictor import placed

BATCH_SIZE = 32
"""Rows of the batches by which `rows_per_second` is measured."""

_SECONDS = 2.0  # for each size of a batch; a few rounds are made however long they take
_ROUNDS = (5, 60)


class Speed(NamedTuple):
    """How fast a model is.

    Attributes:
        latency_ms: milliseconds for one row alone, the median.
        rows_per_second: in batches of 32 rows.
        latency_p90_ms: milliseconds within which nine of ten rows alone are done.
        latency_p99_ms: 99 of 100.
    """

    latency_ms: float
    rows_per_second: float
    latency_p90_ms: float
    latency_p99_ms: float


class Timed(NamedTuple):
    """A model, and how a batch of rows with given numbers is made for it."""

    model: nn.Module
    batch_of: Callable[[Sequence[int]], Mapping[str, torch.Tensor]]


def measure_speed(
    models: Mapping[str, Sequence[Timed]], num_rows: int, device: torch.device, precision: Callable[[], Any]
) -> dict[str, Speed]:
    """Measure models one after the other, many times over; one that is several (an ensemble) takes their sum.

    Args:
        models: by name; they are moved to the device, and put in evaluation mode.
        num_rows: of the data that batches are made of.
        device: where they are measured.
        precision: makes the context in which they are evaluated.
    """
    chosen = [place * num_rows // BATCH_SIZE for place in range(BATCH_SIZE)]
    for each in (timed for members in models.values() for timed in members):
        each.model.to(device).eval()
    alone = _seconds(models, [[row] for row in chosen], device, precision)
    together = _seconds(models, [chosen], device, precision)
    found = {}
    for name in models:
        half, most, nearly_all = (1000 * float(np.quantile(alone[name], share)) for share in (0.5, 0.9, 0.99))
        found[name] = Speed(half, BATCH_SIZE / statistics.median(together[name]), most, nearly_all)
    return found


def num_flops(timed: Timed, row: int = 0) -> int:
    """Return how many floating-point operations a model needs for one row, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    model = timed.model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(**placed(timed.batch_of([row]), device, _dtype(model)))
    return int(counter.get_total_flops())


def _seconds(
    models: Mapping[str, Sequence[Timed]], batches: list[list[int]], device: torch.device, precision: Callable[[], Any]
) -> dict[str, list[float]]:
    made = {
        name: [[placed(timed.batch_of(rows), device, _dtype(timed.model)) for rows in batches] for timed in members]
        for name, members in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    start, least, most = time.perf_counter(), *_ROUNDS
    for turn in range(-1, most):  # the first one warms up, and does not count
        for name, members in models.items():
            _wait(device)
            before = time.perf_counter()
            with torch.inference_mode(), precision():
                for timed, inputs in zip(members, made[name], strict=True):
                    timed.model(**inputs[turn % len(batches)])
            _wait(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - before)
        if turn + 1 >= least and time.perf_counter() - start > _SECONDS:
            break
    return seconds


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
