"""What a recipe would do, in words."""

from pathlib import Path
from typing import Any

import huggingface_hub.utils.logging
import torch
import transformers
from torch import nn
from transformers import AutoConfig

import hf_distill.models  # noqa: F401  (registers the architectures that Transformers lacks)
from hf_distill.hub.card.origins import layer_words
from hf_distill.hub.card.parts import split_words
from hf_distill.models.sources import first_line, named_source_options, needs_consent
from hf_distill.models.tasks import AUTO_CLASSES
from hf_distill.runs.building import build_on_meta
from hf_distill.runs.recipe.schema import OF_TEXTS, Hub, Recipe, Stage, Student, Teacher
from hf_distill.runs.shared_targets import UnreachableError, shared_targets
from hf_distill.runs.workspace import check_folders_apart, state_of
from hf_distill.teachers.memory import device_name, memory_needed
from hf_distill.teachers.placement import check_placement_words

_MOST_LABELS = 10  # that are named
_SHOWN_APART = ("alpha", "alpha_end", "temperature", "temperature_end")


def plan(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the steps of a run, each with its name; of the models nothing but their configs is loaded for it.

    Raises:
        ValueError: the teacher's placement is none, a model cannot be built, or soft targets lie where models do.
    """
    data = recipe.data
    results = split_words(data.test_split or data.eval_split or "the validation or test split", data.train_split)
    rows = f"at most {data.max_train_rows:,} rows of " if data.max_train_rows else ""
    check_placement_words(recipe.training.get("teacher_placement", "same"))
    check_folders_apart(recipe)
    return [
        ("task", recipe.task),
        ("data", f"{data.dataset or data.path}: {rows}{data.train_split} for training, {results} for the results"),
        *_further_rows(recipe),
        *(("teacher", _teacher(section, recipe)) for section in recipe.teachers),
        *_students(recipe),
        ("baseline", "the same student on the labels alone" if recipe.baseline else "none"),
        ("metrics", ", ".join(recipe.metric_names)),
        *_placement(recipe),
        ("output", _output(recipe)),
        *([("hub", _hub(recipe.hub))] if recipe.hub else []),
    ]


def _further_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """Tell of training rows that the teacher alone labels."""
    lines, source, augment = [], recipe.data.unlabelled, recipe.data.augment
    if source is not None:
        rows = f"at most {source.max_rows:,} rows of " if source.max_rows else ""
        lines.append(f"{rows}{source.split} of {source.dataset or source.path}, which the teacher alone labels")
    if augment is not None and augment.copies:
        changes = ", ".join(f"{name} {value:g}" for name, value in augment.model_dump(include={*OF_TEXTS[1:]}).items())
        lines.append(f"{augment.copies} changed copies of each text ({changes}), which the teacher alone labels")
    return [("further", line) for line in lines]


def _teacher(section: Teacher, recipe: Recipe) -> str:
    if section.column is not None:
        return f"the column {section.column} of the data"
    if section.logits is not None:
        return _soft_targets(recipe)
    words = _model(section)
    if section.specialist is not None:
        words += f", a specialist (oversampling {section.specialist.oversampling:g})"
    if section.training is None:
        return f"{words}, ready"
    return f"{words}, trained on the labels first ({_settings(section.training)})"


def _soft_targets(recipe: Recipe) -> str:
    """Say what is known of soft targets that teach, of which nothing but their description is looked at."""
    try:
        shared = shared_targets(recipe, whole=False)
    except UnreachableError as error:
        return str(error)
    assert shared is not None
    at = f" at {shared.commit[:12]}" if shared.commit else ""
    rows = shared.info["data"].get("num_rows")
    count = f", {sum(rows.values()):,} rows" if rows else ""
    labels = shared.key["labels"] or []
    named = f" ({', '.join(labels)})" if 0 < len(labels) <= _MOST_LABELS else ""
    words = "; ".join(each["words"] for each in shared.teachers)
    what = f"of {words}{count}, {len(labels)} labels{named}, {shared.key['logits'].get('dtype')}"
    return f"none is loaded: soft targets {shared.source}{at}, {what}"


def _students(recipe: Recipe) -> list[tuple[str, str]]:
    lines = []
    for stage, section in recipe.student_stages().items():
        training = _training_of(section, recipe)
        shown = []
        for name, default in (("alpha", 0.1), ("temperature", 4.0)):
            end = training.get(f"{name}_end")
            shown.append(f"{name} {training.get(name, default)}" + ("" if end is None else f" to {end}"))
        lines.append((stage, f"{_model(section)}, {', '.join(shown)} ({_settings(training)})"))
    return lines


def _training_of(section: Student, recipe: Recipe) -> dict[str, Any]:
    return recipe.training | (section.training if isinstance(section, Stage) else {})


def _placement(recipe: Recipe) -> list[tuple[str, str]]:
    """Say where the models would live on this machine, and how much memory each would need there."""
    training = recipe.training
    where = training.get("teacher_placement", "same")
    quantization = training.get("teacher_quantization")
    dtype = training.get("teacher_dtype") or "float32"
    lines = []
    loggers = (transformers.logging, huggingface_hub.utils.logging)
    verbosities = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        model: nn.Module | None = None
        for number, section in enumerate(recipe.teachers, start=1):
            if section.column is not None or section.logits is not None:
                continue
            name = "teacher" if len(recipe.teachers) == 1 else f"teacher {number}"
            model_here = _on_meta(section, recipe, None)
            model = model_here if model is None else model
            shown = quantization or dtype
            weights = getattr(torch, dtype if dtype != "auto" else str(model_here.dtype).removeprefix("torch."))
            needed = memory_needed(model_here, weights, is_trained=False, quantization=quantization)
            place = device_name(where, use_cpu=bool(training.get("use_cpu", False)))
            lines.append(("memory", f"{name} on {place}: {needed['weights']:,.1f} MiB of weights ({shown})"))
            if section.training is not None:
                lines.append(_trained(f"{name}, in its training,", model_here, section.training))
        for stage, student in recipe.student_stages().items():
            model = _on_meta(student, recipe, model)
            lines.append(_trained(stage, model, _training_of(student, recipe)))
    except _UnreadableError as error:
        lines.append(("memory", f"not known, since a model's config cannot be read: {error}"))
    finally:
        for logger, verbosity in zip(loggers, verbosities, strict=True):
            logger.set_verbosity(verbosity)
    return lines


def _trained(name: str, model: nn.Module, training: dict[str, Any]) -> tuple[str, str]:
    optimizer, use_cpu = str(training.get("optim", "adamw_torch")), bool(training.get("use_cpu", False))
    needed = memory_needed(model, torch.float32, is_trained=True, optimizer=optimizer)
    parts = " + ".join(f"{size:,.1f}" for size in needed.values())
    place = device_name("same", use_cpu=use_cpu)
    return "memory", f"{name} on {place}: {parts} MiB of {', '.join(needed)}, and activations"


class _UnreadableError(Exception):
    """A model's config is not at hand, which is no mistake of the recipe where there is no network."""


def _on_meta(section: Teacher | Student, recipe: Recipe, teacher: Any) -> Any:
    """Build a model without memory for its weights; of a checkpoint, by its config."""
    if section.model is None:
        return build_on_meta(section, recipe, recipe.data.label_names or ["0", "1"], teacher)
    try:
        options = named_source_options(section.model, section.revision, section.trust_remote_code)
    except ValueError as error:
        raise ValueError(f"cannot load the model {section.model!r}: {error}") from error
    try:
        config = AutoConfig.from_pretrained(section.model, **options)
        with torch.device("meta"):
            return AUTO_CLASSES[recipe.task].from_config(config, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        if needs_consent(error):
            raise ValueError(f"cannot load the model {section.model!r}: {first_line(error)}") from error
        raise _UnreadableError(first_line(error)) from error


def _model(section: Teacher | Student) -> str:
    if section.model is not None:
        return section.model + (f" at {section.revision}" if section.revision else "")
    if section.config is not None:
        return f"a new {section.config.get('model_type')} ({_settings(section.config, 'model_type')})"
    assert isinstance(section, Student)
    assert section.from_teacher is not None
    return f"the teacher's {layer_words(section.from_teacher.model_dump())}"


def _settings(settings: dict[str, Any], *without: str) -> str:
    shown = [f"{name} {value}" for name, value in settings.items() if name not in (*_SHOWN_APART, *without)]
    return ", ".join(shown) or "default settings"


def _hub(hub: Hub) -> str:
    parts = [f"the student to {hub.repo_id}", *([f"branch {hub.revision}"] if hub.revision else [])]
    parts += ["by a pull request"] * hub.create_pr + ["private if it is new"] * bool(hub.private)
    return ", ".join(parts)


def _output(recipe: Recipe) -> str:
    folder = Path(recipe.output_dir).expanduser()
    changed, finished = state_of(folder, recipe)
    if changed is None:
        return f"{folder}, new"
    if changed:
        return f"{folder}, where a run with other settings is ({'; '.join(changed)}): train would refuse it"
    left = [stage for stage in recipe.stage_names() if stage not in finished]
    return f"{folder}, finished there: {', '.join(finished) or 'nothing'}, left: {', '.join(left) or 'nothing'}"
