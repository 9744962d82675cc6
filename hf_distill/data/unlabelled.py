"""Rows without labels of their own, which learn from a teacher alone."""

from typing import Any

from datasets import Dataset, List, concatenate_datasets

from hf_distill.data.labels import MISSING_LABEL

_SOFT_TARGETS = ("teacher_logits", "teacher_probs")


def with_unlabelled(train: Dataset, rows: Dataset, inputs: tuple[str, ...]) -> Dataset:
    """Add rows to the training rows, with the label -100; of their columns, only inputs and soft targets are taken.

    Raises:
        ValueError: they lack a column of inputs, or hold something else in it.
    """
    absent = [name for name in inputs if name not in rows.column_names]
    if absent:
        raise ValueError(
            f"data.unlabelled: has no column {', '.join(absent)}, only {', '.join(rows.column_names)}: name it as in "
            "the training data"
        )
    taken = [*inputs, *(name for name in _SOFT_TARGETS if name in rows.column_names and name in train.column_names)]
    rows = rows.select_columns(taken)
    for name in taken:
        if rows.features[name] != train.features[name]:
            try:
                rows = rows.cast_column(name, train.features[name])
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"data.unlabelled: {name} is {rows.features[name]}, and {train.features[name]} in the training data"
                ) from error
    feature = train.features["labels"]
    labels: list[Any] = [MISSING_LABEL] * len(rows)
    if isinstance(feature, List):
        labels = [[MISSING_LABEL] * len(words) for words in rows.with_format(None)[inputs[0]]]
    return concatenate_datasets([train, rows.add_column("labels", labels, feature=feature)])
