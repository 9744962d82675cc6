"""Teacher outputs of the evaluation set, so that the teacher is run over it once."""

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_distill.teachers.source import SoftTargetSource, TeacherOutput


class EvalCache:
    """Teacher outputs of batches that come again, as in each evaluation, known by all that is in them.

    A teacher is frozen, so they hold as long as its weights are left alone. Batches that hold anything but tensors are
    not known again.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self._outputs: dict[Hashable, list[Tensor]] = {}
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def output(self, source: SoftTargetSource, batch: Mapping[str, Any]) -> TeacherOutput:
        """Return the teacher's output for a batch, computed now or before."""
        if not source.can_be_remembered:
            return source(batch)
        content = content_of(batch)
        known = None if content is None else self._outputs.get(content)
        if known is not None:
            device = next(tensor.device for _, tensor in _tensors("", batch) if tensor is not None)
            return TeacherOutput([logits.to(device, copy=True) for logits in known])
        output = source(batch)
        if content is not None:
            self._add(content, [logits.detach().to("cpu", copy=True) for logits in output.logits])
        return output

    def _add(self, content: Hashable, logits: list[Tensor]) -> None:
        size = sum(each.numel() * each.element_size() for each in logits)
        if self._num_bytes + size <= self._max_bytes:
            self._outputs[content] = logits
            self._num_bytes += size


def content_of(inputs: Mapping[str, Any]) -> Hashable | None:
    """Return what is equal for equal batches alone: names, types, shapes and 128 bits of each tensor's values."""
    tensors = list(_tensors("", inputs))
    if not tensors or any(tensor is None for _, tensor in tensors):
        return None
    present = [(name, tensor) for name, tensor in tensors if tensor is not None]
    described = tuple((name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in present)
    return described, tuple(_digest(tensor) for _, tensor in present)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor | None]]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _tensors(f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _tensors(f"{name}.{place}", each)
    else:
        yield name, value if isinstance(value, Tensor) and value.layout is torch.strided else None


def _digest(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(memoryview(values), digest_size=16).digest()  # type: ignore[arg-type]
