"""The settings of a distillation run."""

import math
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, get_type_hints

import torch
from transformers import TrainingArguments

from hf_distill.data.soft_losses import SOFT_LOSSES
from hf_distill.training.losses.soft_losses import options_problems
from hf_distill.training.schedules import SCHEDULES, scheduled

# Marks of a setting, by which others find it: what it decides, and whether it is about the recipe's own teachers (a
# later student is taught by the one before it) or means nothing without a model.
OBJECTIVE, TEACHER, CACHE, FIRST_TEACHERS, NEEDS_MODEL = (
    "objective",
    "teacher",
    "cache",
    "first teachers",
    "needs model",
)


@dataclass
class DistillationConfig(TrainingArguments):
    """All of `TrainingArguments`, and how a teacher's soft targets are blended with the labels.

    Raises:
        ValueError: one or more of the settings below is out of range; the message names all of them.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "teacher_label_map", "soft_loss_options"]

    alpha: Annotated[float, OBJECTIVE] = field(
        default=0.1,
        metadata={
            "help": "Weight of the label loss, from 0 to 1; the soft-target loss has the weight 1 - alpha. "
            "0 learns from the teacher alone and needs no labels, 1 is plain training and never runs the teacher."
        },
    )
    temperature: Annotated[float, OBJECTIVE] = field(
        default=4.0,
        metadata={
            "help": "Divides the logits of teacher and student before the softmax, and multiplies the soft-target "
            "loss by its square. Above 0; 1 to 20 is usual."
        },
    )
    soft_loss: Annotated[str, OBJECTIVE] = field(
        default="kl",
        metadata={
            "choices": list(SOFT_LOSSES),
            "help": "How the student is compared with the teacher: kl, reverse_kl, js, mse (of the logits), hard (the "
            "teacher's most likely class), dkd (from 3 classes), dist, wttm or alpha_beta; their formulas are in "
            "docs/config_reference.md. mse and hard have no temperature.",
        },
    )
    soft_loss_options: Annotated[dict[str, float] | str | None, OBJECTIVE] = field(
        default=None,
        metadata={
            "help": 'Numbers of the soft loss in place of its defaults: {"beta": 8} for dkd (target 1, beta 2), beta '
            "for js (0.5), zero_mean for mse (0), inter and intra for dist (1, 1), a and b for alpha_beta (0.8, 0.3)."
        },
    )
    standardize_logits: Annotated[bool, OBJECTIVE] = field(
        default=False,
        metadata={
            "help": "Give each row's logits, the student's and the teacher's, the mean 0 and the deviation 1 before "
            "the soft loss. From 3 classes."
        },
    )
    alpha_end: Annotated[float | None, OBJECTIVE] = field(
        default=None,
        metadata={"help": "The value of alpha at the last step; needs a schedule. Unset: alpha stays as it is."},
    )
    temperature_end: Annotated[float | None, OBJECTIVE] = field(
        default=None,
        metadata={"help": "The temperature at the last step; needs a schedule. Unset: the temperature stays as it is."},
    )
    schedule: Annotated[str, OBJECTIVE] = field(
        default="constant",
        metadata={
            "choices": list(SCHEDULES),
            "help": "How alpha and temperature move from their first to their end values: constant, linear or cosine. "
            "Evaluation always uses the end values, so that eval_loss is one measure during the whole training.",
        },
    )
    teacher_weights: Annotated[list[float] | None, TEACHER, FIRST_TEACHERS] = field(
        default=None,
        metadata={
            "help": "Weight of each of several teachers (specialists have none), in their order; they are divided by "
            "their sum. Unset: all count the same."
        },
    )
    teacher_combination: Annotated[str, TEACHER, FIRST_TEACHERS] = field(
        default="arithmetic",
        metadata={
            "choices": list(("arithmetic", "geometric")),
            "help": "Mean of several teachers' probabilities at the temperature in use: arithmetic or geometric.",
        },
    )
    teacher_input_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns from which a teacher's own inputs are made by its teacher_processing_class: one text, a "
            "pair of texts, a list of words, or an image. Unset: the only such column of the data."
        },
    )
    teacher_max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens kept of a text for a teacher with a tokenizer of its own. Unset: the most that it takes."
        },
    )
    teacher_placement: Annotated[str, TEACHER, NEEDS_MODEL] = field(
        default="same",
        metadata={
            "help": "Where the teacher lives: same (the student's device in each process), cpu, a device such as "
            "cuda:1, auto (spread over all devices by Accelerate; one process only), or sharded (over all processes, "
            "by FSDP2 or, in a DeepSpeed run, ZeRO-3)."
        },
    )
    teacher_quantization: Annotated[str | None, TEACHER, NEEDS_MODEL] = field(
        default=None,
        metadata={
            "choices": list(("8bit", "4bit")),
            "help": "Load a teacher that is named by a Hub id or path in 8bit or 4bit (bitsandbytes, on a GPU; "
            "pip install hf_distill[quant]).",
        },
    )
    teacher_dtype: Annotated[str | None, TEACHER, NEEDS_MODEL] = field(
        default=None,
        metadata={
            "choices": list(("auto", "float32", "bfloat16", "float16")),
            "help": "Type of the teacher's weights: float32, bfloat16, float16, or auto (as they were saved). Unset: "
            "float32 for a teacher named by a Hub id or path, unchanged for a model object. In mixed precision (bf16, "
            "fp16) it computes as the student does, whatever its weights are.",
        },
    )
    teacher_torch_compile: Annotated[bool, TEACHER, NEEDS_MODEL] = field(
        default=False,
        metadata={
            "help": "Compile the teacher with torch.compile, by torch_compile_backend (unset: inductor) and "
            "torch_compile_mode; torch_compile is the student's."
        },
    )
    teacher_revision: Annotated[str | None, TEACHER] = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a teacher that is named by a Hub id."},
    )
    teacher_label_map: Annotated[dict[str, str] | str | None, TEACHER, FIRST_TEACHERS, NEEDS_MODEL] = field(
        default=None,
        metadata={
            "help": "The teacher's label for each label of the student, where the names differ: "
            '{"student label": "teacher label"}.'
        },
    )
    precompute_teacher_logits: Annotated[bool, CACHE] = field(
        default=False,
        metadata={
            "help": "Compute the soft targets of the training and evaluation rows once, cache them in "
            "teacher_logits_dir, and release the teacher: the training then costs what the student's alone does. "
            "Without a teacher, learn from those that are cached there."
        },
    )
    teacher_logits_dir: Annotated[str | None, CACHE, FIRST_TEACHERS, NEEDS_MODEL] = field(
        default=None,
        metadata={
            "help": "Folder of cached soft targets; those of rows that are in it are not computed again. Unset: "
            "_teacher_logits in output_dir."
        },
    )
    teacher_logits_dtype: Annotated[str | None, CACHE] = field(
        default=None,
        metadata={
            "choices": list(("float16", "float32")),
            "help": "Type in which logits are cached: float16 or float32. Unset: that of those that are there, else "
            "float16, float32 for regression.",
        },
    )
    teacher_logits_top_k: Annotated[int | None, CACHE] = field(
        default=None,
        metadata={
            "help": "Cache so many of each row's largest logits, and how much the others have together, which they "
            "then share evenly. For many labels; how far that is from all of them is measured and logged. Unset: all."
        },
    )
    teacher_logits_views: Annotated[int | None, CACHE] = field(
        default=None,
        metadata={
            "help": "For training rows that are augmented: cache the soft targets of so many views of each row. "
            "Epoch e replays view e modulo this number."
        },
    )
    teacher_logits_batch_size: Annotated[int | None, CACHE, NEEDS_MODEL] = field(
        default=None,
        metadata={"help": "Rows of a batch, in each process, when soft targets are cached. Unset: 4 training batches."},
    )
    train_sampling_strategy: str = field(
        default="auto",
        metadata={
            "help": "How rows become training batches: auto (group_by_length for texts whose lengths are known without "
            "reading the rows one by one, else random), or one of Trainer's: random, sequential, group_by_length, "
            "batch_rebalance.",
            "choices": ["auto", "random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave NaN and infinite losses out of the logged mean. It has each step wait for the device, so it "
            "is off here, unlike in TrainingArguments."
        },
    )
    allow_untrained_teacher: bool = field(
        default=False,
        metadata={
            "help": "Accept a teacher whose head was newly initialised on loading, or whose predictions on the "
            "evaluation set are no better than chance, or fit its labels in another order; and give no warning of a "
            "weak one."
        },
    )
    teacher_trust_remote_code: Annotated[bool, TEACHER, FIRST_TEACHERS] = field(
        default=False,
        metadata={
            "help": "Run the Python code that comes with the teacher, the only one, that is named by a Hub id or path. "
            "Code of others (a student, a processor of its own name, another repository) is not meant."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without an accelerator there is nothing to pin memory for, and torch would say so at every data loader.
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        self.check_distillation_settings()
        # `hyperparameter_search` casts a trial's value to the type of the present one.
        for each in fields(self):
            if isinstance(each.default, float) or each.name in ("alpha_end", "temperature_end"):
                value = getattr(self, each.name)
                setattr(self, each.name, float(value) if type(value) is int else value)

    def check_distillation_settings(self) -> None:
        """Check the fields that `TrainingArguments` does not have.

        Raises:
            ValueError: one or more of them are out of range; the message names all.
        """
        problems = []
        for name in ("alpha", "alpha_end"):
            value = getattr(self, name)
            if not (value is None and name != "alpha") and not (_is_number(value) and 0 <= value <= 1):
                problems.append(
                    f"{name} must be in [0, 1], got {value!r}. It is the weight of the label loss; 0.1 is usual."
                )
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if not (value is None and name != "temperature") and not (_is_number(value) and value > 0):
                problems.append(f"{name} must be > 0, got {value!r}. 1 to 20 is usual.")
        for each in fields(self):
            choices, value = each.metadata.get("choices"), getattr(self, each.name)
            if choices and value not in choices and value != each.default:
                problems.append(f"{each.name} must be one of {', '.join(choices)}, got {value!r}.")
        if self.soft_loss in SOFT_LOSSES and self.soft_loss_options is not None:
            problems += options_problems(self.soft_loss, self.soft_loss_options)
        problems += self._schedule_problems() + self._teacher_problems() + self._precomputing_problems()
        if self.teacher_label_map is not None and not isinstance(self.teacher_label_map, dict):
            problems.append(
                "teacher_label_map must map each label of the student to one of the teacher, "
                f"got {self.teacher_label_map!r}."
            )
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def uses_teacher(self) -> bool:
        """Tell whether any step learns from soft targets."""
        return self.alpha < 1 or (self.alpha_end is not None and self.alpha_end < 1)

    @property
    def uses_labels(self) -> bool:
        """Tell whether any step learns from labels."""
        return self.alpha > 0 or (self.alpha_end is not None and self.alpha_end > 0)

    @property
    def most_alpha(self) -> float:
        """Return the largest weight that labels have at any step."""
        return self.alpha if self.alpha_end is None else max(self.alpha, self.alpha_end)

    @property
    def last_alpha(self) -> float:
        """Return alpha at the end of the training, by which evaluation goes."""
        return self.alpha if self.alpha_end is None else self.alpha_end

    @property
    def last_temperature(self) -> float:
        """Return the temperature at the end of the training, by which evaluation goes."""
        return self.temperature if self.temperature_end is None else self.temperature_end

    def alpha_at(self, step: int, num_steps: int) -> float:
        """Return alpha at a step of the training, counted from 0."""
        return scheduled(self.alpha, self.alpha_end, step, num_steps, self.schedule)  # type: ignore[arg-type]

    def temperature_at(self, step: int, num_steps: int) -> float:
        """Return the temperature at a step of the training, counted from 0."""
        return scheduled(self.temperature, self.temperature_end, step, num_steps, self.schedule)  # type: ignore[arg-type]

    def _schedule_problems(self) -> list[str]:
        if self.schedule not in SCHEDULES:
            return []
        ends = [name for name in ("alpha_end", "temperature_end") if getattr(self, name) is not None]
        if self.schedule == "constant" and ends:
            return [f"{ends[0]} has no effect with schedule constant: set schedule to linear or cosine."]
        if self.schedule != "constant" and not ends:
            return [f"schedule {self.schedule} has no end value to move to: set alpha_end or temperature_end."]
        return []

    def _teacher_problems(self) -> list[str]:
        problems = []
        weights = self.teacher_weights
        if weights is not None and not (
            isinstance(weights, list)
            and all(_is_number(weight) and weight >= 0 for weight in weights)
            and sum(weights) > 0
        ):
            problems.append(
                f"teacher_weights must be numbers of at least 0 with a sum above 0, got {weights!r}. Unset, all "
                "teachers count the same."
            )
        length = self.teacher_max_length
        if length is not None and not (isinstance(length, int) and not isinstance(length, bool) and length > 0):
            problems.append(f"teacher_max_length must be a whole number > 0, got {length!r}. Unset is all it takes.")
        if self.teacher_torch_compile and self.teacher_placement in ("auto", "sharded"):
            problems.append(
                f"teacher_torch_compile does not go with teacher_placement {self.teacher_placement}: leave one out."
            )
        if self.teacher_torch_compile and self.teacher_quantization is not None:
            problems.append("teacher_torch_compile does not go with teacher_quantization: leave one out.")
        return problems

    def _precomputing_problems(self) -> list[str]:
        problems = []
        counts = ("teacher_logits_top_k", "teacher_logits_views", "teacher_logits_batch_size")
        for name in counts:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
                problems.append(f"{name} must be a whole number > 0, got {value!r}. Unset is usual.")
        if not self.precompute_teacher_logits:
            problems += [
                f"{name} has no effect without precompute_teacher_logits: set that to true, or leave it out."
                for name in ("teacher_logits_dir", "teacher_logits_dtype", *counts)
                if getattr(self, name) is not None
            ]
        return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@cache
def settings_marked(*marks: str) -> frozenset[str]:
    """Name the settings that have any of some marks."""
    hints = get_type_hints(DistillationConfig, include_extras=True)
    return frozenset(name for name, hint in hints.items() if {*getattr(hint, "__metadata__", ())} & {*marks})
