"""The micro-batches of a step: streams that end within one, and rows that only fill up the last."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.data_loader import SkipBatchSampler
from torch import Tensor

from hf_distill.data.targets import MISSING_LABEL

REPEATED_ROWS = "repeated_rows"
"""The entry of a batch that marks them."""


class StepBatches:
    """Takes the micro-batches of a step; those of a stream that ends within one are the first of the next.

    `Trainer` would add the gradient of these to the next step's.
    """

    def __init__(self, accelerator: Any, main_input: Callable[[dict[str, Any]], Tensor]) -> None:
        self._accelerator = accelerator
        self._main_input = main_input
        self._waiting: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget those that wait, for another training."""
        self._waiting = []

    def take(self, batches: Iterator, count: int, *, is_stream: bool, is_first: bool) -> list[dict[str, Any]]:
        """Return the micro-batches of a step, none if a stream has too few left.

        Raises:
            ValueError: the whole stream is shorter than one step.
        """
        taken, self._waiting = self._waiting, []
        taken += itertools.islice(batches, count - len(taken))
        if taken:
            mark_repeated_rows(taken[-1], self._accelerator, self._main_input(taken[-1]))
        if len(taken) == count or not is_stream:
            return taken
        if taken and is_first:
            raise ValueError(
                f"the training stream gives {len(taken)} batches, and a step takes {count}: lower "
                "gradient_accumulation_steps"
            )
        self._waiting = taken
        return []


def mark_repeated_rows(batch: dict[str, Any], accelerator: Any, main_input: Tensor) -> None:
    """Leave out of the loss the rows that fill up the last batch of an epoch.

    Accelerate repeats rows from the beginning of the data set so that all processes have as many; counted again, they
    would make the gradient another than one process's.

    Args:
        batch: this process's part of the batch that was read last.
        accelerator: the run's.
        main_input: of the batch, `(rows, ...)`.
    """
    if accelerator.num_processes == 1 or not accelerator.gradient_state.end_of_dataloader:
        return
    num_new = _num_new_rows(accelerator)
    if num_new < 1:
        return
    num_rows = main_input.shape[0]
    first = accelerator.process_index * num_rows
    repeated = torch.arange(first, first + num_rows, device=main_input.device) >= num_new
    batch[REPEATED_ROWS] = repeated
    if "labels" in batch:
        labels = batch["labels"]
        batch["labels"] = labels.masked_fill(repeated.view(-1, *[1] * (labels.dim() - 1)), MISSING_LABEL)


def _num_new_rows(accelerator: Any) -> int:
    """Return how many rows of all processes' last batch are no repetition; 0 or less: all, or nobody knows."""
    state = accelerator.gradient_state
    skipping = getattr(state.active_dataloader, "batch_sampler", None)
    if state.remainder >= 0 or not isinstance(skipping, SkipBatchSampler):
        return int(state.remainder)
    # The loader of a resumed epoch does not know: Accelerate's `skip_first_batches` hides the size of the batches.
    batches = skipping.batch_sampler
    num_rows = batches.batch_size * (1 if batches.split_batches else accelerator.num_processes)
    return 0 if batches.drop_last else len(state.active_dataloader.dataset) % num_rows
