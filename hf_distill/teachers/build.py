"""From what a user names as teacher to a source of soft targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from transformers.trainer_utils import has_length

from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.processors import check_same_inputs
from hf_distill.data.target_columns import SoftTargetColumnCollator
from hf_distill.data.targets import ProblemType
from hf_distill.data.teacher_views import TeacherInputCollator
from hf_distill.teachers.cache.cache import SoftTargetCache
from hf_distill.teachers.cache.cached_teacher import CachedTeacher
from hf_distill.teachers.ensemble import TeacherEnsemble, check_weights
from hf_distill.teachers.external import (
    SOFT_TARGET_COLUMNS,
    TeacherColumn,
    TeacherFunction,
    check_column_filled,
    fingerprint_of,
)
from hf_distill.teachers.labels import has_generic_names, has_names_of, label_names, stated_problem_type
from hf_distill.teachers.loading import load_teacher, task_of, unwrapped
from hf_distill.teachers.model import TeacherModel, check_not_student, label_index
from hf_distill.teachers.placement import check_placement, is_quantized, loading_options
from hf_distill.teachers.source import SoftTargetSource
from hf_distill.teachers.specialists import Specialist, model_of, specialist_columns
from hf_distill.teachers.views import Views, view_collator, views_of


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher has to fit in with: the student and its processor, if it is known, and the run."""

    student: nn.Module
    processing_class: Any
    device: torch.device
    num_processes: int
    autocast_dtype: torch.dtype | None
    accelerator: Any


@dataclass(frozen=True)
class BuiltTeacher:
    """A teacher that is ready to teach.

    Attributes:
        teacher: what is left of what was given: a model, a list of models and specialists, a function, or None.
        source: its soft targets.
        problem_type: what the configs state or imply; None leaves it to the first labels.
        views: which inputs its members read.
        raw_columns: columns of the data that only it needs.
        collator: the student's, and what makes of the rows that which only the teacher reads.
        devices: of the models that were given, before they were moved.
    """

    teacher: Any
    source: SoftTargetSource
    problem_type: ProblemType | None
    views: Views
    raw_columns: list[str]
    collator: Any
    devices: list[tuple[nn.Module, torch.device]]

    @property
    def columns(self) -> set[str]:
        """Return the columns of the data that must survive for the teacher."""
        return {*self.source.batch_keys, *self.raw_columns, TEACHER_PIXELS}

    def release(self, cache: SoftTargetCache, collator: Any, placement: str) -> tuple[Any, CachedTeacher]:
        """Move the models that were given back to where they came from."""
        if isinstance(collator, TeacherInputCollator):
            cache.withheld = {*self.raw_columns, TEACHER_PIXELS}
            collator = collator.collator
        for model, device in self.devices:
            is_spread = getattr(model, "hf_device_map", None) is not None
            if placement != "sharded" and not is_spread and not is_quantized(model):
                model.to(device)
        clear_device_cache()
        combination = self.source.combination if isinstance(self.source, TeacherEnsemble) else None
        return collator, CachedTeacher(cache.device, combination, self.source.batch_keys)


def build_teacher(
    teacher: Any,
    args: Any,
    *,
    student: nn.Module,
    student_processor: Any,
    processing_class: Any,
    accelerator: Any,
    columns: Sequence[str],
    dataset: Any,
    collator: Any,
    is_token_level: bool,
) -> BuiltTeacher:
    """Load, freeze and place what was given as teacher, and find out what it reads of the data.

    Raises:
        ValueError: the teacher cannot teach this student.
    """
    autocast_dtype = torch.bfloat16 if args.bf16 or args.fp16 else None
    context = TeacherContext(student, student_processor, args.device, args.world_size, autocast_dtype, accelerator)
    if teacher is None and not columns and dataset is not None:
        rows = iter(dataset)  # of a stream that does not know them, unless it can be read but once
        first = None if iter(dataset) is rows else next(rows, None)
        columns = list(first) if isinstance(first, Mapping) else []
    given = [model_of(member) for member in (teacher if isinstance(teacher, list | tuple) else [teacher])]
    devices = []
    if args.precompute_teacher_logits:
        devices = [(model, next(model.parameters()).device) for model in given if isinstance(model, nn.Module)]
    if processing_class is None and (args.teacher_input_columns or args.teacher_max_length):
        raise ValueError(
            "teacher_input_columns and teacher_max_length are for a teacher with inputs of its own: pass its "
            "teacher_processing_class, or leave them out"
        )
    members = parse_teachers(teacher, columns)
    if isinstance(members, list):
        members = load_members(members, args, context)
    listed = members if isinstance(members, list) else []
    problem_type = stated_problem_type(student, listed, is_token_level)
    views = views_of(members, processing_class, student_processor, columns)
    source = build_source(members, args, context, problem_type, views)
    if args.precompute_teacher_logits:
        _check_can_be_cached(source)
    raw_columns: list[str] = []
    if views.processors:
        of_student = {"student_processor": student_processor, "token_level": is_token_level}
        collator = view_collator(collator, views, args=args, dataset=dataset, **of_student)
        raw_columns = list(collator.columns)
    elif isinstance(members, str):
        raw_columns = [members]
        check_column_filled(dataset, members)
        num_labels: Any = getattr(getattr(student, "config", None), "num_labels", None)
        collator = SoftTargetColumnCollator(collator, members, num_labels, token_level=is_token_level)
    left = None if isinstance(members, str) else members[0] if len(listed) == 1 else members
    return BuiltTeacher(left, source, problem_type, views, raw_columns, collator, devices)


