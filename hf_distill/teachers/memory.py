"""Where a model would live on this machine, and the memory that it would take there."""

import torch
from accelerate.utils import get_max_memory
from torch import nn

from hf_distill.teachers.placement import ADAM_MOMENTS, available_devices, heads_of

_MIB = 2**20
_NUM_MOMENTS = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "adafactor": 0}  # others, by name: those of Adam


def memory_needed(
    model: nn.Module,
    dtype: torch.dtype,
    *,
    is_trained: bool,
    optimizer: str = "adamw_torch",
    quantization: str | None = None,
) -> dict[str, float]:
    """Return the memory in MiB of a model's `weights`, `gradients` and `optimizer state`, without activations."""
    width = dtype.itemsize
    quantized = _quantized_parameters(model) if quantization is not None else set()
    narrow = 1.0 if quantization == "8bit" else 0.5 + 0.127 / 8  # QLoRA: 0.127 bit of constants for each parameter
    weights = 0.0
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) in quantized:
            weights += tensor.numel() * narrow
        else:
            weights += tensor.numel() * (width if tensor.is_floating_point() else tensor.element_size())
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if is_trained else 0
    return {
        "weights": weights / _MIB,
        "gradients": num_trained * width / _MIB,
        "optimizer state": num_trained * _state_width(optimizer, width) / _MIB,
    }


def _quantized_parameters(model: nn.Module) -> set[int]:
    heads = heads_of(model)
    return {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] not in heads
    }


def _state_width(optimizer: str, width: int) -> int:
    name = optimizer.removeprefix("paged_")
    moments = next((count for key, count in _NUM_MOMENTS.items() if name.startswith(key)), ADAM_MOMENTS)
    return moments * (1 if name.endswith("8bit") else width)


def device_name(placement: str, *, use_cpu: bool = False) -> str:
    """Say in words where a model would live on this machine: `cuda:0 (NVIDIA H200, 139 GiB free)`."""
    devices = available_devices()
    first = "cpu" if use_cpu or len(devices) == 1 else devices[1]
    if placement == "auto":
        return " and ".join(_described(device) for device in [*devices[1:], "cpu"])
    if placement == "sharded":
        return f"in equal parts on the device of each process, here {_described(first)}"
    if placement == "same":
        return _described(first)
    return _described(placement if placement == "cpu" or ":" in placement else f"{placement}:0")


def _described(device: str) -> str:
    kind = device.split(":")[0]
    if kind == "cpu":
        return f"cpu ({get_max_memory()['cpu'] / 2**30:.0f} GiB free)" if "cpu" in get_max_memory() else "cpu"
    if kind not in ("cuda", "xpu"):
        return device
    module = getattr(torch, kind)
    return f"{device} ({module.get_device_name(device)}, {module.mem_get_info(device)[0] / 2**30:.0f} GiB free)"
