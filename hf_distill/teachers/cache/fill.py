"""Run a teacher once over rows, and cache its soft targets."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_distill.data.fingerprints import ItemHashes
from hf_distill.data.target_columns import first_token
from hf_distill.teachers.cache.shards import ShardWriter
from hf_distill.teachers.source import check_logits

ComputeFn = Callable[[dict[str, Any]], tuple[list[Tensor], Tensor | None]]
"""Run the teacher on a batch: its members' logits, and which rows or tokens have soft targets (None: all)."""

_MIB = 2**20


@dataclass(frozen=True)
class Rows:
    """Rows whose soft targets are computed.

    Attributes:
        dataset: the data set, as its collator takes it.
        collator: makes a batch of its rows.
        numbers: which of its rows.
        digests: theirs, uint8 `(numbers, 16)`.
        sizes: theirs, by which they are put together.
        reader: digests rows that are read one by one, to see that they are the same as when they were looked up.
        token_level: each token has soft targets.
        pin_memory: their batches go to a GPU.
    """

    dataset: Any
    collator: Callable[[list], Any]
    numbers: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    reader: ItemHashes | None
    token_level: bool
    pin_memory: bool = False

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class WorkShare:
    """Which part of the work is this process's.

    Attributes:
        process: its number.
        num_processes: how many work together.
        in_step: all must run the teacher equally often, for it is split over them.
    """

    process: int = 0
    num_processes: int = 1
    in_step: bool = False


class _Batch(NamedTuple):
    inputs: dict[str, Any]
    lengths: np.ndarray | None
    attention_mask: Tensor | None
    digests: np.ndarray | None


class _Collate:
    """Collate rows, and note what padding hides; it can be pickled."""

    def __init__(self, rows: Rows) -> None:
        self.collator = rows.collator
        self.reader = rows.reader
        self.token_level = rows.token_level

    def __call__(self, rows: list[Any]) -> _Batch:
        lengths = np.array([len(row["input_ids"]) for row in rows], np.int64) if self.token_level else None
        digests = None if self.reader is None else self.reader(rows).digests
        inputs = dict(self.collator(rows))
        return _Batch(inputs, lengths, inputs.get("attention_mask"), digests)


