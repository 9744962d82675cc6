"""What a run found, and its form on disk."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelResult:
    """One model on the evaluation data.

    Attributes:
        metrics: by name; accuracy and F1 from 0 to 1.
        num_parameters: all of them, trainable or not, of several teachers together; None for a teacher that is a
            column of the data.
        size_mib: of the weights, in MiB; None likewise.
        train_seconds: time spent in training, restarts included; None for a model that came ready.
    """

    metrics: dict[str, float]
    num_parameters: int | None
    size_mib: float | None
    train_seconds: float | None


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
    """

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
        """Read back what `to_json` wrote."""
        fields = json.loads(text)
        for role in ("teacher", "student", "baseline"):
            if fields[role] is not None:
                fields[role] = ModelResult(**fields[role])
        for group in ("teachers", "stages"):
            fields[group] = {name: ModelResult(**model) for name, model in fields.get(group, {}).items()}
        return cls(**fields)

    @classmethod
    def read(cls, run: Path) -> "Results":
        """Read the results of a finished run from its output folder."""
        return cls.from_json((run / "results.json").read_text())


def gap_closed(teacher: float, student: float, baseline: float) -> float | None:
    """Return the share of the gap between baseline and teacher that the student closes.

    None if the teacher is not better than the baseline, and there is no gap.
    """
    return (student - baseline) / (teacher - baseline) if teacher > baseline else None
