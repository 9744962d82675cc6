"""`DistillationTrainer`: a `Trainer` whose loss blends a teacher's soft targets with the labels."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_distill.config import DistillationConfig
from hf_distill.objective.losses import MISSING_LABEL, ProblemType, label_loss, label_mask, soft_target_loss
from hf_distill.published import PublishedTrainer
from hf_distill.taught import REPEATED_ROWS
from hf_distill.teachers.loading import logits_of
from hf_distill.teachers.remembering import Remembered


class LossSums(NamedTuple):
    """The two terms of the objective, summed over the tokens or entries of each row: four tensors `(batch,)`."""

    soft: Tensor
    num_soft: Tensor
    label: Tensor
    num_labels: Tensor


class DistillationTrainer(PublishedTrainer):
    """Train a student classifier with a teacher's soft targets and, where there are any, labels.

    The loss is `alpha * label_loss + (1 - alpha) * T^2 * KL(teacher / T || student / T)`, each term a mean over the
    whole accumulated batch of all processes: over the rows (or tokens) for the soft targets, over the labels that are
    not missing for the label loss. Accumulated micro-batches, even or not, and several processes therefore give the
    gradient of the one full batch (of data with a length: without one, `Trainer` lets a group of micro-batches run on
    into the next epoch). Rows whose label is -100, and data without a label column, learn from the teacher
    alone. alpha and temperature may move during the training (`schedule`); evaluation uses their end values.

    The teacher is frozen, stays in evaluation mode, and is part of no checkpoint, optimizer or state dict. The parts
    of the loss are logged beside `loss` as `soft_loss` and `label_loss` (before they are weighted).

    Args:
        model: the student, a sequence, token or image classifier.
        teacher: a model (it is frozen, put in its place and, with `teacher_dtype`, converted, all in place); the Hub id
            or folder of one; a list of these, whose probabilities are averaged, and of `Specialist`; or a function
            from a batch to logits. None if the data have a column `teacher_logits` or `teacher_probs`, if
            `precompute_teacher_logits` is to find in `teacher_logits_dir` what another run's teacher has said, or if
            `alpha` is 1.
        args: the settings; by default those of `DistillationConfig`.
        compute_loss_func: `(outputs, labels, num_items_in_batch) -> loss`, in the place of the label loss. It is
            called for each micro-batch with the number of labels in it, and its value weighted by that number.
        teacher_processing_class: the teacher's tokenizer or image processor, if it reads rows in another way than the
            student; for several teachers one for all, or a list with one or None for each. The training data must
            keep the text or image that both are made from (see `teacher_input_columns`), or hold
            `teacher_pixel_values`.
        **trainer_arguments: every other argument of `Trainer`.

    Raises:
        ValueError: the teacher cannot teach this student: it is the student or shares parameters with it, its labels,
            inputs or kind of problem differ, its head is untrained; or a setting would have no effect.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """

    # The loss is normalised here, over the accumulated batch; the parent must not divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        teacher: Any = None,
        args: DistillationConfig | None = None,
        *,
        teacher_processing_class: Any = None,
        **trainer_arguments: Any,
    ) -> None:
        args = DistillationConfig(output_dir="tmp_trainer") if args is None else args
        super().__init__(model, teacher, args, teacher_processing_class=teacher_processing_class, **trainer_arguments)
        self._reset_loss_parts()
        self._eval_sums: list[Tensor] = []
        self._num_ops_of_input: int | None = None

    # ---- The loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the distillation loss of one micro-batch.

        Args:
            model: the student, as Accelerate has wrapped it.
            inputs: the batch; `labels` may be missing.
            return_outputs: return `(loss, outputs)`; the outputs are the student's, without a loss.
            num_items_in_batch: two counts, of soft targets and of labels, over all micro-batches and processes, as
                `_get_num_items_in_batch` makes them. None: this batch is all there is.
        """
        pending = self._pending(inputs, is_trained_on=model.training)
        outputs = model(**self._student_inputs(inputs))
        sums = self._loss_sums(outputs, inputs, pending, self._temperature(model.training))
        if not model.training:
            self._eval_sums.append(self.accelerator.gather_for_metrics(torch.stack(sums, dim=1)).sum(dim=0))
        if num_items_in_batch is None:
            counts = torch.stack([sums.num_soft.sum(), sums.num_labels.sum()])
        else:
            counts = torch.as_tensor(num_items_in_batch, device=sums.soft.device).expand(2)
        soft_mean = sums.soft.sum() / counts[0].clamp(min=1)
        label_mean = sums.label.sum() / counts[1].clamp(min=1)
        alpha = self._alpha(model.training)
        loss = alpha * label_mean + (1 - alpha) * soft_mean
        # The counts are of all processes, and DDP averages what each of them has.
        scale = self._num_averaged_processes() if num_items_in_batch is not None else 1
        if model.training:
            self._loss_parts += torch.stack([soft_mean.detach(), label_mean.detach()]).float() * scale
            self._num_steps_since_log += self.accelerator.sync_gradients
        return (loss * scale, outputs) if return_outputs else loss * scale

    def _alpha(self, is_training: bool) -> float:
        return self.args.alpha_at(self.state.global_step, self.state.max_steps) if is_training else self.args.last_alpha

    def _temperature(self, is_training: bool) -> float:
        if not is_training:
            return self.args.last_temperature
        return self.args.temperature_at(self.state.global_step, self.state.max_steps)

    def _loss_sums(
        self, outputs: Any, inputs: Mapping[str, Any], pending: Callable[[], list[Tensor]] | None, temperature: float
    ) -> LossSums:
        logits, labels = logits_of(outputs), inputs.get("labels")
        if logits.dim() != (3 if self._is_token_level else 2):
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}: a classifier's are (batch, num_labels), or "
                "(batch, tokens, num_labels) for token classification"
            )
        problem_type = self._resolve_problem_type(labels)
        num_rows = logits.shape[0]
        zeros = logits.new_zeros(num_rows, dtype=torch.promote_types(logits.dtype, torch.float32))
        soft, num_soft, label, num_labels = zeros, zeros, zeros, zeros
        if pending is not None:
            mask = self._soft_mask(inputs)
            num_soft = zeros + 1 if mask is None else mask.reshape(num_rows, -1).sum(-1)
            teacher_logits = self._teacher_logits(pending, temperature, problem_type)
            values = soft_target_loss(logits, teacher_logits, temperature, problem_type)
            values = values if mask is None else values.masked_fill(~mask, 0.0)
            soft = values.reshape(num_rows, -1).sum(-1)
        if labels is not None and self.args.uses_labels:
            values = self._label_losses(outputs, logits, labels, problem_type)
            label = values.reshape(num_rows, -1).sum(-1)
            num_labels = label_mask(labels, problem_type).reshape(num_rows, -1).sum(-1)
        elif not self.args.uses_teacher:
            raise ValueError("alpha is 1, training on labels alone, and the batch has no labels")
        return LossSums(soft, num_soft.to(soft.dtype), label, num_labels.to(soft.dtype))

    def _label_losses(self, outputs: Any, logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
        if self.compute_loss_func is None:
            return label_loss(logits, labels, problem_type, self.args.label_smoothing_factor)
        present = label_mask(labels, problem_type)
        # Weighted by the number of its labels, a mean over this micro-batch becomes a sum; its share goes to each.
        value = self.compute_loss_func(outputs, labels, num_items_in_batch=present.sum().clamp(min=1))
        return present * value

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        self._mark_repeated_rows(batch_samples)
        return self._num_items(batch_samples, device) if batch_samples else None

    def _num_items(self, batches: list, device: torch.device) -> Tensor:
        # Soft targets and labels are counted apart: a row without a label still has a soft target.
        counts = torch.zeros(2, device=device)
        for batch in batches:
            labels, mask = batch.get("labels"), self._soft_mask(batch)
            main = self._main_input(batch)
            num_rows = main.shape[:2].numel() if self._is_token_level else main.shape[0]
            counts[0] += num_rows if mask is None else mask.expand(main.shape[: mask.dim()]).sum()
            if labels is not None and self.args.uses_labels:
                counts[1] += label_mask(labels, self._resolve_problem_type(labels)).sum()
        if self._num_averaged_processes() > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def _main_input(self, batch: Mapping[str, Any]) -> Tensor:
        name = getattr(self.model, "main_input_name", "input_ids")
        main: Tensor = batch[name] if name in batch else next(v for v in batch.values() if isinstance(v, Tensor))
        return main

    def _mark_repeated_rows(self, batches: list) -> None:
        """Leave out of the loss the rows that fill up the last batch of several processes.

        Accelerate repeats rows from the beginning of the data set so that all processes have as many; counted again,
        they would make the gradient another than one process's.
        """
        loading = self.accelerator.gradient_state
        if self.accelerator.num_processes == 1 or not batches or not loading.end_of_dataloader or loading.remainder < 1:
            return
        last = batches[-1]
        num_rows = self._main_input(last).shape[0]
        first = self.accelerator.process_index * num_rows
        rows = torch.arange(first, first + num_rows, device=self._main_input(last).device)
        repeated = rows >= loading.remainder
        last[REPEATED_ROWS] = repeated
        if "labels" in last:
            labels = last["labels"]
            last["labels"] = labels.masked_fill(repeated.view(-1, *[1] * (labels.dim() - 1)), MISSING_LABEL)

    def _num_averaged_processes(self) -> int:
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train the student; see `Trainer.train`.

        Before the first step the teacher is run once over the evaluation set, if there is one with labels
        (`teacher_quality` holds what was found, of several sets the last); a resumed run does not repeat it. What it
        says is remembered, so that evaluations during the training do not run it again. With
        `precompute_teacher_logits` it is run over all rows that `teacher_logits_dir` lacks, and then let go: `teacher`
        is None from there on.

        Raises:
            ValueError: the teacher's logits are not numbers, its predictions are no better than chance and
                `allow_untrained_teacher` is not set, or its soft targets cannot be precomputed.
        """
        if self.args.precompute_teacher_logits and self.args.uses_teacher:
            self.precompute_teacher_logits()
        self._teacher_was_checked = False
        self._reset_loss_parts()
        self._num_ops_of_input = None
        self._remembered = Remembered()
        if self._teaching is not None and self.eval_dataset is not None and not resume_from_checkpoint:
            self._examine_teacher()
        self._num_unusable.zero_()
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        self._refuse_unusable()
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of one batch as the parent does, which counts all parameters at each step."""
        name = getattr(self.model, "main_input_name", "input_ids")
        size = inputs[name].numel() if name in inputs else 0
        if size and self._num_ops_of_input is None:
            self._num_ops_of_input = super().floating_point_ops(inputs) // size
        return size * (self._num_ops_of_input or 0)

    def _reset_loss_parts(self) -> None:
        self._loss_parts = torch.zeros(2, device=self.args.device)
        self._num_steps_since_log = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the soft-target and the label loss since the last time beside `loss`."""
        if "loss" in logs:
            parts = self.accelerator.reduce(self._loss_parts / max(self._num_steps_since_log, 1), reduction="mean")
            soft, label = parts.tolist()
            self._refuse_unusable()
            if self._teaching is not None:
                logs["soft_loss"] = soft
            if self.args.uses_labels:
                logs["label_loss"] = label
            if self.args.schedule != "constant":
                step = max(self.state.global_step - 1, 0)
                logs["alpha"] = self.args.alpha_at(step, self.state.max_steps)
                logs["temperature"] = self.args.temperature_at(step, self.state.max_steps)
            self._loss_parts.zero_()
            self._num_steps_since_log = 0
            self._tr_loss.zero_()  # the parent takes it from itself, and what was NaN once would be so for ever
        super().log(logs, start_time)

    # ---- Evaluation ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate one batch: its loss, its logits and nothing else of the student's outputs, its labels.

        Rows without labels have the soft-target loss, and none without a teacher. A student whose config asks for
        hidden states, or that has several heads, still predicts one array; `ignore_keys` has nothing to leave out.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None and self._teaching is None:
                outputs = model(**self._student_inputs(inputs))
            else:
                counts = self._num_items([inputs], self.args.device)
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=counts)
        logits = None if prediction_loss_only else logits_of(outputs).detach()
        return None if loss is None else loss.detach(), logits, None if prediction_loss_only else labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all rows and labels of the set, whatever the batches.

        The parent's is a mean of batch means weighted by rows, which differs from it where labels are missing or rows
        have different numbers of tokens. A set without any soft target has a `label_loss` only.
        """
        self._eval_sums = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._eval_sums:
            soft, num_soft, label, num_labels = torch.stack(self._eval_sums).double().sum(dim=0).tolist()
            soft_mean, label_mean = soft / max(num_soft, 1), label / max(num_labels, 1)
            output.metrics[f"{metric_key_prefix}_loss"] = (
                self.args.last_alpha * label_mean + (1 - self.args.last_alpha) * soft_mean
            )
            if self._teaching is not None and num_soft:
                output.metrics[f"{metric_key_prefix}_soft_loss"] = soft_mean
            elif self._teaching is not None and self.args.last_alpha < 1:
                # The label loss with its small weight would pass for a good student's.
                del output.metrics[f"{metric_key_prefix}_loss"]
            if num_labels:
                output.metrics[f"{metric_key_prefix}_label_loss"] = label_mean
        return output
