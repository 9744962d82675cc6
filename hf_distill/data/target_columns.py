"""Batches of rows that bring their soft targets with them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class SoftTargetColumnCollator:
    """Collate rows that bring their soft targets with them.

    It can be pickled, so that worker processes may be spawned.

    Args:
        collator: collates the other columns.
        column: `teacher_logits` or `teacher_probs`. A row has `num_labels` numbers there or, for token classification,
            `(tokens, num_labels)`, one line for each of its `input_ids`. None, or no such entry, is a row without.
        num_labels: how many numbers there are.
        token_level: whether the rows have one line for each token; None tells by the rows, which a batch without any
            soft target does not show.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
        column: str,
        num_labels: int,
        *,
        token_level: bool | None = None,
    ) -> None:
        self.collator = collator
        self.column = column
        self.num_labels = num_labels
        self.token_level = token_level

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Returns:
            the wrapped collator's batch and, under the column's name, a float32 tensor `(batch, num_labels)`, or
            `(batch, tokens, num_labels)` padded as `input_ids` are. It is NaN where there is no soft target.
        """
        batch = dict(self.collator([{name: row[name] for name in row if name != self.column} for row in rows]))
        entries = [_as_float_array(row.get(self.column), self.column) for row in rows]
        dimensions = {entry.ndim for entry in entries if entry is not None}
        if self.token_level is not None:
            dimensions.add(2 if self.token_level else 1)
        wrong = [e.shape for e in entries if e is not None and (e.ndim not in (1, 2) or e.shape[-1] != self.num_labels)]
        if wrong or len(dimensions) > 1:
            shapes = sorted({entry.shape for entry in entries if entry is not None})
            what = {True: "(tokens, num_labels)", False: "(num_labels,)", None: "(num_labels,) or (tokens, num_labels)"}
            raise ValueError(
                f"each row's {self.column} must have the shape {what[self.token_level]} with num_labels "
                f"{self.num_labels}, and in one batch there are {', '.join(map(str, wrong or shapes))}: write them "
                "in the order and number of the labels, and None where a row has none"
            )
        if dimensions == {2}:
            targets = self._token_targets(entries, rows, batch)
        else:
            targets = torch.full((len(rows), self.num_labels), torch.nan)
            for row, entry in enumerate(entries):
                if entry is not None:
                    targets[row] = torch.from_numpy(entry)
        return {**batch, self.column: targets}

    def _token_targets(
        self, entries: list[np.ndarray | None], rows: list[dict[str, Any]], batch: dict[str, Any]
    ) -> Tensor:
        num_tokens = batch["input_ids"].shape[1]
        targets = torch.full((len(rows), num_tokens, self.num_labels), torch.nan)
        mask = batch.get("attention_mask")
        for number, (entry, row) in enumerate(zip(entries, rows, strict=True)):
            if entry is None:
                continue
            expected = len(row["input_ids"]) if "input_ids" in row else num_tokens
            if len(entry) != expected and not ("input_ids" not in row and len(entry) < expected):
                raise ValueError(
                    f"{self.column} has {len(entry)} lines in a row of {expected} tokens: it needs one for each token, "
                    "special ones included, of the same tokenizer and truncation"
                )
            start = first_token(len(entry), num_tokens, None if mask is None else mask[number])
            targets[number, start : start + len(entry)] = torch.from_numpy(entry)
        return targets


def first_token(length: int, padded_length: int, attention_mask: Tensor | None) -> int:
    """Find where a row's tokens begin in a padded batch.

    Args:
        length: of the row.
        padded_length: of the batch.
        attention_mask: the row's `(padded_length,)`; None is a batch whose padding is on the right.
    """
    padding = padded_length - length
    if not padding or attention_mask is None or not bool(attention_mask.any()):
        return 0
    return 0 if bool(attention_mask[:padding].any()) else padding


def _as_float_array(value: Any, column: str) -> np.ndarray | None:
    if value is None:
        return None
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a row's {column} must be numbers in a list or an array, got {_beginning_of(value)}"
        ) from error


def _beginning_of(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:60] + " ..."
