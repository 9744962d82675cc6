"""The settings of a distillation run."""

import contextlib
import json
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, get_type_hints

import torch
from transformers import TrainingArguments

from hf_distill.data.soft_losses import MATCHING_TERMS, SOFT_LOSSES
from hf_distill.training.config_checks import settings_problems
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
    relation_weight: Annotated[float, OBJECTIVE] = field(
        default=0.0,
        metadata={
            "help": "Weight of a term that compares the relations among queries, keys and values in the last attention "
            "layer with the teacher's (MiniLMv2); 1 is usual. Needs the teacher at each step."
        },
    )
    relation_layer: Annotated[int, OBJECTIVE] = field(
        default=-1,
        metadata={"help": "The teacher's layer for relation_weight: -1 is the last, -2 the one before it."},
    )
    relation_heads: Annotated[int | None, OBJECTIVE] = field(
        default=None,
        metadata={
            "help": "Parts that queries, keys and values are split into for relation_weight; divides both widths. "
            "Unset: the teacher's number of attention heads."
        },
    )
    hidden_weight: Annotated[float, OBJECTIVE] = field(
        default=0.0,
        metadata={
            "help": "Weight of a term that compares hidden states, or the maps of a convolutional net's stages, by "
            "layer_map; 1 is usual. Where widths differ a linear projection is learned. Needs the teacher at each step."
        },
    )
    hidden_loss: Annotated[str, OBJECTIVE] = field(
        default="mse",
        metadata={"choices": ["mse", "cosine"], "help": "How hidden_weight compares: mse or cosine."},
    )
    layer_map: Annotated[list[list[int]] | str | None, OBJECTIVE] = field(
        default="uniform",
        metadata={
            "help": "Which layers hidden_weight and attention_weight compare: uniform (the student's evenly over the "
            "teacher's), last, or pairs of a student's and a teacher's layer: [[0, 1], [1, 5]]."
        },
    )
    feature_weight: Annotated[float, OBJECTIVE] = field(
        default=0.0,
        metadata={
            "help": "Weight of a term that compares the pooled features, which the last layer reads; 1 is usual. Needs "
            "the teacher at each step."
        },
    )
    feature_loss: Annotated[str, OBJECTIVE] = field(
        default="vkd",
        metadata={
            "choices": ["vkd", "rkd"],
            "help": "How feature_weight compares: vkd (a learned orthogonal projection), or rkd (distances and angles "
            "among the rows of a micro-batch).",
        },
    )
    attention_weight: Annotated[float, OBJECTIVE] = field(
        default=0.0,
        metadata={
            "help": "Weight of a term that compares where a convolutional net's stages have their energy (attention "
            "transfer), by layer_map; 1000 is usual. Needs the teacher at each step."
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
        if isinstance(self.layer_map, str) and self.layer_map.startswith("["):  # from a command line
            with contextlib.suppress(ValueError):
                self.layer_map = json.loads(self.layer_map)
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
        problems = settings_problems(self)
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def uses_teacher(self) -> bool:
        """Tell whether any step learns from a teacher."""
        return self.uses_soft_targets or bool(self.matching_weights)

    @property
    def uses_soft_targets(self) -> bool:
        """Tell whether any step learns from soft targets."""
        return self.alpha < 1 or (self.alpha_end is not None and self.alpha_end < 1)

    @property
    def matching_weights(self) -> dict[str, float]:
        """Return the weights of the terms that compare the inside of student and teacher, those that there are."""
        weights = {name: getattr(self, f"{name}_weight") for name in MATCHING_TERMS}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def terms_of_micro_batches(self) -> list[str]:
        """Name the terms whose rows are compared with each other, in each micro-batch of each process."""
        is_rkd = bool(self.feature_weight) and self.feature_loss == "rkd"
        is_dist = self.uses_soft_targets and SOFT_LOSSES[self.soft_loss].is_of_batch
        return ["soft"] * is_dist + ["feature"] * is_rkd

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


@cache
def settings_marked(*marks: str) -> frozenset[str]:
    """Name the settings that have any of some marks."""
    hints = get_type_hints(DistillationConfig, include_extras=True)
    return frozenset(name for name, hint in hints.items() if {*getattr(hint, "__metadata__", ())} & {*marks})
