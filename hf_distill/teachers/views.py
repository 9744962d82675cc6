"""Which inputs a teacher reads: the student's, or a view of its own that its processor makes of the row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_distill.data.processors import difference, load_processor, max_tokens
from hf_distill.data.teacher_views import TeacherInputCollator, guess_columns
from hf_distill.teachers.specialists import model_of


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
            limit = max_tokens(getattr(model_of(member), "config", None), processors[view])
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


def view_collator(
    collator: Any, views: Views, *, args: Any, dataset: Any, student_processor: Any, token_level: bool
) -> TeacherInputCollator:
    """Return a collator that makes the teachers' views of rows, too."""
    is_text = isinstance(views.processors[0], PreTrainedTokenizerBase)
    kind: Any = "image" if not is_text else "words" if token_level else "text"
    return TeacherInputCollator(
        collator,
        views.processors,
        columns=list(args.teacher_input_columns or guess_columns(dataset, kind)),
        kind=kind,
        max_lengths=[_smaller(args.teacher_max_length, limit) for limit in views.max_lengths],
        student_processor=student_processor,
    )


def _smaller(wanted: int | None, limit: int | None) -> int | None:
    return min((length for length in (wanted, limit) if length is not None), default=None)
