"""What `Trainer.hyperparameter_search` needs to know of a distillation."""

from collections.abc import Mapping
from typing import Any

from transformers.trainer_utils import default_compute_objective

from hf_distill.training.config import DistillationConfig


def objective_without_parts(metrics: dict[str, float]) -> float:
    """Return `Trainer`'s default objective, in which the parts of the loss count once, in `eval_loss`."""
    parts = ("_soft_loss", "_label_loss")
    objective: float = default_compute_objective({k: v for k, v in metrics.items() if not k.endswith(parts)})
    return objective


def check_trial(before: Mapping[str, Any], args: DistillationConfig, *, has_teacher: bool) -> None:
    """Refuse a trial whose settings are out of range, or come too late to have an effect.

    Raises:
        ValueError: with the setting and the remedy.
    """
    args.check_distillation_settings()
    changed = [name for name, value in vars(args).items() if before.get(name) != value]
    fixed = [name for name in changed if name.startswith(("teacher_", "precompute_"))]
    if fixed:
        raise ValueError(f"a search cannot vary {', '.join(fixed)}: the teacher is the same in all trials")
    if args.uses_teacher and not has_teacher:
        raise ValueError(
            f"this trial has alpha {args.alpha}, and there is no teacher: pass teacher=, or leave alpha at 1"
        )
