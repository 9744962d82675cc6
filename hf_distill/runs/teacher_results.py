"""A recipe's teachers: their logits of the evaluation rows, their cached soft targets, their release."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState

from hf_distill.runs.building import Member
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


def evaluate_teachers(stages: Run, members: Sequence[Member], *, is_caching: bool = False) -> TeacherResults:
    """Return the teachers' logits of the evaluation rows; if soft targets are to be cached, that is done here.

    Raises:
        ValueError: soft targets are missing, or do not fit; see `DistillationTrainer.precompute_teacher_logits`.
    """
    stage, section = stages.first_student
    args = stages.arguments_of_first(**({"precompute_teacher_logits": True} if is_caching else {}))
    role = stages.inputs.eval_role
    rows = stages.rows(section, role, members)
    of_training: dict[str, Any] = {}
    evaluated = {role: rows}
    is_cached = args.precompute_teacher_logits or members[0].cached_in is not None
    if is_cached and (is_caching or stages.workspace.record(stage) is None):
        of_training["train_dataset"] = stages.rows(section, "train", members, stages.recipe.data.augment, args)
        evaluated.setdefault("evaluation", stages.rows(section, "evaluation", members))
    student = stages.builder.student(section, members)
    trainer = stages.trainer(section, student, members, args, eval_dataset=evaluated, **of_training)
    if is_cached:
        _cache(stages, trainer)
    logits, labels = trainer.predict_with_teacher(rows)
    assert labels is not None  # data whose evaluation rows have no label are refused
    # Only now: settings that are made while a trainer is in use reset its processes.
    if is_cached and stages.shared is None and PartialState().is_main_process:
        _write_teacher_info(stages, members, args)
    together = logits.popitem()[1]  # comes last
    return TeacherResults(list(logits.values()), together, labels)


def teacher_info(stages: Run, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return what is known of each teacher; see `runs.teacher_info`."""
    if stages.shared is not None:
        return stages.shared.teachers
    seeds = stages.seeds()
    return [
        info_of_model(member.section, stages.origins[id(member.section)], member.model, member.seconds)
        | {"seed": seeds.get(id(member.section))}
        for member in members
        if isinstance(member.section, Teacher)
    ]


def release_teachers(stages: Run, members: list[Member]) -> list[Member]:
    """Return the teachers without their models if their soft targets are cached, so that the memory is free.

    One that the first student is made of is loaded again for that. The list that was given is emptied.
    """
    if members[0].model is None or not stages.arguments_of_first().precompute_teacher_logits:
        return members
    folder = targets_folder(stages)
    found = [replace(member, model=None, cached_in=folder) for member in members]
    members.clear()
    gc.collect()  # a trainer and what it has held refer to each other
    return found


def targets_folder(stages: Run) -> Path:
    """Return where the soft targets of the recipe's teachers are, or will be."""
    return Path(str(stages.arguments_of_first(precompute_teacher_logits=True).teacher_logits_dir)).expanduser()


def _cache(stages: Run, trainer: DistillationTrainer) -> None:
    try:
        trainer.precompute_teacher_logits()
    except MissingTargetsError as error:
        if stages.shared is None:
            raise
        raise ValueError(stages.shared.missing(error.count, error.total)) from error


def _write_teacher_info(stages: Run, members: Sequence[Member], args: DistillationConfig) -> None:
    data, (_, section) = stages.recipe.data, stages.first_student
    write_info(
        targets_folder(stages),
        {
            "recipe": stages.name,
            "task": stages.recipe.task,
            # The key has them in this order, too: specialists come last.
            "teachers": sorted(teacher_info(stages, members), key=lambda info: bool(info["is_specialist"])),
            "data": {
                **stages.data_origin,
                **{name: getattr(data, name) for name in ("name", "train_split", "eval_split", "test_split")},
                "max_train_rows": data.max_train_rows,
                "max_length": stages.inputs.reader(section).max_length,
                "background": None if stages.recipe.is_text else data.background,
                "augment": None if data.augment is None else data.augment.model_dump(),
                "num_rows": {role: len(rows) for role, rows in stages.splits.named().items()},
            },
            "seed": args.seed,
            "views": args.teacher_logits_views,
        },
    )