def _check_can_be_cached(source: SoftTargetSource) -> None:
    if isinstance(source, TeacherColumn):
        raise ValueError(
            f"precompute_teacher_logits: the data have soft targets already, in {source.column}: leave it out"
        )
    if isinstance(source, TeacherFunction):
        fingerprint_of(source.function)  # refuses one that cannot be told from another


def column_names(dataset: Any) -> list[str]:
    """Name the columns of a data set as far as they are known; an empty list if they are not."""
    names = getattr(dataset, "column_names", None)
    if names is None and hasattr(dataset, "__getitem__") and has_length(dataset) and len(dataset):
        first = dataset[0]
        names = list(first) if isinstance(first, Mapping) else None
    return list(names or [])


def parse_teachers(teacher: Any, columns: Sequence[str]) -> Any:
    """Look at what was given as teacher, and refuse what is none.

    Raises:
        ValueError: it is none of these, or there are two or none.
    """
    found = [name for name in SOFT_TARGET_COLUMNS if name in columns]
    if teacher is None:
        if len(found) != 1:
            what = "no teacher" if not found else f"no teacher, and both columns {' and '.join(found)}"
            raise ValueError(
                f"a part of the loss comes from a teacher, and there is {what}: pass teacher=, give the data one "
                f"column {' or '.join(SOFT_TARGET_COLUMNS)}, or set alpha to 1 for training on labels alone"
            )
        return found[0]
    if found:
        raise ValueError(
            f"the data have a column {found[0]} of soft targets, and a teacher was given too: remove the column, or "
            "pass no teacher"
        )
    if isinstance(teacher, Specialist):
        raise ValueError("a specialist teaches beside a teacher that knows all labels: pass a list of both")
    if isinstance(teacher, nn.Module | str):
        return [teacher]
    if isinstance(teacher, list | tuple):
        strangers = [
            type(member).__name__ for member in teacher if not isinstance(member, nn.Module | str | Specialist)
        ]
        if strangers or not teacher:
            raise ValueError(
                "teachers must be models, Hub ids, folders or specialists, got "
                f"{', '.join(strangers) or 'an empty list'}"
            )
        return list(teacher)
    if callable(teacher):
        return teacher
    raise ValueError(
        "teacher must be a model, a Hub id, a folder, a list of these, or a function from a batch to logits, got "
        f"{type(teacher).__name__}"
    )


def load_members(members: Sequence[Any], args: Any, context: TeacherContext) -> list[Any]:
    """Load the members that are named, each onto its place.

    Raises:
        ValueError: a member cannot be loaded or placed, or is the student or shares parameters with it.
    """
    student = context.student
    if args.teacher_trust_remote_code and len(members) > 1:
        raise ValueError(
            f"teacher_trust_remote_code is consent for the code of one teacher, and there are {len(members)}: load "
            "those that come with code by from_pretrained(..., trust_remote_code=True), and pass them as models"
        )
    sources = [model_of(member) for member in members]
    for source in sources:
        check_placement(
            args.teacher_placement,
            args.teacher_quantization,
            num_processes=context.num_processes,
            is_named=isinstance(source, str) or is_quantized(source),
        )
        if isinstance(source, nn.Module):
            check_not_student(source, student)
    modules = [source for source in sources if isinstance(source, nn.Module)]
    if len({id(module) for module in modules}) < len(modules):
        raise ValueError(
            "one model is several of the teachers: name it once, and give it a larger teacher_weights entry"
        )
    loaded = []
    for member, source in zip(members, sources, strict=True):
        if isinstance(source, str):
            options = loading_options(
                args.teacher_placement,
                args.teacher_quantization,
                source=source,
                task=task_of(student),
                device=context.device,
                dtype=args.teacher_dtype,
                student=student,
                revision=args.teacher_revision,
                trust_remote_code=args.teacher_trust_remote_code,
            )
            source = load_teacher(
                source,
                task_of(student),
                dtype=args.teacher_dtype,
                revision=args.teacher_revision,
                trust_remote_code=args.teacher_trust_remote_code,
                allow_untrained=args.allow_untrained_teacher,
                **options,
            )
        loaded.append(replace(member, model=source) if isinstance(member, Specialist) else source)
    return loaded


