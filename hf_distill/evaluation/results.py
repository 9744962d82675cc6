"""What a run found, and its form on disk."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

_MOST_POINTS = 500  # of a stage's curve: a picture shows no more, and results.json stays small


@dataclass(frozen=True)
class ModelResult:
    """One model on the evaluation data.

    Attributes:
        metrics: by name; accuracy and F1 from 0 to 1.
        num_parameters: all of them, trainable or not, of several teachers together; None for a teacher that is a
            column of the data.
        size_mib: of the weights, in MiB; None likewise.
        train_seconds: time spent in training, restarts included; None for a model that came ready.
        latency_ms: milliseconds for one row alone, the median; None where there is no model.
        rows_per_second: in batches of 32 rows; None likewise.
        latency_p90_ms: milliseconds within which nine of ten rows alone are done; None likewise.
        latency_p99_ms: 99 of 100.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    metrics: Annotated[dict[str, int | float], Field(min_length=1)]
    num_parameters: int | None
    size_mib: float | None
    train_seconds: float | None
    latency_ms: float | None = None
    rows_per_second: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None


@dataclass(frozen=True)
class Difference:
    """How much more accurate one model is than another on the same rows.

    Attributes:
        value: the one accuracy less the other, from -1 to 1.
        standard_error: of that, from the rows on which the two differ; other seeds would differ by more.
        num_rows: that have a label (for words with tags: words).

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    value: float
    standard_error: float
    num_rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95% interval."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error

    @property
    def is_certain(self) -> bool:
        """Tell whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Threshold:
    """From which confidence on the student may predict alone.

    Attributes:
        target: share of all predictions that are to be as good as the teacher's.
        by: `agreement`: they are the same as the teacher's; `accuracy`: none is wrong where the teacher is right.
        confidence: the student's largest probability from which on its prediction counts; None if it never may.
        share: of the rows that the student predicts alone, from 0 to 1.
        found: share of all predictions on these rows that are as good as the teacher's.
        bound: of the same on new rows, from below, with 95% confidence.
        accuracy: of both together on these rows; None without labels.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    target: float
    by: str
    confidence: float | None
    share: float
    found: float
    bound: float
    accuracy: float | None


@dataclass(frozen=True)
class Results:
    """Teacher, student and the simple student that was trained without a teacher.

    Attributes:
        task: the recipe's task.
        recipe: the recipe's name.
        teacher: the teacher.
        student: the distilled student, as it was saved.
        baseline: the same student trained on the labels alone; None if the recipe wants none.
        agreement: share of the predictions in which the student agrees with the teacher, from 0 to 1.
        gap_closed: how much of the way from the baseline to the teacher the student went, by the first metric; 1 is
            all of it. None without a baseline, or if the teacher is not better than the baseline.
        environment: versions and hardware.
        data: rows of each split, and the part of the training rows that has no label.
        teachers: each of several teachers alone, by name; `teacher` is then all of them together.
        stages: the students on the way to the last one, by name.
        lineage: where the weights and the data come from. `teachers`, `stages` and `student` (the last one a mapping,
            the others a list in the recipe's order) have `model` (a Hub id, None for a new model, a column or a local
            folder), `revision` (its commit), `license` (None where unknown) and `seed` of the training done here;
            `dataset` has `id` and `revision`. No local path is in it.
        curves: what each trained stage logged, by step; see `curve`.
        per_class: of the student: `rows`, `precision`, `recall` and `f1` by the name of the class; 0 for one that has
            no rows, or that was never predicted.
        terms_of_micro_batches: the terms of the student's loss (`soft`, `feature`) that compare the rows of a
            micro-batch, and so depend on its size; all others are means over the whole accumulated batch.
        thresholds: from which confidence on the student may predict alone, for some shares of all predictions that are
            to be its teacher's; empty for words with tags.
        exports: what `hf-distill export` has measured side by side on the CPU: `teacher`, `student`, and each file by
            its name (`onnx`, `onnx int8`).
        differences: of accuracies, by `student_baseline` (the student's less the baseline's), `teacher_baseline` and
            `student_teacher`; empty if accuracy is not among the metrics.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    task: str
    recipe: str
    teacher: ModelResult
    student: ModelResult
    baseline: ModelResult | None
    agreement: float
    gap_closed: float | None
    environment: dict[str, str]
    data: dict[str, Any]
    teachers: dict[str, ModelResult] = field(default_factory=dict)
    stages: dict[str, ModelResult] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[dict[str, int | float]]] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    per_class: dict[str, dict[str, int | float]] = field(default_factory=dict)
    terms_of_micro_batches: list[str] = field(default_factory=list)
    exports: dict[str, ModelResult] = field(default_factory=dict)
    thresholds: list[Threshold] = field(default_factory=list)

    @property
    def models(self) -> dict[str, ModelResult]:
        """Return all models by name, in the order in which they learn from each other."""
        of_run = {"teacher": self.teacher, **self.stages, "student": self.student, "baseline": self.baseline}
        return {**self.teachers, **{name: model for name, model in of_run.items() if model is not None}}

    def to_json(self) -> str:
        """Return the text of results.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Read back what `to_json` wrote.

        Raises:
            ValueError: it did not write this.
        """
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"results.json was not written by a run of this version of hf_distill: {where and where + ': '}"
                f"{first['msg']}, got {str(first['input'])[:60]!r}"
            ) from error

    @classmethod
    def read(cls, run: Path) -> "Results":
        """Read the results of a finished run from its output folder."""
        return cls.from_json((run / "results.json").read_text(encoding="utf-8"))


def gap_closed(teacher: float, student: float, baseline: float) -> float | None:
    """Return the share of the gap between baseline and teacher that the student closes.

    None if the teacher is not better than the baseline, and there is no gap.
    """
    return (student - baseline) / (teacher - baseline) if teacher > baseline else None


def curve(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Keep of what `Trainer` has logged the numbers that make a curve, each entry with its step.

    Left out are times and throughputs, the summary at the end, and numbers that are not finite; of more than 500
    entries of a kind (training, evaluation) as many are kept, evenly spaced, the first and the last among them.
    """
    entries = [
        {name: value for name, value in entry.items() if _is_of_a_curve(name, value)}
        for entry in log_history
        if "step" in entry and "train_runtime" not in entry
    ]
    found = [entry for entry in entries if set(entry) - {"step", "epoch"}]
    places: set[int] = set()
    for is_evaluation in (False, True):
        of_kind = [
            i for i, entry in enumerate(found) if any(name.startswith("eval_") for name in entry) is is_evaluation
        ]
        kept = min(len(of_kind), _MOST_POINTS)
        places |= {of_kind[round(i * (len(of_kind) - 1) / max(kept - 1, 1))] for i in range(kept)}
    return [entry for place, entry in enumerate(found) if place in places]


def _is_of_a_curve(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and not name.endswith(("_runtime", "_per_second", "_preparation_time"))
