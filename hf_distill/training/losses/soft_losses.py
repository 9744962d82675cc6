"""The soft losses by name: what each computes, where it applies, and what it takes.

Each function takes the student's and the teacher's logits in single precision, `(..., num_labels)`, and returns one
value per row or token, `(...)`. Of the rows that do not count, the values are not used.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.data.soft_losses import SOFT_LOSSES
from hf_distill.data.targets import ProblemType
from hf_distill.training.losses.soft import divergence_terms, full_precision, soft_target_loss

_EPS = 1e-8


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float, *, is_multi: bool) -> Tensor:
    """Compute `T^2 KL(q || p)` of the student's `q` and the teacher's `p` (arXiv 2306.08543, equation 2)."""
    q, p = _log_probabilities(student, temperature, is_multi), _log_probabilities(teacher, temperature, is_multi)
    return _per_row((q.exp() * (q - p)).sum(-1), is_multi) * temperature**2


def jensen_shannon(student: Tensor, teacher: Tensor, temperature: float, *, is_multi: bool, beta: float) -> Tensor:
    """Compute `T^2 (b KL(p || m) + (1 - b) KL(q || m))` with `m = b p + (1 - b) q` (arXiv 2306.13649, section 2)."""
    q, p = _log_probabilities(student, temperature, is_multi), _log_probabilities(teacher, temperature, is_multi)
    shares = torch.tensor([beta, 1 - beta], device=q.device, dtype=q.dtype).log()
    middle = torch.logsumexp(torch.stack([p + shares[0], q + shares[1]]), dim=0)
    divergence = beta * divergence_terms(p, middle) + (1 - beta) * divergence_terms(q, middle)
    return _per_row(divergence.sum(-1), is_multi) * temperature**2


def logit_mse(student: Tensor, teacher: Tensor, *, zero_mean: float) -> Tensor:
    """Compute the mean squared difference of the logits (arXiv 1312.6184, equation 1)."""
    difference = student - teacher
    if zero_mean:
        difference = difference - difference.mean(-1, keepdim=True)
    return difference.square().mean(-1)


def hard_labels(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the cross entropy with the teacher's most likely class (arXiv 2012.12877, equation 3)."""
    return -F.log_softmax(student, -1).gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)


def decoupled(
    student: Tensor, teacher: Tensor, temperature: float, labels: Tensor | None, *, target: float, beta: float
) -> Tensor:
    """Compute DKD: `T^2 (a KL of the label against the rest + b KL among the rest)` (arXiv 2203.08679, equation 7).

    A row without a label takes the teacher's most likely class for it.
    """
    chosen = teacher.argmax(-1)
    if labels is not None:
        chosen = torch.where(labels < 0, chosen, labels)
    is_label = F.one_hot(chosen, student.shape[-1]).bool()
    q, p = student / temperature, teacher / temperature
    binary, among_rest = [], []
    for logits in (p, q):
        of_label = logits.masked_fill(~is_label, -torch.inf).logsumexp(-1)
        of_rest = logits.masked_fill(is_label, -torch.inf).logsumexp(-1)
        binary.append(F.log_softmax(torch.stack([of_label, of_rest], -1), -1))
        # Its own class is out on both sides; a finite number there keeps NaN out of the gradient.
        among_rest.append(F.log_softmax(logits.masked_fill(is_label, -torch.inf), -1).masked_fill(is_label, 0.0))
    rest = (divergence_terms(*among_rest).masked_fill(is_label, 0.0)).sum(-1)
    return (target * divergence_terms(*binary).sum(-1) + beta * rest) * temperature**2


def correlation(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None, *, inter: float, intra: float
) -> Tensor:
    """Compute DIST: how far rows, and classes over this batch, are from correlated (arXiv 2205.10536, equation 10)."""
    q, p = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    flat_q, flat_p = q.flatten(0, -2), p.flatten(0, -2)
    counts = torch.ones_like(flat_q[:, :1]) if mask is None else mask.expand(q.shape[:-1]).reshape(-1, 1).to(q.dtype)
    of_classes = (1 - _correlation(flat_q, flat_p, 0, counts)).mean()
    values = intra * of_classes.expand(q.shape[:-1])
    if q.shape[-1] > 2:
        values = values + inter * (1 - _correlation(q, p, -1, torch.ones_like(q)))
    return values * temperature**2


