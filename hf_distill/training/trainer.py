"""`DistillationTrainer`: a `Trainer` whose loss blends a teacher's soft targets with the labels."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import SkipBatchSampler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, default_compute_objective, has_length

from hf_distill.data.targets import MISSING_LABEL, ProblemType, label_mask
from hf_distill.teachers.cache.eval_cache import Remembered
from hf_distill.teachers.loading import logits_of
from hf_distill.training.checks import check_label_settings, no_labels
from hf_distill.training.config import DistillationConfig
from hf_distill.training.losses.soft import label_loss, soft_target_loss
from hf_distill.training.published import PublishedTrainer
from hf_distill.training.taught import REPEATED_ROWS


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
    gradient of the one full batch. Rows whose label is -100 or null learn from the teacher alone; data without a label
    column do so where `alpha` is 0. Text labels are the classes of these names in the student's `id2label`. alpha and
    temperature may move during the training (`schedule`); evaluation uses their end values.

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
            inputs or kind of problem differ, its head is untrained; the data's labels are none of the student's, or
            numbered in another order; or a setting would have no effect.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """

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
        self._added_sums: list[Tensor] = []
        self._own_losses: list[Tensor] = []
        self._waiting_batches: list[dict[str, Any]] = []
        self._num_ops_of_input: int | None = None

    # ---- The loss ----

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:
        """Tell `Trainer` that the loss is normalized over the accumulated batch; None: a subclass computed its own."""
        return True if self._own_losses else None

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
            inputs: the batch; `labels` may be missing where alpha is 0 and in evaluation.
            return_outputs: return `(loss, outputs)`; the outputs are the student's, without a loss.
            num_items_in_batch: the number of labels over all micro-batches and processes, as `Trainer` has it, with
                that of the soft targets in its attribute `num_soft_targets`; a plain number counts both. None: this
                batch is all there is.
        """
        if self.args.uses_labels and model.training and inputs.get("labels") is None:
            raise ValueError(no_labels(self.args.most_alpha, inputs))
        pending = self._pending(inputs, is_trained_on=model.training)
        outputs = model(**self._student_inputs(inputs))
        sums = self._loss_sums(outputs, inputs, pending, self._temperature(model.training))
        if not model.training:
            self._eval_sums.append(self.accelerator.gather_for_metrics(torch.stack(sums, dim=1)).sum(dim=0))
        if num_items_in_batch is None:
            counts = torch.stack([sums.num_soft.sum(), sums.num_labels.sum()])
        else:
            num_soft = getattr(num_items_in_batch, "num_soft_targets", num_items_in_batch)
            counts = torch.stack([torch.as_tensor(n, device=sums.soft.device) for n in (num_soft, num_items_in_batch)])
        soft_mean = sums.soft.sum() / counts[0].clamp(min=1)
        label_mean = sums.label.sum() / counts[1].clamp(min=1)
        alpha = self._alpha(model.training)
        # The counts are of all processes, and DDP averages what each of them has.
        scale = self._num_averaged_processes() if num_items_in_batch is not None else 1
        loss = (alpha * label_mean + (1 - alpha) * soft_mean) * scale
        self._own_losses.append(loss.detach())
        if model.training:
            self._loss_parts += torch.stack([soft_mean.detach(), label_mean.detach()]).float() * scale
            self._num_steps_since_log += self.accelerator.sync_gradients
        return (loss, outputs) if return_outputs else loss

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
        return LossSums(soft, num_soft.to(soft.dtype), label, num_labels.to(soft.dtype))

    def _label_losses(self, outputs: Any, logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
        if self.compute_loss_func is None:
            return label_loss(logits, labels, problem_type, self.args.label_smoothing_factor)
        present = label_mask(labels, problem_type)
        # Weighted by the number of its labels, a mean over this micro-batch becomes a sum; its share goes to each.
        value = self.compute_loss_func(outputs, labels, num_items_in_batch=present.sum().clamp(min=1))
        return present * value

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on one micro-batch; see `Trainer.training_step`."""
        self._own_losses = []
        return super().training_step(model, inputs, num_items_in_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Take the micro-batches of one step; see `Trainer.get_batch_samples`.

        A stream may end within a step. `Trainer` then adds the gradient of these micro-batches to the next step's; here
        they wait, and are the first of it.

        Raises:
            ValueError: the whole stream is shorter than one step.
        """
        if has_length(self.train_dataset):
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
            return batches, num_items
        batches, self._waiting_batches = self._waiting_batches, []
        batches += itertools.islice(epoch_iterator, num_batches - len(batches))
        self._mark_repeated_rows(batches)
        if len(batches) < num_batches:
            if batches and self.state.global_step == 0:
                raise ValueError(
                    f"the training stream gives {len(batches)} batches, and a step takes {num_batches}: lower "
                    "gradient_accumulation_steps"
                )
            self._waiting_batches, batches = batches, []
        return batches, self._num_items(batches, device) if batches else None

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
        num_items = counts[1]
        num_items.num_soft_targets = counts[0]  # type: ignore[attr-defined]
        return num_items

    def _main_input(self, batch: Mapping[str, Any]) -> Tensor:
        name = getattr(self.model, "main_input_name", "input_ids")
        main: Tensor = batch[name] if name in batch else next(v for v in batch.values() if isinstance(v, Tensor))
        return main

    def _mark_repeated_rows(self, batches: list) -> None:
        """Leave out of the loss the rows that fill up the last batch of several processes.

        Accelerate repeats rows from the beginning of the data set so that all processes have as many; counted again,
        they would make the gradient another than one process's.
        """
        if self.accelerator.num_processes == 1 or not batches or not self.accelerator.gradient_state.end_of_dataloader:
            return
        num_new = self._num_new_rows_of_last_batch()
        if num_new < 1:
            return
        last = batches[-1]
        num_rows = self._main_input(last).shape[0]
        first = self.accelerator.process_index * num_rows
        rows = torch.arange(first, first + num_rows, device=self._main_input(last).device)
        repeated = rows >= num_new
        last[REPEATED_ROWS] = repeated
        if "labels" in last:
            labels = last["labels"]
            last["labels"] = labels.masked_fill(repeated.view(-1, *[1] * (labels.dim() - 1)), MISSING_LABEL)

    def _num_new_rows_of_last_batch(self) -> int:
        """Return how many rows of all processes' last batch are no repetition; 0 or less: all, or nobody knows."""
        state = self.accelerator.gradient_state
        skipping = getattr(state.active_dataloader, "batch_sampler", None)
        if state.remainder >= 0 or not isinstance(skipping, SkipBatchSampler):
            return int(state.remainder)
        # The loader of a resumed epoch does not know: Accelerate's `skip_first_batches` hides the size of the batches.
        sampler = skipping.batch_sampler
        num_rows = sampler.batch_size * (1 if sampler.split_batches else self.accelerator.num_processes)
        return 0 if sampler.drop_last else len(state.active_dataloader.dataset) % num_rows

    def _num_averaged_processes(self) -> int:
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train the student; see `Trainer.train`.

        Before the first step the teacher is run once over the evaluation set, if there is one with labels
        (`teacher_quality` holds what was found, of several sets the last); a resumed run does not repeat it. What it
        says is remembered, so that evaluations during the training do not run it again. With
        `precompute_teacher_logits` it is run over all rows that `teacher_logits_dir` lacks, and then let go: `teacher`
        is None from there on.

        Raises:
            ValueError: the teacher's logits are not numbers, its predictions are no better than chance (see
                `TeacherQuality`) and `allow_untrained_teacher` is not set, or its soft targets cannot be precomputed.
        """
        uses_teacher = self._teaching is not None and (self.args.uses_teacher or trial is not None)
        if self.args.precompute_teacher_logits and uses_teacher:
            self.precompute_teacher_logits()
        self._remembered = Remembered()
        if uses_teacher and self.eval_dataset is not None and not resume_from_checkpoint:
            self._examine_teacher()
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._refuse_unusable()
        return output

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        # Once for each batch size that `auto_find_batch_size` tries.
        self._teacher_was_checked = False
        self._reset_loss_parts()
        self._num_ops_of_input = None
        self._num_unusable.zero_()
        self._waiting_batches = []
        return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval)

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: Any = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Search for good settings; see `Trainer.hyperparameter_search`.

        The default objective is `Trainer`'s: the sum of what `compute_metrics` gives, or else `eval_loss`, without the
        parts of that loss. alpha, temperature, their end values and the schedule may be searched; what makes the
        teacher (`teacher_...`, `precompute_teacher_logits`) may not.
        """
        if compute_objective is None:
            compute_objective = _objective_without_parts
        return super().hyperparameter_search(
            hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
        )

    def _hp_search_setup(self, trial: Any) -> None:
        before = vars(self.args).copy()
        super()._hp_search_setup(trial)
        changed = [name for name, value in vars(self.args).items() if before.get(name) != value]
        self.args.check_distillation_settings()
        fixed = [name for name in changed if name.startswith(("teacher_", "precompute_"))]
        if fixed:
            raise ValueError(f"a search cannot vary {', '.join(fixed)}: the teacher is the same in all trials")
        if self.args.uses_teacher and self._teaching is None:
            raise ValueError(
                f"this trial has alpha {self.args.alpha}, and there is no teacher: pass teacher=, or leave alpha at 1"
            )
        check_label_settings(self.args, self.compute_loss_func, self._problem_type)

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
        # `Trainer`'s own entry: what a callback or a subclass logs besides is none of ours.
        if self.is_in_train and "loss" in logs and "learning_rate" in logs:
            parts = self.accelerator.reduce(self._loss_parts / max(self._num_steps_since_log, 1), reduction="mean")
            soft, label = parts.tolist()
            self._refuse_unusable()
            if self._teaching is not None and self.args.uses_teacher:
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
                self._own_losses = []
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=counts)
                self._note_added(loss.detach(), inputs)
        logits = None if prediction_loss_only else logits_of(outputs).detach()
        return None if loss is None else loss.detach(), logits, None if prediction_loss_only else labels

    def _note_added(self, loss: Tensor, inputs: Mapping[str, Any]) -> None:
        """Note what a subclass's `compute_loss` has added to ours, for each row of a batch that is evaluated."""
        if type(self).compute_loss is DistillationTrainer.compute_loss or not self._own_losses:
            return
        added = loss - torch.stack(self._own_losses).mean()
        rows = self.accelerator.gather_for_metrics(added.expand(self._main_input(inputs).shape[0]).contiguous())
        self._added_sums.append(torch.stack([rows.sum(), torch.full_like(rows, 1.0).sum()]))

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all rows and labels of the set, whatever the batches.

        The parent's is a mean of batch means weighted by rows, which differs from it where labels are missing or rows
        have different numbers of tokens. What a subclass adds to the loss is a mean over rows, as the parent's. A set
        without any soft target is evaluated by its labels alone: its loss is the `label_loss`.
        """
        self._eval_sums, self._added_sums = [], []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._eval_sums:
            soft, num_soft, label, num_labels = torch.stack(self._eval_sums).double().sum(dim=0).tolist()
            soft_mean, label_mean = soft / max(num_soft, 1), label / max(num_labels, 1)
            alpha = self.args.last_alpha
            if self._teaching is not None and not num_soft:
                alpha = 1.0  # the label loss with its small weight would pass for a good student's
            loss = alpha * label_mean + (1 - alpha) * soft_mean
            if self._added_sums:
                added, num_rows = torch.stack(self._added_sums).double().sum(dim=0).tolist()
                loss += added / num_rows
            if num_soft or num_labels:
                output.metrics[f"{metric_key_prefix}_loss"] = loss
            else:  # nothing to measure against
                output.metrics.pop(f"{metric_key_prefix}_loss", None)
            if self._teaching is not None and num_soft:
                output.metrics[f"{metric_key_prefix}_soft_loss"] = soft_mean
            if num_labels:
                output.metrics[f"{metric_key_prefix}_label_loss"] = label_mean
        return output


def _objective_without_parts(metrics: dict[str, float]) -> float:
    parts = ("_soft_loss", "_label_loss")
    objective: float = default_compute_objective({k: v for k, v in metrics.items() if not k.endswith(parts)})
    return objective
