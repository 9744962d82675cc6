"""The settings of each stage of a run."""

import copy
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.runs.recipe.reading import with_all
from hf_distill.runs.recipe.schema import SOFT_TARGETS, Data, Recipe, Stage, Student, Teacher
from hf_distill.runs.recipe.validation import OF_THE_PROCESS, flat, with_defaults
from hf_distill.training.config import CACHE, FIRST_TEACHERS, OBJECTIVE, TEACHER, DistillationConfig, settings_marked

# For a trainer that predicts, and has nothing to report; the last two would convert the model for good.
_NOT_TRAINING = {
    "report_to": [],
    "eval_strategy": IntervalStrategy.NO,
    "save_strategy": SaveStrategy.NO,
    "load_best_model_at_end": False,
    "label_smoothing_factor": 0.0,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
}


# What of a training decides how it is shown, evaluated, saved and reported, and nothing of what it makes.
_OF_NO_RESULT = {
    *("logging_first_step", "logging_nan_inf_filter", "logging_steps", "logging_strategy"),
    *("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "skip_memory_metrics"),
    *("report_to", "run_name", "project", "trackio_space_id", "include_num_input_tokens_seen"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("save_on_each_node", "save_steps", "save_strategy", "save_total_limit"),
    *("allow_untrained_teacher", "teacher_logits_dir"),
}


class StageSettings:
    """The settings of each stage of a run, made once; the first decide on which devices it computes."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._checkpoints = Path(recipe.output_dir).expanduser() / "checkpoints"
        self._made: dict[str, DistillationConfig] = {}
        _ = self.of("student").device  # before any of the processes waits for another

    def of(self, stage: str) -> DistillationConfig:
        """Return the settings of a stage."""
        if stage not in self._made:
            self._made[stage] = training_arguments(self._recipe, stage, self._checkpoints / stage)
        return self._made[stage]

    def without_training(self, stage: str) -> DistillationConfig:
        """Return the settings of a stage for a trainer that trains nothing."""
        settings = copy.copy(self.of(stage))
        for name, value in _NOT_TRAINING.items():
            setattr(settings, name, value)
        return settings


def training_arguments(recipe: Recipe, stage: str, folder: Path) -> DistillationConfig:
    """Return a stage's settings: defaults, and what the recipe says."""
    sections: dict[str, Any] = {**recipe.teacher_stages(), **recipe.student_stages()}
    section = sections.get(stage)
    chosen = dict(recipe.training)
    if isinstance(section, Teacher):
        chosen = {name: value for name, value in chosen.items() if name in OF_THE_PROCESS} | (section.training or {})
    if isinstance(section, Stage):
        chosen |= section.training
    is_first = section is recipe.students[0]
    if isinstance(section, Student) and not is_first:  # its teacher is the student before it
        chosen = _without(chosen, FIRST_TEACHERS)
    if not isinstance(section, Student):
        chosen = _without(chosen, OBJECTIVE, TEACHER, CACHE) | {"alpha": 1.0}
    if recipe.teachers[0].logits is not None and is_first:
        chosen["precompute_teacher_logits"] = True
    if not chosen.get("precompute_teacher_logits"):  # which may be said of the first student's soft targets alone
        chosen = _without(chosen, CACHE)
    elif is_first:
        # Not where its checkpoints are, which are deleted at the end: others may learn from the same soft targets.
        named = chosen.get("teacher_logits_dir")
        chosen["teacher_logits_dir"] = named or str(Path(recipe.output_dir).expanduser() / SOFT_TARGETS)
    return DistillationConfig(**with_defaults(chosen), output_dir=str(folder))


def decisive_settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """Return the settings that decide what a stage makes, by their dotted keys, with those of the stages before it.

    Of `results` these are all.
    """
    values = with_all(recipe).model_dump(mode="json")
    training = values["training"]
    chosen = {"task": recipe.task, "data": values["data"]}
    if _draws_rows(recipe.data):
        chosen["training"] = {"seed": training["seed"]}
    teachers = recipe.teacher_stages()
    if stage in teachers:
        chosen["teacher"] = values["teacher"]
        if isinstance(recipe.teacher, list):
            place = next(i for i, each in enumerate(recipe.teacher) if each is teachers[stage])
            chosen["teacher"] = {place: values["teacher"][place]}
    elif stage == "results":
        chosen |= {**values, "training": training, "output_dir": None, "hub": None}
    elif stage == "baseline":
        chosen |= {"student": values["student"], "training": _without(training, OBJECTIVE, TEACHER, CACHE)}
        if recipe.student.from_teacher is not None:
            chosen |= {name: values[name] for name in ("teacher", "stages")}
    else:
        chosen |= {"teacher": values["teacher"], "training": training}
        chosen["stages"] = values["stages"][: list(recipe.student_stages()).index(stage) + 1]
        if stage == "student":
            chosen["student"] = values["student"]
    found = flat(chosen)
    if any(value and _field(key) == "load_best_model_at_end" for key, value in found.items()):
        return found | flat({"metrics": values["metrics"]})  # by which, and at whose steps, the best is chosen
    return {key: value for key, value in found.items() if _field(key) not in _OF_NO_RESULT}


def _draws_rows(data: Data) -> bool:
    """Tell whether the seed of the training decides which rows there are."""
    copies = data.augment is not None and data.augment.copies
    return bool(data.max_train_rows or copies or (data.unlabelled is not None and data.unlabelled.max_rows))


def _field(key: str) -> str | None:
    """Return which field of a training a dotted key names, None if it names none."""
    section, _, field = key.rpartition("training.")
    return field.partition(".")[0] if section or key.startswith("training.") else None


def _without(chosen: dict[str, Any], *marks: str) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if name not in settings_marked(*marks)}
