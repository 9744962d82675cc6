"""Where a teacher lives: on the student's device or another, spread, sharded over processes, quantised."""

import re
from typing import Any

import torch
from accelerate import dispatch_model
from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map
from torch import distributed, nn
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from hf_distill.models.sources import first_line, source_options
from hf_distill.models.tasks import AUTO_CLASSES

PLACEMENTS = ("same", "cpu", "auto", "sharded")
DEVICE_TYPES = ("cuda", "mps", "xpu", "npu")
QUANTIZATIONS = ("8bit", "4bit")

_MIB = 2**20
ADAM_MOMENTS = 2
_RESERVE = 0.9  # of the free memory; the rest is for activations


# ---- Checks, before anything is loaded ----


def check_placement_words(placement: str) -> None:
    """Refuse a placement that is no word we know and no name of a device, whatever devices there are.

    Raises:
        ValueError: the message says what is possible.
    """
    is_device = isinstance(placement, str) and re.fullmatch(rf"({'|'.join(DEVICE_TYPES)})(:\d+)?", placement)
    if placement not in PLACEMENTS and not is_device:
        raise ValueError(
            f"teacher_placement must be {', '.join(PLACEMENTS)} or a device ({', '.join(DEVICE_TYPES)}) such as "
            f"cuda:1, got {placement!r}"
        )


def check_placement(placement: str, quantization: str | None, *, num_processes: int, is_named: bool) -> None:
    """Refuse a placement that this machine or this run cannot give a teacher.

    Raises:
        ValueError: there is no such device, the launch or the teacher does not fit the placement, or something that
            quantisation needs is missing.
    """
    check_placement_words(placement)
    devices = available_devices()
    wanted = placement if ":" in placement else f"{placement}:0"
    if placement not in PLACEMENTS and wanted not in devices:
        raise ValueError(f"teacher_placement is {placement!r}, and this machine has only {', '.join(devices)}")
    if placement == "auto" and num_processes > 1:
        raise ValueError(
            f"teacher_placement auto spreads a teacher over all devices from one process, and this run has "
            f"{num_processes}: use sharded, or start one process"
        )
    if placement == "sharded" and not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(
            "teacher_placement sharded needs several processes, and this run was started as a single one: start it "
            "with accelerate launch or torchrun, or use auto"
        )
    if quantization is not None:
        _check_quantization(placement, quantization, is_named)


def available_devices() -> list[str]:
    """Name the devices of this machine: `cpu`, `cuda:0`, ..."""
    accelerators = [(kind, getattr(torch, kind, None)) for kind in DEVICE_TYPES]
    present = [(kind, module) for kind, module in accelerators if module is not None and module.is_available()]
    return ["cpu", *(f"{kind}:{place}" for kind, module in present for place in range(module.device_count()))]


def _check_quantization(placement: str, quantization: str, is_named: bool) -> None:
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"teacher_quantization must be {' or '.join(QUANTIZATIONS)}, got {quantization!r}")
    what = f"teacher_quantization {quantization}"
    if not is_named:
        raise ValueError(
            f"{what} quantises on loading, and the teacher is a model already: pass its Hub id or folder, or a model "
            "that was loaded quantised (and no teacher_quantization)"
        )
    if placement in ("cpu", "sharded", "mps") or placement.startswith("mps:"):
        raise ValueError(
            f"{what} does not go with teacher_placement {placement}: use same, auto or a device such as cuda:1"
        )
    if not is_bitsandbytes_available():
        raise ValueError(f"{what} needs bitsandbytes: pip install 'hf_distill[quant]'")
    if not any(device.startswith(("cuda", "xpu")) for device in available_devices()):
        raise ValueError(
            f"{what} needs a GPU, and this machine has none: leave it out, and set teacher_dtype to bfloat16 to halve "
            "the teacher's memory"
        )


# ---- Loading a named teacher straight onto its place ----


