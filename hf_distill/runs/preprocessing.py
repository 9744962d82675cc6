"""What the models of a run read: prepared splits, and the processor that goes with each saved model."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    default_data_collator,
)
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

import hf_distill.models  # noqa: F401  (registers the architectures that Transformers lacks)
from hf_distill.data.images import ImageRows
from hf_distill.data.loading import Splits
from hf_distill.data.processors import difference, max_tokens, processor_settings
from hf_distill.data.text import tokenize_text, tokenize_words
from hf_distill.models import GreyImageProcessor, MLPConfig
from hf_distill.models.pixels import WHITE
from hf_distill.models.sources import first_line, named_source_options
from hf_distill.models.vocabulary import count_tokens, coverage, prune_vocabulary
from hf_distill.runs.recipe.schema import OF_IMAGES, Augment, Recipe, Student, Teacher
from hf_distill.runs.shared_targets import SharedTargets

Section = Teacher | Student


@dataclass
class Reader:
    """How some of a run's models read the data.

    Attributes:
        processor: their tokenizer or image processor.
        collator: makes a batch of their rows.
        max_length: tokens kept of a text.
        segments: whether one of them reads which of two texts a token belongs to.
        num_channels: of their images.
        prepared: their tokenized splits by role and column of soft targets, as they are needed.
    """

    processor: Any
    collator: Callable[[list], dict[str, Any]]
    max_length: int | None = None
    segments: bool = False
    num_channels: int = 3
    prepared: dict[tuple[str, str | None], datasets.Dataset] = field(default_factory=dict)

    def give_padding_id(self, config: Any) -> None:
        """Tell a model that knows of no padding which token it is; decoders find the end of a text by it."""
        config = config.get_text_config()
        if isinstance(self.processor, PreTrainedTokenizerBase) and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = self.processor.pad_token_id


class Inputs:
    """The data of a run as each of its models reads them.

    Models whose processors read alike share one reader; a teacher that reads in another way than its student gets a
    view of its own of each row.

    Raises:
        ValueError: there is no processor for a model.
    """

    def __init__(self, recipe: Recipe, splits: Splits, shared: SharedTargets | None = None) -> None:
        self._recipe = recipe
        self._splits = splits
        self._shared = shared
        self._readers: list[Reader] = []
        self._of_sources: dict[Any, Reader] = {}
        self._of_pruned: dict[int, tuple[Reader, list[int]]] = {}  # by the section of the recipe
        models: list[Section] = [*recipe.teachers, *recipe.students]
        self._models = [section for section in models if _reads(section)]
        self._of_shared = [Reader(each, default_data_collator) for each in self._processors_of_shared()]
        for section in self._models:
            self.reader(section)
        if shared is not None and "token_type_ids" in shared.key["columns"]:
            self.reader(recipe.students[0]).segments = True  # who was asked has read them

    @property
    def eval_role(self) -> str:
        """Return the role of the split that the results come from."""
        return "evaluation" if self._splits.test is None else "test"

    def reader(self, section: Section) -> Reader:
        """Return how the model of a section reads."""
        if isinstance(section, Student) and section.from_teacher is not None and section.from_teacher.vocabulary:
            return self._pruned(section)[0]
        source = self._source(section)
        if source is None:
            if isinstance(section, Student) and section.from_teacher is not None:
                return self.reader(self._recipe.teacher_of(section))  # it has that one's embeddings
            # A new model reads as the first one does that says how it does.
            found = (other for other in self._models if other is not section and self._source(other) is not None)
            other = next(found, None)
            if other is not None:
                return self.reader(other)
        if source not in self._of_sources:
            self._of_sources[source] = self._new_reader(section, source)
        return self._of_sources[source]

    @property
    def mask_token(self) -> str | None:
        """Return the mask token that all tokenizers have; None: they have none, or several."""
        tokens = {reader.processor.mask_token for reader in self._readers}
        return next(iter(tokens)) if len(tokens) == 1 else None

    def kept_tokens(self, section: Section) -> list[int] | None:
        """Return the teacher's ids of the tokens that a student of its layers keeps; None: all."""
        of_layers = section.from_teacher if isinstance(section, Student) else None
        return None if of_layers is None or of_layers.vocabulary is None else self._pruned(section)[1]

    def vocabulary_info(self) -> dict[str, Any]:
        """Tell how many tokens the student keeps, and how much of the evaluated texts that is."""
        section = self._recipe.student
        kept = self.kept_tokens(section)
        if kept is None:
            return {}
        whole = self.reader(self._recipe.teacher_of(section))
        share = coverage(kept, count_tokens(self.rows(whole, self.eval_role)["input_ids"]))
        if share < 0.9 and PartialState().is_main_process:
            warnings.warn(
                f"from_teacher.vocabulary: the word pieces that are kept are {share:.1%} of those in the evaluated "
                "texts; the others are split into smaller ones. Take more training texts, or a lower min_count",
                stacklevel=2,
            )
        return {"vocabulary": {"num_tokens": len(kept), "of": len(whole.processor), "coverage": round(share, 4)}}

    def _pruned(self, section: Any) -> tuple[Reader, list[int]]:
        """Return how a student reads whose vocabulary is a part of the one of the model before it."""
        if id(section) not in self._of_pruned:
            whole = self.reader(self._recipe.teacher_of(section))
            counts = count_tokens(self.rows(whole, "train")["input_ids"])
            tokenizer, kept = prune_vocabulary(whole.processor, counts, section.from_teacher.vocabulary.min_count)
            reader = Reader(
                tokenizer, self._text_collator(tokenizer), max_length=whole.max_length, segments=whole.segments
            )
            self._of_pruned[id(section)] = reader, kept
        return self._of_pruned[id(section)]

    def readers_of_teacher(self, section: Section) -> list[Reader]:
        """Return how a teacher reads, or how those did who have made the soft targets that teach in its place."""
        if _reads(section):
            return [self.reader(section)]
        return self._of_shared if isinstance(section, Teacher) and section.logits is not None else []

    def rows(
        self,
        reader: Reader,
        role: str,
        *,
        augment: Augment | None = None,
        seed: int = 42,
        teachers: Sequence[Reader] = (),
        soft_targets: str | None = None,
    ) -> Any:
        """Return a split for a model."""
        kept = () if soft_targets is None else (soft_targets,)
        columns = self._splits.columns.inputs
        rows = self._splits.labelled if role == "labelled" else self._splits.named()[role]
        if not self._recipe.is_text:
            changes = augment.model_dump(include={*OF_IMAGES}) if augment is not None else {}
            return ImageRows(
                rows,
                columns[0],
                reader.processor,
                num_channels=reader.num_channels,
                background=self._recipe.data.background,
                seed=seed,
                teacher_processors=[other.processor for other in distinct(teachers, reader)],
                kept=kept,
                **changes,
            )
        if (role, soft_targets) not in reader.prepared:
            tokenizer, limit = reader.processor, reader.max_length
            options: dict[str, Any] = {"segments": reader.segments or None, "kept": kept}
            reader.prepared[role, soft_targets] = (
                tokenize_words(rows, tokenizer, columns[0], limit, **options)
                if self._recipe.task == "token-classification"
                else tokenize_text(rows, tokenizer, columns, limit, **options)
            )
        return reader.prepared[role, soft_targets]

    def _source(self, section: Section) -> Any:
        """Return where a model's processor comes from, or the size of its images; None: from nowhere.

        That is an id or folder, a revision, and the setting that lets the code there run, with its value.
        """
        apart = "processor_trust_remote_code"
        if section.processor is not None:
            return section.processor, None, apart, section.processor_trust_remote_code
        data = self._recipe.data
        if isinstance(data.processor, str):
            return data.processor, None, apart, data.processor_trust_remote_code
        if section.model is not None and data.processor is None:
            return section.model, section.revision, "trust_remote_code", section.trust_remote_code
        return None if self._recipe.is_text else _image_size(section)

    def _new_reader(self, section: Section, source: Any) -> Reader:
        recipe = self._recipe
        auto_class = AutoTokenizer if recipe.is_text else AutoImageProcessor
        if isinstance(source, tuple) and isinstance(source[0], str):
            processor = _load(auto_class, "teacher" if isinstance(section, Teacher) else "student", *source)
            if recipe.is_text:
                _give_padding_token(processor, source[0])
        else:
            processor = self._image_processor(source)
        self._fit_to_shared(processor)
        known = next((known for known in self._readers if _are_alike(known.processor, processor)), None)
        if known is not None:
            known.segments |= _has_segments(processor)
            return known
        if not recipe.is_text:
            reader = Reader(processor, default_data_collator, num_channels=_num_channels(recipe))
        else:
            reader = Reader(processor, self._text_collator(processor), max_length=self._max_length(processor))
        reader.segments = _has_segments(processor)
        self._readers.append(reader)
        return reader

    def _text_collator(self, tokenizer: Any) -> Any:
        of_tokens = self._recipe.task == "token-classification"
        return DataCollatorForTokenClassification(tokenizer) if of_tokens else DataCollatorWithPadding(tokenizer)

    def _image_processor(self, size: tuple[int, int] | None) -> BaseImageProcessor:
        """Make a processor for images of a size (None: their own), otherwise like the first model's."""
        channels = _num_channels(self._recipe)
        if size is None:
            first = self._splits.train[0][self._splits.columns.inputs[0]]
            size = (first.height, first.width)
        shared = None if self._shared is None else self._shared.key["student_processor"]
        if isinstance(shared, dict) and shared.get("size") == {"height": size[0], "width": size[1]}:
            return image_processor_from(shared)
        like = next((reader.processor for reader in [*self._of_shared, *self._readers]), None)
        fields: dict[str, Any] = {
            "size": {"height": size[0], "width": size[1]},
            "image_mean": getattr(like, "image_mean", None) or [0.5] * channels,
            "image_std": getattr(like, "image_std", None) or [0.5] * channels,
        }
        given = self._recipe.data.processor if isinstance(self._recipe.data.processor, dict) else {}
        if channels == 1 and all(config.model_type == MLPConfig.model_type for config in _model_configs(self._recipe)):
            ground = self._recipe.data.background
            return GreyImageProcessor(**{**fields, **({} if ground == WHITE else {"background": ground}), **given})
        # The PIL processor, whether torchvision is there or not: both resize, but not to the same last bit.
        return get_image_processor_class_from_name("ViTImageProcessorPil")(**{**fields, **given})

    def _processors_of_shared(self) -> list[Any]:
        """Make the image processors anew of those teachers that read in another way than their student."""
        if self._shared is None or self._recipe.is_text:
            return []
        described = [each.get("processor") for each in self._shared.key["teachers"]]
        distinct = [each for place, each in enumerate(described) if each is not None and each not in described[:place]]
        return [image_processor_from(each) for each in distinct]

    def _fit_to_shared(self, processor: Any) -> None:
        """Give a tokenizer the names of inputs that the one had by which the cached rows were made, if all else is so.

        Beside a teacher, of two tokenizers that read alike it is the teacher's that reads for both.
        """
        kept = None if self._shared is None else self._shared.key["student_processor"]
        if not self._recipe.is_text or kept is None:
            return
        own = processor_settings(processor) or {}
        names = kept.get("model_input_names")
        if own != kept and {**own, "model_input_names": names} == kept:
            processor.model_input_names = list(names)

    def _max_length(self, tokenizer: Any) -> int | None:
        """Return how many tokens of a row are kept: what the recipe says, or the most that all models take."""
        takes = [max_tokens(config, tokenizer) for config in [None, *_model_configs(self._recipe)]]
        most = min((limit for limit in takes if limit is not None), default=None)
        wanted = self._recipe.data.max_length
        if wanted is None and self._shared is not None and self._shared.max_length is not None:
            return self._shared.max_length if most is None else min(most, self._shared.max_length)
        if wanted is not None and most is not None and wanted > most:
            raise ValueError(
                f"data.max_length: must be at most {most}, which is all that the models take; got {wanted}"
            )
        return most if wanted is None else wanted


