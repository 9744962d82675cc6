"""The labels of rows as `Trainer`'s collators find them: in which column, of which classes, and what they may be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from hf_distill.data.fingerprints import LABEL_COLUMNS, is_arrow
from hf_distill.data.labels import MISSING_LABEL

_HIDDEN = -1  # what test splits have in the place of labels that are not public
_ROWS_AT_ONCE = 10_000
_SINGLE, _MULTI, _REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class LabelSpace:
    """What the labels of a student may be.

    Attributes:
        num_labels: how many logits the student has; None: not known.
        names: of the classes in the order of the logits; none if they have no names of their own.
        problem_type: None: lists of floating numbers are multi-label targets, other labels classes.
        token_level: whether each token has a label.
    """

    num_labels: int | None
    names: tuple[str, ...] = ()
    problem_type: str | None = None
    token_level: bool = False

    def are_classes(self, is_list: bool = False) -> bool:
        """Tell whether labels are class indices; with no problem type it depends on whether a row has a list."""
        return self.token_level or not is_list if self.problem_type is None else self.problem_type == _SINGLE

    # ---- A row's ----

    def readable(self, values: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the labels of a batch's rows with null, names of classes and 1.0 turned into what a collator takes.

        Raises:
            ValueError: a name is that of no class.
        """
        if any(value is None for value in values):  # beside arrays it must become a list, and then they all must be
            values = [value.tolist() if isinstance(value, Tensor | np.ndarray) else value for value in values]
        lists = [value for value in values if isinstance(value, list | tuple)]
        width = len(lists[0]) if lists else self.num_labels if self.problem_type == _MULTI else None
        found: list[Any] = []
        for value, row in zip(values, rows, strict=True):
            if value is None and (width is not None or self.token_level):
                missing = MISSING_LABEL if self.are_classes(is_list=True) else float(MISSING_LABEL)
                found.append([missing] * (len(row["input_ids"]) if self.token_level else int(width or 1)))
            else:
                found.append(self._converted(value))
        if self.are_classes() and self.num_labels != 1 and _are_whole(found):
            return [MISSING_LABEL if value != value else int(value) for value in found]
        return found

    def _converted(self, value: Any, is_in_list: bool = False) -> Any:
        if value is None:
            return MISSING_LABEL if self.are_classes(is_in_list) else float(MISSING_LABEL)
        if isinstance(value, str):
            index = self.index_of(value) if self.are_classes() else None
            if index is None:
                raise ValueError(self.no_class([value]))
            return index
        if isinstance(value, list | tuple) and any(item is None or isinstance(item, str) for item in value):
            return [self._converted(item, is_in_list=True) for item in value]
        is_number = isinstance(value, Tensor | np.generic | np.ndarray) and value.shape == ()
        return value.item() if is_number else value

    @cached_property
    def _index(self) -> dict[str, int]:
        folded = {name.casefold(): place for place, name in enumerate(self.names)}
        return folded if len(folded) == len(self.names) else {name: place for place, name in enumerate(self.names)}

    def index_of(self, name: str) -> int | None:
        """Return the class of a name, without regard to case; of classes without names a number in text is one.

        An empty text is a missing label. None: there is no such class.
        """
        if not name:
            return MISSING_LABEL
        if not self.names and name.isascii() and name.isdecimal():
            return int(name)
        return self._index.get(name, self._index.get(name.casefold()))

    def no_class(self, names: Sequence[str]) -> str:
        """Say that labels that are text are those of no class."""
        if not self.are_classes():
            return f"the labels are text ({shortened(names, 5)}), and {self.problem_type} needs numbers: convert them"
        of_student = f"the student's classes are {shortened(self.names)}"
        if not self.names:
            of_student = "the student's classes have no names"
        return (
            f"the labels {shortened(names, 5)} are text, and name no class: {of_student}. Name the classes in the "
            "student's id2label, or number the labels: dataset.class_encode_column does so in alphabetical order"
        )

    # ---- What is refused ----

    def check(self, labels: Tensor) -> None:
        """Refuse a batch's labels that are none of the student's; on a GPU they are not looked at.

        Raises:
            ValueError: the message says which there are and which there may be.
        """
        if labels.device.type != "cpu" or not labels.numel() or self.problem_type == _REGRESSION:
            return
        values = labels.detach().reshape(len(labels), -1) if labels.dim() else labels.detach().reshape(1, 1)
        if self.problem_type == _MULTI or (self.problem_type is None and labels.is_floating_point()):
            rows = np.arange(len(values)).repeat(values.shape[1])
            _check_shares(values.flatten().numpy(), rows, " of a batch")
        elif not labels.is_floating_point():
            self.check_range(*_limits(values.numpy()))

    def check_range(self, low: int | None, high: int | None) -> None:
        """Refuse class labels that the student has no logit for; None: all are missing."""
        if low is None or high is None or self.num_labels is None or (low >= 0 and high < self.num_labels):
            return
        remedy = " (-1 is no label: remove the column, or write -100 in its place)" if low == _HIDDEN else ""
        raise ValueError(
            f"the labels run from {low} to {high}, the student has {self.num_labels} classes: labels must be 0 to "
            f"{self.num_labels - 1}, or {MISSING_LABEL} where one is missing{remedy}"
        )

    def check_column(self, dataset: Any, column: str) -> int:
        """Refuse labels of a column that are none of the student's.

        Raises:
            ValueError: the message says which there are and which there may be.
        """
        limits: list[int | None] = []
        strangers: dict[str, None] = {}
        count = 0
        for rows, values, is_list in _batches(dataset, column):
            if _is_text(values):
                names = values.unique().to_pylist()
                count += pc.sum(pc.not_equal(values, "")).as_py() or 0
                found = {name: self.index_of(name) if self.are_classes() else None for name in names}
                strangers |= dict.fromkeys(name for name, index in found.items() if index is None)
                limits += _limits(np.array([index for index in found.values() if index is not None], np.int64))
                continue
            numbers = values.to_numpy(zero_copy_only=False)
            if numbers.dtype.kind not in "biuf":
                raise ValueError(f"column {column!r} holds {values.type}, expected labels: numbers or names of classes")
            count += int(((numbers != MISSING_LABEL) & (numbers == numbers)).sum())
            if self.problem_type == _REGRESSION:
                continue
            if self.are_classes(is_list) and self.num_labels != 1:
                _check_whole(numbers, column)
                limits += _limits(numbers)
            elif self.problem_type == _MULTI or numbers.dtype.kind == "f":
                _check_shares(numbers, rows)
        if strangers:
            raise ValueError(f"column {column!r}: {self.no_class(list(strangers))}")
        present = [limit for limit in limits if limit is not None]
        self.check_range(min(present, default=None), max(present, default=None))
        return count


