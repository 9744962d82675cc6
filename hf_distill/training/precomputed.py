"""A trainer that learns from what its teacher has said beforehand, of all rows, and lets the teacher go."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hf_distill.data.fingerprints import processor_settings, refuse_stream
from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.soft_targets import RowTargets, SoftTargetCollator, WithSoftTargets
from hf_distill.data.teacher_views import TeacherViews
from hf_distill.teachers.build import stated_problem_type
from hf_distill.teachers.cache.cached_teacher import CachedTeacher
from hf_distill.teachers.cache.key import check_key, read_key, teachers_key
from hf_distill.teachers.cache.store import SoftTargets
from hf_distill.teachers.cache.target_form import check_key_form, check_targets
from hf_distill.teachers.ensemble import check_weights
from hf_distill.teachers.external import SOFT_TARGET_COLUMNS, CallableTeacher, ColumnTeacher
from hf_distill.teachers.placement import is_quantized
from hf_distill.teachers.several import Panel, SeveralTeachers
from hf_distill.teachers.specialists import Specialist
from hf_distill.training.answering import AnsweringTrainer, Known


class MissingTargetsError(ValueError):
    """Rows have no soft targets, and there is no teacher to ask.

    Attributes:
        count: how many of them.
        total: how many rows there are.
    """

    def __init__(self, path: Path, count: int, total: int) -> None:
        super().__init__(
            f"{count} of {total} rows have no soft targets in {path}, and there is no teacher to ask: pass teacher=, "
            "or the data that were asked about, prepared in the same way"
        )
        self.count, self.total = count, total


class PrecomputedTrainer(AnsweringTrainer):
    """`AnsweringTrainer` that can learn from soft targets which its teacher, or one of another run, has left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._soft_targets: SoftTargets | None = None
        self._targets: list[tuple[Any, RowTargets]] = []
        self._origins: list[tuple[nn.Module, torch.device]] = []
        self._withheld: set[str] = set()
        self._has_warned = False
        super().__init__(*args, **kwargs)

    @property
    def _is_let_go(self) -> bool:
        return isinstance(self._teaching, CachedTeacher)

    # ---- Taking on ----

    def _take_on(self, teacher: Any, processing_class: Any, student: nn.Module) -> None:
        if not self.args.precompute_teacher_logits:
            super()._take_on(teacher, processing_class, student)
            return
        if teacher is None and not set(SOFT_TARGET_COLUMNS) & _names(self.train_dataset):
            self._take_on_answers(processing_class, student)
            return
        given = teacher if isinstance(teacher, list | tuple) else [teacher]
        modules = [member.model if isinstance(member, Specialist) else member for member in given]
        self._origins = [(m, next(m.parameters()).device) for m in modules if isinstance(m, nn.Module)]
        super()._take_on(teacher, processing_class, student)
        if isinstance(self._teaching, ColumnTeacher):
            raise ValueError(
                f"precompute_teacher_logits: the data have soft targets already, in {self._teaching.column}: leave it "
                "out"
            )
        if isinstance(self._teaching, CallableTeacher):
            teachers_key(self._teaching, [], [])  # refuses a function that cannot be told from another

    def _take_on_answers(self, processing_class: Any, student: nn.Module) -> None:
        """Learn from what a teacher has said in another run."""
        if processing_class is not None:
            raise ValueError("teacher_processing_class is for a teacher, and there is none: leave it out")
        key = read_key(self._folder)
        if key is None:
            raise ValueError(
                f"there is no teacher, and {self._folder} has no soft targets of one: pass teacher=, or the "
                "teacher_logits_dir of a run that had one"
            )
        where = f"teacher_logits_dir: {self._folder}"
        remedy = "copy the folder anew, or pass teacher= with another teacher_logits_dir"
        check_key_form(key, where, remedy)
        targets = SoftTargets(self._folder)
        if targets.damaged:
            raise ValueError(
                f"{', '.join(file.name for file in targets.damaged[:4])} in {self._folder} "
                f"{'is' if len(targets.damaged) == 1 else 'are'} damaged, and there is no teacher to answer again: "
                "copy the folder anew, or pass teacher="
            )
        check_targets(targets, where, remedy)
        self._problem_type = stated_problem_type(student, [], self._is_token_level)
        wanted = self._key_of_student(student)
        if targets.key["student_processor"] is not None and self.processing_class is not None:
            wanted["student_processor"] = processor_settings(self.processing_class)
        given = {"dtype": self.args.teacher_logits_dtype, "top_k": self.args.teacher_logits_top_k}
        wanted["logits"] = {**targets.key["logits"], **{k: v for k, v in given.items() if v is not None}}
        check_key(self._folder, targets.key, wanted)
        self._soft_targets = targets
        self._teaching = CachedTeacher(self.args.device, self._panel_of(targets.key["teachers"]))

    def _panel_of(self, teachers: Sequence[dict[str, Any]]) -> Panel | None:
        """Tell from a key how its teachers become one."""
        specialists = [each["specialist"] for each in teachers if each.get("specialist") is not None]
        num_generalists = len(teachers) - len(specialists)
        if len(teachers) == 1:
            if self.args.teacher_weights is not None or self.args.teacher_combination != "arithmetic":
                raise ValueError(
                    "teacher_weights and teacher_combination are for several teachers, and the soft targets are of "
                    "one: leave them out"
                )
            return None
        return Panel(
            num_generalists,
            tuple((each["classes"], each["oversampling"]) for each in specialists),
            check_weights(self.args.teacher_weights, num_generalists),
            self.args.teacher_combination,  # type: ignore[arg-type]  # checked by the config
        )

    # ---- Looking up ----

    def precompute_teacher_logits(self) -> None:
        """Have the teacher answer for all training and evaluation rows that have no soft targets yet; let it go.

        `train` does this; call it to have the soft targets without a training. From there on `teacher` is None, and
        data sets other than the trainer's are evaluated by their labels alone. A model that was passed goes back to
        the device that it came from.

        Raises:
            ValueError: the data are a stream or change each time that they are read; the folder holds soft targets that
                were made in another way, or cannot be written; the teacher's logits are not numbers; or there is no
                teacher, and rows lack soft targets.
        """
        new = self._new_datasets()
        if self._teaching is None or not new:
            return
        with torch.random.fork_rng(devices=[]):  # data loaders draw seeds, and training must not notice
            columns = self._columns_read()
            known = [self._identified(dataset, columns, is_trained_on) for dataset, is_trained_on in new]
            if self._is_let_go:
                self._refuse_missing(known)
            else:
                self._soft_targets = self._answered(known, columns)
        assert self._soft_targets is not None
        for each in known:
            each.show(0)
            targets = RowTargets(
                self._soft_targets,
                each.positions(self._soft_targets),
                digests=None if each.reader is None else each.digests,
                columns=None if each.reader is None else each.reader.columns,
                changes=each.changes,
            )
            self._targets.append((each.dataset, targets))
        if not self._is_let_go:
            self._let_go()

    def _new_datasets(self) -> list[tuple[Any, bool]]:
        """Return the data sets whose soft targets have not been looked up, and whether they are trained on."""
        evaluated = list(self.eval_dataset.values()) if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        new: list[tuple[Any, bool]] = []
        for place, dataset in enumerate([self.train_dataset, *evaluated]):
            known = [*(known for known, _ in self._targets), *(known for known, _ in new)]
            if dataset is not None and not any(dataset is other for other in known):
                refuse_stream(dataset)
                new.append((dataset, place == 0))
        return new

    def _columns_read(self) -> set[str] | None:
        if self._is_let_go:
            assert self._soft_targets is not None
            return set(self._soft_targets.key["columns"])
        return super()._columns_read()

    def _refuse_missing(self, known: Sequence[Known]) -> None:
        assert self._soft_targets is not None
        count, total = self._num_missing(known, self._soft_targets), self._num_missing(known, None)
        if count:
            raise MissingTargetsError(self._soft_targets.path, count, total)

    # ---- Letting the teacher go ----

    def _let_go(self) -> None:
        assert self._teaching is not None
        panel = self._teaching.panel if isinstance(self._teaching, SeveralTeachers) else None
        if isinstance(self.data_collator, TeacherViews):
            self.data_collator = self.data_collator.collator
            self._withheld = {*self._raw_columns, TEACHER_PIXELS}
        self._raw_columns = []
        self._views = replace(self._views, processors=[], of_members=[])
        self._teaching = CachedTeacher(self.args.device, panel, self._teaching.own_entries)
        self._signature_columns = None  # without those that the teacher alone has read
        self.__dict__.pop("_eval_dataloaders", None)
        self.teacher = None
        for model, origin in self._origins:
            is_spread = getattr(model, "hf_device_map", None) is not None
            if self.args.teacher_placement != "sharded" and not is_spread and not is_quantized(model):
                model.to(origin)
        self._origins = []
        clear_device_cache()

    def _teacher_columns(self) -> set[str]:
        return set() if self._is_let_go else super()._teacher_columns()

    # ---- Batches that bring soft targets ----

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        if not self._is_let_go:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        assert self._soft_targets is not None
        if not self._targets:  # there never was a teacher, and nothing has been looked up so far
            self.precompute_teacher_logits()
        targets = next((targets for known, targets in self._targets if known is dataset), None)
        rows, collator = self._readable(dataset)
        if targets is None:
            self._warn_of_other_rows()
        else:
            rows = rows.without_teacher_views() if hasattr(rows, "without_teacher_views") else rows
            rows = WithSoftTargets(rows, targets)
        before = self.data_collator
        self.data_collator = SoftTargetCollator(
            collator, self._soft_targets.widths, token_level=self._is_token_level, withheld=self._withheld
        )
        try:
            # The sampler looks at the data set itself, whose lengths may be in a column.
            sampler = None if sampler_fn is None else lambda _: sampler_fn(dataset)
            return super()._get_dataloader(rows, description, batch_size, sampler, is_training, dataloader_key)
        finally:
            self.data_collator = before

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        if isinstance(data_collator, SoftTargetCollator):  # the one that it wraps has removed them
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def _warn_of_other_rows(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the teacher has been let go, and has said nothing of these rows: they are evaluated by their labels "
                "alone. For soft losses, pass them as eval_dataset before the training.",
                UserWarning,
                stacklevel=4,
            )

    def predict_with_teacher(self, dataset: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Return what the teacher says of a data set; see `TaughtTrainer.predict_with_teacher`.

        Raises:
            ValueError: there is no teacher, its logits are not numbers, or it has been let go and has said nothing of
                this data set.
        """
        if self._is_let_go and not any(dataset is known for known, _ in self._targets):
            raise ValueError(
                "the teacher has been let go, and has said nothing of this data set: ask before the training, or pass "
                "it as eval_dataset"
            )
        return super().predict_with_teacher(dataset)


def _names(dataset: Any) -> set[str]:
    if dataset is None or isinstance(dataset, IterableDataset):
        return set()
    return set(getattr(dataset, "column_names", None) or (dataset[0] if len(dataset) else ()))
