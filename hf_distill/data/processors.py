"""Whether a teacher reads what its student reads, how much of it, and its logits at the student's tokens."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedTokenizerBase,
)

from hf_distill.models.pixels import image_array
from hf_distill.models.sources import source_options
from hf_distill.models.tasks import AUTO_CLASSES

_NO_LIMIT = 10**9  # a tokenizer that knows of no limit says that it is 10**30

# Their positions are counted from padding_idx + 1 on, so that many of max_position_embeddings are never used.
_POSITIONS_AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "layoutlmv3",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}

# These have an embedding for each place of an image, or a weight for each pixel, and do not adapt it to another size.
# Others with position embeddings (BEiT, DINOv2, Swin v2) do, or have none, as convolutional networks.
_FIXED_IMAGE_SIZE = {
    "clip",
    "deit",
    "hf_distill_mlp",
    "hiera",
    "ijepa",
    "levit",
    "metaclip_2",
    "pvt",
    "siglip",
    "vit",
    "vit_msn",
}

_PROBES: tuple[tuple[str, ...], ...] = (
    ("The Quick brown FOX isn't lazy, is it?",),
    ("the film was a very good one",),
    ("Café Zürich, naïve façade; Łódź, ÅNGSTRÖM",),
    ("In 1999 it cost $1,234.50 (or 17% less) - e-mail: a.b@c.org #5",),
    ("antidisestablishmentarianism floccinaucinihilipilification",),
    ("知識の蒸留 知识蒸馏 지식 증류",),
    ("good 😀 bad 👩‍🔬",),
    ("  two  spaces\tand\nlines ",),
    ("A first text.", "And a Second one"),
    ("",),
)
_NUM_VOCABULARY_PROBES = 256


def difference(student_processor: Any, teacher_processor: Any) -> str | None:
    """Tell how two processors read the same input differently.

    Tokenizers are compared by what they make of fixed texts and of words of the student's vocabulary, and by the ids
    in it: the teacher may have more tokens than the student, and the padding side and the length may differ. Image
    processors are compared by what they make of a fixed image of noise.

    Raises:
        ValueError: one of the two is neither a tokenizer nor an image processor.
    """
    student, teacher = _part_that_reads(student_processor), _part_that_reads(teacher_processor)
    for processor, part in ((student_processor, student), (teacher_processor, teacher)):
        if part is None:
            raise ValueError(
                f"a model's processor is a tokenizer or an image processor, got {type(processor).__name__}: pass what "
                "AutoTokenizer or AutoImageProcessor loads"
            )
    if student is teacher:
        return None
    if isinstance(student, PreTrainedTokenizerBase) and isinstance(teacher, PreTrainedTokenizerBase):
        return _difference_of_tokenizers(student, teacher)
    if isinstance(student, BaseImageProcessor) and isinstance(teacher, BaseImageProcessor):
        return _difference_of_image_processors(student, teacher)
    return f"the student's processor is {_described(student)}, the teacher's {_described(teacher)}"


def load_processor(source: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer or image processor that comes with a model."""
    options = source_options(source, revision, trust_remote_code)
    config = _loaded(AutoConfig, source, options)
    is_vision = type(config) in AUTO_CLASSES["image-classification"]._model_mapping
    # Asked for a tokenizer, a folder with a vision model alone may give one, and not the other way round.
    for auto_class in (AutoImageProcessor, AutoTokenizer) if is_vision or config is None else (AutoTokenizer,):
        processor = _loaded(auto_class, source, options)
        if processor is not None and not _is_empty(processor):
            return processor
    return None