class LabelCollator:
    """Collate rows whose labels may be null or names of classes, and refuse those that are none of the student's.

    It can be pickled, so that worker processes may be spawned.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], space: LabelSpace) -> None:
        self.collator = collator
        self.space = space
        self.tokenizer = getattr(collator, "tokenizer", None)  # which `Trainer` saves beside the model

    @property
    def is_usual(self) -> bool:
        """Tell whether it is known in which columns the collator looks for labels."""
        made_by = self.collator if hasattr(self.collator, "__qualname__") else type(self.collator)
        return str(made_by.__module__).startswith("transformers.")

    def __call__(self, rows: list[Any]) -> Any:
        """Collate rows."""
        batch = self.collator(self._readable(rows) if self.is_usual else rows)
        if self.is_usual and "label" in batch and "labels" not in batch:  # of tokens
            batch["labels"] = batch.pop("label")
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor):
            self.space.check(labels)
        return batch

    def _readable(self, rows: list[Any]) -> list[Any]:
        first = rows[0] if rows and isinstance(rows[0], Mapping) else {}
        column = next((name for name in LABEL_COLUMNS if name in first), None)
        if column is None:
            return rows
        values = [row.get(column) for row in rows]
        if all(type(value) is int for value in values):
            return rows
        readable = self.space.readable(values, rows)
        return [{**row, column: value} for row, value in zip(rows, readable, strict=True)]


def label_columns(dataset: Any) -> tuple[list[str], list[str]] | None:
    """Name the columns of a data set, and those among them that Transformers' collators take for labels."""
    if isinstance(dataset, datasets.Dataset):
        is_all = not is_arrow(dataset) or dataset.format["output_all_columns"]
        shown = ([] if not is_arrow(dataset) else None) if is_all else dataset.format["columns"]
        names = [name for name in dataset.column_names if shown is None or name in shown]
    elif isinstance(dataset, list | tuple):
        names = list(dataset[0]) if dataset and isinstance(dataset[0], Mapping) else []
    else:
        names = list(getattr(dataset, "column_names", None) or [])
    return (names, [name for name in LABEL_COLUMNS if name in names]) if names else None


def class_names(dataset: Any, column: str) -> list[str]:
    """Return the names that the data give to the classes of a column, in order; nothing if they give none."""
    feature, _ = _feature(dataset, column)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else []


def holds_targets(dataset: Any, column: str) -> bool:
    """Tell whether a column is known to hold a list of floating numbers in each row."""
    feature, is_list = _feature(dataset, column)
    return is_list and str(getattr(feature, "dtype", "")).startswith("float")