def distinct(teachers: Sequence[Reader], student: Reader) -> list[Reader]:
    """Return the readers of teachers that read in another way than the student, each once."""
    found: list[Reader] = []
    for reader in teachers:
        if reader is not student and not any(reader is known for known in found):
            found.append(reader)
    return found


def _are_alike(one: Any, other: Any) -> bool:
    # Of tokenizers that differ only in what one has and the other lacks, `difference` finds none seen from one side.
    return difference(one, other) is None and difference(other, one) is None


def _has_segments(processor: Any) -> bool:
    return "token_type_ids" in getattr(processor, "model_input_names", [])


def _reads(section: Section) -> bool:
    return not (isinstance(section, Teacher) and (section.column is not None or section.logits is not None))


def image_processor_from(settings: Mapping[str, Any]) -> BaseImageProcessor:
    """Make the image processor that `processor_settings` has described.

    Raises:
        ValueError: there is none of this kind, or it reads in another way.
    """
    name = str(settings.get("class"))
    kind = GreyImageProcessor if name == GreyImageProcessor.__name__ else get_image_processor_class_from_name(name)
    processor = None if kind is None else kind(**{key: value for key, value in settings.items() if key != "class"})
    if processor is None or processor_settings(processor) != dict(settings):
        raise ValueError(
            f"teacher.logits: the images were read by a {name}, which cannot be made from its settings here: name the "
            "student's processor (student.processor)"
        )
    return processor


