"""A `Trainer` that has taken on a teacher: what it reads of a batch, what it says, and how good it is."""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import has_length
from transformers.utils import logging

from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.label_columns import (
    LabelCollator,
    LabelSpace,
    holds_targets,
    label_columns,
    without_hidden_labels,
)
from hf_distill.data.soft_targets import CACHED_LOGITS
from hf_distill.data.target_columns import SoftTargetColumns
from hf_distill.data.targets import MISSING_LABEL, ProblemType, token_mask
from hf_distill.data.teacher_views import TeacherViews, guess_columns
from hf_distill.evaluation.teacher_quality import TeacherQuality, check_quality, measure_quality
from hf_distill.teachers.build import (
    Circumstances,
    Views,
    class_names,
    load_members,
    members_of,
    put_to_work,
    stated_problem_type,
    views_of,
)
from hf_distill.teachers.cache.eval_cache import Remembered
from hf_distill.teachers.external import SOFT_TARGET_COLUMNS, refuse_empty_column
from hf_distill.teachers.model import FrozenTeacher, check_logits
from hf_distill.teachers.several import SeveralTeachers
from hf_distill.teachers.source import TEACHER_INPUTS, Teaching
from hf_distill.training.checkpoints import ResumableTrainer
from hf_distill.training.checks import (
    check_arguments,
    check_is_labelled,
    check_label_settings,
    check_labels,
    warn_of_frozen_head,
)
from hf_distill.training.config import DistillationConfig

logger = logging.get_logger(__name__)

REPEATED_ROWS = "repeated_rows"
"""The entry of a batch that marks the rows that only fill it up; see `DistillationTrainer`."""


