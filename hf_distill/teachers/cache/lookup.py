"""Which rows have soft targets in a cache, and which are missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_distill.data.fingerprints import ItemHashes, augmentation_kind, hash_rows, is_arrow
from hf_distill.teachers.cache.store import SoftTargets


class MissingTargetsError(ValueError):
    """Rows have no cached soft targets, and there is no teacher to compute them.

    Attributes:
        count: how many of them.
        total: how many rows there are.
    """

    def __init__(self, path: Path, count: int, total: int) -> None:
        super().__init__(
            f"{count} of {total} rows have no cached soft targets in {path}, and no teacher was given to compute them: "
            "pass teacher=, or the data that they were computed for, prepared in the same way"
        )
        self.count, self.total = count, total


@dataclass(frozen=True)
class HashedRows:
    """A data set whose rows have been digested.

    Attributes:
        dataset: the data set.
        changes: its rows are others in each epoch.
        digests: uint8 `(views, rows, 16)`.
        sizes: int64 `(rows,)`, how long they are.
        reader: what has digested them, if they are read one by one.
    """

    dataset: Any
    changes: bool
    digests: np.ndarray
    sizes: np.ndarray
    reader: ItemHashes | None

    def positions(self, targets: SoftTargets | None) -> np.ndarray:
        """Return where the rows' soft targets are, int64 `(views, rows)`, -1 for those that have none."""
        return np.full(self.digests.shape[:-1], -1, np.int64) if targets is None else targets.find(self.digests)

    def show(self, view: int) -> None:
        """Let the data set give the rows of a view."""
        if self.changes:
            self.dataset.set_epoch(view)


def hash_data_set(
    dataset: Any, columns: set[str] | None, *, num_views: int | None, is_trained_on: bool, num_workers: int
) -> HashedRows:
    """Digest the rows of a data set, in each view of the training rows.

    Raises:
        ValueError: the rows change at every read, or `num_views` does not fit how they change.
    """
    change = augmentation_kind(dataset, columns)
    if change == "each time":
        raise ValueError(
            "the rows of the data are others each time that they are read, so no soft targets can be cached for them: "
            "let their augmentation depend on the row and on the epoch alone (a method set_epoch), and set "
            "teacher_logits_views, or leave precompute_teacher_logits out"
        )
    changes = change == "each epoch"
    if changes and num_views is None:
        raise ValueError(
            "the rows of the data are augmented anew in each epoch, and soft targets of one epoch are of other rows "
            "than the student's in the next: set teacher_logits_views=N to cache N views of each row (epoch e then has "
            "view e % N again), or leave precompute_teacher_logits out"
        )
    if is_trained_on and not changes and num_views is not None:
        raise ValueError(
            f"teacher_logits_views is {num_views}, and the training rows are the same in each epoch: leave it out"
        )
    found = []
    for view in range(num_views if changes and is_trained_on and num_views is not None else 1):
        if changes:
            dataset.set_epoch(view)
        found.append(hash_rows(dataset, columns, num_workers=num_workers))
    is_read_one_by_one = not is_arrow(dataset) and not hasattr(dataset, "row_digests")
    reader = ItemHashes(columns) if is_read_one_by_one else None
    return HashedRows(dataset, changes, np.stack([each.digests for each in found]), found[0].sizes, reader)


def missing_rows(rows: Sequence[HashedRows], targets: SoftTargets | None) -> list[tuple[HashedRows, int, np.ndarray]]:
    """Return for each data set and view the rows that lack soft targets, those that are alike once."""
    missing, seen = [], set()
    for each in rows:
        for view, positions in enumerate(each.positions(targets)):
            numbers = []
            for number in np.flatnonzero(positions < 0).tolist():
                digest = each.digests[view, number].tobytes()
                if digest not in seen:
                    seen.add(digest)
                    numbers.append(number)
            missing.append((each, view, np.array(numbers, np.int64)))
    return missing


def num_missing(rows: Sequence[HashedRows], targets: SoftTargets | None) -> int:
    """Count the rows that lack soft targets, those that are alike once."""
    return sum(len(numbers) for _, _, numbers in missing_rows(rows, targets))