def transformed_teacher(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute WTTM: `u KL(p || q)`, `q` at a temperature of 1 and `u = sum_k p_1k^(1/T)` (arXiv 2402.11148, eq. 18)."""
    log_weight = torch.logsumexp(F.log_softmax(teacher, -1) / temperature, -1)
    p, q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student, -1)
    return log_weight.exp() * divergence_terms(p, q).sum(-1)


def alpha_beta(student: Tensor, teacher: Tensor, temperature: float, *, a: float, b: float) -> Tensor:
    """Compute `T^2` times the alpha-beta divergence; (1, 0) is KL and (0, 1) reverse KL (arXiv 2505.04560, eq. 6)."""
    p, q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    mixed = (a * p + b * q).exp()
    own = (a * ((a + b) * p).exp() + b * ((a + b) * q).exp()) / (a + b)
    return -(mixed - own).sum(-1) / (a * b) * temperature**2


def standardized(logits: Tensor) -> Tensor:
    """Give each row's logits the mean 0 and the deviation 1 (arXiv 2403.01427, algorithm 1)."""
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (logits.std(-1, keepdim=True) + 1e-7)


def soft_loss(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    problem_type: ProblemType,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    standardize: bool = False,
    options: Mapping[str, float] | None = None,
) -> Tensor:
    """Compute a soft loss.

    Args:
        name: one of `SOFT_LOSSES`.
        student_logits: `(..., num_labels)`, of any floating type; half precision is computed in single precision.
        teacher_logits: `(..., num_labels)`; not differentiated.
        temperature: above 0.
        problem_type: the kind of target.
        labels: `(...)` class indices, negative where there is none; only `dkd` looks at them.
        mask: `(...)`, which rows or tokens count; only `dist` looks at it, whose values depend on the batch.
        standardize: give both sides' logits the mean 0 and the deviation 1 first.
        options: of the loss, in place of its defaults.

    Returns:
        `(...)`: one value for each row or token, not masked.

    Raises:
        ValueError: the shapes differ, or the temperature or the problem type is none.
    """
    student, teacher = full_precision(student_logits), full_precision(teacher_logits.detach())
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    chosen = {**SOFT_LOSSES[name].options, **(options or {})}
    is_multi = problem_type == "multi_label_classification"
    if name == "kl":
        return soft_target_loss(student, teacher, temperature, problem_type)
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: both need "
            "the same rows and the same labels"
        )
    losses: dict[str, Callable[[], Tensor]] = {
        "reverse_kl": lambda: reverse_kl(student, teacher, temperature, is_multi=is_multi),
        "js": lambda: jensen_shannon(student, teacher, temperature, is_multi=is_multi, **chosen),
        "mse": lambda: logit_mse(student, teacher, **chosen),
        "hard": lambda: hard_labels(student, teacher),
        "dkd": lambda: decoupled(student, teacher, temperature, labels, **chosen),
        "dist": lambda: correlation(student, teacher, temperature, mask, **chosen),
        "wttm": lambda: transformed_teacher(student, teacher, temperature),
        "alpha_beta": lambda: alpha_beta(student, teacher, temperature, **chosen),
    }
    return losses[name]()


def options_problems(name: str, options: Any) -> list[str]:
    """Say what is wrong with the options of a soft loss."""
    known = SOFT_LOSSES[name].options
    if not isinstance(options, dict):
        return [f"soft_loss_options must map names to numbers, got {options!r}."]
    problems = []
    if unknown := sorted(set(options) - set(known)):
        has = f"has {', '.join(known)}" if known else "has none"
        problems.append(f"soft_loss_options: soft_loss {name} {has}, got {', '.join(unknown)}.")
    for key, value in options.items():
        lowest = {"js": "above 0 and below 1", "alpha_beta": "above 0"}.get(name, "at least 0")
        is_number = isinstance(value, int | float)
        fits = is_number and value >= 0 and (value > 0 or lowest == "at least 0") and (value < 1 or name != "js")
        if key in known and not fits:
            problems.append(f"soft_loss_options: {key} of {name} must be {lowest}, got {value!r}.")
    return problems


def check_soft_loss(name: str, standardize: bool, problem_type: ProblemType | None, num_labels: int | None) -> None:
    """Refuse a soft loss, or logits of one deviation, that teach nothing of such labels.

    Args:
        name: one of `SOFT_LOSSES`.
        standardize: the logits are standardized.
        problem_type: None: not known yet, nor is it checked.
        num_labels: None: not known.

    Raises:
        ValueError: with what to use instead.
    """
    kind = SOFT_LOSSES[name]
    if problem_type is not None and problem_type not in kind.problem_types:
        others = ", ".join(key for key, loss in SOFT_LOSSES.items() if problem_type in loss.problem_types)
        raise ValueError(f"soft_loss {name} is not for {problem_type}: take one of {others}")
    if standardize and problem_type not in (None, "single_label_classification"):
        raise ValueError(f"standardize_logits is for classes, not for {problem_type}: leave it out")
    if num_labels is None or problem_type not in (None, "single_label_classification"):
        return
    if standardize and num_labels < 3:
        raise ValueError(
            f"standardize_logits needs at least 3 classes, the student has {num_labels}: of two logits it leaves "
            "nothing but which is larger, and no gradient. Leave it out"
        )
    if num_labels < kind.min_classes:
        raise ValueError(
            f"soft_loss {name} needs at least {kind.min_classes} classes, the student has {num_labels}: with one "
            "class beside the label there is nothing among the rest to learn. Take kl"
        )
    if name == "dist" and num_labels == 2:
        warnings.warn(
            "soft_loss dist at two classes is its part over the micro-batch alone: two probabilities of a row are "
            "always correlated, without a gradient",
            stacklevel=2,
        )


def _log_probabilities(logits: Tensor, temperature: float, is_multi: bool) -> Tensor:
    """Return log probabilities; of several labels for yes and no of each, `(..., num_labels, 2)`."""
    scaled = logits / temperature
    if is_multi:
        return torch.stack([F.logsigmoid(scaled), F.logsigmoid(-scaled)], -1)
    return F.log_softmax(scaled, -1)


def _per_row(values: Tensor, is_multi: bool) -> Tensor:
    return values.mean(-1) if is_multi else values


def _correlation(first: Tensor, second: Tensor, dim: int, counts: Tensor) -> Tensor:
    """Return Pearson's correlation along a dimension, over what counts; 0 where a side is constant."""
    num = counts.sum(dim, keepdim=True).clamp(min=1)
    centred = [(x - (x * counts).sum(dim, keepdim=True) / num) * counts for x in (first, second)]
    sizes = [(x.square().sum(dim) + _EPS**2).sqrt() for x in centred]
    return (centred[0] * centred[1]).sum(dim) / (sizes[0] * sizes[1])
