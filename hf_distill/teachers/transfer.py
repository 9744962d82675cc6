"""Move a batch to the device a teacher lives on, and its logits back, without holding up the student."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """The way of one batch to the teacher and back.

    `start` only begins the copies, so that a student's forward pass that is started between it and `finish` runs
    while they do. On one device there is no copy at all.

    Args:
        teacher_device: where the teacher wants its inputs.
        student_device: where the batch is, and where the logits are wanted.
    """

    def __init__(self, teacher_device: torch.device, student_device: torch.device) -> None:
        self._teacher_device = teacher_device
        self._student_device = student_device
        self._inputs: dict[str, Any] = {}
        self._copied: torch.cuda.Event | None = None

    def start(self, inputs: Mapping[str, Any]) -> None:
        """Begin to copy the inputs, tensors or nested mappings, lists and tuples of them; other values stay."""
        if self._student_device.type == "cuda" and self._teacher_device.type == "cpu":
            self._start_to_host(inputs)
        else:
            # A copy into a GPU's memory is ordered before the kernels that read it; into other memory it may not be.
            is_ordered = self._teacher_device.type == "cuda"
            self._inputs = _moved(dict(inputs), self._teacher_device, non_blocking=is_ordered)

    def finish(self) -> dict[str, Any]:
        """Wait until the inputs have arrived where that is needed, and return them."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        inputs, self._inputs = self._inputs, {}
        return inputs

    def back(self, logits: Tensor) -> Tensor:
        """Return the logits on the student's device."""
        if self._student_device.type != "cuda":
            return logits.to(self._student_device)
        if logits.device.type == "cpu":
            # From memory that is not pinned, the copy would wait for all that the student's GPU has still to do.
            logits = logits.pin_memory()
        return logits.to(self._student_device, non_blocking=True)

    def _start_to_host(self, inputs: Mapping[str, Any]) -> None:
        # On the student's own stream the copy would queue behind its forward pass once that has been started, and the
        # event that says when the host may read would come after it.
        stream = torch.cuda.Stream(self._student_device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._student_device))
        with torch.cuda.stream(stream):
            self._inputs = _moved(dict(inputs), self._teacher_device, non_blocking=True, stream=stream)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)


def _moved(value: Any, device: torch.device, *, non_blocking: bool, stream: torch.cuda.Stream | None = None) -> Any:
    if isinstance(value, Tensor):
        if stream is not None and value.device.type == "cuda":
            value.record_stream(stream)  # or the allocator gives its memory away while the copy still reads it
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, Mapping):
        return {name: _moved(v, device, non_blocking=non_blocking, stream=stream) for name, v in value.items()}
    if isinstance(value, list | tuple):
        moved = [_moved(v, device, non_blocking=non_blocking, stream=stream) for v in value]
        return moved if isinstance(value, list) else tuple(moved)
    return value
