"""Why a student may have learned little, and the setting to change."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_distill.evaluation.predictions import Predictions
from hf_distill.evaluation.quality import log_softmax
from hf_distill.evaluation.results import Results

_FAR = 0.95  # of the teacher's first metric
_SHARP, _FLAT = 0.02, 0.98  # mean entropy of the soft targets, as a share of the largest there is
_HIGH_ALPHA = 0.7
_FEW_STEPS = 200


def diagnose(results: Results, predictions: Predictions | None, recipe: Mapping[str, Any]) -> list[str]:
    """Say what may be wrong with a student that lost to its baseline, or is far from its teacher; else nothing.

    A teacher that is worse than the baseline is told by `tables.verdict`.

    Args:
        results: of the run.
        predictions: of its models, if there are any.
        recipe: its settings, as a mapping.
    """
    metric = next(iter(results.student.metrics))
    teacher, student = results.teacher.metrics[metric], results.student.metrics[metric]
    gain = results.differences.get("student_baseline")
    lost, is_far = gain is not None and gain.value < 0, teacher > 0 and student < _FAR * teacher
    if not lost and not is_far:
        return []
    training = recipe["training"]
    found = []
    if training.get("alpha", 0.1) >= _HIGH_ALPHA:
        found.append(f"alpha {training['alpha']} leaves little to the teacher: try training.alpha=0.1")
    if predictions is not None:
        found += _of_predictions(predictions.comparable, float(training.get("temperature", 4.0)))
    steps = max((int(entry["step"]) for entry in results.curves.get("student", [])), default=None)
    if steps is not None and steps < _FEW_STEPS:
        found.append(f"the student made {steps} steps: give it more epochs (training.num_train_epochs)")
    elif is_far and not found:
        found.append(
            "the student may be too small, or want more epochs or another learning rate: training.num_train_epochs, "
            "training.learning_rate, more layers"
        )
    return found


def _of_predictions(same: Predictions, temperature: float) -> list[str]:
    found: list[str] = []
    if not len(same.labels):
        return found
    predicted = {name: len(np.unique(each.argmax(-1))) for name, each in same.logits.items()}
    if predicted.get("student") == 1 and len(np.unique(same.labels)) > 1:
        found.append("the student predicts one class for all rows: lower training.learning_rate, or train it longer")
    if "teacher" in same.logits:
        log_p = log_softmax(same.logits["teacher"] / temperature)
        entropy = float(-(np.exp(log_p) * log_p).sum(-1).mean() / np.log(log_p.shape[1]))
        if entropy < _SHARP:
            found.append(
                f"at temperature {temperature:g} the soft targets hardly differ from labels (entropy {entropy:.1%} of "
                f"the most): try training.temperature={2 * temperature:g}"
            )
        if entropy > _FLAT:
            found.append(
                f"at temperature {temperature:g} the soft targets are nearly uniform (entropy {entropy:.1%} of the "
                f"most): try training.temperature={temperature / 2:g}"
            )
    return found
