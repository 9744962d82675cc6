"""What is wrong with the settings of a distillation run, beyond what `TrainingArguments` checks."""

import math
from dataclasses import fields
from typing import Any

from hf_distill.data.soft_losses import MATCHING_TERMS, SOFT_LOSSES
from hf_distill.training.losses.soft_losses import options_problems
from hf_distill.training.schedules import SCHEDULES


def settings_problems(args: Any) -> list[str]:
    """Return a line for each setting that is out of range, or would have no effect."""
    problems = []
    for name in ("alpha", "alpha_end"):
        value = getattr(args, name)
        if not (value is None and name != "alpha") and not (_is_number(value) and 0 <= value <= 1):
            problems.append(
                f"{name} must be in [0, 1], got {value!r}. It is the weight of the label loss; 0.1 is usual."
            )
    for name in ("temperature", "temperature_end"):
        value = getattr(args, name)
        if not (value is None and name != "temperature") and not (_is_number(value) and value > 0):
            problems.append(f"{name} must be > 0, got {value!r}. 1 to 20 is usual.")
    for each in fields(args):
        choices, value = each.metadata.get("choices"), getattr(args, each.name)
        if choices and value not in choices and value != each.default:
            problems.append(f"{each.name} must be one of {', '.join(choices)}, got {value!r}.")
    if args.soft_loss in SOFT_LOSSES and args.soft_loss_options is not None:
        problems += options_problems(args.soft_loss, args.soft_loss_options)
    problems += _schedule_problems(args) + _teacher_problems(args) + _precomputing_problems(args)
    problems += _matching_problems(args)
    if args.teacher_label_map is not None and not isinstance(args.teacher_label_map, dict):
        problems.append(
            "teacher_label_map must map each label of the student to one of the teacher, "
            f"got {args.teacher_label_map!r}."
        )
    return problems


def _schedule_problems(args: Any) -> list[str]:
    if args.schedule not in SCHEDULES:
        return []
    ends = [name for name in ("alpha_end", "temperature_end") if getattr(args, name) is not None]
    if args.schedule == "constant" and ends:
        return [f"{ends[0]} has no effect with schedule constant: set schedule to linear or cosine."]
    if args.schedule != "constant" and not ends:
        return [f"schedule {args.schedule} has no end value to move to: set alpha_end or temperature_end."]
    return []


def _matching_problems(args: Any) -> list[str]:
    problems = []
    for name in MATCHING_TERMS:
        value = getattr(args, f"{name}_weight")
        if not (_is_number(value) and value >= 0):
            problems.append(f"{name}_weight must be a number of at least 0, got {value!r}. 0 leaves the term out.")
    if problems:
        return problems
    used, needing = args.matching_weights, ", ".join(f"{name}_weight" for name in args.matching_weights)
    layers = args.layer_map
    if layers not in ("uniform", "last", None) and not (
        isinstance(layers, list)
        and layers
        and all(isinstance(pair, list | tuple) and [type(each) for each in pair] == [int, int] for pair in layers)
    ):
        problems.append(f"layer_map must be uniform, last or pairs of layers, [[0, 1], [1, 5]]; got {layers!r}.")
    heads = args.relation_heads
    if heads is not None and not (type(heads) is int and heads > 0):
        problems.append(f"relation_heads must be a whole number > 0, got {heads!r}. Unset is usual.")
    if type(args.relation_layer) is not int:
        problems.append(f"relation_layer must be a whole number, got {args.relation_layer!r}. -1 is the last.")
    owners = {
        "relation": ("relation_layer", "relation_heads"),
        "hidden": ("hidden_loss",),
        "feature": ("feature_loss",),
        "hidden or attention": ("layer_map",),
    }
    defaults = {each.name: each.default for each in fields(args)}
    problems += [
        f"{setting} has no effect without {owner}_weight: set that, or leave it out."
        for owner, settings in owners.items()
        for setting in settings
        if getattr(args, setting) != defaults[setting] and not {*owner.split(" or ")} & {*used}
    ]
    if used and args.precompute_teacher_logits:
        problems.append(
            f"{needing} needs the teacher at each step, and precompute_teacher_logits releases it: leave one out."
        )
    if used and (args.torch_compile or args.teacher_torch_compile):
        problems.append(f"{needing} reads inside the models, which torch_compile does not allow: leave one out.")
    return problems


def _teacher_problems(args: Any) -> list[str]:
    problems = []
    weights = args.teacher_weights
    if weights is not None and not (
        isinstance(weights, list) and all(_is_number(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
    ):
        problems.append(
            f"teacher_weights must be numbers of at least 0 with a sum above 0, got {weights!r}. Unset, all "
            "teachers count the same."
        )
    length = args.teacher_max_length
    if length is not None and not (isinstance(length, int) and not isinstance(length, bool) and length > 0):
        problems.append(f"teacher_max_length must be a whole number > 0, got {length!r}. Unset is all it takes.")
    if args.teacher_torch_compile and args.teacher_placement in ("auto", "sharded"):
        problems.append(
            f"teacher_torch_compile does not go with teacher_placement {args.teacher_placement}: leave one out."
        )
    if args.teacher_torch_compile and args.teacher_quantization is not None:
        problems.append("teacher_torch_compile does not go with teacher_quantization: leave one out.")
    return problems


def _precomputing_problems(args: Any) -> list[str]:
    problems = []
    counts = ("teacher_logits_top_k", "teacher_logits_views", "teacher_logits_batch_size")
    for name in counts:
        value = getattr(args, name)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            problems.append(f"{name} must be a whole number > 0, got {value!r}. Unset is usual.")
    if not args.precompute_teacher_logits:
        problems += [
            f"{name} has no effect without precompute_teacher_logits: set that to true, or leave it out."
            for name in ("teacher_logits_dir", "teacher_logits_dtype", *counts)
            if getattr(args, name) is not None
        ]
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
