"""The settings of each stage of a run."""

import copy
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.runs.recipe.schema import SOFT_TARGETS, Recipe, Stage, Student, Teacher
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

# What says on what a run is computed, not what: a teacher's training takes it over from the student's.
_OF_THE_MACHINE = ("use_cpu", "ddp_backend", "ddp_timeout")


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
        chosen = {name: value for name, value in chosen.items() if name in _OF_THE_MACHINE} | (section.training or {})
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
    return DistillationConfig(**{"save_total_limit": 1, **chosen, "output_dir": str(folder)})


def _without(chosen: dict[str, Any], *marks: str) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if name not in settings_marked(*marks)}
