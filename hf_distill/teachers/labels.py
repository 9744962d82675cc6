"""Align a teacher's labels to the student's, by name."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_distill.data.targets import PROBLEM_TYPES, ProblemType
from hf_distill.teachers.specialists import model_of

_GENERIC_NAME = re.compile(r"LABEL_\d+", re.IGNORECASE)


def align_labels(
    teacher_labels: Sequence[str], student_labels: Sequence[str], label_map: Mapping[str, str] | None = None
) -> list[int] | None:
    """Find, for each label of the student, the teacher's logit that speaks of it.

    Names are compared without regard to case. Where all names of one side are generic (`LABEL_0`, `LABEL_1` ...)
    nothing can be compared: the order is taken to be the same, with a warning.

    Raises:
        ValueError: the labels differ in number or in name and no map is given, or the map does not fit.
    """
    if label_map is not None:
        indices = _by_map(teacher_labels, student_labels, label_map)
    else:
        indices = _by_name(teacher_labels, student_labels)
    return None if indices == list(range(len(teacher_labels))) else indices


def names_in_order(id2label: Mapping[int, str] | Mapping[str, str]) -> list[str]:
    """Return a model config's labels in the order of its logits.

    Raises:
        ValueError: a key is no number.
    """
    try:
        names = {int(index): str(name) for index, name in id2label.items()}
    except ValueError as error:
        raise ValueError(
            f"the keys of id2label must be the numbers of the logits, got {_shortened(list(map(str, id2label)), 5)}"
        ) from error
    return [names[index] for index in sorted(names)]


def has_generic_names(labels: Sequence[str]) -> bool:
    """Tell whether all labels have the names that Transformers gives to those without one (`LABEL_0`)."""
    return all(_GENERIC_NAME.fullmatch(name) for name in labels)


def stated_problem_type(student: nn.Module, members: Sequence[Any], is_token_level: bool) -> ProblemType | None:
    """Return the problem type that the configs state or imply; None leaves it to the first labels.

    Raises:
        ValueError: student and teachers differ, or it is none that Transformers knows.
    """
    models = {"student": student}
    for place, member in enumerate(members):
        models["teacher" if len(members) == 1 else f"teacher {place + 1}"] = model_of(member)
    stated = {side: getattr(getattr(model, "config", None), "problem_type", None) for side, model in models.items()}
    found = {value for value in stated.values() if value is not None}
    if len(found) > 1:
        each = ", ".join(f"the {side}'s {value}" for side, value in stated.items())
        raise ValueError(f"problem_type differs: {each}. Set the same one in all configs.")
    problem_type = next(iter(found), None)
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
    if problem_type is None and is_token_level:
        return "single_label_classification"
    if problem_type is None and getattr(getattr(student, "config", None), "num_labels", None) == 1:
        return "regression"
    return problem_type  # type: ignore[return-value]  # one of PROBLEM_TYPES


def label_names(model: nn.Module) -> list[str] | None:
    """Return the labels of a model in the order of its logits; None: its config names none."""
    id2label: Mapping[int, str] | None = getattr(getattr(model, "config", None), "id2label", None)
    return None if id2label is None else names_in_order(id2label)


def has_names_of(model: nn.Module, student: nn.Module) -> bool:
    """Tell whether two models have labels of the same names, in any order."""
    names = [label_names(each) for each in (model, student)]
    return None not in names and {n.casefold() for n in names[0] or ()} == {n.casefold() for n in names[1] or ()}


def _by_name(teacher_labels: Sequence[str], student_labels: Sequence[str]) -> list[int]:
    both = _both_lists(teacher_labels, student_labels)
    if len(teacher_labels) != len(student_labels):
        raise ValueError(
            f"the teacher has {len(teacher_labels)} labels, the student {len(student_labels)}. {both} {_remedy()}"
        )
    same_order = list(range(len(student_labels)))
    if list(teacher_labels) == list(student_labels):
        return same_order
    if has_generic_names(teacher_labels) != has_generic_names(student_labels):
        side = "teacher" if has_generic_names(teacher_labels) else "student"
        warnings.warn(
            f"the {side}'s labels have generic names, so they cannot be compared; the order is taken to be the same. "
            f"{both} Set id2label in its config to have it checked.",
            UserWarning,
            stacklevel=4,
        )
        return same_order
    position = {name.casefold(): index for index, name in enumerate(teacher_labels)}
    missing = [name for name in student_labels if name.casefold() not in position]
    indices = [position[name.casefold()] for name in student_labels if name.casefold() in position]
    if missing:
        raise ValueError(f"the teacher has no label named {', '.join(map(repr, missing))}. {both} {_remedy()}")
    if len(set(indices)) != len(indices):
        raise ValueError(f"some labels differ in nothing but case, so names do not tell them apart. {both} {_remedy()}")
    return indices


def _by_map(teacher_labels: Sequence[str], student_labels: Sequence[str], label_map: Mapping[str, str]) -> list[int]:
    both = _both_lists(teacher_labels, student_labels)
    unmapped = [name for name in student_labels if name not in label_map]
    unknown = [name for name in label_map if name not in student_labels]
    if unmapped or unknown:
        raise ValueError(
            "teacher_label_map must name each label of the student once: "
            f"missing {unmapped or 'none'}, not a label of the student {unknown or 'none'}. {both}"
        )
    targets = [str(label_map[name]) for name in student_labels]
    strangers = [name for name in targets if name not in teacher_labels]
    if strangers:
        raise ValueError(f"teacher_label_map names {strangers}, which the teacher does not have. {both}")
    if len(set(targets)) != len(targets):
        raise ValueError(f"teacher_label_map gives two labels of the student the same label of the teacher. {both}")
    return [list(teacher_labels).index(name) for name in targets]


def _both_lists(teacher_labels: Sequence[str], student_labels: Sequence[str]) -> str:
    return f"Teacher: {_shortened(teacher_labels)}; student: {_shortened(student_labels)}."


def _shortened(labels: Sequence[str], limit: int = 40) -> str:
    names = ", ".join(map(repr, labels[:limit]))
    return f"[{names}{', ...' if len(labels) > limit else ''}]"


def _remedy() -> str:
    return 'Say which belong together: teacher_label_map={"student label": "teacher label", ...}.'
