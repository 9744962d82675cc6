"""What a run's data are: rows, labels, inputs, as results.json has it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_distill.data.labels import MISSING_LABEL
from hf_distill.data.loading import Splits
from hf_distill.runs.preprocessing import Inputs
from hf_distill.runs.recipe.schema import Recipe


def data_info(recipe: Recipe, splits: Splits, inputs: Inputs, images: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Results.data` has; `images` is what was found on reading them."""
    labels = splits.train.with_format("numpy")[:]["labels"]
    missing = [bool(np.all(np.asarray(row) == MISSING_LABEL)) for row in labels]
    evaluated = splits.evaluation if splits.test is None else splits.test
    eval_labels = evaluated.with_format(None)["labels"]
    return {
        "num_train_rows": len(splits.train),
        "num_eval_rows": len(evaluated),
        "num_eval_labels": sum(int(np.sum(np.asarray(row) != MISSING_LABEL)) for row in eval_labels),
        "unlabelled_share": sum(missing) / len(missing),
        "label_names": list(splits.label_names),
        "inputs": list(splits.columns.inputs),
        **({} if recipe.is_text else {"num_channels": inputs.reader(recipe.student).num_channels}),
        **inputs.vocabulary_info(),
        **images,
    }