def is_readable(dataset: Any) -> bool:
    """Tell whether the labels of a data set are at hand, without making its rows."""
    return is_arrow(dataset) or isinstance(dataset, list | tuple)


def without_hidden_labels(dataset: Any) -> Any:
    """Leave out a column of labels that are all -1, as in test splits whose labels are not public."""
    columns = label_columns(dataset)
    if columns is None or len(columns[1]) != 1 or not is_readable(dataset) or not len(dataset):
        return dataset
    (column,) = columns[1]
    for _, values, is_list in _batches(dataset, column):
        if is_list or not pa.types.is_signed_integer(values.type) or not pc.all(pc.equal(values, _HIDDEN)).as_py():
            return dataset
    if isinstance(dataset, datasets.Dataset):
        return dataset.remove_columns(column)
    return [{name: value for name, value in row.items() if name != column} for row in dataset]


def shortened(names: Sequence[str], limit: int = 20) -> str:
    """Show the first of some names."""
    return f"[{', '.join(map(repr, names[:limit]))}{', ...' if len(names) > limit else ''}]"


def _feature(dataset: Any, column: str) -> tuple[Any, bool]:
    """Return what a column holds, and whether in lists."""
    feature, is_list = (getattr(dataset, "features", None) or {}).get(column), False
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, is_list = feature.feature, True
    return feature, is_list


# ---- Arrow ----


def _batches(dataset: Any, column: str) -> Iterator[tuple[np.ndarray, Any, bool]]:
    """Yield labels that are not null as an Arrow array, the numbers of their rows, and whether rows have lists."""
    for first, values in _arrays(dataset, column):
        rows, is_list = np.arange(first, first + len(values)), False
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or _is_fixed(values.type):
            is_list = True
            rows, values = rows[pc.list_parent_indices(values).to_numpy()], pc.list_flatten(values)
        present = values.is_valid().to_numpy(zero_copy_only=False)
        if present.any():
            yield rows[present], values.drop_null(), is_list


def _arrays(dataset: Any, column: str) -> Iterator[tuple[int, Any]]:
    if isinstance(dataset, datasets.Dataset):
        tables = dataset.select_columns(column).with_format("arrow").iter(_ROWS_AT_ONCE)
        for number, table in enumerate(tables):
            values = table[column].combine_chunks()
            yield number * _ROWS_AT_ONCE, values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        return
    for first in range(0, len(dataset), _ROWS_AT_ONCE):
        found = [row.get(column) for row in dataset[first : first + _ROWS_AT_ONCE]]
        try:
            yield first, pa.array([value.tolist() if hasattr(value, "tolist") else value for value in found])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"the labels in {column!r} are of several types, make them one: {error}") from error


def _is_fixed(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _is_text(values: Any) -> bool:
    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))


# ---- Numbers ----


def _limits(values: np.ndarray) -> tuple[int | None, int | None]:
    """Return the smallest and the largest class label; None if all are missing."""
    if values.dtype.kind in "if":
        values = values[(values != MISSING_LABEL) & (values == values)]
    return (int(values.min()), int(values.max())) if values.size else (None, None)


def _are_whole(values: Sequence[Any]) -> bool:
    """Tell whether there are floating numbers among some, and they are whole or NaN."""
    floating = [value for value in values if isinstance(value, float)]
    are_numbers = all(isinstance(value, int | float) for value in values)
    return bool(floating) and are_numbers and all(value != value or value.is_integer() for value in floating)


def _check_whole(values: np.ndarray, column: str) -> None:
    """Refuse numbers that are no class: an empty cell makes pandas read whole numbers as 1.0, but never 1.5."""
    if values.dtype.kind != "f":
        return
    broken = values[((values != np.floor(values)) & (values == values)) | np.isinf(values)]
    if broken.size:
        raise ValueError(
            f"the labels in column {column!r} are numbers such as {broken[0]:g}, and a class label is a whole number: "
            "for regression set problem_type='regression' in the student's and the teacher's config"
        )


def _check_shares(values: np.ndarray, rows: np.ndarray, where: str = "") -> None:
    """Refuse multi-label targets that are not from 0 to 1."""
    wrong = np.flatnonzero((values != MISSING_LABEL) & ((values < 0) | (values > 1)))
    if len(wrong):
        row = rows[wrong[0]]
        shown = ", ".join(f"{value:g}" for value in values[rows == row][:8])
        raise ValueError(
            f"multi-label targets must be from 0 to 1, or {MISSING_LABEL} where one is missing, got {shown} in row "
            f"{row}{where}"
        )
