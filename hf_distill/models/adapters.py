"""A student of which an adapter alone is trained."""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_distill.models.sources import first_line

_TASK_TYPES = {"text-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}  # PEFT has none of images
_HEADS = ("classifier", "score", "head")


def with_adapter(model: PreTrainedModel, fields: dict[str, Any], task: str) -> Any:
    """Return a model with a new LoRA adapter and its head, which alone are trained.

    Args:
        model: a classifier; its modules are replaced in place.
        fields: of peft's `LoraConfig`, such as `r`, `lora_alpha`, `target_modules`, `use_dora`.
        task: decides which head is trained and saved.

    Raises:
        ValueError: there is no such field, or no module that it could adapt.

    References:
        Hu et al., "LoRA", arXiv 2106.09685; Liu et al., "DoRA", arXiv 2402.09353 (`use_dora`).
    """
    from peft import LoraConfig, get_peft_model

    known = inspect.signature(LoraConfig).parameters.keys() - {"task_type"}
    unknown = sorted({*fields} - known)
    if unknown:
        raise ValueError(f"student.peft: LoraConfig has no field {', '.join(unknown)} that a recipe may set")
    chosen = dict(fields)
    if task not in _TASK_TYPES:
        heads = [name for name, _ in model.named_children() if name in _HEADS]
        chosen.setdefault("modules_to_save", heads or None)
    try:
        return get_peft_model(model, LoraConfig(task_type=_TASK_TYPES.get(task), **chosen))
    except (TypeError, ValueError) as error:
        raise ValueError(f"student.peft: {first_line(error)}") from error


def merged(model: nn.Module) -> PreTrainedModel:
    """Return a model with what its adapter has learned in its own weights, and no adapter."""
    whole: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
    return whole
