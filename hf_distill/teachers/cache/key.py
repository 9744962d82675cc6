"""What soft targets were made from: the key that a folder of them has, and what a run would write."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_distill.data.processors import processor_settings
from hf_distill.teachers.cache.shards import is_trace, write_whole
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.external import TeacherFunction, fingerprint_of
from hf_distill.teachers.loading import unwrapped
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.source import SoftTargetSource

KEY_FILE = "key.json"
FORMAT = 1
ABOUT = "about"
"""The entry of a key that tells more for the reader, and is not compared."""

_NUM_DIFFERENCES = 6

# What a config says of the file that it came from, of the labels (the order of the logits is in the key apart), and of
# the loss.
_NOT_OF_THE_LOGITS = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "base_model_name_or_path",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


# ---- In a folder ----


def read_key(path: Path) -> dict[str, Any] | None:
    """Read how the soft targets in a folder were made.

    Raises:
        ValueError: the folder holds other files and no key, or the key cannot be read.
    """
    file = path / KEY_FILE
    if not file.exists():
        strangers = sorted(entry.name for entry in path.glob("*") if not is_trace(entry)) if path.exists() else []
        if path.exists() and not path.is_dir():
            raise ValueError(f"teacher_logits_dir: {path} is a file: name a folder")
        if strangers:
            raise ValueError(
                f"teacher_logits_dir: {path} has no {KEY_FILE} and holds {', '.join(strangers[:4])}"
                f"{' ...' if len(strangers) > 4 else ''}: name a new or an empty folder"
            )
        return None
    try:
        key: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = key["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"teacher_logits_dir: {file} cannot be read ({error}), so it is not known how the soft targets in that "
            "folder were made: delete the folder, or set another one"
        ) from error
    if version != FORMAT or isinstance(version, bool):  # True is 1
        raise ValueError(
            f"teacher_logits_dir: {path} was written in format {version} and this version reads {FORMAT}: delete the "
            "folder, or set another one"
        )
    return key


def check_key(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse soft targets that were made in another way.

    Raises:
        ValueError: the message lists what differs, with both values.
    """
    differing = key_differences(found, wanted)
    if differing:
        raise ValueError(
            f"teacher_logits_dir: {path} holds soft targets that were made in another way: {differing}. Set another "
            "teacher_logits_dir, or delete that folder."
        )


def key_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in what a key differs from what a run would write, with both values; nothing if it does not."""
    differing = [
        f"{name} is {_shortened(there)} there and {_shortened(here)} here"
        for entry in wanted
        if entry != ABOUT
        for name, there, here in _differences(entry, found.get(entry), wanted[entry])
    ]
    more = len(differing) - _NUM_DIFFERENCES
    return "; ".join(differing[:_NUM_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def write_key(path: Path, key: Mapping[str, Any]) -> None:
    """Write a folder's key, whole or not at all."""
    write_whole(path / KEY_FILE, (json.dumps({**key, "format": FORMAT}, indent=2, sort_keys=True) + "\n").encode())


def _differences(name: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for entry in sorted(there.keys() | here.keys()):
            yield from _differences(f"{name}.{entry}", there.get(entry), here.get(entry))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for place, pair in enumerate(zip(there, here, strict=True)):
            yield from _differences(f"{name}.{place}", *pair)
    elif there != here:
        yield name, there, here


def _shortened(value: Any, limit: int = 32) -> str:
    text = json.dumps(value)
    if len(text) <= limit:
        return text
    return text[:limit] + ('..."' if isinstance(value, str) else "...")


# ---- Of a run ----


def teachers_key(source: SoftTargetSource, processors: Sequence[Any], max_lengths: Sequence[int | None]) -> list[Any]:
    """Describe the teachers by all that decides their logits for a row.

    Raises:
        ValueError: a teacher cannot be told from another one.
    """
    if isinstance(source, TeacherFunction):
        return [{"function": fingerprint_of(source.function)}]
    members: Sequence[Any] = source.members if isinstance(source, TeacherEnsemble) else [source]
    specialists: list[Any] = [None] * len(members)
    if isinstance(source, TeacherEnsemble):
        combination = source.combination
        specialists = [None] * combination.num_generalists + [
            {"classes": classes, "oversampling": oversampling} for classes, oversampling in combination.specialists
        ]
    described = []
    for member, specialist in zip(members, specialists, strict=True):
        assert isinstance(member, TeacherModel)
        own = member.view
        described.append(
            {
                **_model_key(member.model),
                "label_index": member.label_index,
                "specialist": specialist,
                "processor": None if own is None else processor_settings(processors[own]),
                "max_length": None if own is None or not max_lengths else max_lengths[own],
            }
        )
    return described


def names_of(source: SoftTargetSource) -> list[dict[str, str | None]]:
    """Name the teachers for the reader of a key, without the folders of this machine."""
    members = source.members if isinstance(source, TeacherEnsemble) else [source]
    named = []
    for member in members:
        if not isinstance(member, TeacherModel):
            continue
        config: Any = getattr(unwrapped(member.model), "config", None)
        name = str(getattr(config, "_name_or_path", "") or "")
        named.append({"name": Path(name).name if Path(name).exists() else name, "commit": _commit_of(config)})
    return named


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers: their names, types, shapes and values.

    Where they are split over processes (FSDP2), all processes must ask.

    Raises:
        ValueError: some of them are not here.
    """
    whole = _uncompiled(model)
    tensors: dict[str, Tensor] = {**dict(whole.named_buffers()), **whole.state_dict()}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor!r}".encode())
            continue
        if tensor.is_meta or hasattr(tensor, "ds_id"):
            raise ValueError(
                f"precompute_teacher_logits: the teacher's {name} is not in this process (it is on a disk, or split by "
                "ZeRO-3), so it cannot be told from another teacher's: set teacher_placement to same, cpu or a device"
            )
        if hasattr(tensor, "full_tensor"):
            tensor = tensor.full_tensor()
        values = tensor.detach().cpu().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(memoryview(values.view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def _model_key(model: nn.Module) -> dict[str, Any]:
    whole = _uncompiled(model)
    config: Any = getattr(unwrapped(model), "config", None)
    settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
    quantization: Any = getattr(config, "quantization_config", None)
    adapters: Mapping[str, Any] = getattr(whole, "peft_config", None) or {}
    if hasattr(quantization, "to_dict"):
        quantization = quantization.to_dict()
    floating = (parameter.dtype for parameter in whole.parameters() if parameter.is_floating_point())
    return {
        "class": type(whole).__name__.removeprefix("FSDP"),  # of a model that is split, by which nothing changes
        "config": _without_names(settings),
        "adapters": {name: _without_names(adapter.to_dict()) for name, adapter in adapters.items()},
        "weights": weights_digest(model),
        "dtype": str(next(floating, None)).removeprefix("torch."),
        "quantization": _plain(quantization),
    }


def _uncompiled(model: nn.Module) -> nn.Module:
    module: nn.Module = getattr(model, "_orig_mod", model)
    return module


def _without_names(settings: Mapping[str, Any]) -> Any:
    return _plain({name: value for name, value in settings.items() if name not in _NOT_OF_THE_LOGITS})


def _commit_of(config: Any) -> str | None:
    commit = getattr(config, "_commit_hash", None)
    return commit if isinstance(commit, str) else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda other: sorted(other) if isinstance(other, set) else str(other)))
