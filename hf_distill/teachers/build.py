"""From what a user names as teacher to a teacher at work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_distill.data.processors import difference, load_processor, most_tokens, refuse_mismatch
from hf_distill.data.targets import PROBLEM_TYPES, ProblemType
from hf_distill.teachers.ensemble import check_weights
from hf_distill.teachers.external import SOFT_TARGET_COLUMNS, CallableTeacher, ColumnTeacher
from hf_distill.teachers.labels import has_generic_names, names_in_order
from hf_distill.teachers.loading import load_teacher, task_of, unwrapped
from hf_distill.teachers.model import FrozenTeacher, label_index, refuse_own_teacher
from hf_distill.teachers.placement import check_placement, is_quantized, loading_options
from hf_distill.teachers.several import SeveralTeachers, SpecialistAtWork
from hf_distill.teachers.source import Teaching
from hf_distill.teachers.specialists import Specialist, specialist_columns


@dataclass(frozen=True)
class Circumstances:
    """What a teacher has to fit in with.

    Attributes:
        student: the student, without wrappers.
        processing_class: the student's tokenizer or image processor, if it is known.
        device: the student's.
        num_processes: of the run.
        autocast_dtype: the type of its mixed precision, if it has one.
        accelerator: the run's.
    """

    student: nn.Module
    processing_class: Any
    device: torch.device
    num_processes: int
    autocast_dtype: torch.dtype | None
    accelerator: Any


def members_of(teacher: Any, columns: Sequence[str]) -> Any:
    """Look at what was given as teacher, and refuse what is none.

    Args:
        teacher: a model, a Hub id or folder, a list of these and of specialists, a function, or None.
        columns: of the training data.

    Returns:
        a list of models, names and specialists; a function; or the name of the column of soft targets.

    Raises:
        ValueError: it is none of these, or there are two answers or none.
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


def load_members(members: Sequence[Any], args: Any, circumstances: Circumstances) -> list[Any]:
    """Load the members that are named, each onto its place.

    Args:
        members: models, names and specialists.
        args: a DistillationConfig.
        circumstances: of the run.

    Returns:
        models, and specialists with models.

    Raises:
        ValueError: a member cannot be loaded or placed, or is the student or shares parameters with it.
    """
    student = circumstances.student
    if args.teacher_trust_remote_code and len(members) > 1:
        raise ValueError(
            f"teacher_trust_remote_code is consent for the code of one teacher, and there are {len(members)}: load "
            "those that come with code by from_pretrained(..., trust_remote_code=True), and pass them as models"
        )
    sources = [_model_of(member) for member in members]
    for source in sources:
        check_placement(
            args.teacher_placement,
            args.teacher_quantization,
            num_processes=circumstances.num_processes,
            is_named=isinstance(source, str) or is_quantized(source),
        )
        if isinstance(source, nn.Module):
            refuse_own_teacher(source, student)
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
                device=circumstances.device,
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


def stated_problem_type(student: nn.Module, members: Sequence[Any], is_token_level: bool) -> ProblemType | None:
    """Return the problem type that the configs state or imply; None leaves it to the first labels.

    Raises:
        ValueError: student and teachers differ, or it is none that Transformers knows.
    """
    models = {"student": student}
    for place, member in enumerate(members):
        models["teacher" if len(members) == 1 else f"teacher {place + 1}"] = _model_of(member)
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


@dataclass(frozen=True)
class Views:
    """Which inputs the members read.

    Attributes:
        processors: those that make views of their own of a row.
        of_members: for each member, the place of its processor among them; None: it reads the student's inputs.
        max_lengths: for each processor, the most tokens that its teachers take; None: any number, or no tokens.
        are_stated: for each member, whether its processor was given; if not, it is looked for to be compared.
    """

    processors: list[Any]
    of_members: list[int | None]
    max_lengths: list[int | None]
    are_stated: list[bool]


def views_of(members: Any, processing_classes: Any, student_processor: Any, columns: Sequence[str] = ()) -> Views:
    """Find out which teachers need a view of their own: those whose processor reads a row in another way.

    Args:
        members: as for `put_to_work`.
        processing_classes: None, one processor for all members, or a list with one or None for each.
        student_processor: the student's, None if it is not known.
        columns: of the data, which may hold what the student's processor leaves out.

    Raises:
        ValueError: the list has another length, or the teacher is no model that reads inputs.
    """
    if not isinstance(members, list):
        if processing_classes is not None:
            raise ValueError(
                "teacher_processing_class makes the inputs of a model, and the teacher is none: leave it out"
            )
        return Views([], [], [], [])
    count = len(members)
    given = processing_classes if isinstance(processing_classes, list | tuple) else [processing_classes] * count
    if len(given) != count:
        raise ValueError(
            f"teacher_processing_class has {len(given)} entries for {count} teachers: give one (or None) for each, or "
            "a single one for all"
        )
    given = [_processor(each) for each in given]
    processors: list[Any] = []
    of_members: list[int | None] = []
    for processor in given:
        if processor is None or _reads_alike(student_processor, processor, columns):
            of_members.append(None)
            continue
        if not any(processor is known for known in processors):
            processors.append(processor)
        of_members.append(next(place for place, known in enumerate(processors) if known is processor))
    limits: list[list[int]] = [[] for _ in processors]
    for member, view in zip(members, of_members, strict=True):
        if view is not None and isinstance(processors[view], PreTrainedTokenizerBase):
            limit = most_tokens(getattr(_model_of(member), "config", None), processors[view])
            limits[view] += [] if limit is None else [limit]
    most = [min(each, default=None) for each in limits]
    return Views(processors, of_members, most, [processor is not None for processor in given])


