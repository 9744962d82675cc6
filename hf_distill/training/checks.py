"""What `DistillationTrainer` refuses before it computes anything."""

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.trainer_utils import has_length

from hf_distill.data.fingerprints import LABEL_COLUMNS
from hf_distill.data.label_columns import (
    LabelSpace,
    class_names,
    holds_targets,
    is_readable,
    label_columns,
    shortened,
)
from hf_distill.data.targets import ProblemType
from hf_distill.data.token_rows import TokenLimits, check_token_rows, token_limits
from hf_distill.teachers.build import class_names as names_of_classes
from hf_distill.teachers.loading import forward_parameters, unwrapped
from hf_distill.teachers.source import SoftTargetSource
from hf_distill.teachers.specialists import model_of
from hf_distill.training.config import DistillationConfig
from hf_distill.training.last_batch import check_last_batch
from hf_distill.training.objective import is_token_level


def check_arguments(args: Any) -> DistillationConfig:
    """Return the settings, and refuse those of the wrong class, and processes that do not work together.

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
    return args


def check_accelerator(accelerator: Any, label_names: Sequence[str]) -> None:
    """Refuse kinds of parallelism that split a batch or its labels otherwise than by rows.

    Raises:
        ValueError: with what is supported.
    """
    if list(label_names) != ["labels"]:
        raise ValueError(f"a classifier's label column is 'labels', this student's are {label_names}")
    parallelism = getattr(accelerator, "parallelism_config", None)
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        raise ValueError(
            "a classifier is distilled with data parallelism (DDP, FSDP, ZeRO): tensor, context and sequence "
            "parallelism are not supported"
        )


def datasets_of(trainer: Any) -> list[Any]:
    """Return the training and evaluation sets that a trainer has."""
    evaluated = trainer.eval_dataset
    found = [trainer.train_dataset, *(evaluated.values() if isinstance(evaluated, dict) else [evaluated])]
    return [dataset for dataset in found if dataset is not None]


def check_rows(trainer: Any) -> None:
    """Refuse rows that a trainer's student or teachers would fail on, and a last batch that the student would.

    Raises:
        ValueError: see `check_token_rows` and `check_last_batch`.
    """
    for dataset in datasets_of(trainer):
        check_token_rows(dataset, _limits(trainer), "training" if dataset is trainer.train_dataset else "evaluation")
    rows = trainer.train_dataset
    if has_length(rows) and len(rows) and trainer.model is not None and trainer.model_init is None:
        taken = set(forward_parameters(trainer.student)) - {"labels"}
        check_last_batch(trainer.student, lambda: _of_one_row(trainer, taken), len(rows), trainer.args, "the student")


def _limits(trainer: Any) -> list[TokenLimits]:
    """Return what the student, and the teachers that read what it does, take of tokens."""
    built, limits = trainer._built, [token_limits(trainer.student, "the student")]
    if built is not None:
        given = built.teacher if isinstance(built.teacher, list) else [built.teacher]
        for place, member in enumerate(given):
            model = model_of(member)
            if isinstance(model, nn.Module) and not built.views.processors:
                who = "the teacher" if len(given) == 1 else f"teacher {place + 1} of {len(given)}"
                limits.append(token_limits(unwrapped(model), who))
    return limits


def _of_one_row(trainer: Any, taken: Collection[str]) -> dict[str, Any]:
    batch = trainer._get_collator_with_removed_columns(trainer.data_collator)([trainer.train_dataset[0]])
    return {name: value for name, value in batch.items() if name in taken}


def check_data(trainer: Any) -> None:
    """Refuse a trainer's label settings and labels that do not fit its student; its label space is known from then on.

    Raises:
        ValueError: see `check_label_settings`, `check_labels` and `check_is_labelled`.
    """
    args, labels, problem_type = trainer.args, trainer.labels, trainer.loss_objective.problem_type
    check_label_settings(args, trainer.compute_loss_func, problem_type)
    labels.space = _label_space(trainer.train_dataset, trainer.student, trainer.soft_targets, problem_type)
    found = {id(each): check_labels(each, labels.space, is_usual=labels.is_usual) for each in datasets_of(trainer)}
    if args.uses_labels and labels.is_usual:
        check_is_labelled(trainer.train_dataset, found.get(id(trainer.train_dataset)), args.most_alpha)


def note_problem_type(trainer: Any, labels: Tensor | None) -> None:
    """Note the problem type that labels decide, in the student's config too, and check the data for it.

    The student never sees the labels, and pipelines need to know it.
    """
    objective = trainer.loss_objective
    was_open, problem_type = objective.problem_type is None, objective.kind(labels)
    if was_open and objective.problem_type is not None:
        check_data(trainer)
    config = None if trainer.model is None else getattr(trainer.student, "config", None)  # none between two trials
    if config is not None and config.problem_type is None and not objective.is_token_level:
        config.problem_type = problem_type


def _label_space(
    dataset: Any, student: nn.Module, source: SoftTargetSource | None, problem_type: ProblemType | None
) -> LabelSpace:
    columns = label_columns(dataset)
    is_multi = columns is not None and any(holds_targets(dataset, name) for name in columns[1])
    of_tokens = is_token_level(student)
    return LabelSpace(
        num_labels=getattr(getattr(student, "config", None), "num_labels", None),
        names=tuple(names_of_classes(student, source)),
        problem_type=problem_type or ("multi_label_classification" if is_multi and not of_tokens else None),
        token_level=of_tokens,
    )


def check_new_data(trainer: Any, dataset: Any) -> None:
    """Refuse labels and rows of a data set that a trainer has not seen before.

    Raises:
        ValueError: see `check_labels` and `check_token_rows`.
    """
    if not any(dataset is known for known in datasets_of(trainer)):
        check_labels(dataset, trainer.labels.space, is_usual=trainer.labels.is_usual)
        check_token_rows(dataset, _limits(trainer), "new")


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


def check_labels(dataset: Any, space: LabelSpace, *, is_usual: bool) -> int | None:
    """Refuse labels of a data set that the student cannot learn, or that are not clearly its labels.

    Looked at is what is at hand: the columns of any data set that names them, and the labels of a `datasets.Dataset`
    and of a list. The rest shows in the batches (`LabelCollator`).

    Raises:
        ValueError: two columns may be the labels, the data number the classes in another order than the student, or
            labels are none of its classes.
    """
    columns = label_columns(dataset) if is_usual else None
    if columns is None:
        return None
    candidates = columns[1]
    if len(candidates) > 1:
        raise ValueError(
            f"the labels are in {candidates[0]!r} or in {candidates[1]!r}, and the data have both columns: remove the "
            "one that is not meant (dataset.remove_columns), or rename it"
        )
    if not candidates:
        return 0
    column = candidates[0]
    if space.are_classes():
        _check_order(class_names(dataset, column), space, column)
    return space.check_column(dataset, column) if is_readable(dataset) and len(dataset) else None


def _check_order(of_data: Sequence[str], space: LabelSpace, column: str) -> None:
    """Refuse data that number classes of the same names in another order than the student."""
    places = {name: space.index_of(name) for name in of_data} if space.names else {}
    moved = [name for place, name in enumerate(of_data) if places.get(name) not in (None, place)]
    if moved:
        mapping = ", ".join(f"{name!r}: {place}" for place, name in enumerate(space.names[:10]))
        raise ValueError(
            f"the data number the classes {shortened(of_data)}, the models {shortened(space.names)}: {moved[0]!r} is "
            f"{list(of_data).index(moved[0])} in the column {column!r} and {places[moved[0]]} for the models. Renumber "
            f"the data: dataset.align_labels_with_mapping({{{mapping}{', ...' if len(space.names) > 10 else ''}}}, "
            f"{column!r}). If they have the models' numbers already, and only their names are out of date, drop those: "
            f"dataset.cast_column({column!r}, datasets.Value('int64'))"
        )


def check_is_labelled(dataset: Any, num_labels: int | None, alpha: float) -> None:
    """Refuse training data without labels where a part of the loss is theirs.

    Raises:
        ValueError: no column holds labels.
    """
    columns = label_columns(dataset)
    if num_labels != 0 or columns is None:
        return
    names, candidates = columns
    if not candidates:
        raise ValueError(no_labels(alpha, names))
    warnings.warn(
        f"alpha is {alpha:g}, and all labels in the column {candidates[0]!r} of the training data are missing: the "
        "student learns from the teacher alone, which alpha 0 says",
        UserWarning,
        stacklevel=4,
    )


def no_labels(alpha: float, names: Iterable[str]) -> str:
    """Say that there are no labels for the label loss, among columns or entries of a batch."""
    return (
        f"alpha is {alpha:g}, the weight of the label loss, and the training data have no labels: there is no column "
        f"{' or '.join(LABEL_COLUMNS)} among {', '.join(names)}. Rename the one that holds them "
        "(dataset.rename_column(..., 'labels')), or set alpha to 0 to learn from the teacher alone"
    )


def warn_of_frozen_head(student: nn.Module) -> None:
    """Warn of a PEFT student whose classification head is neither trained nor saved."""
    adapters = getattr(student, "peft_config", None) or {}
    if not adapters:
        return
    base: Any = student.get_base_model()  # type: ignore[operator]
    encoder = f"{getattr(base, 'base_model_prefix', '')}."
    num_labels = getattr(getattr(base, "config", None), "num_labels", None)
    # Of the head the layer of logits, its copy in modules_to_save, and an adapter of it.
    head = {
        name: parameter
        for name, parameter in base.named_parameters()
        if not name.startswith(encoder) and parameter.dim() and parameter.shape[0] == num_labels
    }
    if head and not any(parameter.requires_grad or ".modules_to_save." in name for name, parameter in head.items()):
        tasks = {getattr(adapter, "task_type", None) for adapter in adapters.values()}
        task = ", ".join(f"task_type {getattr(each, 'value', each)}" if each else "no task_type" for each in tasks)
        warnings.warn(
            f"the student's PEFT adapter ({', '.join(adapters)}) has {task}, so its classification head "
            f"({next(iter(head))}) is neither trained nor saved: set task_type='SEQ_CLS' (or 'TOKEN_CLS'), or "
            "modules_to_save, unless that is meant",
            UserWarning,
            stacklevel=3,
        )
