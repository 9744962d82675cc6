"""Further texts made of the training texts, which a teacher alone labels."""

import random
from typing import Any

from datasets import Dataset

from hf_distill.data.unlabelled import with_unlabelled


def with_augmented(
    train: Dataset,
    inputs: tuple[str, ...],
    *,
    copies: int,
    mask: float,
    swap: float,
    drop: float,
    mask_token: str | None,
    seed: int,
) -> Dataset:
    """Add changed copies of the training rows, without labels.

    Args:
        train: rows with the columns `inputs`, texts or lists of words, and `labels`.
        inputs: the columns of texts.
        copies: of each row.
        mask: probability that a word becomes the mask token.
        swap: probability that a word changes places with the one after it.
        drop: probability that a word is left out; one always stays.
        mask_token: that of the models' tokenizers; None where `mask` is 0.
        seed: decides what is changed, with a row's place and the number of the copy.

    References:
        Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", arXiv 1903.12136,
        section 3.3 (masking); Wei, Zou, "EDA", arXiv 1901.11196, section 2 (random swap and deletion).
    """

    def changed(value: Any, key: str) -> Any:
        chance = random.Random(key)
        words = value.split() if isinstance(value, str) else list(value)
        for place in range(len(words) - 1):
            if chance.random() < swap:
                words[place], words[place + 1] = words[place + 1], words[place]
        words = [word for word in words if chance.random() >= drop] or words[:1]
        words = [mask_token if chance.random() < mask else word for word in words]
        return " ".join(words) if isinstance(value, str) else words

    def copied(batch: dict[str, list], places: list[int], number: int) -> dict[str, list]:
        keys = [f"{seed} {number} {place}" for place in places]
        return {name: [changed(*each) for each in zip(batch[name], keys, strict=True)] for name in inputs}

    plain = train.select_columns(list(inputs))
    for number in range(copies):
        extra = plain.map(copied, batched=True, with_indices=True, fn_kwargs={"number": number}, desc=None)
        train = with_unlabelled(train, extra, inputs)
    return train
