"""`DistillationTrainer`: a `Trainer` whose loss blends a teacher's soft targets with the labels.

It owns, and each of these is tested without it:

    soft_targets    SoftTargetSource  teachers/source.py       a model, an ensemble, a function, a column, a cache
    loss_objective  Objective         training/objective.py    which rows count, the terms of the loss, their means
    loss_log        LossLog           training/loss_log.py     the parts of the loss for `log`, the exact eval_loss
    cache           SoftTargetCache   teachers/cache/cache.py  soft targets computed once; None where there are none
    hub             TrainerHub        training/trainer_hub.py  card and pushes; imported on first use
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from hf_distill.data.fingerprints import refuse_stream
from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.label_columns import LabelCollator, LabelSpace, without_hidden_labels
from hf_distill.data.soft_targets import CACHED_LOGITS, SoftTargetCollator
from hf_distill.data.teacher_views import TeacherViews
from hf_distill.evaluation.teacher_quality import TeacherQuality
from hf_distill.teachers.build import BuiltTeacher, Circumstances, build_teacher, column_names, stated_problem_type
from hf_distill.teachers.cache.cache import SoftTargetCache, TeacherRun
from hf_distill.teachers.cache.cached_teacher import CachedTeacher
from hf_distill.teachers.cache.eval_cache import EvalCache
from hf_distill.teachers.external import SOFT_TARGET_COLUMNS
from hf_distill.teachers.labels import names_in_order
from hf_distill.teachers.several import TeacherEnsemble
from hf_distill.teachers.source import TEACHER_INPUTS, LogitsWatch, SoftTargetSource, TeacherOutput, logits_of
from hf_distill.training import checkpoints, checks, sampler, search
from hf_distill.training.config import DistillationConfig
from hf_distill.training.loss_log import LossLog
from hf_distill.training.objective import TERMS, Objective, Step, means_of
from hf_distill.training.provenance import Provenance
from hf_distill.training.repeated_rows import REPEATED_ROWS, mark_repeated_rows
from hf_distill.training.teacher_evaluation import check_teacher, teacher_logits


class DistillationTrainer(Trainer):
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
            `precompute_teacher_logits` is to find in `teacher_logits_dir` the soft targets of another run, or if
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
        checks.check_arguments(args)
        super().__init__(model=model, args=args, **trainer_arguments)
        self.args: DistillationConfig
        # A model whose forward computes no loss of its own names no labels.
        self.label_names: list[str] = self.label_names or ["labels"]
        checks.check_accelerator(self.accelerator, self.label_names)
        self.data_collator: Any = LabelCollator(self.data_collator, LabelSpace(None))
        self._labels = self.data_collator
        is_token_level = "TokenClassification" in type(self.student).__name__
        self.teacher_quality: TeacherQuality | None = None
        self.teacher: Any = None
        self.soft_targets: SoftTargetSource | None = None
        self.cache: SoftTargetCache | None = None
        self._built: BuiltTeacher | None = None
        problem_type = stated_problem_type(self.student, [], is_token_level)
        # With `model_init` alpha may be searched, from 1 on, too.
        needs_teacher = args.uses_teacher or (teacher is not None and self.model_init is not None)
        sets = [self.train_dataset, *self._evaluation_sets()] if needs_teacher else []
        columns = next((names for names in map(column_names, sets) if names), [])
        is_given = teacher is not None or bool({*SOFT_TARGET_COLUMNS} & {*columns})
        if needs_teacher and args.precompute_teacher_logits and not is_given:
            if teacher_processing_class is not None:
                raise ValueError("teacher_processing_class is for a teacher, and there is none: leave it out")
            self.cache = self._new_cache(is_token_level)
            self.soft_targets = self.cache.open(self.processing_class)
        elif needs_teacher:
            self._built = built = self._build_teacher(teacher, teacher_processing_class, columns, is_token_level)
            self.teacher, self.soft_targets = built.teacher, built.source
            self.data_collator, problem_type = built.collator, built.problem_type
        # `Trainer` has an attribute `objective` of its own, the number that a search goes by.
        self.loss_objective = Objective(
            args, problem_type=problem_type, is_token_level=is_token_level, label_loss_func=self.compute_loss_func
        )
        self.loss_log = LossLog(args.device)
        self._eval_cache = EvalCache()
        self._watch = LogitsWatch(args.device)
        self._own_losses: list[Tensor] = []
        self._is_normalized = True
        self._step_counts: Mapping[str, Tensor] | None = None
        self._waiting_batches: list[dict[str, Any]] = []
        self._num_ops_of_input: int | None = None
        self._checked_problem_type: str | None = None
        self.provenance = Provenance.of(self)
        self.add_callback(checkpoints.EpochCallback)
        checks.warn_of_frozen_head(self.model)
        self._check_data()

    @property
    def student(self) -> nn.Module:
        """Return the student without what Accelerate and PEFT have wrapped around it."""
        student = self.accelerator.unwrap_model(self.model)
        return student.get_base_model() if hasattr(student, "get_base_model") else student

    def _build_teacher(
        self, teacher: Any, processing_class: Any, columns: list[str], is_token_level: bool
    ) -> BuiltTeacher:
        return build_teacher(
            teacher,
            self.args,
            Circumstances(
                student=self.student,
                processing_class=self.processing_class,
                device=self.args.device,
                num_processes=self.args.world_size,
                autocast_dtype=torch.bfloat16 if self.args.bf16 or self.args.fp16 else None,
                accelerator=self.accelerator,
            ),
            processing_class=processing_class,
            columns=columns,
            dataset=self.train_dataset,
            collator=self.data_collator,
            is_token_level=is_token_level,
        )

    # ---- The loss ----

    @property
    def loss_is_scaled_for_ga(self) -> bool | None:
        """Tell `Trainer` whether the loss is normalized over the accumulated batch; None: it is a subclass's own."""
        return self._is_normalized if self._own_losses else None

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
            num_items_in_batch: the number of labels over all micro-batches and processes, as `Trainer` has it; in its
                attribute `by_term` are the counts of all terms. None: this batch is all there is. Outside of a step
                a plain number counts for each term.
        """
        if self.args.uses_labels and model.training and inputs.get("labels") is None:
            raise ValueError(checks.no_labels(self.args.most_alpha, inputs))
        step = self.loss_objective.at(self.state, is_training=model.training)
        outputs = model(**self._student_inputs(inputs))
        self._note_problem_type(inputs.get("labels"))
        soft = self._soft_targets_of(inputs, step)
        mask = None if soft is None else self.loss_objective.soft_mask(inputs, self.soft_targets)
        terms = self.loss_objective.terms(outputs, inputs, soft, mask, step)
        means = means_of(terms, self._counts_for(num_items_in_batch))
        # The counts are of all processes, and DDP averages what each of them has.
        scale = 1 if num_items_in_batch is None else self._num_averaged_processes
        loss: Any = sum(step.weights[name] * means[name] for name in TERMS) * scale
        self._own_losses.append(loss.detach())
        self._is_normalized = num_items_in_batch is not None
        if model.training:
            self.loss_log.add_step(means, scale, is_update=self.accelerator.sync_gradients)
        else:
            self.loss_log.add_evaluated(terms, self.accelerator.gather_for_metrics)
        return (loss, outputs) if return_outputs else loss

    def _counts_for(self, num_items: Tensor | int | None) -> Mapping[str, Tensor | int] | None:
        """Return the counts of the step, also where a subclass has made another number of the one that it was given."""
        if num_items is None:
            return None
        counts: Any = getattr(num_items, "by_term", self._step_counts)
        return counts if counts is not None else dict.fromkeys(TERMS, num_items)

    def _student_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        withheld = {"labels", TEACHER_INPUTS, REPEATED_ROWS}
        withheld |= set() if self.soft_targets is None else self.soft_targets.batch_keys
        return {name: value for name, value in inputs.items() if name not in withheld}

    def _soft_targets_of(self, inputs: dict[str, Any], step: Step) -> Tensor | None:
        """Return the teacher's logits for a batch, made one; None: there is no teacher, or they have no weight."""
        source = self.soft_targets
        is_used = self.args.uses_teacher if step.is_training else step.alpha < 1
        if source is None or not (is_used or inputs.get("labels") is None):
            return None
        with self.accelerator.autocast():
            output = source(inputs) if step.is_training else self._eval_cache.output(source, inputs)
        logits = source.combine(output, step.temperature, self.loss_objective.kind(inputs.get("labels")))
        self._watch.see(logits)
        return logits

    def _note_problem_type(self, labels: Tensor | None) -> None:
        problem_type = self.loss_objective.kind(labels)
        if self.loss_objective.problem_type != self._checked_problem_type:
            self._check_data()
        config = None if self.model is None else getattr(self.student, "config", None)  # none between two trials
        if config is not None and config.problem_type is None and not self.loss_objective.is_token_level:
            config.problem_type = problem_type  # the student never sees the labels, and pipelines need it

    @property
    def _num_averaged_processes(self) -> int:
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def _main_input(self, batch: Mapping[str, Any]) -> Tensor:
        name = getattr(self.model, "main_input_name", "input_ids")
        main: Tensor = batch[name] if name in batch else next(v for v in batch.values() if isinstance(v, Tensor))
        return main

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on one micro-batch; see `Trainer.training_step`."""
        self._own_losses, self._step_counts = [], getattr(num_items_in_batch, "by_term", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_counts = None
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Take the micro-batches of one step; see `Trainer.get_batch_samples`.

        A stream may end within a step. `Trainer` then adds the gradient of these micro-batches to the next step's; here
        they wait, and are the first of it.

        Raises:
            ValueError: the whole stream is shorter than one step.
        """
        batches, self._waiting_batches = self._waiting_batches, []
        batches += itertools.islice(epoch_iterator, num_batches - len(batches))
        if batches:
            mark_repeated_rows(batches[-1], self.accelerator, self._main_input(batches[-1]))
        if len(batches) < num_batches and not has_length(self.train_dataset):
            if batches and self.state.global_step == 0:
                raise ValueError(
                    f"the training stream gives {len(batches)} batches, and a step takes {num_batches}: lower "
                    "gradient_accumulation_steps"
                )
            self._waiting_batches, batches = batches, []
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | None:
        return self._num_items(batch_samples, device, is_training=True) if batch_samples else None

    def _num_items(self, batches: list, device: torch.device, *, is_training: bool) -> Tensor:
        of_batches = [
            self.loss_objective.counts(batch, self.soft_targets, self._main_input(batch), is_training=is_training)
            for batch in batches
        ]
        counts = torch.stack(of_batches).sum(dim=0).to(device)
        if self._num_averaged_processes > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return self.loss_objective.num_items(counts)

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train the student; see `Trainer.train`.

        Before the first step the teacher is run once over the evaluation set, if there is one with labels
        (`teacher_quality` holds what was found, of several sets the last); a resumed run does not repeat it. Its
        outputs are remembered, so that evaluations during the training do not run it again. With
        `precompute_teacher_logits` it is run over all rows that `teacher_logits_dir` lacks, and then released:
        `teacher` is None from there on.

        Raises:
            ValueError: the teacher's logits are not numbers, it is surely no better than chance and
                `allow_untrained_teacher` is not set, or its soft targets cannot be cached.
        """
        uses_teacher = self.soft_targets is not None and (self.args.uses_teacher or trial is not None)
        if self.args.precompute_teacher_logits and uses_teacher:
            self.precompute_teacher_logits()
        self._eval_cache = EvalCache()
        if uses_teacher and self.eval_dataset is not None and not resume_from_checkpoint:
            names = self.eval_dataset if isinstance(self.eval_dataset, dict) else [None]
            found = {name: self._teacher_logits(self.get_eval_dataloader(name), remember=True) for name in names}
            allowed = self.args.allow_untrained_teacher
            self.teacher_quality = (
                check_teacher(found, self.loss_objective, allow_untrained=allowed) or self.teacher_quality
            )
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._watch.check()
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
        self._watch.reset()
        self.loss_log.reset()
        self._num_ops_of_input = None
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
        objective = compute_objective or search.objective_without_parts
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, backend, hp_name, **kwargs)

    def _hp_search_setup(self, trial: Any) -> None:
        before = vars(self.args).copy()
        super()._hp_search_setup(trial)
        search.check_trial(before, self.args, has_teacher=self.soft_targets is not None)
        checks.check_label_settings(self.args, self.compute_loss_func, self.loss_objective.problem_type)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the soft-target and the label loss since the last time beside `loss`."""
        # `Trainer`'s own entry: what a callback or a subclass logs besides is none of ours.
        if self.is_in_train and "loss" in logs and "learning_rate" in logs:
            self._watch.check()
            logs |= self.loss_objective.parts_to_log(self.loss_log.pop_means(self.accelerator), self.state)
            self._tr_loss.zero_()  # the parent takes it from itself, and what was NaN once would be so for ever
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of one batch as the parent does, which counts all parameters at each step."""
        name = getattr(self.model, "main_input_name", "input_ids")
        size = inputs[name].numel() if name in inputs else 0
        if size and self._num_ops_of_input is None:
            self._num_ops_of_input = super().floating_point_ops(inputs) // size
        return size * (self._num_ops_of_input or 0)

    # ---- Evaluation ----

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate one batch: its loss, its logits and nothing else of the student's outputs, its labels.

        Rows without labels have the soft-target loss, and none without a teacher. A student whose config asks for
        hidden states, or that has several heads, still predicts one array; `ignore_keys` has nothing to leave out.
        """
        inputs = self._prepare_inputs(inputs)
        labels, loss = inputs.get("labels"), None
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None and self.soft_targets is None:
                outputs = model(**self._student_inputs(inputs))
            else:
                counts = self._num_items([inputs], self.args.device, is_training=False)
                self._own_losses, self._step_counts = [], counts.by_term  # type: ignore[attr-defined]
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=counts)
                if type(self).compute_loss is not DistillationTrainer.compute_loss and self._own_losses:
                    added = loss.detach() - torch.stack(self._own_losses).mean()
                    num_rows = self._main_input(inputs).shape[0]
                    self.loss_log.add_beside(added, num_rows, self.accelerator.gather_for_metrics)
        self._step_counts = None
        logits = None if prediction_loss_only else logits_of(outputs).detach()
        return None if loss is None else loss.detach(), logits, None if prediction_loss_only else labels

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
        self.loss_log.start_evaluation()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        step = self.loss_objective.at(self.state, is_training=False)
        found = self.loss_log.finish_evaluation(step, has_teacher=self.soft_targets is not None)
        measured = {f"{metric_key_prefix}_{name}": value for name, value in found.items() if value is not None}
        output.metrics.update(measured)
        if found.get("loss", 0.0) is None:  # there was nothing to measure against
            output.metrics.pop(f"{metric_key_prefix}_loss", None)
        return output

    def predict_with_teacher(self, dataset: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Run the teacher, as it teaches, over a data set.

        Args:
            dataset: rows as for training.

        Returns:
            logits `(rows, num_labels)` or `(rows, tokens, num_labels)` in the student's label order and the rows'
            order, by the name of who gives them: several teachers one by one, and the whole last, with probabilities
            at temperature 1; and the labels, -100 where there is no soft target, or None if there are none.

        Raises:
            ValueError: there is no teacher, its logits are not numbers, or it was released and there are no cached
                soft targets for this data set.
        """
        if self.soft_targets is None:
            raise ValueError("there is no teacher: alpha is 1, so none was loaded")
        if isinstance(self.soft_targets, CachedTeacher) and (self.cache is None or dataset not in self.cache):
            raise ValueError(
                "no cached soft targets for this data set, and the teacher was released: pass it as eval_dataset, or "
                "call predict_with_teacher before train()"
            )
        logits, labels = self._teacher_logits(self.get_test_dataloader(dataset))
        return {who: each.numpy() for who, each in logits.items()}, None if labels is None else labels.numpy()

    def _teacher_logits(self, batches: Any, *, remember: bool = False) -> tuple[dict[str, Tensor], Tensor | None]:
        source = self.soft_targets
        assert source is not None

        def compute(batch: Mapping[str, Any]) -> TeacherOutput:
            self._note_problem_type(batch.get("labels"))
            return self._eval_cache.output(source, batch) if remember else source(batch)

        return teacher_logits(
            batches,
            source,
            compute,
            objective=self.loss_objective,
            accelerator=self.accelerator,
            prepare_inputs=self._prepare_inputs,
        )

    # ---- Data ----

    def precompute_teacher_logits(self) -> None:
        """Compute and cache the soft targets of all training and evaluation rows that lack them; release the teacher.

        `train` does this; call it to have the soft targets without a training. From there on `teacher` is None, and
        data sets other than the trainer's are evaluated by their labels alone. A model that was passed goes back to
        the device that it came from.

        Raises:
            ValueError: the data are a stream or change each time that they are read; the folder holds soft targets that
                were made in another way, or cannot be written; the teacher's logits are not numbers; or there is no
                teacher, and rows lack soft targets.
        """
        if self.soft_targets is None:
            return
        evaluated = [(dataset, False) for dataset in self._evaluation_sets()]
        new = [each for each in [(self.train_dataset, True), *evaluated] if each[0] is not None]
        for dataset, _ in new:
            refuse_stream(dataset)
        if isinstance(self.soft_targets, CachedTeacher):
            assert self.cache is not None
            self.cache.add(new, None)
        elif new:
            rows, collator = self._readable(new[0][0])
            self._note_problem_type(collator([rows[0]]).get("labels"))
            assert self._built is not None
            self.cache = self._new_cache(self.loss_objective.is_token_level)
            self.cache.add(new, self._teacher_run(self._built))
            self._release_teacher(self._built, self.cache)

    def _new_cache(self, is_token_level: bool) -> SoftTargetCache:
        id2label = getattr(getattr(self.student, "config", None), "id2label", None)
        labels = None if id2label is None else names_in_order(id2label)
        return SoftTargetCache(self.args, self.accelerator, labels=labels, is_token_level=is_token_level)

    def _teacher_run(self, built: BuiltTeacher) -> TeacherRun:
        columns: set[str] | None = None
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            columns = {*cast(list[str], self._signature_columns)}
        return TeacherRun(
            source=built.source,
            views=built.views,
            raw_columns=built.raw_columns,
            problem_type=self.loss_objective.problem_type or "single_label_classification",
            processing_class=self.processing_class,
            collator=self.data_collator,
            signature_columns=columns,
            readable=self._readable,
            prepare_inputs=self._prepare_inputs,
        )

    def _readable(self, dataset: Any) -> tuple[Any, Callable[[list], Any]]:
        """Return a data set and its collator as the parent's data loaders have them."""
        if isinstance(dataset, datasets.Dataset):
            return self._remove_unused_columns(dataset, description="soft targets"), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description="soft targets")

    def _release_teacher(self, built: BuiltTeacher, cache: SoftTargetCache) -> None:
        if isinstance(self.data_collator, TeacherViews):
            cache.withheld = {*built.raw_columns, TEACHER_PIXELS}
            self.data_collator = self.data_collator.collator
        combination = built.source.combination if isinstance(built.source, TeacherEnsemble) else None
        self.soft_targets = CachedTeacher(self.args.device, combination, built.source.batch_keys)
        self.teacher = None
        self._signature_columns = None  # without those that the teacher alone has read
        self.__dict__.pop("_eval_dataloaders", None)
        built.release(self.args.teacher_placement)
        self._built = None

    def _check_data(self) -> None:
        self._checked_problem_type = self.loss_objective.problem_type
        checks.check_label_settings(self.args, self.compute_loss_func, self.loss_objective.problem_type)
        self._labels.space = checks.label_space(
            self.train_dataset, self.student, self.soft_targets, self.loss_objective.problem_type
        )
        found = [self._check_labels(dataset) for dataset in [self.train_dataset, *self._evaluation_sets()]]
        if self.args.uses_labels and self._labels.is_usual:
            checks.check_is_labelled(self.train_dataset, found[0], self.args.most_alpha)

    def _check_labels(self, dataset: Any) -> int | None:
        return checks.check_labels(dataset, self._labels.space, is_usual=self._labels.is_usual)

    def _evaluation_sets(self) -> list[Any]:
        return list(self.eval_dataset.values()) if isinstance(self.eval_dataset, dict) else [self.eval_dataset]

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return the batches of a test set; labels that are all -1, as in splits without public labels, are none."""
        if self._labels.is_usual and self._labels.space.are_classes():
            test_dataset = without_hidden_labels(test_dataset)
        return super().get_test_dataloader(test_dataset)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        if not any(dataset is known for known in [self.train_dataset, *self._evaluation_sets()]):
            self._check_labels(dataset)
        if not isinstance(self.soft_targets, CachedTeacher):
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        assert self.cache is not None
        if self.cache.is_empty:  # there never was a teacher, and nothing has been looked up so far
            self.precompute_teacher_logits()
        rows, collator = self._readable(dataset)
        before, self.data_collator = self.data_collator, self.cache.collator(collator)
        try:
            # The sampler looks at the data set itself, whose lengths may be in a column.
            of_rows = None if sampler_fn is None else lambda _: sampler_fn(dataset)
            rows = self.cache.attached(dataset, rows)
            return super()._get_dataloader(rows, description, batch_size, of_rows, is_training, dataloader_key)
        finally:
            self.data_collator = before

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if isinstance(data_collator, SoftTargetCollator):  # the one that it wraps has removed them
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def _set_signature_columns_if_needed(self) -> None:
        # Columns that only the teacher takes (token_type_ids beside a DistilBERT student) must survive too.
        super()._set_signature_columns_if_needed()
        if self._built is not None and not isinstance(self.soft_targets, CachedTeacher):
            columns = self._built.source.batch_keys | {*self._built.raw_columns, TEACHER_PIXELS}
            known: Any = self._signature_columns
            known += sorted(columns - {*known})

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled:  # the parent converts all that floats to the type of the student's weights
            kept = [name for name in (CACHED_LOGITS, *SOFT_TARGET_COLUMNS) if name in inputs]
            prepared |= send_to_device({name: inputs[name] for name in kept}, self.args.device)
        return prepared

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        return sampler.train_sampler(self, train_dataset) or super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        return sampler.eval_sampler(self.args, eval_dataset)

    # ---- Checkpoints and the Hub ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not checkpoints.load_renamed(self, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not checkpoints.load_renamed(self, self.state.best_model_checkpoint):
            super()._load_best_model()

    @cached_property
    def hub(self) -> Any:
        """Return the `TrainerHub`, which writes the card and pushes; the Hub's client is imported on first use."""
        from hf_distill.training.trainer_hub import TrainerHub

        return TrainerHub(self)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of the student into README.md of the output folder; see `TrainerHub.write_card`."""
        self.hub.write_card(
            language=language,
            license=license,
            tags=tags,
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=tasks,
            dataset_tags=dataset_tags,
            dataset=dataset,
            dataset_args=dataset_args,
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as `Trainer` does; a README.md there stays as it is, and no file holds the token."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if folder.resolve() == Path(self.args.output_dir).resolve():
            self._finish_current_push()  # it may be reading what is written now
        with checkpoints.saving_cleanly(folder, self.args):
            super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository that the student is pushed to, if there is none; see `TrainerHub.create_repository`."""
        self.hub.create_repository(token=token, private=private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push the student and its processor with a card, in one commit; see `TrainerHub.push`."""
        return self.hub.push(commit_message, blocking, token=token, revision=revision, private=private, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.hub.push_checkpoint(checkpoint_folder)
