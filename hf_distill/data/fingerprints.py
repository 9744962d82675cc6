"""What a row says, as a digest: a row is known by its content, wherever it stands and whatever it is called."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import has_length

from hf_distill.models.pixels import WHITE, is_plain

DIGEST_SIZE = 16
LABEL_COLUMNS = ("labels", "label", "label_ids")

Change = Literal["never", "each epoch", "each time"]

_ROWS_AT_ONCE = 10_000
_BYTES_AT_ONCE = 2**26
_FEW_ROWS = 256  # whose size is not known before they are read
_NUM_PROBES = 32
_FLOATS = {2: (b"e", np.float16), 4: (b"f", np.float32), 8: (b"d", np.float64), 16: (b"d", np.float64)}


class RowHashes(NamedTuple):
    """Rows by what is in them.

    Attributes:
        digests: uint8 `(rows, 16)`, 128 bits of BLAKE2b: equal for equal rows.
        sizes: int64 `(rows,)`, how long each row's lists and texts are together; 0 for images.
    """

    digests: np.ndarray
    sizes: np.ndarray


def hash_rows(dataset: Any, columns: Collection[str] | None, *, num_workers: int = 0) -> RowHashes:
    """Digest the rows of a data set as they are now.

    A `datasets.Dataset` is read in Arrow's memory, without making Python objects of it, images as their file's bytes.
    Other data sets are read row by row, unless they have a method `row_digests` that knows a shorter way.

    Raises:
        ValueError: the data set is a stream, its rows have none of the columns, or hold what cannot be digested.
    """
    check_map_style(dataset)
    if hasattr(dataset, "row_digests"):
        digests = dataset.row_digests(columns)
        return RowHashes(digests, np.zeros(len(digests), np.int64))
    if is_arrow(dataset):
        names = _chosen(_arrow_columns(dataset), columns)
        found = [_digests_of_table(table, names) for table in _tables(dataset, names)]
    else:
        items = DataLoader(dataset, batch_size=_FEW_ROWS, num_workers=num_workers, collate_fn=ItemHashes(columns))
        found = list(items)
    if not found:
        return RowHashes(np.zeros((0, DIGEST_SIZE), np.uint8), np.zeros(0, np.int64))
    return RowHashes(np.concatenate([each.digests for each in found]), np.concatenate([each.sizes for each in found]))


class ItemHashes:
    """Digest rows that are mappings; it can be pickled, to work as the collator of a data loader."""

    def __init__(self, columns: Collection[str] | None) -> None:
        self.columns = columns

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> RowHashes:
        """Digest a batch of rows."""
        digests, sizes = [], []
        for row in rows:
            if not isinstance(row, Mapping):
                raise ValueError(f"a row must be a mapping from column to value, got {type(row).__name__}")
            names = _chosen(list(row), self.columns)
            digests.append(_digest(b"".join(_encoded(name) + _encoded(row[name], name) for name in names)))
            sizes.append(sum(_size(row[name]) for name in names))
        return RowHashes(_as_array(digests), np.array(sizes, np.int64))


def augmentation_kind(dataset: Any, columns: Collection[str] | None) -> Change:
    """Find out whether a data set gives other rows each time that it is read.

    A `datasets.Dataset` without a transform never does; one that has `is_augmented` says it; of others some rows are
    read twice in one epoch and, where it can be told the epoch (`set_epoch`), in two.
    """
    if hasattr(dataset, "is_augmented"):
        return "each epoch" if dataset.is_augmented else "never"
    if is_arrow(dataset) or not len(dataset):
        return "never"
    places = np.unique(np.linspace(0, len(dataset) - 1, _NUM_PROBES).astype(int)).tolist()
    read = ItemHashes(columns)

    def now() -> bytes:
        return read([dataset[place] for place in places]).digests.tobytes()

    has_epochs = hasattr(dataset, "set_epoch")
    if has_epochs:
        dataset.set_epoch(0)
    first, second = now(), now()
    if first != second:
        return "each time"
    if not has_epochs:
        return "never"
    dataset.set_epoch(1)
    third = now()
    dataset.set_epoch(0)
    return "never" if third == first else "each epoch"


def check_map_style(dataset: Any) -> None:
    """Raise ValueError if there is no way to a single row of the data."""
    if isinstance(dataset, IterableDataset | datasets.IterableDataset) or not has_length(dataset):
        raise ValueError(
            f"the rows of a {type(dataset).__name__} come as a stream and cannot be found again: load the data whole "
            "(a datasets.Dataset, a list, or a data set with a length), or leave precompute_teacher_logits out"
        )


def is_arrow(dataset: Any) -> bool:
    """Tell whether the rows of a data set are what its Arrow table holds: no transform makes others of them."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def columns_of(dataset: Any, columns: Collection[str] | None) -> list[str]:
    """Name the columns that a data set has of some; None is all but the labels."""
    if is_arrow(dataset):
        return _chosen(_arrow_columns(dataset), columns)
    return _chosen(list(dataset[0]), columns) if len(dataset) else []


