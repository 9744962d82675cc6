"""Batches in which each model finds its own view of a row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import datasets
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.processors import channels_of
from hf_distill.models.pixels import WHITE, image_array, plain_image

logger = logging.get_logger(__name__)

Kind = Literal["text", "words", "image"]

NO_POSITION = -1

_NO_LIMIT = 10**9  # a tokenizer that knows of no limit says that it is 10**30
_KINDS_OF_COLUMN = {"text": "string", "words": "list-of-strings", "image": "image"}


class TeacherInputCollator:
    """Collate rows for the student, and make of the same rows what each teacher with its own processor reads.

    It can be pickled, so that worker processes may be spawned.

    A row's text is read as the teacher's tokenizer reads it by default: token types are made only by a tokenizer
    that makes them unasked, since some models (GPT-2) add an embedding for them.

    Raises:
        ValueError: the processors cannot read this kind of column.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
        processors: Sequence[Any],
        *,
        columns: Sequence[str],
        kind: Kind,
        max_lengths: Sequence[int | None] = (),
        student_processor: Any = None,
    ) -> None:
        most_columns = {"text": 2, "words": 1, "image": 1}
        if kind not in most_columns:
            raise ValueError(f"kind must be one of {', '.join(most_columns)}, got {kind!r}")
        if isinstance(columns, str) or not (kind == "image" or columns) or len(columns) > most_columns[kind]:
            raise ValueError(
                f"teachers' inputs are made of {'one or two columns' if kind == 'text' else 'one column'} "
                f"({_KINDS_OF_COLUMN[kind]}), got {columns!r}"
            )
        if max_lengths and len(max_lengths) != len(processors):
            raise ValueError(f"max_lengths must have one entry for each of {len(processors)} processors: {max_lengths}")
        if kind != "image":
            _check_tokenizers(processors, student_processor, kind)
        self.collator = collator
        self.processors = tuple(processors)
        self.columns = tuple(columns)
        self.kind = kind
        self.max_lengths = tuple(max_lengths) or (None,) * len(processors)
        self.student_processor = student_processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Returns:
            the student's batch and `teacher_inputs`, one dict of tensors for each processor. Those of words also have
            `token_positions` `(batch, student_tokens)`: for a token of the student that is the first piece of a word,
            the place of that word's first piece among the teacher's tokens; -1 for special tokens, other pieces and
            padding, and where the teacher's view has lost the word to truncation.
        """
        withheld = {*self.columns, TEACHER_PIXELS}
        # Plain dicts all the way down: a BatchEncoding moves its own tensors to a device, and not those inside a list.
        batch = dict(self.collator([{name: row[name] for name in row if name not in withheld} for row in rows]))
        if self.kind == "text":
            views = self._text_views(rows)
        elif self.kind == "words":
            views = self._word_views(rows, batch)
        else:
            views = self._image_views(rows)
        return {**batch, "teacher_inputs": views}

    # ---- Text ----

    def _text_views(self, rows: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        texts = [[_checked_text(value, name) for value in self._values(rows, name)] for name in self.columns]
        return [
            dict(_encoded(tokenizer, max_length, *texts))
            for tokenizer, max_length in zip(self.processors, self.max_lengths, strict=True)
        ]

    def _word_views(self, rows: list[dict[str, Any]], batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        words = [_checked_words(value, self.columns[0]) for value in self._values(rows, self.columns[0])]
        students = self._places_of_words(rows, words, batch)
        views = []
        for tokenizer, max_length in zip(self.processors, self.max_lengths, strict=True):
            encoded = _encoded(tokenizer, max_length, words, is_split_into_words=True)
            positions = [[NO_POSITION] * batch["input_ids"].shape[1] for _ in rows]
            for row, student in enumerate(students):
                teacher = _first_pieces(encoded.word_ids(row))
                for word, place in student.items():
                    positions[row][place] = teacher.get(word, NO_POSITION)
            views.append({**encoded, "token_positions": torch.tensor(positions)})
        return views

    def _places_of_words(
        self, rows: list[dict[str, Any]], words: list[list[str]], batch: dict[str, Any]
    ) -> list[dict[int, int]]:
        """Find, for each row, where in the student's batch the first piece of each word is."""
        whole = self.student_processor(words, is_split_into_words=True, verbose=False)
        # A collator that makes no mask is taken to pad where the student's tokenizer does.
        on_the_left = self.student_processor.padding_side == "left"
        found = []
        for number, row in enumerate(rows):
            ids = _real_ids(row)
            pieces = whole.word_ids(number)
            if whole["input_ids"][number] != ids:
                pieces = self._pieces_of_truncated(words[number], ids)
            width = batch["input_ids"].shape[1]
            mask = batch.get("attention_mask")
            if mask is not None:
                places = mask[number].nonzero().flatten().tolist()
            else:
                places = list(range(width - len(ids), width) if on_the_left else range(len(ids)))
            if batch["input_ids"][number, places].tolist() != ids:
                raise ValueError(
                    "the student's collator has changed the tokens of a row, so its words cannot be found in the "
                    f"teacher's view: got {batch['input_ids'][number].tolist()} of {ids}. Take a collator that only "
                    "pads (DataCollatorForTokenClassification)."
                )
            found.append({word: places[piece] for word, piece in _first_pieces(pieces).items()})
        return found

    def _pieces_of_truncated(self, words: list[str], ids: list[int]) -> list[int | None]:
        tokenizer = self.student_processor
        got: list[int] = []
        if len(ids) >= tokenizer.num_special_tokens_to_add():
            encoded = tokenizer([words], is_split_into_words=True, truncation=True, max_length=len(ids), verbose=False)
            got = encoded["input_ids"][0]
            if got == ids:
                pieces: list[int | None] = encoded.word_ids(0)
                return pieces
        raise ValueError(
            f"the student's rows were tokenized in another way than processing_class ({type(tokenizer).__name__}) "
            f"reads the words of {self.columns[0]!r}: the row has {_shortened(ids)}, the words give {_shortened(got)}. "
            "Tokenize with that tokenizer, is_split_into_words=True and its special tokens, or name the column of "
            "those words in teacher_input_columns."
        )

    # ---- Images ----

    def _image_views(self, rows: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        if rows and all(TEACHER_PIXELS in row for row in rows):
            pixels = [_pixels_for_each(row[TEACHER_PIXELS], len(self.processors)) for row in rows]
            return [{"pixel_values": torch.stack(of_one)} for of_one in zip(*pixels, strict=True)]
        if not self.columns:
            raise ValueError(
                f"the teacher's view is made of an image column or of {TEACHER_PIXELS!r}, and the rows have "
                f"{', '.join(rows[0])}: set teacher_input_columns"
            )
        images = [_checked_image(value, self.columns[0]) for value in self._values(rows, self.columns[0])]
        return [
            dict(
                processor(
                    [image_array(image, channels_of(processor)) for image in images],
                    input_data_format="channels_last",
                    return_tensors="pt",
                )
            )
            for processor in self.processors
        ]

    def _values(self, rows: list[dict[str, Any]], column: str) -> list[Any]:
        for row in rows:
            if column not in row:
                raise ValueError(
                    f"the teacher reads the column {column!r}, and the rows have only {', '.join(sorted(row))}: keep "
                    "it when the data are prepared (map without remove_columns), or name another in "
                    "teacher_input_columns"
                )
        return [row[column] for row in rows]


def guess_columns(dataset: Any, kind: Kind) -> tuple[str, ...]:
    """Find the one column of a data set that a teacher with its own processor can read.

    Raises:
        ValueError: no column or several are of that kind.
    """
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        names = list(features)
        candidates = [name for name, feature in features.items() if _is_feature_of(feature, kind)]
    else:
        row = _first_row(dataset, kind)
        if kind == "image" and TEACHER_PIXELS in row:
            return ()
        names = list(row)
        candidates = [name for name, value in row.items() if _is_value_of(value, kind)]
    if len(candidates) == 1:
        return (candidates[0],)
    wanted = f"{_KINDS_OF_COLUMN[kind]} column"
    found = f"several {wanted}s: {', '.join(candidates)}" if candidates else f"no {wanted} among {', '.join(names)}"
    remedy = "say which to read" if candidates else "keep the raw column when the data are prepared and name it"
    raise ValueError(
        f"the teacher has a processor of its own and needs the raw inputs; there is {found}. To {remedy}, set "
        f"teacher_input_columns=[{(candidates or ['...'])[0]!r}]."
    )


def _first_row(dataset: Any, kind: Kind) -> Mapping[str, Any]:
    row = None
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset) > 0:
        row = dataset[0]
    if not isinstance(row, Mapping):
        raise ValueError(
            f"the teacher has a processor of its own and needs the raw inputs; in a {type(dataset).__name__} no "
            f"{_KINDS_OF_COLUMN[kind]} column can be guessed: set teacher_input_columns"
        )
    return row


