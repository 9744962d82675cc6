"""The soft losses: what each is in words, where it applies and what it takes; how they are computed is `training`'s."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_SINGLE: tuple[str, ...] = ("single_label_classification",)
_CLASSES: tuple[str, ...] = (*_SINGLE, "multi_label_classification")


@dataclass(frozen=True)
class SoftLoss:
    """What is to be known of a soft loss.

    Attributes:
        formula: in words, for the card and the docs; p is the teacher's distribution, q the student's.
        problem_types: where it applies.
        min_classes: the fewest classes at which all of it has a gradient.
        uses_labels: labels have a part in it, where there are any.
        is_of_batch: a row's value depends on the other rows of its micro-batch in its process.
        rules_out: the teacher may rule classes out (a logit of -inf).
        options: what `soft_loss_options` may set, with the defaults.
    """

    formula: str
    problem_types: tuple[str, ...] = _SINGLE
    min_classes: int = 2
    uses_labels: bool = False
    is_of_batch: bool = False
    rules_out: bool = True
    options: Mapping[str, float] = field(default_factory=dict)


MATCHING_TERMS = {
    "relation": "attention relations (MiniLMv2)",
    "hidden": "hidden states",
    "feature": "pooled features",
    "attention": "attention transfer",
}
"""The terms that compare the inside of student and teacher, each with a weight of its own, and what they compare."""

SOFT_LOSSES: dict[str, SoftLoss] = {
    "kl": SoftLoss("T^2 KL(p, q)", (*_CLASSES, "regression")),
    "reverse_kl": SoftLoss("T^2 KL(q, p)", _CLASSES, rules_out=False),
    "js": SoftLoss(
        "T^2 times the Jensen-Shannon divergence of p and q, p weighted by beta", _CLASSES, options={"beta": 0.5}
    ),
    "mse": SoftLoss(
        "the mean squared difference of the logits",
        (*_CLASSES, "regression"),
        rules_out=False,
        options={"zero_mean": 0},
    ),
    "hard": SoftLoss("the cross entropy with the teacher's most likely class"),
    "dkd": SoftLoss(
        "T^2 (target KL of the label against the rest + beta KL among the rest)",
        min_classes=3,
        uses_labels=True,
        rules_out=False,
        options={"target": 1.0, "beta": 2.0},
    ),
    "dist": SoftLoss(
        "T^2 (inter (1 - the correlation of each row's p and q) + intra (1 - that of each class over the micro-batch))",
        is_of_batch=True,
        options={"inter": 1.0, "intra": 1.0},
    ),
    "wttm": SoftLoss("u KL(p, q at T = 1), u = the sum of the teacher's probabilities to the power 1/T"),
    "alpha_beta": SoftLoss(
        "T^2 times the alpha-beta divergence of p and q", rules_out=False, options={"a": 0.8, "b": 0.3}
    ),
}
"""Every soft loss works from cached logits."""
