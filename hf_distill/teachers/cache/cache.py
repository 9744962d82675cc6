"""Soft targets that are computed once, before the training, and found again by the content of the rows."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from hf_distill.data.processors import processor_settings
from hf_distill.data.soft_targets import CachedDataset, RowSoftTargets, SoftTargetCollator
from hf_distill.teachers.cache.builder import CacheBuilder, TeacherRun
from hf_distill.teachers.cache.cached_teacher import CachedTeacher
from hf_distill.teachers.cache.key import check_key, read_key
from hf_distill.teachers.cache.lookup import MissingTargetsError, hash_data_set, num_missing
from hf_distill.teachers.cache.store import SoftTargets
from hf_distill.teachers.cache.target_form import check_key_form, check_targets
from hf_distill.teachers.ensemble import Combination, check_weights

logger = logging.get_logger(__name__)

LOGITS_DTYPES = ("float16", "float32")
_FOLDER = "_teacher_logits"  # `Trainer.push_to_hub` uploads all of output_dir but what begins with an underscore
_NUM_COMPARED = 4
_TOLERANCE = 0.02  # of the largest logit; half precision keeps a thousandth of it
_TOLERANCE_OF_HALF = 0.1
_SECONDS_TO_APPEAR = 10.0  # what other processes have written, in a folder on a network


class SoftTargetCache:
    """The soft targets of a run, in a folder.

    Attributes:
        targets: those in the folder; None as long as they have not been opened.
        withheld: columns of the rows that only the teacher has read.
    """

    def __init__(self, args: Any, accelerator: Any, *, labels: list[str] | None, is_token_level: bool) -> None:
        self.targets: SoftTargets | None = None
        self.withheld: set[str] = set()
        self.is_token_level = is_token_level
        self._args = args
        self._accelerator = accelerator
        self._student_key = {"labels": labels, "level": "tokens" if is_token_level else "rows"}
        self._rows: list[tuple[Any, RowSoftTargets]] = []
        self._has_warned = False

    @property
    def device(self) -> torch.device:
        """Return the student's device."""
        return self._args.device  # type: ignore[no-any-return]

    @property
    def folder(self) -> Path:
        """Return where the soft targets are, or will be."""
        return folder_of(self._args)

    # ---- Soft targets of another run ----

    def open(self, processing_class: Any) -> CachedTeacher:
        """Open what another run's teacher has left, to learn from it without a teacher.

        Raises:
            ValueError: there are none, or they are damaged or were made for other labels or in another way.
        """
        key = read_key(self.folder)
        if key is None:
            raise ValueError(
                f"there is no teacher, and {self.folder} has no soft targets of one: pass teacher=, or the "
                "teacher_logits_dir of a run that had one"
            )
        where = f"teacher_logits_dir: {self.folder}"
        remedy = "copy the folder anew, or pass teacher= with another teacher_logits_dir"
        check_key_form(key, where, remedy)
        targets = SoftTargets(self.folder)
        if targets.damaged:
            raise ValueError(
                f"{', '.join(file.name for file in targets.damaged[:4])} in {self.folder} "
                f"{'is' if len(targets.damaged) == 1 else 'are'} damaged, and there is no teacher to compute them "
                "again: copy the folder anew, or pass teacher="
            )
        check_targets(targets, where, remedy)
        wanted: dict[str, Any] = dict(self._student_key)
        if targets.key["student_processor"] is not None and processing_class is not None:
            wanted["student_processor"] = processor_settings(processing_class)
        given = {"dtype": self._args.teacher_logits_dtype, "top_k": self._args.teacher_logits_top_k}
        wanted["logits"] = {**targets.key["logits"], **{k: v for k, v in given.items() if v is not None}}
        check_key(self.folder, targets.key, wanted)
        self.targets = targets
        return CachedTeacher(self._args.device, self._combination_of(targets.key["teachers"]))

    def _combination_of(self, teachers: Sequence[dict[str, Any]]) -> Combination | None:
        """Tell from a key how its teachers become one."""
        specialists = [each["specialist"] for each in teachers if each.get("specialist") is not None]
        num_generalists = len(teachers) - len(specialists)
        if len(teachers) == 1:
            if self._args.teacher_weights is not None or self._args.teacher_combination != "arithmetic":
                raise ValueError(
                    "teacher_weights and teacher_combination are for several teachers, and the soft targets are of "
                    "one: leave them out"
                )
            return None
        return Combination(
            num_generalists,
            tuple((each["classes"], each["oversampling"]) for each in specialists),
            check_weights(self._args.teacher_weights, num_generalists),
            self._args.teacher_combination,
        )

    # ---- Looking up ----

    def __contains__(self, dataset: Any) -> bool:
        return any(dataset is known for known, _ in self._rows)

    @property
    def is_empty(self) -> bool:
        """Tell whether no data set has been looked up."""
        return not self._rows

    def add(self, new: Sequence[tuple[Any, bool]], run: TeacherRun | None) -> None:
        """Look up the rows of data sets, and compute the soft targets that are missing.

        Raises:
            ValueError: see `DistillationTrainer.precompute_teacher_logits`.
        """
        new = [(dataset, is_trained_on) for dataset, is_trained_on in new if dataset not in self]
        if not new:
            return
        with torch.random.fork_rng(devices=[]):  # data loaders draw seeds, and training must not notice
            builder = None
            if run is not None:
                builder = CacheBuilder(self._args, self._accelerator, self.folder, self._student_key, run)
                columns = builder.columns
            else:
                assert self.targets is not None
                columns = set(self.targets.key["columns"])
            rows = [
                hash_data_set(
                    dataset,
                    columns,
                    num_views=self._args.teacher_logits_views,
                    is_trained_on=is_trained_on,
                    num_workers=self._args.dataloader_num_workers,
                )
                for dataset, is_trained_on in new
            ]
            if builder is not None:
                self.targets = builder.build(rows)
            elif count := num_missing(rows, self.targets):
                raise MissingTargetsError(self.folder, count, num_missing(rows, None))
        assert self.targets is not None
        for each in rows:
            each.show(0)
            found = RowSoftTargets(
                self.targets,
                each.positions(self.targets),
                digests=None if each.reader is None else each.digests,
                columns=None if each.reader is None else each.reader.columns,
                changes=each.changes,
            )
            self._rows.append((each.dataset, found))

    def collator(self, collator: Any) -> SoftTargetCollator:
        """Return a collator of rows that bring their soft targets, around the student's."""
        assert self.targets is not None
        return SoftTargetCollator(
            collator, self.targets.widths, token_level=self.is_token_level, withheld=self.withheld
        )

    def attached(self, dataset: Any, rows: Any) -> Any:
        """Return the rows of a data set with their soft targets; those of one that is not known have none, and warn."""
        targets = next((targets for known, targets in self._rows if known is dataset), None)
        if targets is None:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    "no cached soft targets for this data set, and the teacher was released: it is evaluated by its "
                    "labels alone. For soft losses, pass it as eval_dataset before train().",
                    UserWarning,
                    stacklevel=5,
                )
            return rows
        return CachedDataset(rows.without_teacher_views() if hasattr(rows, "without_teacher_views") else rows, targets)


def folder_of(args: Any) -> Path:
    """Return the folder of soft targets that the settings name."""
    named = args.teacher_logits_dir
    return Path(args.output_dir, _FOLDER) if named is None else Path(named).expanduser()