def _is_feature_of(feature: Any, kind: Kind) -> bool:
    if kind == "image":
        return isinstance(feature, datasets.Image)
    if kind == "words":
        if not isinstance(feature, datasets.List | datasets.LargeList):
            return False
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_value_of(value: Any, kind: Kind) -> bool:
    if kind == "image":
        return isinstance(value, Image.Image)
    if kind == "words":
        return isinstance(value, list | tuple) and bool(value) and all(isinstance(word, str) for word in value)
    return isinstance(value, str)


def _check_tokenizers(processors: Sequence[Any], student_processor: Any, kind: Kind) -> None:
    for tokenizer in processors:
        if tokenizer.pad_token is None:
            raise ValueError(
                f"the teacher's tokenizer ({type(tokenizer).__name__}) has no padding token, which a batch needs: set "
                "its pad_token (and pad_token_id in the teacher's config) to the one that it was trained with, or to "
                "eos_token"
            )
    if kind != "words":
        return
    if student_processor is None:
        raise ValueError("words of the student are found in the teacher's view by the student's tokenizer: pass it")
    for tokenizer in (student_processor, *processors):
        if not tokenizer.is_fast:
            raise ValueError(
                f"token classification needs fast tokenizers, {type(tokenizer).__name__} cannot tell words apart"
            )