def loading_options(
    placement: str,
    quantization: str | None,
    *,
    source: str,
    task: str,
    device: torch.device,
    dtype: str | None,
    student: nn.Module,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that load a teacher onto its place, quantised where that is asked for.

    Raises:
        ValueError: the quantised teacher would be on the CPU, or its config cannot be loaded.
    """
    options: dict[str, Any] = {}
    if placement == "auto":
        options = {"device_map": "auto", "max_memory": memory_for_teacher(student, device)}
    elif placement != "sharded":
        target = _target(placement, device)
        if target.type != "cpu":
            options = {"device_map": {"": target}}
        elif quantization is not None:
            raise ValueError(
                f"teacher_quantization {quantization} needs the teacher on a GPU, and this run is on the CPU: set "
                "teacher_placement to a device such as cuda:0, or leave the quantisation out"
            )
    if quantization is not None:
        whole = _on_meta(source, task, revision=revision, trust_remote_code=trust_remote_code)
        options["quantization_config"] = quantization_config(quantization, dtype, heads_of(whole))
    return options


def memory_for_teacher(student: nn.Module, device: torch.device) -> dict[int | str, int]:
    """Return how many bytes of each device a teacher may take.

    Each device's free memory is counted, less a tenth for activations and, on the student's device, what training the
    student will add: its gradients and the two moments of Adam, and its weights where they are not there yet.
    """
    free: dict[int | str, int] = {where: int(size * _RESERVE) for where, size in get_max_memory().items()}
    of_student: int | str = device.type if device.type in ("cpu", "mps") else device.index or 0
    if of_student in free:
        free[of_student] = max(0, free[of_student] - _bytes_to_train(student, device))
    return free


def quantization_config(quantization: str, dtype: str | None, heads: list[str]) -> BitsAndBytesConfig:
    """Return how bitsandbytes is to load a model: 8 bit, or 4 bit (NF4, its constants quantised too).

    References:
        Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8()", arXiv 2208.07339; Dettmers, Pagnoni, Holtzman,
        Zettlemoyer, "QLoRA", arXiv 2305.14314, section 3.
    """
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype in (None, "auto") else getattr(torch, dtype),
        llm_int8_skip_modules=heads,
    )


def heads_of(model: nn.Module) -> list[str]:
    """Name the parts of a classifier that have parameters and are not its base model."""
    base = getattr(model, "base_model_prefix", "")
    return [name for name, part in model.named_children() if name != base and any(True for _ in part.parameters())]


def _on_meta(source: str, task: str, *, revision: str | None, trust_remote_code: bool) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(source, **source_options(source, revision, trust_remote_code))
        with torch.device("meta"):
            model: nn.Module = AUTO_CLASSES[task].from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"cannot load the teacher {source!r} for {task}: {first_line(error)}") from error
    return model


def _bytes_to_train(student: nn.Module, device: torch.device) -> int:
    total = 0
    for parameter in student.parameters():
        size = parameter.numel() * parameter.element_size()
        total += size if parameter.device.type != device.type else 0
        total += size * (1 + ADAM_MOMENTS) if parameter.requires_grad else 0
    return total


def _target(placement: str, device: torch.device) -> torch.device:
    target = device if placement == "same" else torch.device(placement)
    if target.index is None and target.type not in ("cpu", "mps"):
        return torch.device(target.type, getattr(torch, target.type).current_device())
    return target


# ---- Putting a loaded teacher on its place ----


def place(
    model: nn.Module,
    placement: str,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    accelerator: Any = None,
    student: nn.Module,
) -> torch.device:
    """Put a teacher on its place, in place, frozen and in evaluation mode.

    `same`, `cpu` and a device move it; `auto` spreads it over all devices by their free memory. `sharded` splits each
    parameter over all processes and gathers one block after the other during the forward pass (FSDP2, or ZeRO-3 in a
    DeepSpeed run): every process must then run the teacher equally often, or all wait for each other for ever. A
    quantised teacher, and one that is spread over devices already, stays as it is.

    Accelerate does not get to know the teacher: a model that is prepared is counted as trained, and saved.

    Raises:
        ValueError: the weights are not here, or are where this placement cannot move them.

    References:
        Rajbhandari, Rasley, Ruwase, He, "ZeRO", arXiv 1910.02054, section 5.3; Zhao et al., "PyTorch FSDP",
        arXiv 2304.11277.
    """
    model.eval()
    model.requires_grad_(False)
    if is_quantized(model) or _is_spread(model):
        return _stay(model, placement, device)
    _check_weights_here(model, placement, dtype)
    if dtype is not None:
        model.to(dtype)
    if placement == "sharded":
        plugin = None if accelerator is None else getattr(accelerator.state, "deepspeed_plugin", None)
        if plugin is None:
            _shard(model, device)
        else:
            _shard_with_deepspeed(model, plugin.deepspeed_config)
        return device
    if placement == "auto":
        return _spread(model, memory_for_teacher(student, device))
    target = _target(placement, device)
    model.to(target)
    return target


def is_quantized(model: nn.Module) -> bool:
    """Tell whether a model was loaded quantised."""
    return bool(getattr(model, "is_quantized", False))


def _is_spread(model: nn.Module) -> bool:
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    return len(places) > 1 or "disk" in places


def _stay(model: nn.Module, placement: str, device: torch.device) -> torch.device:
    where = _main_device(model)
    is_asked_elsewhere = placement == "sharded" or (
        placement not in ("same", "auto") and not is_same_device(_target(placement, device), where)
    )
    if is_asked_elsewhere:
        what = "quantised" if is_quantized(model) else "spread over several devices"
        raise ValueError(
            f"the teacher is {what}, so it cannot be moved from {where} to teacher_placement {placement}: set same, "
            "which leaves it where it is, or pass its Hub id or folder"
        )
    return where


def is_same_device(one: torch.device, other: torch.device) -> bool:
    """Tell whether two names mean one device; `cuda` and `mps` without a number are the first."""
    return one.type == other.type and (one.type == "cpu" or (one.index or 0) == (other.index or 0))


def _main_device(model: nn.Module) -> torch.device:
    """Return where a model's inputs go: its first device that computes."""
    for where in getattr(model, "hf_device_map", {}).values():
        if str(where) not in ("cpu", "disk"):
            return torch.device(where)
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def _check_weights_here(model: nn.Module, placement: str, dtype: torch.dtype | None) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "the teacher's weights are not all in this process (some are on the meta device; in an FSDP run, "
            "from_pretrained may keep them in the first process alone): pass its Hub id or folder instead of a model, "
            "or set fsdp_cpu_ram_efficient_loading to false"
        )
    is_split = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if is_split and (placement != "sharded" or dtype is not None):
        raise ValueError(
            "the teacher's weights are split over the processes (from_pretrained does so in a ZeRO-3 run), and "
            f"teacher_placement {placement}{'' if dtype is None else f' with {dtype}'} needs them whole: pass its Hub "
            "id or folder instead of a model, or use sharded without a teacher_dtype"
        )


