"""What is wrong with the values of a recipe, a line for each."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

# How many teachers there are decides by which schema they are checked; pydantic then names the schema in its errors.
ONE, SEVERAL = "<one>", "<several>"
# The same of a metric that is named, and of one that has settings.
NAME, SETTINGS = "<name>", "<settings>"

_LONGEST = 200  # characters of a value in a message
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def described(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """Say in one line what is wrong with a value: its key, what was expected, what was got."""
    location = [part for part in problem["loc"] if part not in (ONE, SEVERAL, NAME, SETTINGS)]
    key = ".".join(map(str, location))
    got, kind = problem["input"], problem["type"]
    if kind == "missing":
        return f"{key}: is missing"
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(location, schema)}"
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    return _mismatch(key, _expected(problem), got)


def _expected(problem: Mapping[str, Any]) -> str:
    """Say what pydantic expects in the words of YAML."""
    kind, limits = problem["type"], problem.get("ctx", {})
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "a mapping (key: value)"
    if kind == "too_short":
        return f"a list of {limits['min_length']} or more"
    return str(problem["msg"]).removeprefix("Input should be ").removeprefix("Keys should be ")


def _suggestion(location: Sequence[Any], schema: type[BaseModel]) -> str:
    model: Any = schema
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        model = next(_models_in(annotation), None)
        if model is None:
            return ""
    known = list(model.model_fields)
    return _did_you_mean(str(location[-1]), known)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)


def _did_you_mean(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}" if len(known) < 25 else ""


def _mismatch(key: str, expected: str, got: Any) -> str:
    hint = ""
    if isinstance(got, str) and NUMBER.fullmatch(got):
        hint = f" as text: YAML reads a number only with a point before the e, write {_with_point(got)}"
    elif isinstance(got, bool) and "string" in expected:
        hint = ': YAML reads a bare yes, no, on and off as true and false, write "no" for the word'
    return f"{key}: expected {expected}, got {shown(got)}{hint}"


def shown(value: Any) -> str:
    """Return a value as a message shows it: the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _with_point(number: str) -> str:
    mantissa, e, exponent = number.lower().partition("e")
    exponent = exponent if not e or exponent[0] in "+-" else f"+{exponent}"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"


def settle_consent(values: dict[str, Any]) -> None:
    """Read `trust_remote_code` in a `training` by its present name, and as what is said of the only teacher there."""
    named = [values, *(section for name in ("teacher", "stages") for _, section in _sections(values, name))]
    for training in (section.get("training") for section in named):
        if isinstance(training, dict) and "trust_remote_code" in training:
            training.setdefault("teacher_trust_remote_code", training.pop("trust_remote_code"))
    teacher, training = values.get("teacher"), values.get("training")
    is_given = isinstance(training, dict) and training.get("teacher_trust_remote_code") is True
    if is_given and isinstance(teacher, dict) and teacher.get("model") is not None:
        teacher.setdefault("trust_remote_code", True)


def training_problems(values: Mapping[str, Any]) -> list[str]:
    """Check every `training` of a recipe against the fields of DistillationConfig."""
    problems = _section_problems("training", values.get("training"), _OF_THE_RUN)
    if any(teacher.get("logits") is not None for _, teacher in _sections(values, "teacher")):
        problems = [line for line in problems if "has no effect without precompute_teacher_logits" not in line]
    shared = values.get("training") if isinstance(values.get("training"), dict) and not problems else {}
    reason = "belongs to the student's training, a teacher learns from labels alone"
    of_a_student = {**_OF_THE_RUN, **dict.fromkeys(marked("objective", "teacher", "cache"), reason)}
    for key, teacher in _sections(values, "teacher"):
        problems += _section_problems(f"{key}.training", teacher.get("training"), of_a_student)
    for key, stage in _sections(values, "stages"):
        problems += _section_problems(f"{key}.training", stage.get("training"), _OF_THE_RUN, shared)
    return problems