def _reads_alike(student_processor: Any, processor: Any, columns: Sequence[str]) -> bool:
    if student_processor is None or difference(student_processor, processor) is not None:
        return False
    # Of two texts DistilBERT's tokenizer does not say where the second begins, which BERT must know.
    segments = "token_type_ids"
    names = [getattr(each, "model_input_names", []) for each in (student_processor, processor)]
    return not (segments in names[1] and segments not in names[0] and segments not in columns)


def _processor(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    processor = load_processor(given)
    if processor is None:
        raise ValueError(
            f"teacher_processing_class: there is no tokenizer or image processor in {given!r}, or none without code of "
            "its own: load that one by from_pretrained, and pass it"
        )
    return processor


def put_to_work(
    members: Any,
    args: Any,
    circumstances: Circumstances,
    problem_type: ProblemType | None,
    views: Views,
) -> Teaching:
    """Freeze and place the teachers, and align their labels with the student's.

    Args:
        members: what `members_of` and `load_members` have returned.
        args: a DistillationConfig.
        circumstances: of the run.
        problem_type: the kind of target, if it is known.
        views: which inputs the members read.

    Raises:
        ValueError: the labels or the inputs of one do not fit the student's; of several, the message says which.
    """
    config = getattr(circumstances.student, "config", None)
    num_labels = getattr(config, "num_labels", None)
    if not isinstance(members, list) or len(members) == 1:
        for name in ("teacher_weights", "teacher_combination"):
            if getattr(args, name) not in (None, "arithmetic"):
                raise ValueError(f"{name} is for several teachers, and there is one: leave it out")
    if isinstance(members, str):
        return ColumnTeacher(members, num_labels, circumstances.device)
    if not isinstance(members, list):
        return CallableTeacher(members, num_labels, circumstances.device)
    generalists: list[FrozenTeacher] = []
    specialists: list[SpecialistAtWork] = []
    is_alone = len(members) == 1
    check_weights(args.teacher_weights, sum(not isinstance(member, Specialist) for member in members))
    for place, (member, view) in enumerate(zip(members, views.of_members, strict=True)):
        try:
            if not views.are_stated[place]:
                _check_inputs(_model_of(member), args, circumstances)
            _give_padding_token(
                _model_of(member), circumstances.processing_class if view is None else views.processors[view]
            )
            if isinstance(member, Specialist):
                index, classes = _specialist_index(member, circumstances.student)
                at_work = _frozen(member.model, index, args, circumstances, view)
                specialists.append(SpecialistAtWork(at_work, classes, member.oversampling))
            else:
                aligned = _generalist_index(member, args, circumstances.student, problem_type, is_alone)
                generalists.append(_frozen(member, aligned, args, circumstances, view))
        except ValueError as error:
            if is_alone:
                raise
            raise ValueError(f"teacher {place + 1} of {len(members)}: {error}") from error
    if is_alone and generalists:
        return generalists[0]
    return SeveralTeachers(generalists, specialists, weights=args.teacher_weights, combination=args.teacher_combination)


def _check_inputs(model: nn.Module, args: Any, circumstances: Circumstances) -> None:
    refuse_mismatch(
        model,
        circumstances.processing_class,
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


def _model_of(member: Any) -> Any:
    return member.model if isinstance(member, Specialist) else member


def _frozen(
    model: nn.Module, index: Sequence[int] | None, args: Any, circumstances: Circumstances, view: int | None
) -> FrozenTeacher:
    return FrozenTeacher(
        model,
        circumstances.student,
        index,
        device=circumstances.device,
        dtype=args.teacher_dtype,
        placement=args.teacher_placement,
        accelerator=circumstances.accelerator,
        autocast_dtype=circumstances.autocast_dtype,
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
    if label_map is not None and not is_alone and _has_names_of(model, student):
        label_map = None  # the map is for the others
    return label_index(model, student, label_map, problem_type)


def _has_names_of(model: nn.Module, student: nn.Module) -> bool:
    names = [_label_names(each) for each in (model, student)]
    return None not in names and {n.casefold() for n in names[0] or ()} == {n.casefold() for n in names[1] or ()}


def _specialist_index(member: Specialist, student: nn.Module) -> tuple[list[int], list[int]]:
    theirs, all_names = _label_names(member.model), _label_names(student)
    if theirs is None or all_names is None:
        raise ValueError("a specialist's classes are found by name: it and the student need a config with id2label")
    return specialist_columns(theirs, all_names, member.dustbin)


def class_names(student: nn.Module, teaching: Teaching | None) -> list[str]:
    """Name the classes in the order of the student's logits: as it does or, if it has no names, as a teacher does."""
    names = _label_names(student) or []
    if not has_generic_names(names):
        return names
    members = teaching.generalists if isinstance(teaching, SeveralTeachers) else [teaching]
    for member in members:
        if not isinstance(member, FrozenTeacher):
            continue
        theirs = _label_names(unwrapped(member.model)) or []
        if not has_generic_names(theirs):
            return [theirs[index] for index in member.label_index or range(len(theirs))]
    return []


def _label_names(model: nn.Module) -> list[str] | None:
    id2label: Mapping[int, str] | None = getattr(getattr(model, "config", None), "id2label", None)
    return None if id2label is None else names_in_order(id2label)
