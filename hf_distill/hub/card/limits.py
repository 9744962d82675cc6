"""The part of a card that says what is not known, and what the results do not show."""

import math
from collections.abc import Mapping
from typing import Any

from hf_distill.evaluation.metrics import is_higher_better
from hf_distill.evaluation.results import Results
from hf_distill.hub.card.parts import split_words

_WIDTH = 1.96  # standard errors to each side of a 95 % interval
_CHOSEN_ON_THE_SAME = "The checkpoint was chosen on the very rows that the results come from, which flatters them."
_NO_BASELINE = "No baseline was trained, so how much of the result is owed to the teacher is not known."
_ONE_RUN = (
    "One training run of each model: another seed, machine or order of the rows gives other numbers, and how far they "
    "spread was not measured."
)
_BIAS = (
    "Where the teacher is unfair to people, or was trained on data that are, expect the same of the student; neither "
    "was examined for bias in this run."
)
_COLUMN = "Who made the soft targets that came with the data, and how, is not recorded."
_OTHER_DATA = "On data unlike the training rows its results are not known."


def limits(recipe: Mapping[str, Any], results: Results) -> list[str]:
    """Return the limits of a student, a sentence or two each: what is true of all, and what the results show of it."""
    data, training = recipe["data"], recipe["training"]
    split = split_words(data["test_split"] or data["eval_split"] or "the evaluation split", data["train_split"])
    found = [_precision(results, split), _gain(results)]
    if training.get("load_best_model_at_end") and data["test_split"] is None:
        found.append(_CHOSEN_ON_THE_SAME)
    found.append(_ONE_RUN)
    found.append(
        "It was taught to predict what its teacher predicts, mistakes included, and agrees with it on "
        f"{results.agreement:.2%} of the predictions. {_BIAS}"
    )
    found.append(_one_of(len(results.data["label_names"])))
    if not isinstance(recipe["teacher"], list) and recipe["teacher"].get("column"):
        found.append(_COLUMN)
    share = results.data["unlabelled_share"]
    if share:
        found.append(f"{share:.1%} of the training rows had no label: of these it knows only what the teacher said.")
    return found


def limits_of_training(
    recipe: Mapping[str, Any], data: Mapping[str, Any], *, is_measured: bool, is_chosen: bool
) -> list[str]:
    """Return the limits of a student of which no more is known than its own training."""
    found = []
    if is_measured:
        found.append("Measured on the evaluation rows, once; how far chance moves the result was not measured.")
    if is_chosen:
        found.append(_CHOSEN_ON_THE_SAME)
    if recipe["teacher"]:
        if is_measured:
            found.append(_NO_BASELINE)
        found.append(_ONE_RUN.replace(" of each model", ""))
        found.append(f"It was taught to predict what its teacher predicts, mistakes included. {_BIAS}")
        if any(teacher.get("column") for teacher in recipe["teacher"]):
            found.append(_COLUMN)
    else:
        found.append(_ONE_RUN.replace(" of each model", ""))
    is_single = data["problem_type"] in (None, "single_label_classification")
    found.append(_one_of(len(data["label_names"])) if is_single and data["label_names"] else _OTHER_DATA)
    return found


def _one_of(count: int) -> str:
    return f"It has {count} labels, and gives one of them to every input, those that fit none included. {_OTHER_DATA}"


def standard_error(share: float, count: int) -> float:
    """Return the standard error of a share of `count` independent cases, `sqrt(p (1 - p) / n)`."""
    return math.sqrt(share * (1 - share) / count)


def _interval(results: Results) -> tuple[float, int, float] | None:
    """Return accuracy, number of cases and standard error; None where the cases are not independent."""
    accuracy = results.student.metrics.get("accuracy")
    count = int(results.data.get("num_eval_labels", results.data["num_eval_rows"]))
    if accuracy is None or results.task == "token-classification" or not count:
        return None
    return accuracy, count, standard_error(accuracy, count)


def _precision(results: Results, split: str) -> str:
    known = _interval(results)
    rows = results.data.get("num_eval_labels", results.data["num_eval_rows"])
    if known is None:
        what = f"the {rows:,} labels" if results.task == "token-classification" else f"the {rows:,} rows"
        return f"Measured on {what} of {split}, once; how far chance moves the result was not measured."
    accuracy, count, error = known
    if error == 0:
        right, wrong = ("all", "wrong") if accuracy else ("none", "right")
        return (
            f"Of {count:,} rows of {split} the student got {right} right. By the rule of three, up to {3 / count:.2%} "
            f"of others may still be {wrong} (95%)."
        )
    low, high = max(0.0, accuracy - _WIDTH * error), min(1.0, accuracy + _WIDTH * error)
    return (
        f"The student's accuracy was measured on {count:,} rows of {split}: its standard error is {error:.4f}, the 95% "
        f"interval {low:.4f} to {high:.4f}."
    )


def _gain(results: Results) -> str:
    if results.baseline is None:
        return _NO_BASELINE
    metric = "accuracy" if "accuracy" in results.student.metrics else next(iter(results.student.metrics))
    student, baseline = results.student.metrics[metric], results.baseline.metrics[metric]
    if not is_higher_better(metric):
        return f"Its {metric} is {student:.4f}, the baseline's {baseline:.4f}; how much of that is chance is not known."
    if student <= baseline:
        return (
            f"**It does not beat the baseline** ({metric} {student:.4f} against {baseline:.4f}): no gain from the "
            "teacher is shown."
        )
    paired = results.differences.get("student_baseline")
    if paired is not None:
        low, high = (f"{100 * bound:+.1f}" for bound in paired.interval)
        told = "**No gain over the baseline is shown**" if not paired.is_certain else "It is better than the baseline"
        return (
            f"{told}: on these {paired.num_rows:,} rows their accuracies differ by {100 * paired.value:+.1f} points, "
            f"with a 95% interval of {low} to {high}, which knows nothing of other seeds."
        )
    known = _interval(results)
    if known is None or metric != "accuracy":
        return (
            f"It is better than the baseline by {student - baseline:.4f} ({metric}); whether that is more than chance "
            "was not measured."
        )
    if student - baseline <= _WIDTH * known[2]:
        return (
            f"**No gain over the baseline is shown**: the baseline's accuracy ({baseline:.4f}) lies in that interval."
        )
    return (
        f"It is better than the baseline ({baseline:.4f}), which lies below that interval. The rows are the same for "
        "both, and the interval knows nothing of other seeds."
    )
