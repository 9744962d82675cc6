"""Batches of rows of similar length, in an order that depends on nothing but the seed and the epoch."""

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import has_length


class EpochLengthGroupedSampler(LengthGroupedSampler):
    """`LengthGroupedSampler` that can be resumed.

    Its parent draws each epoch's order from the global random state, so a run resumed in the middle of an epoch skips
    other rows than those it has seen. Here the order is a function of `seed` and of the epoch, which Accelerate's data
    loader sets.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


@contextmanager
def all_rows(args: Any, description: str) -> Iterator[None]:
    """Let a data loader keep its last batch, unless it is for training: `Trainer` would drop rows of an evaluation."""
    before = args.dataloader_drop_last
    args.dataloader_drop_last = before and description == "Training"
    try:
        yield
    finally:
        args.dataloader_drop_last = before


def knows_lengths(dataset: Dataset, input_name: str) -> bool:
    """Tell whether the rows are texts whose lengths are found without making the rows one by one."""
    is_plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    return is_plain and input_name == "input_ids" and input_name in dataset.column_names  # type: ignore[attr-defined]


def row_lengths(dataset: Dataset, input_name: str, length_column: str) -> list[int]:
    """Find how long each row's input is.

    Raises:
        ValueError: the rows have neither column.
    """
    if isinstance(dataset, datasets.Dataset):
        known = dataset.column_names
        stated = dataset.with_format(None)[length_column] if length_column in known else None
        if stated is not None and (lengths := _whole_numbers(stated)) is not None:
            return lengths
        if input_name in known:
            column = dataset.select_columns(input_name).with_format("arrow")
            return [n for table in column.iter(10_000) for n in pc.list_value_length(table[input_name]).to_pylist()]
    else:
        known = list(dataset[0])
        rows = (dataset[index] for index in range(len(dataset)))  # type: ignore[arg-type]
        if length_column in known and (lengths := _whole_numbers(row[length_column] for row in rows)) is not None:
            return lengths
        if input_name in known:
            return [len(dataset[index][input_name]) for index in range(len(dataset))]  # type: ignore[arg-type]
    raise ValueError(
        f"grouping by length needs a column {input_name!r}, or {length_column!r} with whole numbers, the rows have "
        f"{known}: set train_sampling_strategy='random'"
    )


def _whole_numbers(values: Iterable[Any]) -> list[int] | None:
    """Return values that are all whole numbers; None: some are text, fractions or missing, so they are no lengths."""
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return None


def train_sampler(trainer: Any, dataset: Any) -> Sampler | None:
    """Return what draws length-grouped batches in an order that can be resumed; None: `Trainer`'s own."""
    args, original = trainer.args, trainer.train_dataset
    dataset = original if dataset is None else dataset
    if args.train_sampling_strategy not in ("auto", "group_by_length") or not has_length(dataset):
        return None
    names = getattr(trainer.processing_class, "model_input_names", None) or ["input_ids"]
    with_lengths = original if len(original) == len(dataset) else dataset
    if args.train_sampling_strategy == "auto" and not knows_lengths(with_lengths, names[0]):
        return None  # any other strategy than the parent's is random there
    return EpochLengthGroupedSampler(
        # All that makes one step: several processes then see the rows that one with their batch together would.
        args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        row_lengths(with_lengths, names[0], args.length_column_name),
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


def eval_sampler(args: Any, dataset: Any) -> Sampler | None:
    """Return what goes through the data in their order.

    The parent groups evaluation by length as well, and `predict` then returns the rows in another order.
    """
    if dataset is None or not has_length(dataset) or args.world_size > 1:
        return None
    return SequentialSampler(dataset)
