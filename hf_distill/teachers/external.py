"""Teachers that are no models: a function of the batch, and a column of the data."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import torch
from torch import Tensor

from hf_distill.data.targets import ProblemType
from hf_distill.teachers.source import SoftTargetSource, TeacherOutput

SOFT_TARGET_COLUMNS = ("teacher_logits", "teacher_probs")


class TeacherFunction(SoftTargetSource):
    """A function from a batch to logits.

    Args:
        function: takes the batch, a mapping without its labels, and returns logits `(batch, num_labels)`, for tokens
            `(batch, tokens, num_labels)`, in the student's label order. Columns that no model takes reach it only with
            `remove_unused_columns=False` and a data collator that keeps them.
        num_labels: the student's number of labels, None if it does not say.
        device: the student's.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Tensor], num_labels: int | None, device: torch.device):
        self.function = function
        self._num_labels = num_labels
        self._device = device

    def __call__(self, batch: Mapping[str, Any]) -> TeacherOutput:
        """Call the function, without gradients, with all of a batch but the labels."""
        with torch.no_grad():
            logits = self.function({name: value for name, value in batch.items() if name != "labels"})
        return TeacherOutput([self._checked(logits)])

    def _checked(self, logits: Any) -> Tensor:
        expected = f"a tensor of shape (batch, {self._num_labels or 'num_labels'}), for tokens (batch, tokens, ...)"
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            got = f"one of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the teacher function must return {expected}, of floating numbers; got {got}")
        if self._num_labels is not None and logits.shape[-1] != self._num_labels:
            raise ValueError(f"the teacher function must return {expected}; got shape {tuple(logits.shape)}")
        return logits.detach().to(self._device)


class TeacherColumn(SoftTargetSource):
    """Soft targets that come with the data: a column `teacher_logits` or `teacher_probs`.

    A row that has none (its entry is null or NaN) learns from its label alone.

    Raises:
        ValueError: the column has another name.
    """

    def __init__(self, column: str, num_labels: int | None, device: torch.device) -> None:
        if column not in SOFT_TARGET_COLUMNS:
            raise ValueError(f"a column of soft targets is {' or '.join(SOFT_TARGET_COLUMNS)}, got {column!r}")
        self.column = column
        self.batch_keys = frozenset({column})
        self._num_labels = num_labels
        self._device = device

    def __call__(self, batch: Mapping[str, Any]) -> TeacherOutput:
        """Return the column's values."""
        return TeacherOutput([self._values(batch)])

    def combine(self, output: TeacherOutput, temperature: float, problem_type: ProblemType) -> Tensor:
        """Make logits of the values; rows without soft targets have zeros.

        Raises:
            ValueError: some numbers of a row are missing, or are no probabilities.
        """
        values = output.logits[0]
        missing = values.isnan().all(-1, keepdim=True)
        if bool((values.isnan() & ~missing).any()):
            raise ValueError(f"{self.column} has NaN beside numbers in a row: give all of them, or none")
        if self.column == "teacher_probs":
            values = _logits_of(values.masked_fill(missing, 1 / values.shape[-1]), problem_type)
        return values.masked_fill(missing, 0.0)

    def by_teacher(self, output: TeacherOutput, problem_type: ProblemType) -> dict[str, Tensor]:
        """Return the logits by the column's name."""
        return {f"the column {self.column}": self.combine(output, 1.0, problem_type)}

    def mask(self, batch: Mapping[str, Any]) -> Tensor:
        """Tell which rows or tokens have values."""
        return ~self._values(batch).isnan().all(-1)

    def _values(self, inputs: Mapping[str, Any]) -> Tensor:
        values = inputs.get(self.column)
        if not isinstance(values, Tensor):
            raise ValueError(
                f"the batch has no tensor {self.column!r}, only {', '.join(inputs)}: the data must have that column, "
                f"and the data collator must keep it"
            )
        if self._num_labels is not None and values.shape[-1] != self._num_labels:
            raise ValueError(
                f"{self.column} has {values.shape[-1]} numbers in a row, the student has {self._num_labels} labels: "
                "both need the same, in the same order"
            )
        values = values.to(self._device)
        return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_column_filled(dataset: Any, column: str) -> None:
    """Raise ValueError if no row of a `datasets.Dataset` has soft targets."""
    if isinstance(dataset, datasets.Dataset) and len(dataset):
        values = dataset.select_columns(column).with_format("arrow")
        if all(table[column].null_count == len(table) for table in values.iter(10_000)):
            raise ValueError(f"no row of the training data has {column}: fill it in, or pass a teacher")


def _logits_of(probabilities: Tensor, problem_type: ProblemType) -> Tensor:
    """Return logits of which these are the probabilities at temperature 1."""
    if problem_type == "regression":
        raise ValueError("teacher_probs are probabilities, and regression has none: name the column teacher_logits")
    out_of_range = ~((probabilities >= 0) & (probabilities <= 1 + 1e-4))
    if bool(out_of_range.any()):
        raise ValueError(
            f"teacher_probs must be from 0 to 1, got {float(probabilities[out_of_range][0]):.4g}: for logits, name the "
            "column teacher_logits"
        )
    if problem_type == "multi_label_classification":
        certain = 1e4  # finite, and 0 or 1 at any temperature that is used
        return torch.logit(probabilities.clamp(max=1.0)).clamp(-certain, certain)
    sums = probabilities.sum(-1)
    wrong = (sums - 1).abs() > 1e-2
    if bool(wrong.any()):
        raise ValueError(
            f"teacher_probs of a row must sum to 1, got a sum of {float(sums[wrong][0]):.4g}: divide by the sum, or "
            "name the column teacher_logits"
        )
    return probabilities.log()


def fingerprint_of(function: Any) -> str:
    """Return what tells a teacher function from another one, its attribute `fingerprint`."""
    fingerprint = getattr(function, "fingerprint", None)
    if not isinstance(fingerprint, str) or not fingerprint:
        raise ValueError(
            "precompute_teacher_logits: the teacher is a function, and nothing tells it from another one: give it an "
            "attribute fingerprint, a string that changes whenever its logits do, or leave precompute_teacher_logits "
            "out"
        )
    return fingerprint