def _image_size(section: Section) -> tuple[int, int] | None:
    """Return the size of images that a model's config states; None: it takes any."""
    size = getattr(_config(section), "image_size", None)
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _load(auto_class: Any, who: str, source: str, revision: str | None, consent: str, is_given: bool) -> Any:
    try:
        return auto_class.from_pretrained(source, **named_source_options(source, revision, is_given))
    except (OSError, ValueError, ImportError) as error:
        kind = "a tokenizer" if auto_class is AutoTokenizer else "an image processor"
        reason = first_line(error, consent=consent)
        raise ValueError(f"cannot load {kind} for the {who} {source}: {reason}") from error


def _give_padding_token(tokenizer: Any, source: str) -> None:
    """Let a tokenizer without a padding token pad with its end of text, as is usual for decoders."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {source!r} has neither a padding token nor an end-of-text token to pad with: add one "
            "(tokenizer.add_special_tokens({'pad_token': '[PAD]'}), model.resize_token_embeddings), save both, and "
            "name the folder"
        )
    tokenizer.pad_token = tokenizer.eos_token


def _model_configs(recipe: Recipe) -> list[Any]:
    sections: list[Section] = [*recipe.teachers, *recipe.students]
    configs = [_config(section) for section in sections]
    return [config for config in configs if config is not None]


def _config(section: Section) -> Any:
    if section.config is not None:
        # What may be wrong with it is said when the model is built, which is before anything is trained.
        with contextlib.suppress(Exception):
            return AutoConfig.for_model(**section.config)
    if section.model is None:
        return None
    try:
        options = named_source_options(section.model, section.revision, section.trust_remote_code)
        return AutoConfig.from_pretrained(section.model, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot load the model {section.model!r}: {first_line(error)}") from error


def _num_channels(recipe: Recipe) -> int:
    channels = {getattr(config, "num_channels", 3) for config in _model_configs(recipe)}
    if len(channels) > 1:
        raise ValueError(f"teacher and student take images of {sorted(channels)} channels: both need the same number")
    return int(channels.pop()) if channels else 3