def logits_problems(recipe: Mapping[str, Any], key: str, *, is_alone: bool) -> list[str]:
    """Find settings that mean nothing where soft targets teach that others have shared."""
    problems = []
    if not is_alone:
        problems.append(
            f"{key}.logits: are a teacher on their own, and cannot be one of several: make soft targets of all of them "
            "together (`hf-distill cache`)"
        )
    first = {"stages.0.training": recipe["stages"][0]["training"]} if recipe["stages"] else {}
    for section, settings in {"training": recipe["training"], **first}.items():
        problems += [
            f"{section}.{name}: has no effect, {key}.logits are soft targets and no model"
            for name in sorted(marked("needs model"))
            if settings.get(name) is not None
        ]
        if settings.get("precompute_teacher_logits") is False:
            problems.append(
                f"{section}.precompute_teacher_logits: false has no effect, {key}.logits are soft targets made "
                "already: leave it out"
            )
    augment = recipe["data"]["augment"] or {}
    if recipe["training"].get("teacher_logits_views") is not None and not (
        augment.get("crop_padding") or augment.get("horizontal_flip")
    ):
        problems.append("training.teacher_logits_views: has no effect, the training rows are the same in each epoch")
    return problems


def numbers_as_text(values: Mapping[str, Any]) -> list[str]:
    """Find numbers that YAML reads as text in fields of models and processors, which are passed on unchecked."""
    fields = {"teacher": "config", "stages": "config", "student": "config", "data": "processor"}
    return [
        _mismatch(f"{key}.{fields[name]}.{inner}", "a number", value)
        for name in fields
        for key, section in _sections(values, name)
        if isinstance(section.get(fields[name]), dict)
        for inner, value in flat(section[fields[name]]).items()
        if isinstance(value, str) and NUMBER.fullmatch(value)
    ]


