"""Run a classifier over rows: the one way in which teacher, student and baseline of a run are evaluated."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_distill.data.fingerprints import LABEL_COLUMNS
from hf_distill.data.targets import MISSING_LABEL


def predict(
    model: nn.Module,
    rows: Any,
    collator: Callable[[list[Any]], dict[str, Any]],
    args: TrainingArguments,
    *,
    input_names: Collection[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return a model's logits and the labels of all rows, in their order, in every process.

    The batches, the device and the mixed precision are those of an evaluation by `Trainer` with these settings. All
    processes run the model equally often, as they must where it is split over them.

    Args:
        model: a classifier; it is moved to the device, and put in evaluation mode.
        rows: mappings, with labels.
        collator: makes a batch of rows.
        args: batch size, device, precision and workers.
        input_names: entries of a row that the model takes; the collator gets these and the labels. None: all.

    Returns:
        `(rows, num_labels)`, or `(rows, tokens, num_labels)` with -100 where a row has fewer tokens; and the labels,
        `(rows,)` or `(rows, tokens)`, likewise.
    """
    state, size = PartialState(), args.eval_batch_size
    batches = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
    own = batches[state.process_index :: state.num_processes]
    num_own, num_rounds = len(own), -(-len(batches) // state.num_processes)
    own += batches[-1:] * (num_rounds - num_own)
    collate = Collate(collator, {*input_names, *LABEL_COLUMNS} if input_names else None)
    loader = DataLoader(rows, batch_sampler=own, collate_fn=collate, num_workers=args.dataloader_num_workers)
    model.to(args.device).eval()
    dtype = next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32)
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), precision_of(args):  # a data loader draws a seed
        for batch in loader:
            labels = batch.pop("labels")
            inputs = placed(batch, args.device, dtype)
            found.append((model(**inputs).logits.float().cpu().numpy(), labels.numpy()))
    by_process = gather_object([found[:num_own]])
    ordered = [by_process[place % state.num_processes][place // state.num_processes] for place in range(len(batches))]
    logits, labels = zip(*ordered, strict=True)
    return _joined(logits), _joined(labels)


def placed(batch: Mapping[str, torch.Tensor], device: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a batch on a device, what floats in the type of a model's weights: not every model converts images."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}


class Collate:
    """Collate what a model takes of rows; it can be pickled."""

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]], names: set[str] | None) -> None:
        self._collator = collator
        self._names = names

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Make a batch."""
        if self._names is not None:
            rows = [{name: value for name, value in row.items() if name in self._names} for row in rows]
        return dict(self._collator(rows))


def precision_of(args: TrainingArguments) -> Any:
    """Return the context of the mixed precision that settings ask for."""
    if not (args.bf16 or args.fp16):
        return contextlib.nullcontext()
    return torch.autocast(args.device.type, dtype=torch.bfloat16 if args.bf16 else torch.float16)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Put batches together; those of rows of words may have different numbers of tokens."""
    if parts[0].ndim == 1 or len({part.shape[1] for part in parts}) == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    return np.concatenate(
        [
            np.pad(
                part,
                [(0, 0), (0, width - part.shape[1]), *[(0, 0)] * (part.ndim - 2)],
                constant_values=MISSING_LABEL,
            )
            for part in parts
        ]
    )
