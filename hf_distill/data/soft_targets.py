"""Rows and batches that bring their cached soft targets with them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_distill.data.fingerprints import ItemHashes
from hf_distill.data.target_columns import first_token

CACHED_LOGITS = "cached_teacher_logits"
"""The entry of a batch with the members' logits: a list of tensors `(batch, ...)`, one for each member."""

CACHED_MASK = "cached_teacher_mask"
"""The entry of a batch that tells which rows, or tokens, have soft targets; without it all have."""


class Source(Protocol):
    """Where soft targets are kept."""

    def fetch(self, positions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Return for each position `(rows,)` what the members say: `(num_labels,)` or `(tokens, num_labels)` each."""
        ...


class RowSoftTargets:
    """The soft targets of a data set's rows, in each of its views.

    A view is what the rows are in one epoch; where there are several, epoch `e` takes view `e % views`.

    Args:
        source: where they are kept.
        positions: int64 `(views, rows)`, where in it.
        digests: uint8 `(views, rows, 16)` of rows that are read one by one, which may have changed since: one row of
            each batch is then compared. None: they cannot change.
        columns: those that the digests are of.
        changes: the rows are others in each epoch, so that they must be told which view is wanted.
    """

    def __init__(
        self,
        source: Source,
        positions: np.ndarray,
        *,
        digests: np.ndarray | None = None,
        columns: Collection[str] | None = None,
        changes: bool = False,
    ) -> None:
        self.source = source
        self.positions = positions
        self.changes = changes
        self._digests = digests
        self._digest_of = ItemHashes(columns)
        # Shared with worker processes, which live on from epoch to epoch where dataloader_persistent_workers is set.
        self._view = torch.zeros((), dtype=torch.long)
        self._view.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def num_views(self) -> int:
        """Return how many views of each row there are."""
        return len(self.positions)

    @property
    def view(self) -> int:
        """Return which view is the present one."""
        return int(self._view)

    def set_epoch(self, epoch: int) -> None:
        """Choose the view of an epoch."""
        self._view.fill_(epoch % self.num_views)

    def of(self, view: int, indices: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> list[tuple[np.ndarray, ...]]:
        """Return what each member says of some rows.

        Raises:
            ValueError: a row is not what it was when the soft targets were looked up.
        """
        if self._digests is not None and rows:
            found = self._digest_of([rows[0]]).digests[0]
            if not np.array_equal(found, self._digests[view, indices[0]]):
                raise ValueError(
                    f"row {indices[0]} of the data is not what it was when its soft targets were looked up: rows that "
                    "change are augmented in `set_epoch` alone, with teacher_logits_views; or leave "
                    "precompute_teacher_logits out"
                )
        return self.source.fetch(self.positions[view, np.asarray(indices, np.int64)])


class CachedDataset(Dataset):
    """A data set whose rows have an entry `cached_teacher_logits`.

    Raises:
        ValueError: there are more or fewer rows than soft targets.
    """

    def __init__(self, rows: Any, targets: RowSoftTargets) -> None:
        if len(rows) != targets.positions.shape[1]:
            raise ValueError(
                f"the data have {len(rows)} rows, and had {targets.positions.shape[1]} when their soft targets were "
                "looked up: pass the changed data as another data set"
            )
        self.rows = rows
        self.targets = targets
        self._view_of_rows: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows; a data loader asks for a batch at once."""
        view = self.targets.view
        if self.targets.changes and self._view_of_rows != view:
            self.rows.set_epoch(view)  # in a worker process the rows have not heard of it
            self._view_of_rows = view
        read = getattr(self.rows, "__getitems__", None)
        rows = [self.rows[index] for index in indices] if read is None else read(list(indices))
        targets = self.targets.of(view, indices, rows)
        return [{**row, CACHED_LOGITS: target} for row, target in zip(rows, targets, strict=True)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the rows; where they are others in each epoch, its view."""
        self.targets.set_epoch(epoch)
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(self.targets.view if self.targets.changes else epoch)


class SoftTargetCollator:
    """Collate rows and their soft targets.

    It can be pickled, so that worker processes may be spawned.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
        widths: Sequence[int],
        *,
        token_level: bool,
        withheld: Collection[str] = (),
    ) -> None:
        self.collator = collator
        self.widths = tuple(widths)
        self.token_level = token_level
        self.withheld = frozenset({*withheld, CACHED_LOGITS})

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows."""
        targets = [row.get(CACHED_LOGITS) for row in rows]
        plain = [{name: value for name, value in row.items() if name not in self.withheld} for row in rows]
        batch = dict(self.collator(plain))
        if self.token_level:
            return {**batch, **self._of_tokens(targets, batch)}
        present = [target for target in targets if target is not None]
        if len(present) == len(rows):
            members = [torch.from_numpy(np.stack(values)) for values in zip(*present, strict=True)]
            return {**batch, CACHED_LOGITS: members}
        members = [torch.zeros(len(rows), width) for width in self.widths]
        mask = torch.tensor([target is not None for target in targets])
        for member, values in zip(members, zip(*present, strict=True), strict=False):
            member[mask] = torch.from_numpy(np.stack(values)).float()
        return {**batch, CACHED_LOGITS: members, CACHED_MASK: mask}

    def _of_tokens(self, targets: list[tuple[np.ndarray, ...] | None], batch: dict[str, Any]) -> dict[str, Any]:
        shape = tuple(batch["input_ids"].shape)
        attended = batch.get("attention_mask")
        dtype = next((target[0].dtype for target in targets if target is not None), np.dtype(np.float32))
        members = [np.zeros((*shape, width), dtype) for width in self.widths]
        mask = np.zeros(shape, bool)
        for number, target in enumerate(targets):
            if target is None:
                continue
            length = len(target[0])
            start = first_token(length, shape[1], None if attended is None else attended[number])
            has_targets = np.logical_and.reduce([~np.isnan(values).any(-1) for values in target])
            mask[number, start : start + length] = has_targets
            for member, values in zip(members, target, strict=True):
                member[number, start : start + length] = np.where(has_targets[:, None], values, 0)
        tensors: list[Tensor] = [torch.from_numpy(member) for member in members]
        return {CACHED_LOGITS: tensors, CACHED_MASK: torch.from_numpy(mask)}