def _spread(model: nn.Module, max_memory: dict[int | str, int]) -> torch.device:
    whole: Any = model
    units = list(getattr(whole, "_no_split_modules", None) or [])
    balanced = get_balanced_memory(model, max_memory=max_memory, no_split_module_classes=units)
    device_map = infer_auto_device_map(model, max_memory=balanced, no_split_module_classes=units)
    if "disk" in device_map.values():
        raise ValueError(
            "the teacher does not fit into the free memory of all devices and the CPU together "
            f"({', '.join(f'{where}: {size // _MIB} MiB' for where, size in max_memory.items())}): pass its Hub id or "
            "folder, which can be loaded quantised, or a smaller teacher_dtype"
        )
    dispatch_model(model, device_map=device_map)
    return _main_device(model)


def _shard(model: nn.Module, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in [*_blocks(model), model]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the equal blocks that a model is a stack of, inner ones first."""
    blocks: list[nn.Module] = []
    for stack in reversed(list(model.modules())):  # a module comes after those that hold it
        members = list(stack.children())
        if isinstance(stack, nn.ModuleList | nn.Sequential) and len(members) > 1 and len(set(map(type, members))) == 1:
            blocks += [block for block in members if any(True for _ in block.parameters()) and block not in blocks]
    return blocks


def _shard_with_deepspeed(model: nn.Module, config_of_run: dict[str, Any]) -> None:
    import deepspeed  # type: ignore[import-not-found]

    # Of the run's settings only what a model without gradients has a use for; the ZeRO stage there is the student's.
    zero: dict[str, Any] = {"stage": 3}
    offload = config_of_run.get("zero_optimization", {}).get("offload_param")
    if offload is not None:
        zero["offload_param"] = offload
    types = {parameter.dtype for parameter in model.parameters()}
    # The engine's hooks on the modules gather the weights, so the model itself can go on being called.
    deepspeed.initialize(
        model=model,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": zero,
            "bf16": {"enabled": torch.bfloat16 in types},
            "fp16": {"enabled": torch.float16 in types},
        },
    )
    model.eval()
