"""A cascade: the student predicts what it is sure of, and its teacher the rest."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_distill.data.targets import MISSING_LABEL
from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.quality import log_softmax
from hf_distill.evaluation.results import Threshold

TARGETS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
RISK = 0.05
"""How likely a threshold may be to miss its target."""


def thresholds(
    predictions: Predictions,
    targets: Sequence[float] = TARGETS,
    *,
    by: str = "agreement",
    student: str = "student",
    teacher: str = "teacher",
) -> list[Threshold]:
    """Find for each target the least confidence from which on the student may predict alone.

    The rows must be such as neither model has been trained on. The share of all rows in which the student predicts
    alone and worse than its teacher can but grow as the confidence falls, so the least confidence whose upper bound
    (Clopper and Pearson, one-sided) is below what the target leaves misses it on new rows of the same kind with a
    probability of at most 5%, for each target by itself.

    Args:
        predictions: of both models.
        targets: from 0 to 1.
        by: `agreement` or `accuracy`, see `Threshold`.
        student: its name in the predictions.
        teacher: likewise.

    Raises:
        ValueError: a target or `by` is out of range, or `accuracy` is wanted and no row has a label.

    References:
        Bates et al., "Distribution-Free, Risk-Controlling Prediction Sets", arXiv 2101.02703, theorem 1.
    """
    from scipy.stats import beta

    wrong = [target for target in targets if not 0 < target < 1]
    if wrong or by not in ("agreement", "accuracy"):
        raise ValueError(f"targets must be above 0 and below 1, by agreement or accuracy; got {wrong or by!r}")
    same = predictions.comparable
    has_labels = len(same.labels) > 0 and bool((same.labels != MISSING_LABEL).all())
    if by == "accuracy" and not has_labels:
        raise ValueError("a threshold by accuracy needs labels, and no row has one: use agreement")
    confidence = np.exp(log_softmax(same.logits[student]).max(-1))
    own, asked = same.logits[student].argmax(-1), same.logits[teacher].argmax(-1)
    is_worse = own != asked
    if by == "accuracy":
        is_worse &= asked == same.labels
    order = np.argsort(-confidence, kind="stable")
    number, sure = len(order), confidence[order]
    worse = np.cumsum(is_worse[order])
    ends = np.flatnonzero(np.append(sure[1:] < sure[:-1], True))  # rows of equal confidence go together
    upper = beta.ppf(1 - RISK, worse[ends] + 1, number - worse[ends])
    upper = np.where(worse[ends] >= number, 1.0, upper)
    found = []
    for target in targets:
        count = int(np.sum(upper <= 1 - target))  # the bounds only grow
        taken = 0 if count == 0 else int(ends[count - 1]) + 1
        together = np.where(np.isin(np.arange(number), order[:taken]), own, asked)
        alone = int(worse[taken - 1]) if taken else 0
        found.append(
            Threshold(
                target,
                by,
                float(sure[taken - 1]) if taken else None,
                taken / number,
                1 - alone / number,
                1.0 if not taken else float(1 - upper[count - 1]),
                float(np.mean(together == same.labels)) if has_labels else None,
            )
        )
    return found


class Cascade:
    """A student and its teacher behind one call: the teacher is asked where the student is not sure.

    Args:
        student: a folder or Hub id of a classifier, or a `transformers` pipeline of one.
        teacher: likewise, with the same labels.
        threshold: the student's least probability for a prediction of its own, 0 to 1; see `thresholds`.
        **options: of `transformers.pipeline`, for those that are named: `device`, `task`, ...

    Raises:
        ValueError: the threshold is out of range, or the two have other labels.

    Example:
        >>> cascade = Cascade("runs/sst2/student", "runs/sst2/teacher", 0.93)
        >>> cascade(["a fine film", "well"])
        [{'label': 'positive', 'score': 0.99, 'by': 'student'}, {'label': 'negative', 'score': 0.71, 'by': 'teacher'}]
    """

    def __init__(self, student: Any, teacher: Any, threshold: float, **options: Any) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability, 0 to 1; got {threshold}")
        self.student = _pipeline(student, options)
        self.teacher = _pipeline(teacher, options)
        self.threshold = threshold
        ours, theirs = ({*each.model.config.id2label.values()} for each in (self.student, self.teacher))
        if ours != theirs:
            raise ValueError(f"student and teacher have other labels: {sorted(ours ^ theirs)[:5]}")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Classify one input, or a list of them.

        Args:
            inputs: what the pipelines take: texts, or images.
            **options: of the pipelines' calls, such as `batch_size`.

        Returns:
            for each input `label`, `score` and `by`, whose prediction it is; one alone for an input that is no list.
        """
        is_one = not isinstance(inputs, list)
        given = [inputs] if is_one else inputs
        found = [{**_best(each), "by": "student"} for each in self.student(given, **options)]
        asked = [place for place, each in enumerate(found) if each["score"] < self.threshold]
        if asked:
            others = self.teacher([given[place] for place in asked], **options)
            for place, other in zip(asked, others, strict=True):
                found[place] = {**_best(other), "by": "teacher"}
        return found[0] if is_one else found


def _pipeline(model: Any, options: dict[str, Any]) -> Any:
    """Return a pipeline of a model that is named, whose task its own config tells."""
    if not isinstance(model, str) and not hasattr(model, "__fspath__"):
        return model
    from transformers import AutoConfig, pipeline

    import hf_distill.models  # noqa: F401  (registers the architectures that Transformers lacks)

    known = {"SequenceClassification": "text-classification", "ImageClassification": "image-classification"}
    chosen = {**options, "model": str(model)}
    if "task" not in chosen:
        architectures = AutoConfig.from_pretrained(str(model)).architectures or [""]
        tasks = [task for end, task in known.items() if end in architectures[0]]
        if not tasks:
            raise ValueError(f"{model} is no classifier of texts or images: {architectures[0] or 'unknown'}")
        chosen["task"] = tasks[0]
    return pipeline(**chosen)


def _best(found: Any) -> dict[str, Any]:
    return dict(max(found, key=lambda each: each["score"]) if isinstance(found, list) else found)