def build_source(
    members: Any,
    args: Any,
    context: TeacherContext,
    problem_type: ProblemType | None,
    views: Views,
) -> SoftTargetSource:
    """Freeze and place the teachers, and align their labels with the student's.

    Raises:
        ValueError: the labels or the inputs of one do not fit the student's; of several, the message says which.
    """
    config = getattr(context.student, "config", None)
    num_labels = getattr(config, "num_labels", None)
    if not isinstance(members, list) or len(members) == 1:
        for name in ("teacher_weights", "teacher_combination"):
            if getattr(args, name) not in (None, "arithmetic"):
                raise ValueError(f"{name} is for several teachers, and there is one: leave it out")
    if isinstance(members, str):
        return TeacherColumn(members, num_labels, context.device)
    if not isinstance(members, list):
        return TeacherFunction(members, num_labels, context.device)
    generalists: list[TeacherModel] = []
    specialists: list[tuple[TeacherModel, list[int], float]] = []
    is_alone = len(members) == 1
    check_weights(args.teacher_weights, sum(not isinstance(member, Specialist) for member in members))
    for place, (member, view) in enumerate(zip(members, views.of_members, strict=True)):
        try:
            if not views.are_stated[place]:
                _check_inputs(model_of(member), args, context)
            _give_padding_token(model_of(member), context.processing_class if view is None else views.processors[view])
            if isinstance(member, Specialist):
                index, classes = _specialist_index(member, context.student)
                model = _frozen(member.model, index, args, context, view)
                specialists.append((model, classes, member.oversampling))
            else:
                aligned = _generalist_index(member, args, context.student, problem_type, is_alone)
                generalists.append(_frozen(member, aligned, args, context, view))
        except ValueError as error:
            if is_alone:
                raise
            raise ValueError(f"teacher {place + 1} of {len(members)}: {error}") from error
    if is_alone and generalists:
        return generalists[0]
    return TeacherEnsemble(generalists, specialists, weights=args.teacher_weights, kind=args.teacher_combination)


def _check_inputs(model: nn.Module, args: Any, context: TeacherContext) -> None:
    check_same_inputs(
        model,
        context.processing_class,
        revision=args.teacher_revision,
        trust_remote_code=args.teacher_trust_remote_code,
    )


def _give_padding_token(model: nn.Module, tokenizer: Any) -> None:
    """Tell a teacher whose config has no padding token which one its batches have, as `Trainer` tells the student."""
    config: Any = getattr(unwrapped(model), "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    padding = getattr(getattr(tokenizer, "tokenizer", tokenizer), "pad_token_id", None)
    if padding is not None and getattr(config, "pad_token_id", padding) is None:
        config.pad_token_id = padding


def _frozen(
    model: nn.Module, index: Sequence[int] | None, args: Any, context: TeacherContext, view: int | None
) -> TeacherModel:
    return TeacherModel(
        model,
        context.student,
        index,
        device=context.device,
        dtype=args.teacher_dtype,
        placement=args.teacher_placement,
        accelerator=context.accelerator,
        autocast_dtype=context.autocast_dtype,
        view=view,
        compilation=_compilation(args),
    )


def _compilation(args: Any) -> dict[str, Any] | None:
    if not args.teacher_torch_compile:
        return None
    return {"backend": args.torch_compile_backend or "inductor", "mode": args.torch_compile_mode}


def _generalist_index(
    model: nn.Module, args: Any, student: nn.Module, problem_type: ProblemType | None, is_alone: bool
) -> list[int] | None:
    label_map = args.teacher_label_map
    if label_map is not None and not is_alone and has_names_of(model, student):
        label_map = None  # the map is for the others
    return label_index(model, student, label_map, problem_type)


def _specialist_index(member: Specialist, student: nn.Module) -> tuple[list[int], list[int]]:
    theirs, all_names = label_names(member.model), label_names(student)
    if theirs is None or all_names is None:
        raise ValueError("a specialist's classes are found by name: it and the student need a config with id2label")
    return specialist_columns(theirs, all_names, member.dustbin)


def class_names(student: nn.Module, source: SoftTargetSource | None) -> list[str]:
    """Name the classes in the order of the student's logits: as it does or, if it has no names, as a teacher does."""
    names = label_names(student) or []
    if not has_generic_names(names):
        return names
    members = source.generalists if isinstance(source, TeacherEnsemble) else [source]
    for member in members:
        if not isinstance(member, TeacherModel):
            continue
        theirs = label_names(unwrapped(member.model)) or []
        if not has_generic_names(theirs):
            return [theirs[index] for index in member.label_index or range(len(theirs))]
    return []
