"""The objective of a run: which rows count, the terms of the loss, and their means over the whole accumulated batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_distill.data.soft_losses import SOFT_LOSSES
from hf_distill.data.targets import ProblemType, label_mask, token_mask
from hf_distill.teachers.source import TEACHER_INPUTS, SoftTargetSource, logits_of
from hf_distill.training.config import DistillationConfig
from hf_distill.training.losses.soft import label_loss
from hf_distill.training.losses.soft_losses import check_soft_loss, soft_loss
from hf_distill.training.step_batches import REPEATED_ROWS

TERMS = ("label", "soft")
"""The terms of any loss, in training and evaluation; in training those of `matching.Matching` may follow."""


def is_token_level(student: nn.Module) -> bool:
    """Tell whether each token has a label."""
    return "TokenClassification" in type(student).__name__


class Term(NamedTuple):
    """One term of the loss: its values summed over the tokens or entries of each row, and their number, `(batch,)`."""

    values: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Step:
    """alpha, the temperature and the weights of matching, of a step of the training, or of an evaluation."""

    alpha: float
    temperature: float
    is_training: bool
    matching: Mapping[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each term of the loss."""
        return {"label": self.alpha, "soft": 1 - self.alpha, **self.matching}


class Objective:
    """Sums and means of the terms of the loss; it holds no data and no teacher.

    Args:
        args: the settings.
        student: it tells whether each token has a label, and which entry of a batch is measured.
        problem_type: None leaves it to the first labels.
        label_loss_func: in the place of the label loss, `(outputs, labels, num_items_in_batch) -> loss`.
        soft_loss_func: likewise, `(student_logits, teacher_logits, labels, temperature) -> values`.

    Raises:
        ValueError: the soft loss is not for such labels, or there are two.
    """

    def __init__(
        self,
        args: DistillationConfig,
        student: nn.Module,
        problem_type: ProblemType | None,
        label_loss_func: Callable[..., Tensor] | None = None,
        soft_loss_func: Callable[..., Tensor] | None = None,
    ) -> None:
        if soft_loss_func is not None and (args.soft_loss != "kl" or args.standardize_logits):
            raise ValueError("soft_loss_func takes the place of soft_loss and standardize_logits: leave these out")
        self.args = args
        self.problem_type = problem_type
        self.is_token_level = is_token_level(student)
        self._main_input_name = getattr(student, "main_input_name", "input_ids")
        self._label_loss_func = label_loss_func
        self._soft_loss_func = soft_loss_func
        self._num_labels = getattr(getattr(student, "config", None), "num_labels", None)
        self._check_soft_loss()

    def at(self, state: Any, *, is_training: bool) -> Step:
        """Return alpha and the temperature of now; evaluation has their end values."""
        args = self.args
        if not is_training:
            return Step(args.last_alpha, args.last_temperature, False)
        place = state.global_step, state.max_steps
        return Step(args.alpha_at(*place), args.temperature_at(*place), True, args.matching_weights)

    @property
    def names(self) -> tuple[str, ...]:
        """Name the terms of a training step."""
        return (*TERMS, *self.args.matching_weights)

    def uses_soft_targets(self, step: Step, batch: Mapping[str, Any]) -> bool:
        """Tell whether the soft targets of a batch have any weight, or are all that there is to evaluate it by."""
        has_weight = self.args.uses_teacher if step.is_training else step.alpha < 1
        return has_weight or batch.get("labels") is None

    def soft_mask(self, batch: Mapping[str, Any], source: SoftTargetSource | None) -> Tensor | None:
        """Tell which rows, or tokens, have soft targets that count; None: all."""
        masks = [None if source is None else source.mask(batch)]
        rows = self.rows(batch)
        masks.append(rows[:, None] if rows is not None and self.is_token_level else rows)
        if self.is_token_level:
            masks.append(token_mask(batch.get("attention_mask"), batch.get("labels")))
        present = [mask for mask in masks if mask is not None]
        return reduce(torch.logical_and, present) if present else None

    def student_inputs(self, batch: Mapping[str, Any], source: SoftTargetSource | None) -> dict[str, Any]:
        """Return the entries of a batch that are the student's: no labels, and none of the teacher's."""
        withheld = {"labels", TEACHER_INPUTS, REPEATED_ROWS} | (source.batch_keys if source is not None else set())
        return {name: value for name, value in batch.items() if name not in withheld}

    def main_input(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the entry of a batch by whose rows, and tokens, it is measured."""
        tensors = (value for value in batch.values() if isinstance(value, Tensor))
        main: Tensor = batch[self._main_input_name] if self._main_input_name in batch else next(tensors)
        return main

    def num_processes(self, accelerator: Any) -> int:
        """Return over how many processes each mean runs."""
        return int(accelerator.num_processes) if self.args.average_tokens_across_devices else 1

    def num_items(
        self, batches: list, source: SoftTargetSource | None, accelerator: Any, device: Any, *, is_training: bool
    ) -> Tensor:
        """Count what each term is a mean over, over all micro-batches and processes."""
        counts = torch.stack([self.counts(batch, source, is_training=is_training) for batch in batches])
        counts = counts.sum(dim=0).to(device)
        if self.num_processes(accelerator) > 1:
            counts = accelerator.reduce(counts, reduction="sum")
        by_term = dict(zip(self.names, counts, strict=True))
        num_labels = by_term["label"]
        num_labels.by_term = by_term  # type: ignore[attr-defined]
        return num_labels

    def counts(self, batch: Mapping[str, Any], source: SoftTargetSource | None, *, is_training: bool) -> Tensor:
        """Count what each term is a mean over, `(terms,)`: a row without a label still has a soft target."""
        main_input, labels, mask = self.main_input(batch), batch.get("labels"), self.soft_mask(batch, source)
        num_rows: Any = main_input.shape[:2].numel() if self.is_token_level else main_input.shape[0]
        num_soft = num_rows if mask is None else mask.expand(main_input.shape[: mask.dim()]).sum()
        num_labels: Any = 0
        if labels is not None and (self.args.uses_labels or not is_training):
            num_labels = label_mask(labels, self.kind(labels)).sum()
        counts = torch.zeros(len(self.names), device=main_input.device)
        counts[0], counts[1] = num_labels, num_soft
        rows = self.rows(batch)
        counts[2:] = main_input.shape[0] if rows is None else rows.sum()
        return counts

    def rows(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Tell which rows of a batch count, `(batch,)`: not those that are there again to fill it; None: all."""
        return ~batch[REPEATED_ROWS] if REPEATED_ROWS in batch else None

    def parts_to_log(self, means: Mapping[str, float], state: Any) -> dict[str, float]:
        """Return the parts of the loss that this run has, and alpha and temperature where they move."""
        is_used = {"label": self.args.uses_labels, "soft": self.args.uses_soft_targets}
        logs = {f"{name}_loss": value for name, value in means.items() if is_used.get(name, True)}
        if self.args.schedule != "constant":
            place = max(state.global_step - 1, 0), state.max_steps
            logs |= {"alpha": self.args.alpha_at(*place), "temperature": self.args.temperature_at(*place)}
        return logs

    def kind(self, labels: Tensor | None) -> ProblemType:
        """Return the problem type, which the first labels may decide."""
        if self.problem_type is None:
            if labels is None:
                return "single_label_classification"
            floating = labels.is_floating_point()
            self.problem_type = "multi_label_classification" if floating else "single_label_classification"
            self._check_soft_loss()
        return self.problem_type

    def terms(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        teacher_logits: Tensor | None,
        source: SoftTargetSource | None,
        step: Step,
    ) -> dict[str, Term]:
        """Compute the terms of a batch.

        Raises:
            ValueError: the student's logits are not those of a classifier.
        """
        logits, labels = logits_of(outputs), batch.get("labels")
        if logits.dim() != (3 if self.is_token_level else 2):
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}: a classifier's are (batch, num_labels), or "
                "(batch, tokens, num_labels) for token classification"
            )
        kind, num_rows = self.kind(labels), logits.shape[0]
        zeros = logits.new_zeros(num_rows, dtype=torch.promote_types(logits.dtype, torch.float32))
        found = {name: Term(zeros, zeros) for name in TERMS}
        if teacher_logits is not None:
            mask = self.soft_mask(batch, source)
            num_soft = zeros + 1 if mask is None else mask.reshape(num_rows, -1).sum(-1)
            values = self._soft_losses(logits, teacher_logits, labels, mask, step.temperature, kind)
            values = values if mask is None else values.masked_fill(~mask, 0.0)
            found["soft"] = Term(values.reshape(num_rows, -1).sum(-1), num_soft.to(zeros.dtype))
        if labels is not None and (self.args.uses_labels or not step.is_training):
            values = self._label_losses(outputs, logits, labels, kind)
            num_labels = label_mask(labels, kind).reshape(num_rows, -1).sum(-1)
            found["label"] = Term(values.reshape(num_rows, -1).sum(-1), num_labels.to(zeros.dtype))
        return found

    def matching_terms(self, values: Mapping[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Term]:
        """Return the terms of matching of a batch, of the value of each row."""
        rows = self.rows(batch)
        return {
            name: Term(value, torch.ones_like(value)) if rows is None else Term(value * rows, rows.to(value.dtype))
            for name, value in values.items()
        }

    def _soft_losses(
        self,
        logits: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        mask: Tensor | None,
        temperature: float,
        kind: ProblemType,
    ) -> Tensor:
        args = self.args
        if self._soft_loss_func is None:
            settings: Any = {"standardize": args.standardize_logits, "options": args.soft_loss_options}
            return soft_loss(args.soft_loss, logits, teacher, temperature, kind, labels=labels, mask=mask, **settings)
        values = self._soft_loss_func(logits, teacher.detach(), labels, temperature)
        if values.shape != logits.shape[:-1]:
            raise ValueError(
                f"soft_loss_func must return one value per row or token, {tuple(logits.shape[:-1])}, and no mean; got "
                f"the shape {tuple(values.shape)}"
            )
        return values

    @property
    def rules_out(self) -> bool:
        """Tell whether a teacher may rule classes out, with a logit of -inf."""
        return self._soft_loss_func is not None or SOFT_LOSSES[self.args.soft_loss].rules_out

    def _check_soft_loss(self) -> None:
        if self.args.uses_soft_targets and self._soft_loss_func is None:
            args = self.args
            check_soft_loss(args.soft_loss, args.standardize_logits, self.problem_type, self._num_labels)

    def _label_losses(self, outputs: Any, logits: Tensor, labels: Tensor, kind: ProblemType) -> Tensor:
        if self._label_loss_func is None:
            return label_loss(logits, labels, kind, self.args.label_smoothing_factor)
        present = label_mask(labels, kind)
        # Weighted by the number of its labels, a mean over this micro-batch becomes a sum; its share goes to each.
        value = self._label_loss_func(outputs, labels, num_items_in_batch=present.sum().clamp(min=1))
        return present * value


def means_of(terms: Mapping[str, Term], counts: Mapping[str, Tensor | int] | None) -> dict[str, Tensor]:
    """Return the mean of each term over the counts of the accumulated batch; None: this micro-batch is all there is."""
    means = {}
    for name, term in terms.items():
        count = term.counts.sum() if counts is None else torch.as_tensor(counts[name], device=term.values.device)
        means[name] = term.values.sum() / count.clamp(min=1)
    return means
