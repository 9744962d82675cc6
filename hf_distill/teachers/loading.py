"""Load a ready teacher, and refuse one whose head was never trained."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as deepspeed_integration

from hf_distill.models.sources import first_line, named_source_options
from hf_distill.models.tasks import AUTO_CLASSES


def load_teacher(
    name_or_path: str,
    task: str,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_untrained: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a ready teacher from a Hub id or a local folder, whole in each process.

    Raises:
        ValueError: there is no such model, or parts of it (its head, mostly) are not in the checkpoint.
    """
    auto_class = AUTO_CLASSES[task]
    try:
        with _whole_in_each_process():
            model, report = auto_class.from_pretrained(
                name_or_path,
                dtype=dtype or "float32",
                output_loading_info=True,
                **named_source_options(name_or_path, revision, trust_remote_code),
                **options,
            )
    except (OSError, ValueError, ImportError) as error:
        reason = first_line(error, consent="trust_remote_code (in Python teacher_trust_remote_code)")
        raise ValueError(f"cannot load the teacher {name_or_path!r} for {task}: {reason}") from error
    untrained = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if untrained and not allow_untrained:
        shown = ", ".join(untrained[:4]) + (" ..." if len(untrained) > 4 else "")
        raise ValueError(
            f"the teacher {name_or_path!r} is not trained for {task}: its checkpoint lacks {shown}, so these weights "
            "were drawn at random and have nothing to teach. Fine-tune it first, name a fine-tuned model, or pass "
            "allow_untrained_teacher=True."
        )
    return model


def task_of(model: nn.Module) -> str:
    """Tell for which task a model is made, by the Auto class that it belongs to.

    Raises:
        ValueError: it belongs to none of `AUTO_CLASSES`.
    """
    base: Any = unwrapped(model)
    for task, auto_class in AUTO_CLASSES.items():
        classes = auto_class._model_mapping.get(type(getattr(base, "config", None)), ())
        if type(base) in (classes if isinstance(classes, tuple) else (classes,)):
            return task
    raise ValueError(
        f"{type(base).__name__} is no classifier that an Auto class knows, so a teacher given by name cannot be "
        "loaded for it: pass the teacher as a model."
    )


def forward_parameters(model: nn.Module) -> set[str]:
    """Name the inputs that a model's `forward` takes, labels excepted; none if it takes any, by `**kwargs` alone."""
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named - {"labels"}


@contextlib.contextmanager
def _whole_in_each_process() -> Iterator[None]:
    """Load all weights, in a run whose student is sharded too.

    `from_pretrained` would split them over the processes (ZeRO-3), or leave some on the meta device in all processes
    but the first (FSDP, which goes on to send them to a model that it wraps, and a teacher is none).
    """
    of_run: Any = getattr(deepspeed_integration, "_hf_deepspeed_config_weak_ref", None)
    deepspeed_integration.unset_hf_deepspeed_config()
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        if of_run is not None and of_run() is not None:
            deepspeed_integration.set_hf_deepspeed_config(of_run())


def unwrapped(model: nn.Module) -> Any:
    """Return the model that torch.compile or PEFT wraps, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
