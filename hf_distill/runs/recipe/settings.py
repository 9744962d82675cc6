"""The settings of each stage of a run."""

from pathlib import Path
from typing import Any

from hf_distill.runs.recipe.schema import SOFT_TARGETS, Recipe, Stage, Student, Teacher
from hf_distill.runs.recipe.validation import OF_DISTILLATION, OF_KEPT_TARGETS, OF_THE_FIRST_TEACHERS
from hf_distill.training.config import DistillationConfig

# For a trainer that predicts, and has nothing to report; the last two would convert the model for good.
NOT_TRAINING = {
    "report_to": "none",
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "label_smoothing_factor": 0.0,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
}

# What says on what a run is computed, not what: a teacher's training takes it over from the student's.
_OF_THE_MACHINE = ("use_cpu", "ddp_backend", "ddp_timeout")


def arguments(recipe: Recipe, stage: str, folder: Path, **fixed: Any) -> DistillationConfig:
    """Return a stage's settings: defaults, what the recipe says, and what is `fixed`."""
    settings: dict[str, Any] = {"save_total_limit": 1}
    sections: dict[str, Any] = {**recipe.teacher_stages(), **recipe.student_stages()}
    section = sections.get(stage)
    chosen = dict(recipe.training)
    if isinstance(section, Teacher):
        chosen = {name: value for name, value in chosen.items() if name in _OF_THE_MACHINE} | (section.training or {})
    if isinstance(section, Stage):
        chosen |= section.training
    if isinstance(section, Student) and section is not recipe.students[0]:  # its teacher is the student before it
        chosen = {name: value for name, value in chosen.items() if name not in OF_THE_FIRST_TEACHERS}
    if not isinstance(section, Student):
        chosen = {name: value for name, value in chosen.items() if name not in OF_DISTILLATION} | {"alpha": 1.0}
    settings |= {**chosen, **fixed}
    if recipe.teachers[0].logits is not None and section is recipe.students[0]:
        settings["precompute_teacher_logits"] = True
    if not settings.get("precompute_teacher_logits"):  # which may be said of the first student's soft targets alone
        settings = {name: value for name, value in settings.items() if name not in OF_KEPT_TARGETS}
    if settings.get("precompute_teacher_logits") and section is recipe.students[0]:
        # Not where its checkpoints are, which are deleted at the end: others may learn from the same soft targets.
        named = settings.get("teacher_logits_dir")
        settings["teacher_logits_dir"] = named or str(Path(recipe.output_dir).expanduser() / SOFT_TARGETS)
    return DistillationConfig(**{**settings, "output_dir": str(folder)})
