"""A recipe's teachers: their logits of the evaluation rows, their cached soft targets, their release."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState

from hf_distill.runs.building import Member
from hf_distill.runs.progress import StageCallback
from hf_distill.runs.recipe.schema import Teacher
from hf_distill.runs.stages import Run
from hf_distill.runs.teacher_info import info_of_model, write_info
from hf_distill.teachers.cache.lookup import MissingTargetsError
from hf_distill.training.config import DistillationConfig
from hf_distill.training.trainer import DistillationTrainer


class TeacherResults(NamedTuple):
    """The teachers' logits of the evaluation rows.

    Attributes:
        each: the logits of each of several teachers, specialists left out.
        together: those of all of them.
        labels: of the rows; -100 where one is missing, and where the teacher has no soft target.
    """

    each: list[np.ndarray]
    together: np.ndarray
    labels: np.ndarray


def evaluate_teachers(run: Run, members: Sequence[Member], *, is_caching: bool = False) -> TeacherResults:
    """Return the teachers' logits of the evaluation rows; if soft targets are to be cached, that is done here.

    Raises:
        ValueError: soft targets are missing, or do not fit; see `DistillationTrainer.precompute_teacher_logits`.
    """
    stage, section = run.first_student
    args = run.settings.without_training(stage)
    role = run.inputs.eval_role
    rows = run.rows(section, role, members)
    of_training: dict[str, Any] = {}
    evaluated = {role: rows}
    is_cached = args.precompute_teacher_logits or members[0].cached_in is not None
    if is_cached and (is_caching or run.workspace.record(stage) is None):
        of_training["train_dataset"] = run.rows(section, "train", members, run.recipe.data.augment, args)
        evaluated.setdefault("evaluation", run.rows(section, "evaluation", members))
    student = run.model_of(stage, section, members)
    told = StageCallback(run.progress, "soft targets", "", run.recipe.metric_names[0])
    trainer = run.trainer(section, student, members, args, eval_dataset=evaluated, callbacks=[told], **of_training)
    if is_cached:
        _cache(run, trainer)
    logits, labels = trainer.predict_with_teacher(rows)
    assert labels is not None  # data whose evaluation rows have no label are refused
    # Only now: settings that are made while a trainer is in use reset its processes.
    if is_cached and run.shared is None and PartialState().is_main_process:
        _write_teacher_info(run, members, args)
    together = logits.popitem()[1]  # comes last
    return TeacherResults(list(logits.values()), together, labels)


def teacher_info(run: Run, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return what is known of each teacher; see `runs.teacher_info`."""
    if run.shared is not None:
        return run.shared.teachers
    seeds = run.seeds()
    return [
        info_of_model(member.section, run.origins[id(member.section)], member.model, member.seconds)
        | {"seed": seeds.get(id(member.section))}
        for member in members
        if isinstance(member.section, Teacher)
    ]


def release_teachers(run: Run, members: list[Member]) -> list[Member]:
    """Return the teachers without their models if their soft targets are cached, so that the memory is free.

    One that the first student is made of is loaded again for that. The list that was given is emptied.
    """
    if members[0].model is None or not run.settings.of(run.first_student[0]).precompute_teacher_logits:
        return members
    folder = targets_folder(run)
    found = [replace(member, model=None, cached_in=folder) for member in members]
    members.clear()
    gc.collect()  # a trainer and what it has held refer to each other
    return found


def targets_folder(run: Run) -> Path:
    """Return where the soft targets of the recipe's teachers are, or will be."""
    return Path(str(run.settings.of(run.first_student[0]).teacher_logits_dir)).expanduser()


def _cache(run: Run, trainer: DistillationTrainer) -> None:
    try:
        trainer.precompute_teacher_logits()
    except MissingTargetsError as error:
        if run.shared is None:
            raise
        raise ValueError(run.shared.missing(error.count, error.total)) from error


def _write_teacher_info(run: Run, members: Sequence[Member], args: DistillationConfig) -> None:
    data, (_, section) = run.recipe.data, run.first_student
    write_info(
        targets_folder(run),
        {
            "recipe": run.name,
            "task": run.recipe.task,
            # The key has them in this order, too: specialists come last.
            "teachers": sorted(teacher_info(run, members), key=lambda info: bool(info["is_specialist"])),
            "data": {
                **run.data_origin,
                **{name: getattr(data, name) for name in ("name", "train_split", "eval_split", "test_split")},
                "max_train_rows": data.max_train_rows,
                "max_length": run.inputs.reader(section).max_length,
                "background": None if run.recipe.is_text else data.background,
                "augment": None if data.augment is None else data.augment.model_dump(),
                "num_rows": {role: len(rows) for role, rows in run.splits.named().items()},
            },
            "seed": args.seed,
            "views": args.teacher_logits_views,
        },
    )
