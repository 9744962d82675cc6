"""What `DistillationTrainer` refuses before it computes anything."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import datasets
from torch import nn

from hf_distill.config import DistillationConfig
from hf_distill.objective.losses import MISSING_LABEL, ProblemType


def check_arguments(args: Any) -> None:
    """Refuse settings of the wrong class, and processes that do not work together.

    Raises:
        ValueError: the message says what was expected.
    """
    if not isinstance(args, DistillationConfig):
        raise ValueError(
            f"args must be a DistillationConfig, got {type(args).__name__}: it has the fields of TrainingArguments, "
            "and alpha and temperature besides"
        )
    num_launched = int(os.environ.get("WORLD_SIZE", "1"))
    if num_launched > 1 and args.world_size == 1:
        raise ValueError(
            f"{num_launched} processes were launched, and each would train a whole model on its own: on CPUs set "
            "use_cpu to true"
        )


def check_label_settings(
    args: DistillationConfig, compute_loss_func: Callable | None, problem_type: ProblemType | None
) -> None:
    """Refuse settings of the label loss that would be lost.

    Raises:
        ValueError: the message names the setting and what it clashes with.
    """
    if not args.uses_labels and (args.label_smoothing_factor or compute_loss_func is not None):
        raise ValueError(
            "alpha is 0, so there is no label loss for label_smoothing_factor or compute_loss_func to act on: leave "
            "them out, or raise alpha"
        )
    if not args.label_smoothing_factor:
        return
    if compute_loss_func is not None:
        raise ValueError("label_smoothing_factor and compute_loss_func both define the label loss: set one of them")
    if problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"label_smoothing_factor spreads a class label over the other classes, {problem_type} has none: set it to 0"
        )


def check_labels(dataset: Any, num_labels: int | None, problem_type: ProblemType | None) -> None:
    """Refuse class labels that the student has no logit for.

    Looked at are columns of whole numbers in a `datasets.Dataset`; what else there may be shows in the first batch.

    Raises:
        ValueError: the message says which labels there are and which there may be.
    """
    if not isinstance(dataset, datasets.Dataset) or num_labels is None or len(dataset) == 0:
        return
    column = next((name for name in ("labels", "label") if name in dataset.column_names), None)
    if column is None or problem_type not in (None, "single_label_classification"):
        return
    if not str(getattr(dataset.features[column], "dtype", "")).startswith("int"):
        return
    values = dataset.select_columns(column).with_format("numpy")[:][column]
    present = values[values != MISSING_LABEL]
    if present.size and (present.min() < 0 or present.max() >= num_labels):
        raise ValueError(
            f"the labels run from {present.min()} to {present.max()}, the student has {num_labels} classes: labels "
            f"must be 0 to {num_labels - 1}, or {MISSING_LABEL} where one is missing"
        )


def check_what_is_kept(args: DistillationConfig, problem_type: ProblemType, num_labels: int | None) -> None:
    """Refuse to keep a part of the logits where that is no part of a distribution, or no smaller.

    Raises:
        ValueError: the message says what `teacher_logits_top_k` is for.
    """
    count = args.teacher_logits_top_k
    if count is None:
        return
    if problem_type != "single_label_classification":
        raise ValueError(
            f"teacher_logits_top_k keeps the likeliest of classes that exclude each other, {problem_type} has none: "
            "leave it out"
        )
    if num_labels is not None and count > num_labels - 2:
        raise ValueError(
            f"teacher_logits_top_k is {count}, and of {num_labels} labels at most {num_labels - 2} can be kept with "
            "anything saved: leave it out"
        )


def warn_of_frozen_head(student: nn.Module) -> None:
    """Warn of a PEFT student whose new head would neither be trained nor saved."""
    for name, adapter in (getattr(student, "peft_config", None) or {}).items():
        if getattr(adapter, "task_type", None) is None and not getattr(adapter, "modules_to_save", None):
            warnings.warn(
                f"the PEFT adapter {name!r} has no task_type, so the student's classification head is neither trained "
                "nor saved: set task_type='SEQ_CLS' (or 'TOKEN_CLS'), or modules_to_save, unless that is meant",
                UserWarning,
                stacklevel=3,
            )
