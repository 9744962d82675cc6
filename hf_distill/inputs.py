"""What the models of a run read: prepared splits, a collator and the processor that goes with each saved model."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from hf_distill.data.loading import Splits
from hf_distill.data.text import tokenize_text, tokenize_words
from hf_distill.data.vision import ImageRows, check_images
from hf_distill.recipe import Augment, Recipe, Student, Teacher


@dataclass(frozen=True)
class Inputs:
    """Prepared data. `teacher_train` differs from `train` if the teacher has an augmentation of its own."""

    teacher_train: Any
    train: Any
    evaluation: Any
    test: Any
    collator: Callable[[list], dict[str, Any]]
    processor: Any

    @property
    def judged(self) -> Any:
        """Return the rows that the results come from."""
        return self.evaluation if self.test is None else self.test


def prepare_inputs(recipe: Recipe, splits: Splits) -> Inputs:
    """Tokenize texts, or open and check images, with the processor of the recipe's models.

    Raises:
        ValueError: there is no processor, the two models have different ones, or an image cannot be read.
    """
    if recipe.is_text:
        return _text_inputs(recipe, splits)
    return _image_inputs(recipe, splits)


def _text_inputs(recipe: Recipe, splits: Splits) -> Inputs:
    tokenizers = _of_both_models(recipe, AutoTokenizer)
    tokenizer: PreTrainedTokenizerBase = tokenizers[0]
    words = recipe.task == "token-classification"
    if len(tokenizers) == 2:
        sample = [
            row[name]
            for row in splits.train.select(range(min(64, len(splits.train))))
            for name in splits.columns.inputs
        ]
        seen = [t([" ".join(text) if words else text for text in sample])["input_ids"] for t in tokenizers]
        if seen[0] != seen[1]:
            raise ValueError(
                f"the tokenizers of teacher.model {recipe.teacher.model!r} and student.model {recipe.student.model!r} "
                "read the same text differently: take a student with the teacher's tokenizer"
            )
    max_length = _max_length(recipe, tokenizer)
    if words:
        (column,) = splits.columns.inputs
        prepared = {role: tokenize_words(rows, tokenizer, column, max_length) for role, rows in splits.named().items()}
        collator: Any = DataCollatorForTokenClassification(tokenizer)
    else:
        prepared = {
            role: tokenize_text(rows, tokenizer, splits.columns.inputs, max_length)
            for role, rows in splits.named().items()
        }
        collator = DataCollatorWithPadding(tokenizer)
    train = prepared["train"]
    return Inputs(train, train, prepared["evaluation"], prepared.get("test"), collator, tokenizer)


def _max_length(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens of a row are kept: what the recipe says, or the most that both models take."""
    takes = [getattr(config, "max_position_embeddings", None) for config in _model_configs(recipe)]
    limits = [limit for limit in [tokenizer.model_max_length, *takes] if limit is not None and 0 < limit < 10**9]
    most = min(limits, default=None)
    wanted = recipe.data.max_length
    if wanted is not None and most is not None and wanted > most:
        raise ValueError(f"data.max_length: must be at most {most}, which is all that the models take; got {wanted}")
    return most if wanted is None else wanted


def _image_inputs(recipe: Recipe, splits: Splits) -> Inputs:
    (column,) = splits.columns.inputs
    for role, rows in splits.named().items():
        check_images(rows, column, role)
    processors = _of_both_models(recipe, AutoImageProcessor)
    channels = _num_channels(recipe)
    first = splits.train[0][column]
    processor = processors[0] if processors else _processor_from_config(recipe, (first.height, first.width), channels)

    def rows_of(
        role: str,
        augment: Augment | None = None,
        training: Mapping[str, Any] | None = None,
        with_processor: Any = processor,
    ) -> ImageRows:
        changes = augment.model_dump() if augment is not None else {}
        seed = int((training or {}).get("seed", 42))
        rows = splits.named()[role]
        return ImageRows(rows, column, with_processor, num_channels=channels, seed=seed, **changes)

    if len(processors) == 2:
        seen = [rows_of("evaluation", with_processor=each)[0]["pixel_values"] for each in processors]
        if seen[0].shape != seen[1].shape or not bool((seen[0] == seen[1]).all()):
            raise ValueError(
                f"the image processors of teacher.model {recipe.teacher.model!r} and student.model "
                f"{recipe.student.model!r} make different inputs of one image (size or normalisation): take a student "
                "with the teacher's, or set data.processor if both models were trained to accept it"
            )
    own = recipe.teacher.augment if recipe.teacher.augment is not None else recipe.data.augment
    return Inputs(
        rows_of("train", own, recipe.teacher.training),
        rows_of("train", recipe.data.augment, recipe.training),
        rows_of("evaluation"),
        None if splits.test is None else rows_of("test"),
        default_data_collator,
        processor,
    )


def _of_both_models(recipe: Recipe, auto_class: Any) -> list[Any]:
    """Load the processors that the recipe's models come with: none, one, or two to compare."""
    if isinstance(recipe.data.processor, str):
        return [_load_processor(auto_class, recipe.data.processor, None, False)]
    if isinstance(recipe.data.processor, dict):
        return []
    sections: list[Teacher | Student] = [recipe.teacher, recipe.student]
    return [
        _load_processor(auto_class, section.model, section.revision, section.trust_remote_code)
        for section in sections
        if section.model is not None
    ]


def _load_processor(auto_class: Any, source: str, revision: str | None, trust_remote_code: bool) -> Any:
    try:
        return auto_class.from_pretrained(source, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        kind = "tokenizer" if auto_class is AutoTokenizer else "image processor"
        raise ValueError(f"cannot load a {kind} from {source!r}: {str(error).strip().splitlines()[0]}") from error


def _model_configs(recipe: Recipe) -> list[Any]:
    configs = []
    sections: list[Teacher | Student] = [recipe.teacher, recipe.student]
    for section in sections:
        if section.config is not None:
            # What may be wrong with it is said when the model is built, which is before anything is trained.
            with contextlib.suppress(Exception):
                configs.append(AutoConfig.for_model(**section.config))
        elif section.model is not None:
            configs.append(
                AutoConfig.from_pretrained(
                    section.model, revision=section.revision or "main", trust_remote_code=section.trust_remote_code
                )
            )
    return configs


def _num_channels(recipe: Recipe) -> int:
    channels = {getattr(config, "num_channels", 3) for config in _model_configs(recipe)}
    if len(channels) > 1:
        raise ValueError(f"teacher and student take images of {sorted(channels)} channels: both need the same number")
    return int(channels.pop()) if channels else 3


def _processor_from_config(recipe: Recipe, image_size: tuple[int, int], channels: int) -> BaseImageProcessor:
    sizes = {_as_pair(config.image_size) for config in _model_configs(recipe) if getattr(config, "image_size", None)}
    if len(sizes) > 1:
        raise ValueError(f"teacher and student take images of {sorted(sizes)} pixels: both need the same size")
    height, width = sizes.pop() if sizes else image_size
    fields: dict[str, Any] = {
        "size": {"height": height, "width": width},
        "image_mean": [0.5] * channels,
        "image_std": [0.5] * channels,
    }
    given = recipe.data.processor if isinstance(recipe.data.processor, dict) else {}
    # The PIL processor, whether torchvision is there or not: both resize, but not to the same last bit.
    return get_image_processor_class_from_name("ViTImageProcessorPil")(**{**fields, **given})


def _as_pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