class TaughtTrainer(ResumableTrainer):
    """`Trainer` with a teacher, which is no part of its model, and whose inputs its batches hold.

    Args:
        model: the student.
        teacher: see `DistillationTrainer`.
        args: a DistillationConfig.
        teacher_processing_class: see `DistillationTrainer`.
        **trainer_arguments: every other argument of `Trainer`.

    Attributes:
        teacher: the teacher's model, a list of models and specialists, a function, or None.
        teacher_quality: what `train` has found of it on the evaluation set.
    """

    def __init__(
        self,
        model: nn.Module | None,
        teacher: Any,
        args: DistillationConfig,
        *,
        teacher_processing_class: Any,
        **trainer_arguments: Any,
    ) -> None:
        check_arguments(args)
        super().__init__(model=model, args=args, **trainer_arguments)
        self.args: DistillationConfig
        self.label_names: list[str]
        if not self.label_names:  # a model whose forward computes no loss of its own
            self.label_names = ["labels"]
        if self.label_names != ["labels"]:
            raise ValueError(f"a classifier's label column is 'labels', this student's are {self.label_names}")
        student = self._bare_student()
        self.data_collator: Any = LabelCollator(self.data_collator, LabelSpace(None))
        self._labels = self.data_collator
        self._is_token_level = "TokenClassification" in type(student).__name__
        self.teacher: Any = None
        self.teacher_quality: TeacherQuality | None = None
        self._teaching: Teaching | None = None
        self._remembered = Remembered()
        self._raw_columns: list[str] = []
        self._views = Views([], [], [], [])
        self._problem_type: ProblemType | None = None
        if args.uses_teacher or (teacher is not None and self.model_init is not None):  # a search may vary alpha
            self._take_on(teacher, teacher_processing_class, student)
        else:
            self._problem_type = stated_problem_type(student, [], self._is_token_level)
        self._teacher_was_checked = False
        self._num_unusable = torch.zeros((), dtype=torch.long, device=args.device)
        warn_of_frozen_head(self.model)
        self._check_settings()

    @property
    def _student_config(self) -> Any:
        # With `model_init` there is a new student for each training, and between two trials none.
        return None if self.model is None else getattr(self._bare_student(), "config", None)

    def _check_settings(self) -> None:
        check_label_settings(self.args, self.compute_loss_func, self._problem_type)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and parallelism.non_data_parallel_size > 1:
            raise ValueError(
                "a classifier is distilled with data parallelism (DDP, FSDP, ZeRO): tensor, context and sequence "
                "parallelism are not supported"
            )
        self._labels.space = self._label_space()
        found = [self._check_labels(dataset) for dataset in [self.train_dataset, *self._evaluation_sets()]]
        if self.args.uses_labels and self._labels.is_usual:
            check_is_labelled(self.train_dataset, found[0], self.args.most_alpha)

    def _label_space(self) -> LabelSpace:
        columns = label_columns(self.train_dataset)
        is_multi = columns is not None and any(holds_targets(self.train_dataset, name) for name in columns[1])
        implied = "multi_label_classification" if is_multi and not self._is_token_level else None
        return LabelSpace(
            num_labels=getattr(self._student_config, "num_labels", None),
            names=tuple(class_names(self._bare_student(), self._teaching)),
            problem_type=self._problem_type or implied,
            token_level=self._is_token_level,
        )

    def _check_labels(self, dataset: Any) -> int | None:
        return check_labels(dataset, self._labels.space, is_usual=self._labels.is_usual)

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
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _take_on(self, teacher: Any, processing_class: Any, student: nn.Module) -> None:
        circumstances = Circumstances(
            student=student,
            processing_class=self.processing_class,
            device=self.args.device,
            num_processes=self.args.world_size,
            autocast_dtype=torch.bfloat16 if self.args.bf16 or self.args.fp16 else None,
            accelerator=self.accelerator,
        )
        columns = _column_names(self.train_dataset) or _column_names(self.eval_dataset)
        if teacher is None and not columns and self.train_dataset is not None:
            first = next(iter(self.train_dataset), None)  # of a stream that does not know them
            columns = list(first) if isinstance(first, Mapping) else []
        members = members_of(teacher, columns)
        if processing_class is None and (self.args.teacher_input_columns or self.args.teacher_max_length):
            raise ValueError(
                "teacher_input_columns and teacher_max_length are for a teacher with inputs of its own: pass its "
                "teacher_processing_class, or leave them out"
            )
        if isinstance(members, list):
            members = load_members(members, self.args, circumstances)
        if not isinstance(members, str):
            self.teacher = members[0] if isinstance(members, list) and len(members) == 1 else members
        listed = members if isinstance(members, list) else []
        self._problem_type = stated_problem_type(student, listed, self._is_token_level)
        self._views = views_of(members, processing_class, self.processing_class, columns)
        self._teaching = put_to_work(members, self.args, circumstances, self._problem_type, self._views)
        if self._views.processors:
            self._collate_views(self._views)
        elif isinstance(members, str):
            self._raw_columns = [members]
            refuse_empty_column(self.train_dataset, members)
            num_labels: Any = getattr(getattr(student, "config", None), "num_labels", None)
            self.data_collator = SoftTargetColumns(
                self.data_collator, members, num_labels, token_level=self._is_token_level
            )

    def _collate_views(self, views: Views) -> None:
        is_text = isinstance(views.processors[0], PreTrainedTokenizerBase)
        kind: Any = "image" if not is_text else "words" if self._is_token_level else "text"
        self._raw_columns = [*(self.args.teacher_input_columns or guess_columns(self.train_dataset, kind))]
        self.data_collator = TeacherViews(
            self.data_collator,
            views.processors,
            columns=self._raw_columns,
            kind=kind,
            max_lengths=[_smaller(self.args.teacher_max_length, limit) for limit in views.max_lengths],
            student_processor=self.processing_class,
        )

    def _bare_student(self) -> nn.Module:
        student = self.accelerator.unwrap_model(self.model)
        return student.get_base_model() if hasattr(student, "get_base_model") else student

    def _set_signature_columns_if_needed(self) -> None:
        # Columns that only the teacher takes (token_type_ids beside a DistilBERT student) must survive too.
        super()._set_signature_columns_if_needed()
        self._signature_columns += sorted(self._teacher_columns() - set(self._signature_columns))

    def _teacher_columns(self) -> set[str]:
        """Name the columns that batches are made of for the teacher alone."""
        return set() if self._teaching is None else self._teaching.own_entries | {*self._raw_columns, TEACHER_PIXELS}

    def _student_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        withheld = {"labels", TEACHER_INPUTS, REPEATED_ROWS}
        withheld |= set() if self._teaching is None else self._teaching.own_entries
        return {name: value for name, value in inputs.items() if name not in withheld}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled:  # the parent converts all that floats to the type of the student's weights
            for name in (CACHED_LOGITS, *SOFT_TARGET_COLUMNS):
                if name in inputs:
                    prepared[name] = send_to_device(inputs[name], self.args.device)
        return prepared

    def _soft_mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Tell which rows, or tokens, have soft targets; None: all."""
        masks = [None if self._teaching is None else self._teaching.mask(inputs)]
        if REPEATED_ROWS in inputs:
            first_time = ~inputs[REPEATED_ROWS]
            masks.append(first_time[:, None] if self._is_token_level else first_time)
        if self._is_token_level:
            masks.append(token_mask(inputs.get("attention_mask"), inputs.get("labels")))
        present = [mask for mask in masks if mask is not None]
        return reduce(torch.logical_and, present) if present else None

    def _pending(self, inputs: Mapping[str, Any], *, is_trained_on: bool) -> Callable[[], list[Tensor]] | None:
        """Begin to ask the teacher about a batch; None: there is none, or what it says has no weight.

        A batch that is evaluated comes again in the next evaluation, and is asked about once. Parts of a teacher that
        is split over processes must be run by all of them, whatever each remembers.
        """
        is_used = self.args.uses_teacher if is_trained_on else self.args.last_alpha < 1
        has_weight = is_used or inputs.get("labels") is None
        if self._teaching is None or not has_weight:
            return None
        is_run_here = isinstance(self._teaching, FrozenTeacher | SeveralTeachers)
        if is_trained_on or not is_run_here or self.args.teacher_placement == "sharded":
            return self._teaching.start(inputs)
        return self._remembered.start(self._teaching, inputs)

    def _teacher_logits(
        self, pending: Callable[[], list[Tensor]], temperature: float, problem_type: ProblemType
    ) -> Tensor:
        assert self._teaching is not None
        with self.accelerator.autocast():
            members = pending()
        logits = self._teaching.combine(members, temperature, problem_type)
        # A look at a value waits for the device, so only the first batch is looked at here; whether a later one was
        # unusable is found out when the loss is logged, and at the end.
        if not self._teacher_was_checked:
            check_logits(logits)
            self._teacher_was_checked = True
        else:
            self._num_unusable += (logits.isnan() | logits.isposinf()).sum()
        return logits

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

    def _examine_teacher(self) -> None:
        found: dict[str, dict[str | None, TeacherQuality]] = {}
        for name in self.eval_dataset if isinstance(self.eval_dataset, dict) else [None]:
            judged, labels = self._ask_teacher(self.get_eval_dataloader(name), is_remembered=True)
            if labels is None:
                continue
            problem_type = self._resolve_problem_type(labels)
            for who, logits in judged.items():
                quality = measure_quality(logits, labels, problem_type)
                if quality is None:
                    continue
                self.teacher_quality = quality  # the whole comes last
                logger.info(f"{who.capitalize()}: {quality}")
                found.setdefault(who, {})[name] = quality
        if not self.args.allow_untrained_teacher:
            for who, qualities in found.items():
                check_quality(who, qualities)

    def _refuse_unusable(self) -> None:
        """Raise ValueError if any soft target since the start was no number."""
        count = int(self._num_unusable)
        if count:
            raise ValueError(
                f"the teacher's logits were NaN or infinite in {count} places since the start, so the student is "
                "spoilt: look at the teacher's inputs, or at teacher_dtype (float16 overflows)"
            )

    def predict_with_teacher(self, dataset: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Run the teacher, as it teaches, over a data set.

        Args:
            dataset: rows as for training.

        Returns:
            logits `(rows, num_labels)` or `(rows, tokens, num_labels)` in the student's label order and the rows'
            order, by the name of who gives them: several teachers one by one, and the whole last, with probabilities
            at temperature 1; and the labels, -100 where the teacher has no answer, or None if there are none.

        Raises:
            ValueError: there is no teacher, or its logits are not numbers.
        """
        if self._teaching is None:
            raise ValueError("there is no teacher: alpha is 1, so none was loaded")
        judged, labels = self._ask_teacher(self.get_test_dataloader(dataset))
        return {who: logits.numpy() for who, logits in judged.items()}, None if labels is None else labels.numpy()

    def _ask_teacher(
        self, batches: Iterable[dict[str, Any]], *, is_remembered: bool = False
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        assert self._teaching is not None
        all_logits: dict[str, list[Tensor]] = {}
        all_labels: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed, and training must not notice
            for inputs in batches:
                inputs = self._prepare_inputs(inputs)
                labels, mask = inputs.get("labels"), self._soft_mask(inputs)
                with self.accelerator.autocast():
                    remembered = self._pending(inputs, is_trained_on=False) if is_remembered else None
                    members = (remembered or self._teaching.start(inputs))()
                problem_type = self._resolve_problem_type(labels)
                for who, logits in self._teaching.judged([each.float() for each in members], problem_type).items():
                    check_logits(logits)
                    all_logits.setdefault(who, []).append(self._gathered(logits))
                if labels is not None:
                    if mask is not None:
                        mask = mask.view(*mask.shape, *[1] * (labels.dim() - mask.dim()))
                        labels = labels.masked_fill(~mask, MISSING_LABEL)
                    all_labels.append(self._gathered(labels))
        judged = {who: self._joined(parts) for who, parts in all_logits.items()}
        return judged, self._joined(all_labels) if all_labels else None

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Put batches together, those of fewer tokens filled up with -100."""
        if self._is_token_level:
            width = max(part.shape[1] for part in parts)
            parts = [
                F.pad(part, (*(0, 0) * (part.dim() - 2), 0, width - part.shape[1]), value=MISSING_LABEL)
                for part in parts
            ]
        return torch.cat(parts)

    def _gathered(self, values: Tensor) -> Tensor:
        """Return all processes' rows, on the CPU."""
        if self._is_token_level:
            values = self.accelerator.pad_across_processes(values, dim=1, pad_index=MISSING_LABEL)
        gathered: Tensor = self.accelerator.gather_for_metrics(values)
        return gathered.cpu()


def _column_names(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if isinstance(dataset, dict):
        return _column_names(next(iter(dataset.values()), None))
    if names is None and hasattr(dataset, "__getitem__") and has_length(dataset) and len(dataset):
        first = dataset[0]
        names = list(first) if isinstance(first, Mapping) else None
    return list(names or [])


def _smaller(wanted: int | None, limit: int | None) -> int | None:
    return min((length for length in (wanted, limit) if length is not None), default=None)
