"""`DistillationTrainer`: a `Trainer` whose loss blends a teacher's soft targets with the labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from hf_distill.checks import (
    check_arguments,
    check_label_settings,
    check_labels,
    stated_problem_type,
    warn_of_frozen_head,
)
from hf_distill.config import DistillationConfig
from hf_distill.objective.losses import (
    ProblemType,
    label_loss,
    label_mask,
    soft_target_loss,
    token_mask,
)
from hf_distill.resuming import ResumableTrainer
from hf_distill.teachers.frozen import FrozenTeacher, check_logits, refuse_own_teacher
from hf_distill.teachers.loading import load_teacher, logits_of, task_of
from hf_distill.teachers.quality import TeacherQuality, measure_quality

logger = logging.get_logger(__name__)


class LossSums(NamedTuple):
    """The two terms of the objective, summed over the tokens or entries of each row: four tensors `(batch,)`."""

    soft: Tensor
    num_soft: Tensor
    label: Tensor
    num_labels: Tensor


class DistillationTrainer(ResumableTrainer):
    """Train a student classifier with a teacher's soft targets and, where there are any, labels.

    The loss is `alpha * label_loss + (1 - alpha) * T^2 * KL(teacher / T || student / T)`, each term a mean over the
    whole accumulated batch of all processes: over the rows (or tokens) for the soft targets, over the labels that are
    not missing for the label loss. Accumulated micro-batches, even or not, and several processes therefore give the
    gradient of the one full batch (of data with a length: without one, `Trainer` lets a group of micro-batches run on
    into the next epoch). Rows whose label is -100, and data without a label column, learn from the teacher
    alone.

    The teacher is frozen, stays in evaluation mode, and is part of no checkpoint, optimizer or state dict. The parts
    of the loss are logged beside `loss` as `soft_loss` and `label_loss` (before they are weighted).

    Args:
        model: the student, a sequence, token or image classifier.
        teacher: a model (it is frozen, moved to the run's device and, with `teacher_dtype`, converted, all in place),
            or the Hub id or folder of one. May be None only if `alpha` is 1.
        args: the settings; by default those of `DistillationConfig`.
        compute_loss_func: `(outputs, labels, num_items_in_batch) -> loss`, in the place of the label loss. It is
            called for each micro-batch with the number of labels in it, and its value weighted by that number.
        **trainer_arguments: every other argument of `Trainer`.

    Raises:
        ValueError: the teacher cannot teach this student: it is the student or shares parameters with it, its labels
            or its kind of problem differ, its head is untrained; or a setting would have no effect.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """

    # The loss is normalised here, over the accumulated batch; the parent must not divide it again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None = None,
        teacher: nn.Module | str | None = None,
        args: DistillationConfig | None = None,
        **trainer_arguments: Any,
    ) -> None:
        args = DistillationConfig(output_dir="tmp_trainer") if args is None else args
        check_arguments(args, teacher)
        super().__init__(model=model, args=args, **trainer_arguments)
        self.args: DistillationConfig
        self.label_names: list[str]
        if not self.label_names:  # a model whose forward computes no loss of its own
            self.label_names = ["labels"]
        if self.label_names != ["labels"]:
            raise ValueError(f"a classifier's label column is 'labels', this student's are {self.label_names}")
        student = self._bare_student()
        if isinstance(teacher, nn.Module):
            refuse_own_teacher(teacher, student)
        self._is_token_level = "TokenClassification" in type(student).__name__
        if isinstance(teacher, str) and args.alpha < 1:
            teacher = load_teacher(
                teacher,
                task_of(student),
                dtype=args.teacher_dtype,
                revision=args.teacher_revision,
                trust_remote_code=args.trust_remote_code,
                allow_untrained=args.allow_untrained_teacher,
            )
        self.teacher: nn.Module | None = None if args.alpha == 1 or isinstance(teacher, str) else teacher
        self.teacher_quality: TeacherQuality | None = None
        self._problem_type = stated_problem_type(student, self.teacher, self._is_token_level)
        self._teaching: FrozenTeacher | None = None
        if self.teacher is not None:
            self._teaching = FrozenTeacher(
                self.teacher,
                student,
                device=args.device,
                dtype=args.teacher_dtype,
                label_map=args.teacher_label_map,  # type: ignore[arg-type]  # DistillationConfig has made it a dict
                problem_type=self._problem_type,
            )
        self._reset_loss_parts()
        self._eval_sums: list[Tensor] = []
        self._teacher_was_checked = False
        warn_of_frozen_head(self.model)
        self._student_config: Any = getattr(student, "config", None)
        self._check_settings()

    # ---- Preparation ----

    def _bare_student(self) -> nn.Module:
        student = self.accelerator.unwrap_model(self.model)
        return student.get_base_model() if hasattr(student, "get_base_model") else student

    def _check_settings(self) -> None:
        check_label_settings(self.args, self.compute_loss_func, self._problem_type)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and parallelism.non_data_parallel_size > 1:
            raise ValueError(
                "a classifier is distilled with data parallelism (DDP, FSDP, ZeRO): tensor, context and sequence "
                "parallelism are not supported"
            )
        evaluation_sets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        num_labels = getattr(self._student_config, "num_labels", None)
        for dataset in [self.train_dataset, *evaluation_sets]:
            check_labels(dataset, num_labels, self._problem_type)

    def _set_signature_columns_if_needed(self) -> None:
        # Columns that only the teacher takes (token_type_ids beside a DistilBERT student) must survive too.
        super()._set_signature_columns_if_needed()
        if self._teaching is not None:
            self._signature_columns += sorted(self._teaching.inputs_of_its_own - set(self._signature_columns))

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
        outputs = model(**self._student_inputs(inputs))
        sums = self._loss_sums(outputs, inputs)
        if not model.training:
            self._eval_sums.append(self.accelerator.gather_for_metrics(torch.stack(sums, dim=1)).sum(dim=0))
        if num_items_in_batch is None:
            counts = torch.stack([sums.num_soft.sum(), sums.num_labels.sum()])
        else:
            counts = torch.as_tensor(num_items_in_batch, device=sums.soft.device).expand(2)
        soft_mean = sums.soft.sum() / counts[0].clamp(min=1)
        label_mean = sums.label.sum() / counts[1].clamp(min=1)
        loss = self.args.alpha * label_mean + (1 - self.args.alpha) * soft_mean
        # The counts are of all processes, and DDP averages what each of them has.
        scale = self._num_averaged_processes() if num_items_in_batch is not None else 1
        if model.training:
            self._loss_parts += torch.stack([soft_mean.detach(), label_mean.detach()]).float() * scale
            self._num_steps_since_log += self.accelerator.sync_gradients
        return (loss * scale, outputs) if return_outputs else loss * scale

    def _student_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        withheld = {"labels"} | (set() if self._teaching is None else self._teaching.inputs_of_its_own)
        return {name: value for name, value in inputs.items() if name not in withheld}

    def _loss_sums(self, outputs: Any, inputs: Mapping[str, Any]) -> LossSums:
        logits, labels = logits_of(outputs), inputs.get("labels")
        if logits.dim() != (3 if self._is_token_level else 2):
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}: a classifier's are (batch, num_labels), or "
                "(batch, tokens, num_labels) for token classification"
            )
        problem_type = self._resolve_problem_type(labels)
        num_rows = logits.shape[0]
        zeros = logits.new_zeros(num_rows, dtype=torch.promote_types(logits.dtype, torch.float32))
        soft, num_soft, label, num_labels = zeros, zeros + 1, zeros, zeros
        if self.teacher is not None:
            values = soft_target_loss(logits, self._teacher_logits(inputs), self.args.temperature, problem_type)
            mask = self._soft_mask(inputs)
            if mask is not None:
                values, num_soft = values.masked_fill(~mask, 0.0), mask.sum(-1)
            soft = values.reshape(num_rows, -1).sum(-1)
        if labels is not None and self.args.alpha > 0:
            values = self._label_losses(outputs, logits, labels, problem_type)
            label = values.reshape(num_rows, -1).sum(-1)
            num_labels = label_mask(labels, problem_type).reshape(num_rows, -1).sum(-1)
        elif self.args.alpha == 1:
            raise ValueError("alpha is 1, training on labels alone, and the batch has no labels")
        return LossSums(soft, num_soft.to(soft.dtype), label, num_labels.to(soft.dtype))

    def _teacher_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        assert self._teaching is not None
        with self.accelerator.autocast():
            logits = self._teaching.logits(inputs).to(self.args.device)
        if not self._teacher_was_checked:
            check_logits(logits)
            self._teacher_was_checked = True
        return logits

    def _label_losses(self, outputs: Any, logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
        if self.compute_loss_func is None:
            return label_loss(logits, labels, problem_type, self.args.label_smoothing_factor)
        present = label_mask(labels, problem_type)
        # Weighted by the number of its labels, a mean over this micro-batch becomes a sum; its share goes to each.
        value = self.compute_loss_func(outputs, labels, num_items_in_batch=present.sum().clamp(min=1))
        return present * value

    def _resolve_problem_type(self, labels: Tensor | None) -> ProblemType:
        if self._problem_type is None:
            if labels is None:
                return "single_label_classification"
            floating = labels.is_floating_point()
            self._problem_type = "multi_label_classification" if floating else "single_label_classification"
            self._check_settings()
        config = self._student_config
        if config is not None and config.problem_type is None and not self._is_token_level:
            # The student never sees the labels, so it cannot note this itself, and pipelines ask for it.
            config.problem_type = self._problem_type
        return self._problem_type

    def _soft_mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if not self._is_token_level:
            return None
        return token_mask(inputs.get("attention_mask"), inputs.get("labels"))

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        # Soft targets and labels are counted apart: a row without a label still has a soft target.
        if not batch_samples:
            return None
        counts = torch.zeros(2, device=device)
        for batch in batch_samples:
            labels, mask = batch.get("labels"), self._soft_mask(batch)
            name = getattr(self.model, "main_input_name", "input_ids")
            main = batch[name] if name in batch else next(v for v in batch.values() if isinstance(v, Tensor))
            num_tokens = main.shape[:2].numel() if self._is_token_level else main.shape[0]
            counts[0] += num_tokens if mask is None else mask.sum()
            if labels is not None and self.args.alpha > 0:
                counts[1] += label_mask(labels, self._resolve_problem_type(labels)).sum()
        if self._num_averaged_processes() > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return counts

    def _num_averaged_processes(self) -> int:
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train the student; see `Trainer.train`.

        Before the first step the teacher is run once over the evaluation set, if there is one with labels
        (`teacher_quality` holds what was found, of several sets the last); a resumed run does not repeat it.

        Raises:
            ValueError: the teacher's logits are not numbers, or its predictions are no better than chance and
                `allow_untrained_teacher` is not set.
        """
        self._teacher_was_checked = False
        self._reset_loss_parts()
        if self.teacher is not None and self.eval_dataset is not None and not resume_from_checkpoint:
            self._examine_teacher()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _examine_teacher(self) -> None:
        for name in self.eval_dataset if isinstance(self.eval_dataset, dict) else [None]:
            with torch.random.fork_rng(devices=[]):  # a data loader draws a seed, and training must not notice
                found = self._predict_with_teacher(name)
            if found is None:
                continue
            logits, labels = found
            self.teacher_quality = measure_quality(logits, labels, self._resolve_problem_type(labels))
            if self.teacher_quality is None:
                continue
            logger.info(f"The teacher's {self.teacher_quality}")
            if self.teacher_quality.is_chance and not self.args.allow_untrained_teacher:
                raise ValueError(
                    f"the teacher predicts the evaluation labels no better than chance ({self.teacher_quality}): it "
                    "is untrained, its labels are in another order, or its inputs are not the ones it was trained "
                    "on. Pass allow_untrained_teacher=True to use it all the same."
                )

    def _predict_with_teacher(self, name: str | None) -> tuple[Tensor, Tensor] | None:
        """Return the teacher's logits for an evaluation set, and its labels; None if it has no labels."""
        all_logits, all_labels = [], []
        for inputs in self.get_eval_dataloader(name):
            inputs = self._prepare_inputs(inputs)
            logits = self._teacher_logits(inputs).float()
            check_logits(logits)
            labels = inputs.get("labels")
            if labels is None:
                continue
            if self._is_token_level:
                logits = self.accelerator.pad_across_processes(logits, dim=1)
                labels = self.accelerator.pad_across_processes(labels, dim=1, pad_index=-100)
            logits, labels = self.accelerator.gather_for_metrics((logits, labels))
            if self._is_token_level:
                logits, labels = logits.flatten(0, 1), labels.flatten()
            all_logits.append(logits.cpu())
            all_labels.append(labels.cpu())
        return (torch.cat(all_logits), torch.cat(all_labels)) if all_labels else None

    def _reset_loss_parts(self) -> None:
        self._loss_parts = torch.zeros(2, device=self.args.device)
        self._num_steps_since_log = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the soft-target and the label loss since the last time beside `loss`."""
        if "loss" in logs:
            parts = self.accelerator.reduce(self._loss_parts / max(self._num_steps_since_log, 1), reduction="mean")
            soft, label = parts.tolist()
            if self.teacher is not None:
                logs["soft_loss"] = soft
            if self.args.alpha > 0:
                logs["label_loss"] = label
            self._loss_parts.zero_()
            self._num_steps_since_log = 0
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
            if labels is None and self.teacher is None:
                outputs = model(**self._student_inputs(inputs))
            else:
                counts = self._get_num_items_in_batch([inputs], self.args.device)
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=counts)
        logits = None if prediction_loss_only else logits_of(outputs).detach()
        return None if loss is None else loss.detach(), logits, None if prediction_loss_only else labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all rows and labels of the set, whatever the batches.

        The parent's is a mean of batch means weighted by rows, which differs from it where labels are missing or rows
        have different numbers of tokens.
        """
        self._eval_sums = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._eval_sums:
            soft, num_soft, label, num_labels = torch.stack(self._eval_sums).double().sum(dim=0).tolist()
            soft_mean, label_mean = soft / max(num_soft, 1), label / max(num_labels, 1)
            output.metrics[f"{metric_key_prefix}_loss"] = (
                self.args.alpha * label_mean + (1 - self.args.alpha) * soft_mean
            )
            if self.teacher is not None:
                output.metrics[f"{metric_key_prefix}_soft_loss"] = soft_mean
            if num_labels:
                output.metrics[f"{metric_key_prefix}_label_loss"] = label_mean
        return output
