"""Whether rows of tokens fit the models that read them: at least one token, not too many, none that is unknown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn

from hf_distill.data.fingerprints import is_arrow
from hf_distill.data.processors import num_positions

_COLUMN = "input_ids"
_ROWS_AT_ONCE = 10_000


class TokenLimits(NamedTuple):
    """What a model takes of tokens.

    Attributes:
        who: reads them, for messages.
        num_embeddings: token ids are below; None: there is no table of them.
        num_positions: the most tokens of a row; None: there is no table of positions.
    """

    who: str
    num_embeddings: int | None
    num_positions: int | None


def token_limits(model: nn.Module, who: str) -> TokenLimits:
    """Return how many tokens a model knows, and how many of them at once."""
    try:
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        table = None
    has_positions = any(
        isinstance(module, nn.Embedding) and ("position" in name.rpartition(".")[2] or name.endswith("wpe"))
        for name, module in model.named_modules()
    )
    config = getattr(model, "config", None)
    positions = num_positions(config) if has_positions and config is not None else None
    return TokenLimits(who, table.num_embeddings if isinstance(table, nn.Embedding) else None, positions)


def check_token_rows(dataset: Any, limits: Sequence[TokenLimits], name: str) -> None:
    """Refuse rows of tokens that a model would fail on; of what is not a `datasets.Dataset`, nothing is looked at.

    Raises:
        ValueError: the message names the row, and what the model takes.
    """
    if not is_arrow(dataset) or _COLUMN not in dataset.column_names or not len(dataset):
        return
    first = 0
    rows: Dataset = dataset.select_columns([_COLUMN]).with_format("arrow")
    for table in rows.iter(_ROWS_AT_ONCE):
        column = table[_COLUMN].combine_chunks()  # type: ignore[index]
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
            return
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        if pc.min(lengths).as_py() == 0:
            row = first + pc.index(lengths, pa.scalar(0, lengths.type)).as_py()
            raise ValueError(
                f"row {row} of the {name} data has no tokens, and a model cannot read it: take rows with an empty text "
                "out, or give them a word"
            )
        _check_lengths(lengths, limits, first, name)
        _check_ids(column, limits, first, name)
        first += len(column)


def _check_lengths(lengths: Any, limits: Sequence[TokenLimits], first: int, name: str) -> None:
    longest = pc.max(lengths).as_py()
    for who, _, most in limits:
        if most is not None and longest > most:
            row = first + pc.index(lengths, pa.scalar(longest, lengths.type)).as_py()
            raise ValueError(
                f"row {row} of the {name} data has {longest} tokens, and {who} takes at most {most}: tokenize with "
                f"truncation=True, max_length={most}, or give a teacher inputs of its own (teacher_processing_class)"
            )


def _check_ids(column: Any, limits: Sequence[TokenLimits], first: int, name: str) -> None:
    ids = pc.list_flatten(column)
    if not pa.types.is_integer(ids.type):
        return
    highest = pc.max(ids).as_py()
    for who, known, _ in limits:
        if known is not None and highest is not None and highest >= known:
            parents = pc.list_parent_indices(column)
            row = first + parents[pc.index(ids, pa.scalar(highest, ids.type)).as_py()].as_py()
            raise ValueError(
                f"row {row} of the {name} data has the token id {highest}, and {who} has embeddings for {known} "
                f"tokens, ids 0 to {known - 1}: tokenize with its own tokenizer, or model.resize_token_embeddings(...)"
            )


def check_vocabulary(tokenizer: Any, limits: TokenLimits, remedy: str) -> None:
    """Refuse a tokenizer with tokens for which a model has no embedding.

    Raises:
        ValueError: the message has both numbers.
    """
    highest = max(tokenizer.get_vocab().values(), default=0)
    if limits.num_embeddings is not None and highest >= limits.num_embeddings:
        raise ValueError(
            f"{limits.who}: has embeddings for {limits.num_embeddings} tokens, and its tokenizer has {highest + 1}: "
            f"{remedy.format(number=highest + 1)}"
        )