def _sections(values: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what stands under a key with the key that leads to it: one section, or each of a list."""
    found = values.get(name)
    each = (
        [(f"{name}.{place}", part) for place, part in enumerate(found)] if isinstance(found, list) else [(name, found)]
    )
    return [(key, section) for key, section in each if isinstance(section, dict)]


# Of a stage, where a recipe says nothing else: 50 points of the loss, one checkpoint.
_DEFAULTS = {
    "logging_steps": 0.02,
    "per_device_eval_batch_size": 32,
    "save_total_limit": 1,
    "disable_tqdm": True,
}

_MANY_EPOCHS = 20
# Of what a recipe may leave out, what decides the result; a run's recipe.yaml has it in full.
_DECIDING = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "label_smoothing_factor"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16"),
    *("train_sampling_strategy", "dataloader_drop_last", "load_best_model_at_end"),
)

# What a process has once, for all trainings in it: a teacher's takes them over from the student's.
OF_THE_PROCESS = ("use_cpu", "ddp_backend", "ddp_timeout", "bf16", "fp16")

# Transformers finds these out in the middle of a run, or trains for no step and says nothing.
_ABOVE_ZERO = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)
# Which numbers of Transformers' settings mean something; it finds them out late, or never.
_BOUNDS = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), (0, 1)),
    **dict.fromkeys(("adam_epsilon", "weight_decay", "max_grad_norm", "warmup_steps"), (0, math.inf)),
    "dataloader_num_workers": (0, math.inf),
}
# With these a run that was stopped would end with other weights than one that was not.
_INEXACT = {
    "save_only_model": "its checkpoints lack the optimizer's state",
    "ignore_data_skip": "it goes on with other batches",
}
_PUBLISHING = "is the run's own: name the repository at the top of the recipe, hub: {repo_id: ...}"
_OF_THE_RUN = {
    "output_dir": "is the run's own: set output_dir at the top of the recipe",
    "push_to_hub": _PUBLISHING,
    **{f"hub_{name}": _PUBLISHING for name in ("model_id", "strategy", "private_repo", "always_push", "revision")},
    "hub_token": "is a secret, and a recipe is published: log in with `hf auth login`, or set HF_TOKEN",
    "resume_from_checkpoint": "is not needed: the same command goes on where a run was stopped",
    "teacher_input_columns": "is the run's own: name the columns of the data under data",
    "teacher_max_length": "is the run's own: set data.max_length",
    "label_names": "is Trainer's name of the label column, here always labels: set data.label_column",
    **{
        name: "would keep the predictions from the metrics: leave it out"
        for name in ("prediction_loss_only", "batch_eval_metrics", "eval_do_concat_batches")
    },
}


def with_defaults(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training with the defaults of recipes, which differ from those of Transformers."""
    found = {**_DEFAULTS, **training}
    if "eval_strategy" not in found:  # each epoch, or 20 times if these are many
        is_long = found.get("num_train_epochs", 3) > _MANY_EPOCHS and found.get("max_steps", -1) < 0
        found |= {"eval_strategy": "steps", "eval_steps": 0.05} if is_long else {"eval_strategy": "epoch"}
    if found.get("load_best_model_at_end"):  # which is evaluated when it is saved
        found.setdefault("save_strategy", found["eval_strategy"])
    return found


def with_all_settings(training: Mapping[str, Any], *, is_teacher: bool) -> dict[str, Any]:
    """Return the settings of a training with all defaults that decide its result, as a run's recipe.yaml has them."""
    from hf_distill.training.config import DistillationConfig

    fields = DistillationConfig.__dataclass_fields__
    names = [*_DECIDING, *(() if is_teacher else ("alpha", "temperature", "schedule"))]
    chosen = with_defaults(training)
    return {**{name: chosen.get(name, fields[name].default) for name in names}, **training}


def marked(*marks: str) -> frozenset[str]:
    """Name the settings of a training that have any of some marks of `training.config`."""
    from hf_distill.training.config import settings_marked  # torch takes its time, and a list of recipes needs none

    return settings_marked(*marks)


def _section_problems(
    name: str, section: Any, refused: Mapping[str, str], shared: Mapping[str, Any] | None = None
) -> list[str]:
    """Check one section, whose fields take the place of those that it shares with others."""
    if not isinstance(section, dict):
        return []
    from hf_distill.training.config import DistillationConfig

    hints = get_type_hints(DistillationConfig)
    own = DistillationConfig.__annotations__
    known = list(DistillationConfig.__dataclass_fields__)
    problems, sound = [], {}
    for key, value in section.items():
        if key in refused:
            problems.append(f"{name}.{key}: {refused[key]}")
        elif key not in known:
            meant = _did_you_mean(str(key), known) or "; known are the fields of transformers' TrainingArguments"
            problems.append(f"{name}.{key}: unknown key{meant}")
        elif found := _value_problems(f"{name}.{key}", value, hints[key]):
            problems += found
        elif key == "report_to" and (lacking := _not_installed(value)):
            problems.append(f"{name}.report_to: {lacking}")
        elif key not in own and (unfit := _unfit(key, value)):  # our own say so below
            problems.append(f"{name}.{key}: {unfit}")
        else:
            sound[key] = value
    if problems:  # fields of TrainingArguments depend on each other, so with one of them out only our own are checked
        sound = {key: value for key, value in sound.items() if key in own}
    try:
        DistillationConfig(**with_defaults({**(shared or {}), **sound}), output_dir="unused")
    except (ValueError, ImportError) as error:
        # Transformers goes on with a sentence on lines that begin with a dash.
        for line in filter(str.strip, re.sub(r"\n\s*-", " -", str(error)).splitlines()):
            field, _, rest = line.partition(" ")
            problems.append(f"{name}.{field}: {rest}" if field in own else f"{name}: {line}")
    return problems


def _unfit(key: str, value: Any) -> str | None:
    """Say why a value of the right type cannot serve; None: it may."""
    if key in _INEXACT and value is True:
        return f"a run that was stopped would end with other weights, since {_INEXACT[key]}: leave it out"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if key in _ABOVE_ZERO and value <= 0:
        return f"must be > 0, got {value}"
    if key == "max_steps" and value == 0:
        return "must be > 0, or left out for whole epochs; got 0"
    low, high = _BOUNDS.get(key, (-math.inf, math.inf))
    if not low <= value <= high:
        return f"must be >= {low}, got {value}" if high == math.inf else f"must be {low} to {high}, got {value}"
    return None


def _not_installed(trackers: Any) -> str | None:
    """Say which tracker cannot be reported to, None if all can."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for tracker in [trackers] if isinstance(trackers, str) else trackers or []:
        if tracker in ("none", "all"):
            continue
        if tracker not in INTEGRATION_TO_CALLBACK:
            return f"{tracker!r} is not known{_did_you_mean(tracker, sorted(INTEGRATION_TO_CALLBACK))}"
        there = get_available_reporting_integrations()
        if tracker not in there:
            return f"{tracker} is not installed (pip install {tracker}); installed are {', '.join(there) or 'none'}"
    return None


def _value_problems(key: str, value: Any, hint: Any) -> list[str]:
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        expected = " or ".join(dict.fromkeys(_expected(problem) for problem in error.errors()))
        return [_mismatch(key, expected, value)]
    return []


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings, and of lists of these, by their dotted keys."""
    if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if isinstance(values, dict):
        return {k: v for name, value in values.items() for k, v in flat(value, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
