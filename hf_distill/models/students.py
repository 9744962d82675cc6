"""Build a classifier: from a checkpoint, from a config, or from layers of a teacher."""

import copy
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    PreTrainedModel,
)

from hf_distill.models.internals import stacks_of
from hf_distill.models.sources import first_line, named_source_options
from hf_distill.models.tasks import AUTO_CLASSES


def model_from_checkpoint(
    name_or_path: str,
    task: str,
    label_names: Sequence[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    new_head: bool = False,
) -> PreTrainedModel:
    """Load a model to be trained, in single precision, with a head for the given labels.

    A head for the same labels by name, in another order, is put into theirs.

    Raises:
        ValueError: there is no such model, or its head has another number of labels and `new_head` is not set.
    """
    try:
        options = named_source_options(name_or_path, revision, trust_remote_code)
        config = AutoConfig.from_pretrained(name_or_path, **options)
        order = _order_of_head(config, label_names)
        set_labels(config, label_names)
        model, report = AUTO_CLASSES[task].from_pretrained(
            name_or_path,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot load the model {name_or_path!r} for {task}: {first_line(error)}") from error
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report["mismatched_keys"])
    if mismatched and not new_head:
        raise ValueError(
            f"the model {name_or_path!r} has a head for another number of labels ({', '.join(mismatched)} differ), the "
            f"data have {len(label_names)}: set new_head: true to train a new head"
        )
    if order is not None:
        _reorder_head(model, order)
    return model


def model_from_config(settings: dict[str, Any], task: str, label_names: Sequence[str]) -> PreTrainedModel:
    """Build a model with random weights from `model_type` and the fields of its config.

    The weights come from torch's global random state: seed it for the same model twice.

    Raises:
        ValueError: the model type is unknown or cannot do the task, or its config has no such field or value.
    """
    fields = dict(settings)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ValueError(f"config needs a model_type, such as bert, vit or hf_distill_mlp; got {sorted(settings)}")
    try:
        config = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ValueError(f"config.model_type {model_type!r} is not one that Transformers knows") from error
    unknown = sorted(name for name in fields if not hasattr(config, name))
    if unknown:
        raise ValueError(f"config of model_type {model_type!r} has no field {', '.join(unknown)}")
    try:
        config = AutoConfig.for_model(model_type, **fields)
        # None is what the Auto classes trip over where a config has several models, as DeiT has
        config.architectures = config.architectures or []
        set_labels(config, label_names)
        return AUTO_CLASSES[task].from_config(config, trust_remote_code=False)
    except (StrictDataclassError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"config.model_type {model_type!r} cannot be built for {task} from {fields or 'its defaults'}: "
            f"{_shortened(error)}"
        ) from error


def chosen_layers(num_layers: int, count: int, strategy: str = "uniform") -> list[int]:
    """Return which of `num_layers` layers a student of `count` has: uniform (first and last among them), first, last.

    Raises:
        ValueError: there are fewer layers, or there is no such strategy.
    """
    if not 1 <= count <= num_layers:
        raise ValueError(f"from_teacher.num_layers must be 1 to {num_layers}, the layers of the teacher; got {count}")
    if strategy == "last":
        return list(range(num_layers - count, num_layers))
    if strategy == "first" or count == 1:
        return list(range(count))
    if strategy != "uniform":
        raise ValueError(f"strategy must be one of uniform, first, last, got {strategy!r}")
    return [round(place * (num_layers - 1) / (count - 1)) for place in range(count)]


def student_from_teacher(
    teacher: PreTrainedModel,
    layers: Sequence[int] | None = None,
    *,
    num_layers: int | None = None,
    strategy: str = "uniform",
) -> PreTrainedModel:
    """Build a student from some of a teacher's encoder layers.

    Embeddings, pooler and head are copied, and so are the named layers, in the order given. Works for encoders with
    one stack of equal layers, as BERT, DistilBERT, RoBERTa, ViT, DeiT and their like have.

    Args:
        teacher: a classifier with `config.num_hidden_layers` layers.
        layers: which of them the student has, from 0; each at most once.
        num_layers: in its place, how many.
        strategy: which `num_layers`: uniform (evenly spaced, first and last among them), first or last.

    Returns:
        a model of the teacher's class, in single precision, that shares no memory with it.

    Raises:
        ValueError: a layer does not exist or is named twice, or the teacher is not such an encoder.

    References:
        Sanh et al., "DistilBERT, a distilled version of BERT", arXiv 1910.01108, section 3 (one layer out of two).
    """
    num_wanted, num_layers = num_layers, int(getattr(teacher.config, "num_hidden_layers", 0))
    stack = _stack_of_layers(teacher)
    if (layers is None) == (num_wanted is None):
        raise ValueError("student_from_teacher needs layers or num_layers, one of the two")
    if layers is None:
        assert num_wanted is not None
        layers = chosen_layers(num_layers, num_wanted, strategy)
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or not layers or len(set(layers)) != len(layers):
        raise ValueError(
            f"from_teacher.layers must name some of the teacher's layers 0 to {num_layers - 1}, each once; "
            f"got {list(layers)}"
        )
    settings = _settings_of_layers(teacher, layers)
    new_place = {layer: place for place, layer in enumerate(layers)}
    in_stack = re.compile(rf"{re.escape(stack)}\.(\d+)\.")
    weights = {}
    for name, weight in teacher.state_dict().items():
        match = in_stack.match(name)
        if match is None:
            weights[name] = weight
        elif int(match[1]) in new_place:
            weights[f"{stack}.{new_place[int(match[1])]}.{name[match.end() :]}"] = weight
    try:
        config = type(teacher.config).from_dict(settings)
        set_labels(config, [name for _, name in sorted(config.id2label.items())])  # as numbers, also in label2id
        config.dtype = torch.float32
        student = type(teacher)(config).float()
        student.load_state_dict(weights)
    except (StrictDataclassError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"from_teacher.layers {list(layers)} of {type(teacher).__name__} do not make a model, because its layers "
            f"are not alike ({_shortened(error)}): keep layer 0 first, or use model: or config: for the student"
        ) from error
    return student


def _stack_of_layers(teacher: PreTrainedModel) -> str:
    """Return the name of the one list that has all of a model's layers."""
    stacks = list(stacks_of(teacher))
    if len(stacks) != 1 or not getattr(teacher.config, "num_hidden_layers", None):
        raise ValueError(
            f"from_teacher copies layers of an encoder with one stack of layers (BERT, ViT and their like); "
            f"{type(teacher).__name__} has {len(stacks)}: use model: or config: for the student"
        )
    return stacks[0]


def _settings_of_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> dict[str, Any]:
    """Return the settings of a model of some of a teacher's layers."""
    num_layers = int(teacher.config.num_hidden_layers)
    settings = teacher.config.to_dict()
    for name, value in settings.items():  # what a config lists for each layer, such as its kind of attention
        if isinstance(value, list) and len(value) == num_layers and name.startswith(("layer", "attention_window")):
            settings[name] = [value[layer] for layer in layers]
    for name in ("stage_names", "out_features", "out_indices"):  # name layers of backbones; no classifier reads them
        settings.pop(name, None)
    settings[type(teacher.config).attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    return settings


def set_labels(config: Any, label_names: Sequence[str]) -> None:
    """Write the labels into a model's config, in the order of its logits."""
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: index for index, name in enumerate(label_names)}


def _order_of_head(config: Any, label_names: Sequence[str]) -> list[int] | None:
    """Return for each label the place that it has in a checkpoint's head; None: the same, or the names are others."""
    names = [str(name).casefold() for _, name in sorted((config.id2label or {}).items())]
    wanted = [name.casefold() for name in label_names]
    if names == wanted or sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        return None
    return [names.index(name) for name in wanted]


def _reorder_head(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Give the logits another order; the head's weights are those that depend on the number of labels."""
    config = copy.deepcopy(model.config)
    config.num_labels = len(order) + 1
    with torch.device("meta"):
        larger = dict(type(model)(config).named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for dim, (size, other) in enumerate(zip(weight.shape, larger[name].shape, strict=True)):
                if size != other:
                    weight.copy_(weight.index_select(dim, torch.tensor(order)))


def _shortened(error: BaseException) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...")