def compute_rows(
    rows: Rows,
    compute: ComputeFn,
    writer: ShardWriter,
    *,
    batch_size: int,
    num_workers: int = 0,
    share: WorkShare = WorkShare(),
    advance: Callable[[int], None] | None = None,
) -> None:
    """Compute the soft targets of rows, the longest first, and write them.

    Raises:
        ValueError: the logits are not numbers or out of the range of their type, a row has changed since it was looked
            up, or the disk has no room for all of them.
    """
    order = np.argsort(-rows.sizes, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if not batches:
        return
    own = batches[share.process :: share.num_processes]
    num_own = len(own)
    if share.in_step:
        own += [batches[0]] * (math.ceil(len(batches) / share.num_processes) - num_own)
    num_bytes_before = writer.num_bytes
    before: tuple[np.ndarray, _Batch, list[Tensor], Tensor | None] | None = None
    weights = rows.sizes if rows.token_level else np.ones(len(rows))
    for number, (places, batch) in enumerate(zip(own, _loaded(rows, own, num_workers), strict=True)):
        if batch.digests is not None and not np.array_equal(batch.digests, rows.digests[places]):
            changed = rows.numbers[places[(batch.digests != rows.digests[places]).any(-1)][0]]
            raise ValueError(
                f"row {changed} of the data was another one when it was read again, so its soft targets cannot be "
                "cached: rows that change are augmented in `set_epoch` alone, with teacher_logits_views; or leave "
                "precompute_teacher_logits out"
            )
        members, mask = compute(batch.inputs)
        # The logits of the batch before are fetched while the device computes this one.
        if before is not None:
            _write(rows, *before, writer, advance)
        if number == 1:
            times = float(weights.sum()) / max(float(weights[own[0]].sum()), 1.0)
            _check_room(writer, (writer.num_bytes - num_bytes_before) * times)
        before = (places, batch, members, mask) if number < num_own else None
    if before is not None:
        _write(rows, *before, writer, advance)


def logits_of_rows(rows: Rows, compute: ComputeFn, *, alone: bool = False) -> list[tuple[np.ndarray, ...]]:
    """Run a teacher on a few rows, in one batch or one after the other.

    Returns:
        for each row the logits of each member: float32 `(num_labels,)`, or `(tokens, num_labels)` with NaN at tokens
        without soft targets.
    """
    places = np.arange(len(rows))
    found: list[tuple[np.ndarray, ...]] = []
    for batch in _loaded(rows, np.split(places, len(places)) if alone else [places], 0):
        members, mask = compute(batch.inputs)
        found += zip(*(_by_row(values, batch, mask) for values in members), strict=True)
    return found


def max_relative_difference(
    some: Sequence[tuple[np.ndarray, ...]], others: Sequence[tuple[np.ndarray, ...]], top_k: int | None = None
) -> float:
    """Tell how far two sets of logits of the same rows are apart, as a part of the largest."""
    numbers = [logits[np.isfinite(logits)] for row in others for logits in row]
    scale = max((float(np.abs(logits).max(initial=0.0)) for logits in numbers), default=0.0)
    distances = [
        _distance(one.astype(np.float32), other, top_k)
        for row, other_row in zip(some, others, strict=True)
        for one, other in zip(row, other_row, strict=True)
    ]
    return max(distances, default=0.0) / max(scale, 1e-6)


def _distance(kept: np.ndarray, given: np.ndarray, top_k: int | None) -> float:
    if kept.shape != given.shape:
        return math.inf
    if top_k is not None and top_k < kept.shape[-1]:
        largest = np.argsort(kept, axis=-1)[..., -top_k:]
        kept, given = np.take_along_axis(kept, largest, -1), np.take_along_axis(given, largest, -1)
    finite = np.isfinite(kept)
    if not np.array_equal(finite, np.isfinite(given)):
        return math.inf
    return float(np.abs(kept[finite] - given[finite]).max(initial=0.0))


def _loaded(rows: Rows, batches: Sequence[np.ndarray], num_workers: int) -> Iterator[_Batch]:
    indices = [rows.numbers[places].tolist() for places in batches]
    return iter(
        DataLoader(
            rows.dataset,
            batch_sampler=indices,
            collate_fn=_Collate(rows),
            num_workers=num_workers,
            pin_memory=rows.pin_memory,
        )
    )


def _write(
    rows: Rows,
    places: np.ndarray,
    batch: _Batch,
    members: list[Tensor],
    mask: Tensor | None,
    writer: ShardWriter,
    advance: Callable[[int], None] | None,
) -> None:
    written = []
    for values in members:
        by_row = _by_row(values, batch, mask)
        written.append(np.concatenate(by_row) if rows.token_level else np.stack(by_row))
    writer.add(rows.digests[places], written, batch.lengths)
    if advance is not None:
        advance(len(places))


def _by_row(values: Tensor, batch: _Batch, mask: Tensor | None) -> list[np.ndarray]:
    """Return one member's logits of each row, without padding, NaN where it has no logits."""
    logits = values.detach().float().cpu().numpy()
    by_row = [*logits]
    if batch.lengths is not None:
        has_targets = None if mask is None else mask.cpu().numpy()
        for row, length in enumerate(batch.lengths):
            attended = None if batch.attention_mask is None else batch.attention_mask[row]
            start = first_token(int(length), logits.shape[1], attended)
            by_row[row] = logits[row, start : start + length]
            if len(by_row[row]) < length:
                raise ValueError(
                    f"a row has {length} tokens, and the data collator has left {len(by_row[row])} of them: truncate "
                    "rows when they are tokenized"
                )
            check_logits(torch.from_numpy(by_row[row]))
            if has_targets is not None:
                by_row[row] = np.where(has_targets[row, start : start + length, None], by_row[row], np.float32(np.nan))
    else:
        check_logits(torch.from_numpy(logits))
    return by_row


def _check_room(writer: ShardWriter, needed: float) -> None:
    """Raise ValueError if the disk cannot take so many bytes."""
    free = shutil.disk_usage(writer.path).free
    if needed > free:
        raise ValueError(
            f"teacher_logits_dir: the soft targets take about {needed / _MIB:,.1f} MiB, and the disk of {writer.path} "
            f"has {free / _MIB:,.1f} MiB: make room, set another teacher_logits_dir, or keep less of each row "
            "(teacher_logits_dtype, teacher_logits_top_k)"
        )
