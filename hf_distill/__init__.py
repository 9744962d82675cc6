"""Knowledge distillation for Hugging Face Transformers classifiers, text and vision."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.config import DistillationConfig
    from hf_distill.models.mlp import MLPConfig, MLPForImageClassification
    from hf_distill.objective.losses import label_loss, soft_target_loss
    from hf_distill.students.building import student_from_teacher
    from hf_distill.teachers.specialists import Specialist, confusable_classes, specialist_labels
    from hf_distill.trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "DistillationConfig",
    "DistillationTrainer",
    "MLPConfig",
    "MLPForImageClassification",
    "Specialist",
    "confusable_classes",
    "label_loss",
    "soft_target_loss",
    "specialist_labels",
    "student_from_teacher",
]

_HOMES = {
    "DistillationConfig": "hf_distill.config",
    "DistillationTrainer": "hf_distill.trainer",
    "MLPConfig": "hf_distill.models.mlp",
    "MLPForImageClassification": "hf_distill.models.mlp",
    "Specialist": "hf_distill.teachers.specialists",
    "confusable_classes": "hf_distill.teachers.specialists",
    "label_loss": "hf_distill.objective.losses",
    "soft_target_loss": "hf_distill.objective.losses",
    "specialist_labels": "hf_distill.teachers.specialists",
    "student_from_teacher": "hf_distill.students.building",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing torch and transformers takes seconds, which `hf-distill --help` does not have.
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_distill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