def check_same_inputs(
    teacher: nn.Module,
    student_processor: Any,
    source: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse a teacher that reads its inputs in another way than the student, if that can be told.

    The teacher's processor is loaded from where the teacher came from. Where there is none, only what the teacher's
    config rules out is refused.

    Raises:
        ValueError: the two read differently, or the student's inputs do not fit the teacher.
    """
    student = _part_that_reads(student_processor)
    if student is None:
        return
    config: Any = getattr(teacher, "config", None)
    source = source or getattr(config, "_name_or_path", None) or getattr(teacher, "name_or_path", None)
    processor = None
    if source:
        processor = load_processor(source, revision=revision, trust_remote_code=trust_remote_code)
    found = difference(student, processor) if processor is not None else _difference_from_config(student, config)
    if found is not None:
        name = f" {source!r}" if source else ""
        remedy = repr(source) if processor is not None else "..."
        raise ValueError(
            f"the teacher{name} does not read the student's inputs as it was trained to: {found}. Pass "
            f"teacher_processing_class={remedy} (its own tokenizer or image processor, or the name of one), or take a "
            "student with the teacher's."
        )


def max_tokens(config: Any, tokenizer: Any) -> int | None:
    """Return the most tokens, special ones included, that a text model takes."""
    limits = [getattr(tokenizer, "model_max_length", None), num_positions(config)]
    # XLNet's config says -1 positions for no limit.
    return min((int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT), default=None)


def select_positions(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Take a teacher's logits to the student's tokens.

    Args:
        logits: `(batch, teacher_tokens, num_labels)`.
        positions: `(batch, student_tokens)`: for each token of the student the teacher's, or -1 for none.

    Returns:
        the logits `(batch, student_tokens, num_labels)`, zero where there is none, and a mask
        `(batch, student_tokens)` of where there is one.
    """
    mask = positions >= 0
    index = positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
    return logits.gather(1, index).masked_fill(~mask.unsqueeze(-1), 0.0), mask


# ---- Tokenizers ----


def _difference_of_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str | None:
    own, other = student.get_vocab(), teacher.get_vocab()
    words = sorted(set(own) - set(student.all_special_tokens), key=own.__getitem__)
    step = max(1, len(words) // _NUM_VOCABULARY_PROBES)
    sample = " ".join(student.convert_tokens_to_string([word]).strip() for word in words[::step])
    for texts in (*_PROBES, (sample,)):
        ids = [tokenizer(*texts, verbose=False)["input_ids"] for tokenizer in (student, teacher)]
        if ids[0] != ids[1]:
            at = next((i for i, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), min(map(len, ids)))
            read = [
                f"{' '.join(map(str, tokenizer.convert_ids_to_tokens(of_one[at : at + 4])))!r} (ids "
                f"{', '.join(map(str, of_one[at : at + 4]))})"
                for tokenizer, of_one in zip((student, teacher), ids, strict=True)
            ]
            where = " + ".join(repr(text if len(text) <= 60 else text[:60] + "...") for text in texts)
            return f"in {where}, from token {at} on, the student's tokenizer reads {read[0]}, the teacher's {read[1]}"
    # Tokens that only the teacher has do no harm: the student's rows never hold them.
    strangers = [token for token, index in own.items() if other.get(token) != index]
    if strangers:
        token = min(strangers, key=own.__getitem__)
        has = f"the id {other[token]}" if token in other else "no such token"
        return (
            f"{len(strangers)} of the {len(own)} tokens of the student's tokenizer differ: {token!r} has the id "
            f"{own[token]}, in the teacher's {has}"
        )
    # Some models find the end of a text, or its positions, by looking for this id.
    if None not in (student.pad_token_id, teacher.pad_token_id) and student.pad_token_id != teacher.pad_token_id:
        return (
            f"the student's tokenizer pads with {student.pad_token!r} (id {student.pad_token_id}), the teacher's with "
            f"{teacher.pad_token!r} (id {teacher.pad_token_id})"
        )
    return None


def num_positions(config: Any) -> int | None:
    """Return how many tokens a model's config has positions for, None if it states no number."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    if config.model_type not in _POSITIONS_AFTER_PADDING:
        return positions
    # MPNet's model has 1 written in it, whatever the config says.
    padding = 1 if config.model_type == "mpnet" else getattr(config, "pad_token_id", None)
    return positions if padding is None else positions - padding - 1


# ---- Image processors ----


def _difference_of_image_processors(student: Any, teacher: Any) -> str | None:
    seen, seen_by_teacher = _noise_as_seen_by(student), _noise_as_seen_by(teacher)
    if seen.shape == seen_by_teacher.shape and torch.allclose(
        seen, seen_by_teacher, rtol=0.0, atol=_tolerance(student, teacher)
    ):
        return None
    texts = [
        f"{_size_of(pixels)} with mean {_list_of(processor, 'image_mean')} and standard deviation "
        f"{_list_of(processor, 'image_std')}"
        for processor, pixels in ((student, seen), (teacher, seen_by_teacher))
    ]
    settings, others = student.to_dict(), teacher.to_dict()
    said = {"image_processor_type", "size", "crop_size", "image_mean", "image_std"}
    differing = sorted(
        f"{name} is {settings.get(name)} and {others.get(name)}"
        for name in (settings.keys() | others.keys()) - said
        if settings.get(name) != others.get(name) and not name.startswith("_")
    )
    more = f" ({', '.join(differing)})" if differing else ""
    return f"the student's image processor makes images of {texts[0]}, the teacher's of {texts[1]}{more}"


def _noise_as_seen_by(processor: Any) -> Tensor:
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    array = image_array(Image.fromarray(noise), channels_of(processor))
    return processor([array], input_data_format="channels_last", return_tensors="pt")[processor.model_input_names[0]]


def _tolerance(student: Any, teacher: Any) -> float:
    if getattr(student, "backend", None) == getattr(teacher, "backend", None):
        return 1e-5
    # PIL and torchvision resize bytes, and may round them to neighbouring values: one step of 255, not two.
    smallest = min((min(getattr(p, "image_std", None) or [1.0]) for p in (student, teacher)), default=1.0)
    return float(1.5 / 255 / smallest)


def _size_of(pixels: Tensor) -> str:
    return " x ".join(str(size) for size in pixels.shape[1:])


def _list_of(processor: Any, name: str) -> str:
    values = getattr(processor, name, None)
    return "none" if values is None else str([round(float(value), 4) for value in values])


# ---- Either ----


def _difference_from_config(student: Any, config: Any) -> str | None:
    if isinstance(student, PreTrainedTokenizerBase):
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        num_embeddings = getattr(text_config, "vocab_size", None)
        highest = max(student.get_vocab().values(), default=0)
        if isinstance(num_embeddings, int) and highest >= num_embeddings:
            return f"the student's tokenizer has ids up to {highest}, the teacher embeddings up to {num_embeddings - 1}"
        return None
    config = getattr(config, "vision_config", None) or config
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    if channels is None and size is None:
        return None
    seen = _noise_as_seen_by(student)
    if seen.dim() != 4:
        return None
    if isinstance(channels, int) and channels != seen.shape[1]:
        return f"the student's image processor makes images of {seen.shape[1]} channels, the teacher takes {channels}"
    return None if size is None else _difference_of_size(seen, config.model_type, size)


def _difference_of_size(seen: Tensor, model_type: str, size: Any) -> str | None:
    expected = (size, size) if isinstance(size, int) else tuple(size)
    if model_type.removesuffix("_vision_model") not in _FIXED_IMAGE_SIZE or tuple(seen.shape[2:]) == expected:
        return None
    return (
        f"the student's image processor makes images of {seen.shape[2]} x {seen.shape[3]} pixels, the teacher takes "
        f"{expected[0]} x {expected[1]}"
    )


def _part_that_reads(processor: Any) -> Any:
    for part in (processor, getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)):
        if isinstance(part, PreTrainedTokenizerBase | BaseImageProcessor):
            return part
    return None


def _described(processor: Any) -> str:
    kind = "a tokenizer" if isinstance(processor, PreTrainedTokenizerBase) else "an image processor"
    return f"{kind} ({type(processor).__name__})"


def _loaded(auto_class: Any, source: str, options: dict[str, Any]) -> Any:
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError):  # TypeError: some tokenizers, of no file
        return None


def _is_empty(processor: Any) -> bool:
    # Where there is no file, AutoTokenizer makes one that knows its special tokens, at most one more, and no words.
    if not isinstance(processor, PreTrainedTokenizerBase):
        return False
    return len(processor.get_vocab().keys() - set(processor.all_special_tokens)) <= 1


def processor_settings(processor: Any) -> dict[str, Any] | None:
    """Describe a tokenizer or image processor by what decides how it reads, in JSON's types; None for None."""
    if processor is None:
        return None
    if isinstance(processor, PreTrainedTokenizerBase):
        return {
            "vocabulary": _tokenizer_digest(processor),
            "special_tokens": {name: str(token) for name, token in processor.special_tokens_map.items()},
            **{
                name: getattr(processor, name, None)
                for name in ("padding_side", "truncation_side", "model_max_length", "model_input_names")
            },
        }
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    kept = {name: value for name, value in settings.items() if not name.startswith("_") and name != "name_or_path"}
    plain: dict[str, Any] = json.loads(json.dumps({"class": type(processor).__name__, **kept}, default=str))
    return plain


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # what the last call has asked for
            state.pop(name, None)
    else:  # one that is written in Python
        parameters = inspect.signature(type(tokenizer).__init__).parameters
        settings = {name: getattr(tokenizer, name, tokenizer.init_kwargs.get(name)) for name in parameters}
        state = {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "merges": [" ".join(pair) for pair in getattr(tokenizer, "bpe_ranks", {})],
            "settings": {
                name: value
                for name, value in settings.items()
                if isinstance(value, bool | int | float | str) and not name.endswith("_file")
            },
        }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def channels_of(processor: Any) -> int:
    """Return how many channels an image processor's images have: 1 (grey) if it has one mean, otherwise 3 (colour)."""
    mean = getattr(processor, "image_mean", None)
    return 1 if isinstance(mean, Sequence | np.ndarray) and len(mean) == 1 else 3
