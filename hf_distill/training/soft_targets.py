"""Where a trainer's soft targets come from: the teacher that it was given, or a cache of what one has computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from accelerate.utils import send_to_device

from hf_distill.data.fingerprints import check_map_style
from hf_distill.data.soft_targets import CACHED_LOGITS
from hf_distill.data.targets import ProblemType
from hf_distill.teachers.build import build_teacher, column_names
from hf_distill.teachers.cache.builder import TeacherRun
from hf_distill.teachers.cache.cache import SoftTargetCache
from hf_distill.teachers.external import SOFT_TARGET_COLUMNS
from hf_distill.teachers.labels import label_names, stated_problem_type
from hf_distill.training.checks import datasets_of, note_problem_type
from hf_distill.training.objective import is_token_level


def take_teacher(trainer: Any, teacher: Any, processing_class: Any) -> ProblemType | None:
    """Give a new trainer its teacher, or the soft targets that another run has cached."""
    args = trainer.args
    problem_type = stated_problem_type(trainer.student, [], is_token_level(trainer.student))
    # With `model_init` alpha may be searched, from 1 on, too.
    if not args.uses_teacher and (teacher is None or trainer.model_init is None):
        return problem_type
    columns: list[str] = next((names for names in map(column_names, datasets_of(trainer)) if names), [])
    if args.precompute_teacher_logits and teacher is None and not {*SOFT_TARGET_COLUMNS} & {*columns}:
        if processing_class is not None:
            raise ValueError("teacher_processing_class is for a teacher, and there is none: leave it out")
        trainer.cache = _new_cache(trainer)
        trainer.soft_targets = trainer.cache.open(trainer.processing_class)
        return problem_type
    built = build_teacher(
        teacher,
        args,
        student=trainer.student,
        student_processor=trainer.processing_class,
        processing_class=processing_class,
        accelerator=trainer.accelerator,
        columns=columns,
        dataset=trainer.train_dataset,
        collator=trainer.data_collator,
        is_token_level=is_token_level(trainer.student),
    )
    trainer._built = built
    trainer.teacher, trainer.soft_targets, trainer.data_collator = built.teacher, built.source, built.collator
    return built.problem_type


def precompute(trainer: Any) -> None:
    """Cache the soft targets of all rows of a trainer that lack them, and release its teacher."""
    new = [(dataset, dataset is trainer.train_dataset) for dataset in datasets_of(trainer)]
    for dataset, _ in new:
        check_map_style(dataset)
    built = trainer._built
    if built is None:
        trainer.cache.add(new, None)
    elif new:
        rows, collator = _readable(trainer, new[0][0])
        note_problem_type(trainer, collator([rows[0]]).get("labels"))
        cache = _new_cache(trainer)
        cache.add(new, _teacher_run(trainer))
        trainer.data_collator, trainer.soft_targets = built.release(
            cache, trainer.data_collator, trainer.args.teacher_placement
        )
        trainer.cache, trainer.teacher, trainer._built = cache, None, None
        trainer._signature_columns = None  # without those that the teacher alone has read
        trainer.__dict__.pop("_eval_dataloaders", None)


@contextmanager
def attached(trainer: Any, dataset: Any) -> Iterator[Any]:
    """Give a data loader the rows of a data set, from a cache with their soft targets and the collator for these."""
    cache = trainer.cache
    if cache is None:
        yield dataset
        return
    if cache.is_empty:  # there never was a teacher, and nothing has been looked up so far
        trainer.precompute_teacher_logits()
    rows, collator = _readable(trainer, dataset)
    before, trainer.data_collator = trainer.data_collator, cache.collator(collator)
    try:
        yield cache.attached(dataset, rows)
    finally:
        trainer.data_collator = before


def in_own_type(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Return the soft targets that a batch brings, on a device, in the type that they have."""
    found = {name: batch[name] for name in (CACHED_LOGITS, *SOFT_TARGET_COLUMNS) if name in batch}
    return send_to_device(found, device)  # type: ignore[no-any-return]


def _new_cache(trainer: Any) -> SoftTargetCache:
    of_tokens = is_token_level(trainer.student)
    return SoftTargetCache(
        trainer.args, trainer.accelerator, labels=label_names(trainer.student), is_token_level=of_tokens
    )


def _teacher_run(trainer: Any) -> TeacherRun:
    columns: set[str] | None = None
    if trainer.args.remove_unused_columns:
        trainer._set_signature_columns_if_needed()
        columns = {*trainer._signature_columns}
    built = trainer._built
    return TeacherRun(
        source=built.source,
        views=built.views,
        raw_columns=built.raw_columns,
        problem_type=trainer.loss_objective.problem_type or "single_label_classification",
        processing_class=trainer.processing_class,
        collator=trainer.data_collator,
        signature_columns=columns,
        readable=lambda dataset: _readable(trainer, dataset),
        prepare_inputs=trainer._prepare_inputs,
        tell=lambda num_done, num_rows: _tell(trainer, num_done, num_rows),
    )


def _tell(trainer: Any, num_done: int, num_rows: int) -> None:
    """Tell the callbacks that have `on_soft_targets` how many rows' soft targets are cached, and of how many."""
    if trainer.is_world_process_zero():
        for callback in trainer.callback_handler.callbacks:
            if hasattr(callback, "on_soft_targets"):
                callback.on_soft_targets(num_done, num_rows)


def _readable(trainer: Any, dataset: Any) -> tuple[Any, Callable[[list], Any]]:
    """Return a data set and its collator as `Trainer`'s data loaders have them."""
    if isinstance(dataset, datasets.Dataset):
        return trainer._remove_unused_columns(dataset, description="soft targets"), trainer.data_collator
    return dataset, trainer._get_collator_with_removed_columns(trainer.data_collator, description="soft targets")