def digests_with(prefix: Mapping[str, Any], parts: Iterator[bytes]) -> np.ndarray:
    """Digest one text of bytes for each row, all with the same settings before them.

    Returns:
        uint8 `(rows, 16)`.
    """
    start = hashlib.blake2b(_encoded(json.dumps(prefix, sort_keys=True)), digest_size=DIGEST_SIZE)
    digests = []
    for part in parts:
        hashed = start.copy()
        hashed.update(part)
        digests.append(hashed.digest())
    return _as_array(digests)


def file_bytes(stored: Mapping[str, Any]) -> bytes:
    """Return what is in an image's file, from the entry `{bytes, path}` of an undecoded column.

    Raises:
        ValueError: the entry has neither, or the file cannot be read.
    """
    if stored["bytes"] is not None:
        content: bytes = stored["bytes"]
        return content
    if stored["path"] is None:
        raise ValueError("a row has an image with neither bytes nor a path: take the row out")
    try:
        return Path(stored["path"]).read_bytes()
    except OSError as error:
        raise ValueError(f"an image's file cannot be read: {error}") from error


# ---- Python values ----
# Each value is written with its kind and its size before it, so that different rows never give the same bytes.


def _encoded(value: Any, column: str = "") -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"S" + _count(len(data)) + data
    if isinstance(value, bytes | bytearray):
        return b"B" + _count(len(value)) + bytes(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            return b"g" + _encoded(value.view(torch.int16).numpy(), column)
        return _encoded_array(value.numpy(), column)
    if isinstance(value, np.ndarray | np.generic | bool | int | float):
        return _encoded_array(np.asarray(value), column)
    if isinstance(value, Image.Image):
        palette = value.palette.tobytes() if value.palette is not None else b""
        parts: list[Any] = [value.mode, str(value.size), value.tobytes(), palette]
        if not is_plain(value):  # a teacher's view is of what the image is on its ground
            parts += [value.info.get("transparency"), WHITE]
        return b"I" + b"".join(_encoded(part) for part in parts)
    if isinstance(value, Mapping):
        names = sorted(value)
        return b"D" + _count(len(names)) + b"".join(_encoded(name) + _encoded(value[name], column) for name in names)
    if isinstance(value, list | tuple):
        array = _number_array(value)
        if array is not None:
            return _encoded_array(array, column)
        return b"L" + _count(len(value)) + b"".join(_encoded(each, column) for each in value)
    raise ValueError(
        f"the column {column!r} holds {type(value).__name__}, which has no bytes to know it by: hold numbers, texts, "
        "tensors, arrays or PIL images in it, or leave precompute_teacher_logits out"
    )


def _encoded_array(array: np.ndarray, column: str) -> bytes:
    kind = array.dtype.kind
    if kind == "b":
        code, values = b"b", array.astype(np.uint8)
    elif kind in "iu":
        code, values = b"i", array.astype("<i8")
    elif kind == "f":
        code, dtype = _FLOATS[array.dtype.itemsize]
        values = array.astype(dtype, copy=False)
    elif kind in "OUS":
        return _encoded(array.tolist(), column)
    else:
        raise ValueError(f"the column {column!r} holds an array of {array.dtype}, expected numbers or texts")
    return b"A" + code + bytes([array.ndim]) + b"".join(map(_count, array.shape)) + values.tobytes()


def _number_array(values: Sequence[Any]) -> np.ndarray | None:
    if values and not isinstance(values[0], bool | int | float | list | tuple):
        return None
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "biuf" else None


def _size(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray):
        return int(np.prod(value.shape))
    return len(value) if isinstance(value, str | list | tuple) else 0


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def _as_array(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE)


def _chosen(names: Sequence[str], columns: Collection[str] | None) -> list[str]:
    chosen = sorted(name for name in names if name not in LABEL_COLUMNS and (columns is None or name in columns))
    if not chosen:
        wanted = "other than labels" if columns is None else f"that the teacher reads ({', '.join(sorted(columns))})"
        raise ValueError(f"the rows have no column {wanted}, only {', '.join(names)}")
    return chosen


# ---- Arrow ----


def _arrow_columns(dataset: datasets.Dataset) -> list[str]:
    shown = dataset.format["columns"]
    return [name for name in dataset.column_names if shown is None or name in shown]


def _tables(dataset: datasets.Dataset, names: Sequence[str]) -> Iterator[pa.Table]:
    rows = dataset.select_columns(list(names)).with_format("arrow")
    are_files = any(isinstance(feature, datasets.Image) for feature in rows.features.values())
    fitting = _BYTES_AT_ONCE * max(len(rows.data), 1) // max(rows.data.nbytes, 1)
    yield from rows.iter(max(1, min(fitting, _FEW_ROWS if are_files else _ROWS_AT_ONCE)))


def _digests_of_table(table: pa.Table, names: Sequence[str]) -> RowHashes:
    sizes = np.zeros(len(table), np.int64)
    encoded = []
    for name in names:
        column = table[name].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        parts, lengths = _encoded_column(column, name)
        encoded.append((_encoded(name), parts))
        sizes += lengths
    pieces = [piece for name, parts in encoded for piece in ([name] * len(table), parts)]
    return RowHashes(_as_array([_digest(b"".join(row)) for row in zip(*pieces, strict=True)]), sizes)


def _encoded_column(column: Any, name: str) -> tuple[list[bytes], np.ndarray]:
    """Return what `_encoded` makes of each value, and the values' lengths."""
    if _is_list(column.type):
        found = _encoded_lists(column)
        if found is not None:
            return found
    values = column.to_pylist()
    if pa.types.is_struct(column.type) and {field.name for field in column.type} == {"bytes", "path"}:
        # Of images a teacher's view is made on this ground.
        values = [None if value is None else WHITE.encode() + file_bytes(value) for value in values]
    return [_encoded(value, name) for value in values], np.array([_size(value) for value in values], np.int64)


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _encoded_lists(column: Any) -> tuple[list[bytes], np.ndarray] | None:
    """Encode lists, of lists or not, of numbers by their memory; None if some are missing inside of others."""
    is_missing = np.asarray(column.is_null())
    levels: list[np.ndarray] = []
    while _is_list(column.type):
        if levels and column.null_count:
            return None
        levels.append(np.asarray(column.offsets).astype(np.int64))
        column = column.values
    kind = column.type
    if column.null_count or not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "b":
        code, values = b"b", values.astype(np.uint8)
    elif values.dtype.kind in "iu":
        code, values = b"i", np.ascontiguousarray(values.astype("<i8", copy=False))
    else:
        code, values = _FLOATS[values.dtype.itemsize][0], np.ascontiguousarray(values)
    width, data = values.dtype.itemsize, _memory(values)
    head = b"A" + code + b"\x01" if len(levels) == 1 else b"V" + code + bytes([len(levels)])
    counts = [np.diff(offsets) for offsets in levels]
    texts = [_memory(count.astype("<i8")) for count in counts]
    parts = []
    for row, missing in enumerate(is_missing):
        if missing:
            parts.append(b"N")
            continue
        start, end = row, row + 1
        pieces: list[Any] = [head]
        for offsets, text in zip(levels, texts, strict=True):
            pieces.append(text[8 * start : 8 * end])
            start, end = offsets[start], offsets[end]
        pieces.append(data[width * start : width * end])
        parts.append(b"".join(pieces))
    return parts, counts[0]


def _memory(values: np.ndarray) -> Any:
    return memoryview(values.view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer
