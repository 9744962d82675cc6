"""`DistillationTrainer`: a `Trainer` whose loss blends a teacher's soft targets with the labels.

It owns, and each of these is tested without it:

    soft_targets    SoftTargetSource  teachers/source.py       a model, an ensemble, a function, a column, a cache
    loss_objective  Objective         training/objective.py    which rows count, the terms of the loss, their means
    matching        Matching          training/matching.py     the inside of both models compared
    loss_log        LossLog           training/loss_log.py     the parts of the loss for `log`, the exact eval_loss
    cache           SoftTargetCache   teachers/cache/cache.py  soft targets computed once; None where there are none
    hub             TrainerHub        training/trainer_hub.py  card and pushes; imported on first use
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from hf_distill.data.label_columns import LabelCollator, LabelSpace, without_hidden_labels
from hf_distill.data.soft_targets import SoftTargetCollator
from hf_distill.evaluation.teacher_quality import TeacherQuality
from hf_distill.teachers.build import BuiltTeacher
from hf_distill.teachers.cache.cache import SoftTargetCache
from hf_distill.teachers.reader import SoftTargetReader
from hf_distill.teachers.source import SoftTargetSource, logits_of
from hf_distill.training import checkpoints, checks, sampler, search, soft_targets, teacher_evaluation
from hf_distill.training.config import DistillationConfig
from hf_distill.training.loss_log import LossLog
from hf_distill.training.matching import Matching
from hf_distill.training.objective import Objective, means_of
from hf_distill.training.own_loss import OwnLoss, as_in_trainer
from hf_distill.training.provenance import Provenance
from hf_distill.training.step_batches import StepBatches


class DistillationTrainer(Trainer):
    """Train a student classifier with a teacher's soft targets and, where there are any, labels.

    The loss is `alpha * label_loss + (1 - alpha) * T^2 * KL(teacher / T || student / T)` (Hinton et al., arXiv
    1503.02531). Each term is a mean over the whole accumulated batch of all processes: over the labels that are not
    missing, and over the rows (or tokens) with soft targets. Rows whose label is -100 or null learn from the teacher
    alone; data without a label column do so where `alpha` is 0. Text labels are names of the student's `id2label`.

    The teacher is frozen, stays in evaluation mode, and is part of no checkpoint, optimizer or state dict. The parts
    of the loss are logged beside `loss` as `soft_loss` and `label_loss` (before they are weighted).

    Args:
        model: the student, a sequence, token or image classifier.
        teacher: a model (frozen, moved and, with `teacher_dtype`, converted in place); the Hub id or folder of one; a
            list of these, whose probabilities are averaged, and of `Specialist`; or a function from a batch to logits.
            None if the data have a column `teacher_logits` or `teacher_probs`, if `alpha` is 1, or if
            `precompute_teacher_logits` is to find another run's soft targets in `teacher_logits_dir`.
        args: the settings; by default those of `DistillationConfig`.
        teacher_processing_class: the teacher's tokenizer or image processor, if it reads rows in another way than the
            student; for several teachers one for all, or a list with one or None for each. The training data must
            keep the text or image (see `teacher_input_columns`), or hold `teacher_pixel_values`.
        soft_loss_func: a soft loss of one's own, `(student_logits, teacher_logits, labels, temperature) -> values`: one
            value per row or token, without a mean and with any factor T^2; `labels` may be None, or -100 in places.
        **trainer_arguments: every other argument of `Trainer`; `compute_loss_func` takes the place of the label loss,
            and its value is weighted by the number of labels in the micro-batch, which it gets.

    Raises:
        ValueError: teacher, student and data do not fit together, or a setting would have no effect.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        teacher: Any = None,
        args: DistillationConfig | None = None,
        *,
        teacher_processing_class: Any = None,
        soft_loss_func: Callable[..., Tensor] | None = None,
        **trainer_arguments: Any,
    ) -> None:
        args = checks.check_arguments(DistillationConfig(output_dir="tmp_trainer") if args is None else args)
        super().__init__(model=model, args=args, **trainer_arguments)
        self.args: DistillationConfig
        self.label_names: list[str] = self.label_names or ["labels"]  # of a model that computes no loss: none
        checks.check_accelerator(self.accelerator, self.label_names)
        self.labels = LabelCollator(self.data_collator, LabelSpace(None))
        self.data_collator: Any = self.labels
        self.teacher: Any = None
        self.teacher_quality: TeacherQuality | None = None
        self.soft_targets: SoftTargetSource | None = None
        self.cache: SoftTargetCache | None = None
        self._built: BuiltTeacher | None = None
        problem_type = soft_targets.take_teacher(self, teacher, teacher_processing_class)
        # `Trainer` has an attribute `objective` of its own, the number that a search goes by.
        self.loss_objective = Objective(args, self.student, problem_type, self.compute_loss_func, soft_loss_func)
        self.loss_log = LossLog(args.device)
        self._reader = SoftTargetReader(args.device)
        self._own_loss = OwnLoss(lambda: self.loss_objective.names)
        self._step_batches = StepBatches(self.accelerator, self.loss_objective.main_input)
        self.provenance = Provenance.of(self)
        self.add_callback(checkpoints.EpochCallback)
        checks.warn_of_frozen_head(self.model)
        checks.check_data(self)
        checks.check_rows(self)
        self.matching = Matching.of(self)

    @property
    def student(self) -> nn.Module:
        """Return the student without what Accelerate and PEFT have wrapped around it."""
        student = self.accelerator.unwrap_model(self.model)
        return student.get_base_model() if hasattr(student, "get_base_model") else student

    # ---- The loss ----

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:
        """Tell `Trainer` whether the loss is normalized over the accumulated batch; None: it is a subclass's own."""
        return self._own_loss.is_normalized

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the distillation loss of one micro-batch.

        Args:
            model: the student, as Accelerate has wrapped it.
            inputs: the batch; `labels` may be missing where alpha is 0 and in evaluation.
            return_outputs: return `(loss, outputs)`; the outputs are the student's, without a loss.
            num_items_in_batch: the number of labels over all micro-batches and processes, as `Trainer` has it; in its
                attribute `by_term` are the counts of all terms, or else it counts for each. None: of this batch alone.
        """
        if self.args.uses_labels and model.training and inputs.get("labels") is None:
            raise ValueError(checks.no_labels(self.args.most_alpha, inputs))
        objective, step = self.loss_objective, self.loss_objective.at(self.state, is_training=model.training)
        with self.matching.recording(is_training=model.training) as matched:
            outputs = model(**objective.student_inputs(inputs, self.soft_targets))
            checks.note_problem_type(self, inputs.get("labels"))
            soft = None
            if self.soft_targets is not None and objective.uses_soft_targets(step, inputs):
                with self.accelerator.autocast():
                    soft = self._reader.logits(self.soft_targets, inputs, step, objective)
            terms = objective.terms(outputs, inputs, soft, self.soft_targets, step)
            terms |= objective.matching_terms(matched(inputs, objective.rows(inputs)), inputs)
        means = means_of(terms, self._own_loss.counts_for(num_items_in_batch))
        # The counts are of all processes, and DDP averages what each of them has.
        scale = 1 if num_items_in_batch is None else self.loss_objective.num_processes(self.accelerator)
        loss: Any = sum(step.weights[name] * mean for name, mean in means.items()) * scale
        self._own_loss.add(loss, is_normalized=num_items_in_batch is not None)
        if model.training:
            self.loss_log.add_step(means, scale, is_update=self.accelerator.sync_gradients)
        else:
            self.loss_log.add_evaluated(terms, self.accelerator.gather_for_metrics)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train on one micro-batch; see `Trainer.training_step`."""
        with self._own_loss.of_step(num_items_in_batch):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.matching.average_gradients(self.accelerator)
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer as `Trainer` does, with what is learned beside the student."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        self.matching.join(optimizer)
        return optimizer

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Take the micro-batches of one step, and count what each term of the loss is a mean over."""
        is_stream, is_first = not has_length(self.train_dataset), self.state.global_step == 0
        self.matching.projections.zero_grad()  # the parent zeroes the student's gradients alone
        batches = self._step_batches.take(epoch_iterator, num_batches, is_stream=is_stream, is_first=is_first)
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        counted = batch_samples, self.soft_targets, self.accelerator, device
        return self.loss_objective.num_items(*counted, is_training=True) if batch_samples else None

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Train the student; see `Trainer.train`.

        Unless it is resumed, the teacher is first compared with the evaluation sets' labels (`teacher_quality`). With
        `precompute_teacher_logits` its soft targets are cached before that, and it is released.

        Raises:
            ValueError: the teacher's logits are not numbers, it is no better than chance, or they cannot be cached.
        """
        uses_teacher = self.soft_targets is not None and (self.args.uses_teacher or trial is not None)
        if self.args.precompute_teacher_logits and uses_teacher:
            self.precompute_teacher_logits()
        self._reader.forget()
        if uses_teacher and self.eval_dataset is not None and not resume_from_checkpoint:
            self.teacher_quality = teacher_evaluation.check_teacher(self) or self.teacher_quality
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._reader.check()
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._reader.reset()  # once for each batch size that `auto_find_batch_size` tries
        self.loss_log.begin()
        self._step_batches.reset()
        if self.matching.student is not self.student:  # `model_init` has made a new one
            self.matching.detach()
            self.matching = Matching.of(self)
        return super()._inner_training_loop(*args, **kwargs)

    @as_in_trainer
    def hyperparameter_search(self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kw: Any) -> Any:
        """Search as `Trainer` does; the parts of the loss do not count, and what makes the teacher cannot vary."""
        objective = compute_objective or search.objective_without_parts
        return super().hyperparameter_search(hp_space, objective, *args, **kw)

    def _hp_search_setup(self, trial: Any) -> None:
        before = vars(self.args).copy()
        super()._hp_search_setup(trial)
        search.check_trial(before, self.args, has_teacher=self.soft_targets is not None)
        checks.check_label_settings(self.args, self.compute_loss_func, self.loss_objective.problem_type)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the soft-target and the label loss since the last time beside `loss`."""
        # `Trainer`'s own entry: what a callback or a subclass logs besides is none of ours.
        if self.is_in_train and "loss" in logs and "learning_rate" in logs:
            self._reader.check()
            logs |= self.loss_objective.parts_to_log(self.loss_log.pop_means(self.accelerator), self.state)
            self._tr_loss.zero_()  # the parent takes it from itself, and what was NaN once would be so for ever
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of one batch as the parent does, which counts all parameters at each step."""
        return self.loss_log.num_operations(inputs, self.model, super().floating_point_ops)

    # ---- Evaluation ----

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate one batch: its loss, its logits and nothing else of the student's outputs, its labels."""
        inputs = self._prepare_inputs(inputs)
        labels, loss = inputs.get("labels"), None
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None and self.soft_targets is None:
                outputs = model(**self.loss_objective.student_inputs(inputs, None))
            else:
                counted = [inputs], self.soft_targets, self.accelerator, self.args.device
                counts = self.loss_objective.num_items(*counted, is_training=False)
                with self._own_loss.of_step(counts):
                    loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=counts)
                if type(self).compute_loss is not DistillationTrainer.compute_loss:
                    num_rows = len(self.loss_objective.main_input(inputs))
                    self.loss_log.add_beside(self._own_loss.added(loss), num_rows, self.accelerator.gather_for_metrics)
        logits = None if prediction_loss_only else logits_of(outputs).detach()
        return None if loss is None else loss.detach(), logits, None if prediction_loss_only else labels

    @as_in_trainer
    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all rows and labels of the set; training is not affected."""
        self.loss_log.start_evaluation()
        with torch.random.fork_rng(devices=[]):
            output = super().evaluation_loop(*args, **kwargs)
        prefix = args[4] if len(args) > 4 else kwargs.get("metric_key_prefix", "eval")
        step, has_teacher = self.loss_objective.at(self.state, is_training=False), self.soft_targets is not None
        self.loss_log.finish_evaluation(output.metrics, prefix, step, has_teacher)
        return output

    def predict_with_teacher(self, dataset: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Run the teacher, as it teaches, over a data set.

        Returns:
            logits `(rows, num_labels)` or `(rows, tokens, num_labels)` in the order of the rows and of the student's
            labels, by the name of who gives them, of several teachers the whole last; and the labels, -100 where there
            is no soft target, or None if there are none.

        Raises:
            ValueError: there is no teacher, its logits are not numbers, or it was released before it saw these data.
        """
        return teacher_evaluation.predict(self, dataset)

    def precompute_teacher_logits(self) -> None:
        """Compute and cache the soft targets of all training and evaluation rows that lack them; release the teacher.

        `train` does this. From there on other data sets are evaluated by their labels alone.

        Raises:
            ValueError: rows are a stream or change at each read, lack a teacher, or are cached as made in another way.
        """
        if self.soft_targets is not None:
            soft_targets.precompute(self)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return the batches of a test set; labels that are all -1, as in splits without public labels, are none."""
        if self.labels.is_usual and self.labels.space.are_classes():
            test_dataset = without_hidden_labels(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, *args: Any, **kwargs: Any
    ) -> DataLoader:
        checks.check_new_data(self, dataset)
        # The sampler looks at the data set itself, whose lengths may be in a column.
        of_rows = None if sampler_fn is None else lambda _: sampler_fn(dataset)
        with soft_targets.attached(self, dataset) as rows, sampler.all_rows(self.args, description):
            return super()._get_dataloader(rows, description, batch_size, of_rows, *args, **kwargs)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if isinstance(data_collator, SoftTargetCollator):  # the one that it wraps has removed them
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._built is not None:  # columns that only the teacher takes (token_type_ids beside a DistilBERT student)
            known: Any = self._signature_columns
            known += sorted(self._built.columns - {*known})

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled:  # the parent converts all that floats to the type of the student's weights
            prepared |= soft_targets.in_own_type(inputs, self.args.device)
        return prepared

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return sampler.train_sampler(self, train_dataset) or super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        return sampler.eval_sampler(self.args, eval_dataset)

    # ---- Checkpoints and the Hub ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not checkpoints.load_renamed(self, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.matching.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not checkpoints.load_renamed(self, self.state.best_model_checkpoint):
            super()._load_best_model()

    @cached_property
    def hub(self) -> Any:
        """Return the `TrainerHub`, which writes the card and pushes; the Hub's client is imported on first use."""
        from hf_distill.training.trainer_hub import TrainerHub

        return TrainerHub(self)

    @as_in_trainer
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the student into README.md of the output folder; see `TrainerHub.write_card`."""
        self.hub.write_card(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as `Trainer` does; a README.md there stays as it is, and no file holds the token."""
        with checkpoints.saving_cleanly(self, output_dir):
            super().save_model(output_dir, _internal_call=True)
        if _internal_call:
            self.matching.save(output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository that the student is pushed to, if there is none; see `TrainerHub.create_repository`."""
        self.hub.create_repository(token=token, private=private)

    @as_in_trainer
    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push the student and its processor with a card, in one commit; see `TrainerHub.push`."""
        return self.hub.push(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.hub.push_checkpoint(checkpoint_folder)
