"""Knowledge distillation for Hugging Face Transformers classifiers, text and vision."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.evaluation.cascade import Cascade
    from hf_distill.models.mlp import MLPConfig, MLPForImageClassification
    from hf_distill.models.students import student_from_teacher
    from hf_distill.teachers.specialists import Specialist, confusable_classes, specialist_labels
    from hf_distill.training.config import DistillationConfig
    from hf_distill.training.distributed import shutdown_processes
    from hf_distill.training.losses.soft import label_loss, soft_target_loss
    from hf_distill.training.trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "Cascade",
    "DistillationConfig",
    "DistillationTrainer",
    "MLPConfig",
    "MLPForImageClassification",
    "Specialist",
    "confusable_classes",
    "label_loss",
    "shutdown_processes",
    "soft_target_loss",
    "specialist_labels",
    "student_from_teacher",
]

_HOMES = {
    "Cascade": "hf_distill.evaluation.cascade",
    "DistillationConfig": "hf_distill.training.config",
    "DistillationTrainer": "hf_distill.training.trainer",
    "MLPConfig": "hf_distill.models.mlp",
    "MLPForImageClassification": "hf_distill.models.mlp",
    "Specialist": "hf_distill.teachers.specialists",
    "confusable_classes": "hf_distill.teachers.specialists",
    "label_loss": "hf_distill.training.losses.soft",
    "shutdown_processes": "hf_distill.training.distributed",
    "soft_target_loss": "hf_distill.training.losses.soft",
    "specialist_labels": "hf_distill.teachers.specialists",
    "student_from_teacher": "hf_distill.models.students",
}


def __getattr__(name: str) -> Any:
    # Resolved on first use: importing torch and transformers takes seconds, which `hf-distill --help` does not have.
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_distill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


class _FormerHome(ModuleType):
    """The former home of `shutdown_processes`, until the next release."""

    def __getattr__(self, name: str) -> Any:
        if name != "part_with_other_processes":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return __getattr__("shutdown_processes")


sys.modules[f"{__name__}.parting"] = _FormerHome(f"{__name__}.parting")
