"""Turn text, and words with tags, into what a model reads."""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.data.labels import MISSING_LABEL


def tokenize_text(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    columns: tuple[str, ...],
    max_length: int | None,
    *,
    segments: bool | None = None,
    kept: tuple[str, ...] = (),
) -> Dataset:
    """Tokenize a text or a pair of texts in each row."""

    def tokenize(batch: dict[str, list]) -> dict[str, Any]:
        texts = [[text or "" for text in batch[name]] for name in columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=segments)
        return {**encoded, "labels": batch["labels"], "length": [len(ids) for ids in encoded["input_ids"]]}

    return dataset.map(tokenize, batched=True, remove_columns=_others(dataset, (*columns, *kept)), desc="Tokenizing")


def tokenize_words(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    column: str,
    max_length: int | None,
    *,
    segments: bool | None = None,
    kept: tuple[str, ...] = (),
) -> Dataset:
    """Tokenize rows of words, and give each word's label to its first piece.

    Special tokens and the other pieces of a word have no label (-100).

    Raises:
        ValueError: the tokenizer is slow, or a row has not as many labels as words.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"token classification needs a fast tokenizer, {type(tokenizer).__name__} cannot tell words apart"
        )

    def tokenize(batch: dict[str, list], rows: list[int]) -> dict[str, Any]:
        encoded = tokenizer(
            batch[column],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=segments,
        )
        labels = []
        for place, (row, words, tags) in enumerate(zip(rows, batch[column], batch["labels"], strict=True)):
            if len(words) != len(tags):
                raise ValueError(f"data: row {row} has {len(words)} words and {len(tags)} labels")
            pieces = encoded.word_ids(place)
            first = [
                word is not None and word != previous
                for word, previous in zip(pieces, [None, *pieces[:-1]], strict=True)
            ]
            labels.append(
                [tags[word] if is_first else MISSING_LABEL for word, is_first in zip(pieces, first, strict=True)]
            )
        return {**encoded, "labels": labels, "length": [len(ids) for ids in encoded["input_ids"]]}

    return dataset.map(
        tokenize, batched=True, with_indices=True, remove_columns=_others(dataset, (column, *kept)), desc="Tokenizing"
    )


def _others(dataset: Dataset, kept: tuple[str, ...]) -> list[str]:
    return [name for name in dataset.column_names if name not in kept]