def _encoded(tokenizer: Any, max_length: int | None, *texts: list, **options: Any) -> Any:
    truncation = max_length is not None or tokenizer.model_max_length < _NO_LIMIT
    return tokenizer(*texts, padding=True, truncation=truncation, max_length=max_length, return_tensors="pt", **options)


def _first_pieces(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Return the place of each word's first piece; a word without pieces is not there."""
    places: dict[int, int] = {}
    for place, word in enumerate(word_ids):
        if word is not None:
            places.setdefault(word, place)
    return places


def _real_ids(row: Mapping[str, Any]) -> list[int]:
    ids = torch.as_tensor(row["input_ids"])
    mask = row.get("attention_mask")
    return (ids if mask is None else ids[torch.as_tensor(mask).bool()]).tolist()


def _checked_text(value: Any, column: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f"the teacher reads texts, and the column {column!r} holds {value!r}: name a column of strings in "
            "teacher_input_columns"
        )
    return value or ""


def _checked_words(value: Any, column: str) -> list[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(word, str) for word in value):
        raise ValueError(
            f"the teacher reads lists of words, and the column {column!r} holds {value!r}: name a column of lists of "
            "strings in teacher_input_columns"
        )
    return list(value)


def _checked_image(value: Any, column: str) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise ValueError(
            f"the teacher reads images, and the column {column!r} holds {type(value).__name__}, not a PIL image: name "
            f"an image column in teacher_input_columns, or let the rows bring {TEACHER_PIXELS!r}"
        )
    if value.has_transparency_data:
        logger.warning_once(
            f"The column {column!r} has images with transparency: the teacher sees them composed on {WHITE}. Compose "
            "them yourself if the student sees another ground."
        )
    try:
        return plain_image(value)
    except ValueError as error:
        raise ValueError(f"the teacher reads the column {column!r}, and {error}") from error


def _pixels_for_each(value: Any, num_processors: int) -> list[Tensor]:
    """Return one image tensor for each processor."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    tensors = [torch.as_tensor(entry) for entry in entries]
    if num_processors == 1 and all(tensor.dim() == 2 for tensor in tensors):  # the channels of one, as lists
        tensors = [torch.stack(tensors)]
    if len(tensors) != num_processors or any(tensor.dim() != 3 for tensor in tensors):
        raise ValueError(
            f"a row's {TEACHER_PIXELS} must have one image (channels, height, width) for each of {num_processors} "
            f"teachers' processors, got {', '.join(str(tuple(tensor.shape)) for tensor in tensors)}"
        )
    return tensors


def _shortened(values: Any, limit: int = 12) -> str:
    text = str(values[:limit]) if isinstance(values, list) else str(values)
    return text.removesuffix("]") + ", ...]" if isinstance(values, list) and len(values) > limit else text
