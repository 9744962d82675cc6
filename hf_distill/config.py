"""The settings of a distillation run."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

TEACHER_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class DistillationConfig(TrainingArguments):
    """All of `TrainingArguments`, and how a teacher's soft targets are blended with the labels.

    Raises:
        ValueError: one or more of the settings below is out of range; the message names all of them.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "teacher_label_map"]

    alpha: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the label loss, from 0 to 1; the soft-target loss has the weight 1 - alpha. "
            "0 learns from the teacher alone and needs no labels, 1 is plain training and never runs the teacher."
        },
    )
    temperature: float = field(
        default=4.0,
        metadata={
            "help": "Divides the logits of teacher and student before the softmax, and multiplies the soft-target "
            "loss by its square. Above 0; 1 to 20 is usual."
        },
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Type of the teacher's weights: float32, bfloat16, float16, or auto (as they were saved). Unset: "
            "float32 for a teacher named by a Hub id or path, unchanged for a model object."
        },
    )
    teacher_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a teacher that is named by a Hub id."},
    )
    teacher_label_map: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "The teacher's label for each label of the student, where the names differ: "
            '{"student label": "teacher label"}.'
        },
    )
    allow_untrained_teacher: bool = field(
        default=False,
        metadata={
            "help": "Accept a teacher whose head was newly initialised on loading, or whose predictions on the "
            "evaluation set are no better than chance."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the Python code that comes with a teacher named by a Hub id or path."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without an accelerator there is nothing to pin memory for, and torch would say so at every data loader.
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        problems = []
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            problems.append(
                f"alpha must be in [0, 1], got {self.alpha!r}. It is the weight of the label loss; 0.1 is usual."
            )
        if not _is_number(self.temperature) or not self.temperature > 0:
            problems.append(f"temperature must be > 0, got {self.temperature!r}. 1 to 20 is usual.")
        if self.teacher_dtype is not None and self.teacher_dtype not in TEACHER_DTYPES:
            problems.append(f"teacher_dtype must be one of {', '.join(TEACHER_DTYPES)}, got {self.teacher_dtype!r}.")
        if self.teacher_label_map is not None and not isinstance(self.teacher_label_map, dict):
            problems.append(
                "teacher_label_map must map each label of the student to one of the teacher, "
                f"got {self.teacher_label_map!r}."
            )
        if problems:
            raise ValueError("\n".join(problems))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
