"""Batches of rows of similar length, in an order that depends on nothing but the seed and the epoch."""

from collections.abc import Iterator

import datasets
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler


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


def knows_lengths(dataset: Dataset, input_name: str) -> bool:
    """Tell whether the rows are texts whose lengths are found without making the rows one by one."""
    is_plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    return is_plain and input_name == "input_ids" and input_name in dataset.column_names  # type: ignore[attr-defined]


def row_lengths(dataset: Dataset, input_name: str, length_column: str) -> list[int]:
    """Find how long each row's input is.

    Args:
        dataset: rows are mappings.
        input_name: the column whose lists or arrays are measured, `input_ids` mostly.
        length_column: a column that holds the lengths already, if the data set has it.

    Raises:
        ValueError: the rows have neither column.
    """
    if isinstance(dataset, datasets.Dataset):
        if length_column in dataset.column_names:
            return list(dataset.with_format(None)[length_column])
        if input_name in dataset.column_names:
            column = dataset.select_columns(input_name).with_format("arrow")
            return [n for table in column.iter(10_000) for n in pc.list_value_length(table[input_name]).to_pylist()]
        known = dataset.column_names
    else:
        first = dataset[0]
        known = list(first)
        if length_column in first:
            return [int(dataset[index][length_column]) for index in range(len(dataset))]  # type: ignore[arg-type]
        if input_name in first:
            return [len(dataset[index][input_name]) for index in range(len(dataset))]  # type: ignore[arg-type]
    raise ValueError(
        f"grouping by length needs a column {input_name!r} or {length_column!r}, the rows have {known}: "
        "set train_sampling_strategy='random'"
    )
