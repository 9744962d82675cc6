"""The two terms of the distillation objective, unreduced.

The objective is `alpha * label_loss + (1 - alpha) * soft_target_loss`. Both functions return one value per row
(or token, or label entry) and no mean: only the trainer knows over how many rows, micro-batches and processes a
mean has to run, and two means are needed, because a row without a label still has soft targets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.targets import MISSING_LABEL, PROBLEM_TYPES, ProblemType, label_mask


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, problem_type: ProblemType
) -> Tensor:
    """Compute how far the student is from the teacher's soft targets, times the temperature squared.

    - `single_label_classification`: `T^2 * KL(softmax(teacher / T) || softmax(student / T))`.
    - `multi_label_classification`: the same with a Bernoulli distribution per class, averaged over the classes (as the
      label loss is), so that `alpha` weighs two values of one scale.
    - `regression`: the squared error, averaged over the outputs; `T^2` cancels the two divisions by `T`.

    The factor `T^2` keeps the gradient's size when the temperature changes; for a high temperature and logits of zero
    mean the gradient tends to `(student - teacher) / num_labels`, that of matching logits.

    Args:
        student_logits: `(..., num_labels)`, of any floating type; half precision is computed in single precision.
        teacher_logits: `(..., num_labels)`, the teacher's, in the student's label order; not differentiated. `-inf`
            rules a class out.
        temperature: above 0; 1 leaves the distributions as they are, 2 to 20 is usual.
        problem_type: the kind of target.

    Returns:
        `(...)`: one value for each row or token, not masked.

    Raises:
        ValueError: the shapes differ, or the temperature or the problem type is none.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2 and
        equations 2 to 4 (the high-temperature limit).
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}: both need the same rows and the same labels"
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
    student = full_precision(student_logits)
    teacher = full_precision(teacher_logits.detach())
    if problem_type == "regression":
        return (student - teacher).square().mean(-1)
    student, teacher = student / temperature, teacher / temperature
    if problem_type == "single_label_classification":
        divergence = divergence_terms(F.log_softmax(teacher, dim=-1), F.log_softmax(student, dim=-1)).sum(-1)
    elif problem_type == "multi_label_classification":
        positive = divergence_terms(F.logsigmoid(teacher), F.logsigmoid(student))
        negative = divergence_terms(F.logsigmoid(-teacher), F.logsigmoid(-student))
        divergence = (positive + negative).mean(-1)
    else:
        raise _unknown_problem_type(problem_type)
    return divergence * temperature**2


def label_loss(
    student_logits: Tensor, labels: Tensor, problem_type: ProblemType, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the loss against the labels; 0 where a label is missing.

    Divided by the number of labels that are not missing (`label_mask`), it is what Transformers' models compute for a
    full batch: cross entropy, binary cross entropy over the entries, or mean squared error over the entries.

    Args:
        student_logits: `(batch, num_labels)`, or `(batch, tokens, num_labels)` with a label for each token.
        labels: `(batch,)` or `(batch, tokens)` class indices; `(batch, num_labels)` of 0 to 1 for multi-label;
            `(batch,)` or `(batch, num_labels)` numbers for regression. `-100` is a missing label (and so is NaN among
            floating labels).
        problem_type: the kind of target.
        label_smoothing: in [0, 1); how much of a single label is spread evenly over all classes.

    Returns:
        one value for each label, in the shape of `label_mask`.

    Raises:
        ValueError: the labels do not fit the logits, the problem type is none, or label smoothing is out of range or
            asked of labels that are not classes.
    """
    if problem_type not in PROBLEM_TYPES:
        raise _unknown_problem_type(problem_type)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}. 0.1 is usual.")
    logits = full_precision(student_logits)
    if label_smoothing and problem_type != "single_label_classification":
        raise ValueError(
            f"label smoothing spreads a class label over the other classes, {problem_type} has none: "
            "set label_smoothing_factor to 0"
        )
    present = label_mask(labels, problem_type)
    if problem_type == "single_label_classification":
        if labels.shape != logits.shape[:-1]:
            raise ValueError(_misfit(labels, logits, problem_type, "one class index for each row or token"))
        if labels.is_floating_point():
            raise ValueError(f"class labels must be whole numbers (torch.long), got {labels.dtype}: convert them")
        losses = F.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten().long(),
            reduction="none",
            ignore_index=MISSING_LABEL,
            label_smoothing=label_smoothing,
        )
        return losses.view(labels.shape)
    if problem_type == "regression" and logits.shape[-1] == 1 and labels.dim() == logits.dim() - 1:
        logits = logits.squeeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(_misfit(labels, logits, problem_type, "one number for each of the student's outputs"))
    targets = labels.to(logits.dtype).masked_fill(~present, 0.0)
    if problem_type == "multi_label_classification":
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        losses = (logits - targets).square()
    return losses.masked_fill(~present, 0.0)


def divergence_terms(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """Return `p_teacher * (log p_teacher - log p_student)`, 0 where the teacher's probability is 0."""
    teacher = log_teacher.exp()
    return teacher * (log_teacher - log_student).masked_fill(teacher == 0, 0.0)


def full_precision(logits: Tensor) -> Tensor:
    """Return half precision in single precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _misfit(labels: Tensor, logits: Tensor, problem_type: str, expected: str) -> str:
    return (
        f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)} in {problem_type}: "
        f"expected {expected}, or another problem_type in the student's config"
    )


def _unknown_problem_type(problem_type: str) -> ValueError:
    return ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}")
