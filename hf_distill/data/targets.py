"""Kinds of targets, and which labels and tokens count."""

from typing import Literal, get_args

from torch import Tensor

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)

MISSING_LABEL = -100
"""The label of a row, token or label entry that has none, as everywhere in Transformers."""


def label_mask(labels: Tensor, problem_type: ProblemType) -> Tensor:
    """Tell which labels are present."""
    present = labels.ne(MISSING_LABEL)
    if problem_type != "single_label_classification" and labels.is_floating_point():
        present &= ~labels.isnan()
    return present


def token_mask(attention_mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Tell which tokens have soft targets in token classification.

    In a labelled row these are the labelled tokens: the rest (padding, special tokens, later pieces of a word) are
    not predictions. A row that has no label at all is unlabelled data, and all its tokens but the padding count.

    Args:
        attention_mask: `(batch, tokens)`, 0 for padding; None if nothing is padded.
        labels: `(batch, tokens)`; None if the data have none.

    Returns:
        boolean `(batch, tokens)`, or None if nothing is known, which means every token.
    """
    attended = None if attention_mask is None else attention_mask.bool()
    if labels is None:
        return attended
    present = labels.ne(MISSING_LABEL)
    unlabelled_row = ~present.any(dim=-1, keepdim=True)
    mask = present | unlabelled_row
    return mask if attended is None else mask & attended
