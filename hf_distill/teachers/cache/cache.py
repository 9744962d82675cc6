"""Soft targets that are computed once, before the training, and found again by the content of the rows."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

import hf_distill
from hf_distill.data.fingerprints import LABEL_COLUMNS, columns_of, processor_settings
from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.soft_targets import CachedDataset, RowSoftTargets, SoftTargetCollator
from hf_distill.data.teacher_views import TeacherInputCollator
from hf_distill.teachers.cache.cached_teacher import CachedTeacher
from hf_distill.teachers.cache.fill import Rows, WorkShare, compute_rows, logits_of_rows, max_relative_difference
from hf_distill.teachers.cache.key import ABOUT, check_key, names_of, read_key, teachers_key, write_key
from hf_distill.teachers.cache.lookup import HashedRows, MissingTargetsError, hash_data_set, missing_rows, num_missing
from hf_distill.teachers.cache.shards import ShardWriter, StorageFormat, held
from hf_distill.teachers.cache.store import SoftTargets, shards_in
from hf_distill.teachers.cache.target_form import check_key_form, check_targets
from hf_distill.teachers.ensemble import check_weights
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.several import Combination, TeacherEnsemble
from hf_distill.teachers.source import SoftTargetSource
from hf_distill.teachers.views import Views

logger = logging.get_logger(__name__)

LOGITS_DTYPES = ("float16", "float32")
_FOLDER = "_teacher_logits"  # `Trainer.push_to_hub` uploads all of output_dir but what begins with an underscore
_NUM_COMPARED = 4
_TOLERANCE = 0.02  # of the largest logit; half precision keeps a thousandth of it
_TOLERANCE_OF_HALF = 0.1
_SECONDS_TO_APPEAR = 10.0  # what other processes have written, in a folder on a network


@dataclass(frozen=True)
class TeacherRun:
    """A teacher, and what of a run it takes to compute its soft targets.

    Attributes:
        source: the teacher.
        views: which inputs its members read.
        raw_columns: those that its own inputs are made of.
        problem_type: the kind of target.
        processing_class: the student's.
        collator: of the run, which makes the teacher's views, too.
        signature_columns: columns that reach the student or the teacher; None: any.
        readable: returns a data set and its collator as the trainer's data loaders have them.
        prepare_inputs: moves a batch to the device.
    """

    source: SoftTargetSource
    views: Views
    raw_columns: Sequence[str]
    problem_type: str
    processing_class: Any
    collator: Any
    signature_columns: set[str] | None
    readable: Callable[[Any], tuple[Any, Callable[[list], Any]]]
    prepare_inputs: Callable[[dict[str, Any]], dict[str, Any]]

    @property
    def members(self) -> list[TeacherModel]:
        """Return the teachers that are models."""
        if isinstance(self.source, TeacherEnsemble):
            return self.source.members
        return [self.source] if isinstance(self.source, TeacherModel) else []


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
            columns = self._columns_read(run)
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
            if run is not None:
                self.targets = self._computed(rows, columns, run)
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

    def _columns_read(self, run: TeacherRun | None) -> set[str] | None:
        """Name the columns that may reach the teacher; None: any."""
        if run is None:
            assert self.targets is not None
            return set(self.targets.key["columns"])
        if run.signature_columns is None:
            return None
        members = run.members
        if not members or not all(member.inputs for member in members):
            return run.signature_columns - set(LABEL_COLUMNS)
        columns: set[str] = set()
        for member in members:
            if member.view is None or self.is_token_level:  # the student's tokens decide where soft targets belong
                columns |= member.inputs
        return columns | ({*run.raw_columns, TEACHER_PIXELS} if run.views.processors else set())

    # ---- The key ----

    def _key(self, dataset: Any, columns: set[str] | None, run: TeacherRun) -> dict[str, Any]:
        args, members, collator = self._args, run.members, run.collator
        reads_student = self.is_token_level or not members or any(member.view is None for member in members)
        lengths = collator.max_lengths if isinstance(collator, TeacherInputCollator) else []
        return {
            **self._student_key,
            "autocast": ("bfloat16" if args.bf16 else "float16") if args.bf16 or args.fp16 else None,
            "columns": columns_of(dataset, columns),
            "logits": {"dtype": self._dtype(run), "top_k": args.teacher_logits_top_k},
            "student_processor": processor_settings(run.processing_class) if reads_student else None,
            # Of a pair the order, which rows that are known by their columns' names do not tell.
            "teacher_columns": list(run.raw_columns) if run.views.processors else None,
            "teachers": teachers_key(run.source, run.views.processors, lengths),
            ABOUT: {
                "hf_distill": hf_distill.__version__,
                "teachers": names_of(run.source),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _dtype(self, run: TeacherRun) -> str:
        if self._args.teacher_logits_dtype is not None:
            return str(self._args.teacher_logits_dtype)
        there = (read_key(self.folder) or {}).get("logits") if shards_in(self.folder) else None
        if isinstance(there, Mapping) and there.get("dtype") in LOGITS_DTYPES:
            return str(there["dtype"])
        # Of a number that is large, float16 has no more than three digits; of logits that is enough.
        return "float32" if run.problem_type == "regression" else "float16"

    def _check_kept(self, run: TeacherRun) -> None:
        """Refuse to keep a part of the logits where that is no part of a distribution, or no smaller."""
        count, labels = self._args.teacher_logits_top_k, self._student_key["labels"]
        if count is None:
            return
        if run.problem_type != "single_label_classification":
            raise ValueError(
                "teacher_logits_top_k keeps the likeliest of classes that exclude each other, "
                f"{run.problem_type} has none: leave it out"
            )
        if labels is not None and count > len(labels) - 2:
            raise ValueError(
                f"teacher_logits_top_k is {count}, and of {len(labels)} labels at most {len(labels) - 2} can be kept "
                "with anything saved: leave it out"
            )

    # ---- Computing ----

    def _computed(self, rows: Sequence[HashedRows], columns: set[str] | None, run: TeacherRun) -> SoftTargets:
        """Return soft targets of all rows, computed now or before."""
        self._check_kept(run)
        key = self._key(rows[0].dataset, columns, run)
        targets = self._opened(key)
        before = [each.positions(targets) for each in rows]
        count = num_missing(rows, targets)
        if self._is_so_for_any(targets is None or count > 0):
            targets = self._completed(rows, key, count, run)
        assert targets is not None
        for each, found in zip(rows, before, strict=True):
            self._compare(each, found, targets, key, run)
        return targets

    def _is_so_for_any(self, flag: bool) -> bool:
        """Tell whether something holds in any process: all must go the same way, and may see a folder differently."""
        if self._accelerator.num_processes == 1:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self._args.device), reduction="sum"))

    def _give_sign(self) -> None:
        self._is_so_for_any(True)

    def _opened(self, key: dict[str, Any], *, must_exist: bool = False) -> SoftTargets | None:
        found = read_key(self.folder)
        # A folder without any soft targets is anyone's: its builder has failed at once.
        if found is None or (not shards_in(self.folder) and not must_exist):
            return None
        check_key(self.folder, found, key)
        return SoftTargets(self.folder)

    def _completed(self, rows: Sequence[HashedRows], key: dict[str, Any], count: int, run: TeacherRun) -> SoftTargets:
        start = time.perf_counter()
        with self._locked(key, count):
            targets = self._opened(key, must_exist=True)
            if targets is None:
                raise ValueError(
                    f"the main process caches soft targets in {self.folder}, and this one does not see them: the "
                    "folder must be one that all machines share"
                )
            count = num_missing(rows, targets)  # another builder may have been there until now
            self._compute_missing(rows, targets, run)
            self._accelerator.wait_for_everyone()
        targets = self._grown(rows, key)
        size = sum(file.stat().st_size for file in shards_in(targets.path)) / 2**20
        logger.info(
            f"Soft targets: computed {count} rows in {time.perf_counter() - start:.1f} s, {len(targets)} rows "
            f"({size:.2f} MiB) are in {targets.path}"
        )
        lost = targets.top_k_error()
        if lost is not None:
            logger.info(
                f"Soft targets: the {self._args.teacher_logits_top_k} largest logits of a row are from all of them by "
                f"a KL divergence of {lost[0]:.2e} on average and {lost[1]:.2e} at most, at the temperature of the run "
                "that has cached them"
            )
        return targets

    @contextlib.contextmanager
    def _locked(self, key: dict[str, Any], count: int) -> Iterator[None]:
        """Hold the folder for all processes, and give it its key."""
        with contextlib.ExitStack() as stack:
            if self._accelerator.is_main_process:
                try:
                    # The others wait for a sign of this one no longer than their group's timeout: `ddp_timeout`.
                    stack.enter_context(held(self.folder, while_waiting=self._give_sign))
                except ValueError as error:
                    raise ValueError(f"{error} {count} rows have no soft targets there.") from error
                self._make_ready(key)
                self._is_so_for_any(False)
            else:
                while self._is_so_for_any(False):
                    pass
            yield

    def _make_ready(self, key: dict[str, Any]) -> None:
        """Give the folder, which is held, its key, and remove damaged files from it."""
        found = read_key(self.folder)
        if found is None or not shards_in(self.folder):
            write_key(self.folder, key)
            return
        check_key(self.folder, found, key)
        for file in SoftTargets(self.folder).damaged:
            logger.warning(f"{file} is damaged: the soft targets of its rows are computed again")
            file.unlink(missing_ok=True)

    def _grown(self, rows: Sequence[HashedRows], key: dict[str, Any]) -> SoftTargets:
        """Open the folder again, when all that the processes have written is seen there."""
        deadline = time.monotonic() + (_SECONDS_TO_APPEAR if self._accelerator.num_processes > 1 else 0.0)
        while True:
            targets = self._opened(key, must_exist=True)
            assert targets is not None
            count = num_missing(rows, targets)
            if not count:
                return targets
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{count} rows have no soft targets in {targets.path} after all processes have written theirs: the "
                    "folder must be one that all machines share"
                )
            time.sleep(0.5)

    def _compute_missing(self, rows: Sequence[HashedRows], targets: SoftTargets, run: TeacherRun) -> None:
        args, accelerator = self._args, self._accelerator
        layout = StorageFormat(
            dtype=self._dtype(run),
            top_k=args.teacher_logits_top_k,
            token_level=self.is_token_level,
            temperature=args.temperature,
        )
        writer = ShardWriter(targets.path, layout)
        missing = missing_rows(rows, targets)
        if accelerator.num_processes > 1:  # the work is shared out from one list
            rows_of_main = broadcast_object_list([numbers for _, _, numbers in missing])
            missing = [(each, view, numbers) for (each, view, _), numbers in zip(missing, rows_of_main, strict=True)]
        share = WorkShare(accelerator.process_index, accelerator.num_processes, args.teacher_placement == "sharded")
        progress = logging.tqdm(
            total=math.ceil(sum(len(numbers) for _, _, numbers in missing) / share.num_processes),
            desc="Teacher logits",
            unit=" rows",
            disable=args.disable_tqdm or not accelerator.is_local_main_process,
        )
        with progress:
            for each, view, numbers in missing:
                each.show(view)
                compute_rows(
                    self._chosen(each, view, numbers, run),
                    partial(self._run_teacher, run),
                    writer,
                    batch_size=self._batch_size,
                    num_workers=args.dataloader_num_workers,
                    share=share,
                    progress=progress,
                )
            writer.flush()

    @property
    def _batch_size(self) -> int:
        # Without a graph to keep, the teacher has room for more rows than the student. It is on one device, also where
        # `train_batch_size` is that of several.
        return int(self._args.teacher_logits_batch_size or 4 * self._args.per_device_train_batch_size)

    def _chosen(self, rows: HashedRows, view: int, numbers: np.ndarray, run: TeacherRun) -> Rows:
        dataset, collator = run.readable(rows.dataset)
        return Rows(
            dataset,
            collator,
            numbers,
            rows.digests[view, numbers],
            rows.sizes[numbers],
            rows.reader,
            token_level=self.is_token_level,
            pin_memory=self._args.dataloader_pin_memory and self._args.device.type == "cuda",
        )

    def _run_teacher(self, run: TeacherRun, batch: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        batch = run.prepare_inputs(batch)
        try:
            with self._accelerator.autocast():
                return run.source(batch).logits, run.source.mask(batch)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the teacher's memory was not enough for {self._batch_size} rows at once: set "
                f"teacher_logits_batch_size below that ({' '.join(str(error).split())[:200]})"
            ) from error

    def _compare(
        self, rows: HashedRows, before: np.ndarray, targets: SoftTargets, key: dict[str, Any], run: TeacherRun
    ) -> None:
        """Run a few rows again, of all lengths: some whose soft targets were there before, some of the others.

        The key tells how soft targets were made, and cannot tell all: what a data collator of one's own does, or a
        library.
        """
        by_size = np.argsort(rows.sizes, kind="stable")
        chosen = [
            found[np.unique(np.linspace(0, len(found) - 1, _NUM_COMPARED).astype(int))]
            for found in (by_size[before[0, by_size] >= 0], by_size[before[0, by_size] < 0])
            if len(found)
        ]
        if not chosen:
            return
        rows.show(0)
        numbers, compute = np.concatenate(chosen), partial(self._run_teacher, run)
        some = self._chosen(rows, 0, numbers, run)
        tolerance = _TOLERANCE if _is_exact(key) else _TOLERANCE_OF_HALF
        alone = logits_of_rows(some, compute, alone=True)
        change = max_relative_difference(logits_of_rows(some, compute, alone=True), alone)
        if change > tolerance:
            raise ValueError(
                f"two forward passes of the same row differ by up to {change:.2g} of the largest logit, so soft "
                "targets cannot be cached: the data collator, or the teacher, draws random numbers. Augment rows in "
                "the data set's `set_epoch` alone, with teacher_logits_views, or leave precompute_teacher_logits out"
            )
        spread = max_relative_difference(logits_of_rows(some, compute), alone)
        if spread > tolerance:
            tolerance = 2 * spread  # the cached ones were computed in batches
            warnings.warn(
                f"the teacher's logits of a row depend on the other rows of its batch, by up to {spread:.2g} of the "
                "largest logit: padding is not masked, or moves the positions of tokens (padding on the left). The "
                "cached soft targets are of batches of rows of like length.",
                UserWarning,
                stacklevel=2,
            )
        cached = targets.fetch(targets.find(rows.digests[0, numbers]))
        off = max_relative_difference(cached, alone, self._args.teacher_logits_top_k)
        if off > tolerance:
            raise ValueError(
                f"cached soft targets in {targets.path} differ from the teacher's of these rows now (by {off:.2g} of "
                f"the largest logit, in {len(numbers)} rows compared): the data collator, or a library, makes other "
                "inputs than when they were cached. Set another teacher_logits_dir, or delete that folder."
            )


def folder_of(args: Any) -> Path:
    """Return the folder of soft targets that the settings name."""
    named = args.teacher_logits_dir
    return Path(args.output_dir, _FOLDER) if named is None else Path(named).expanduser()


def _is_exact(key: Mapping[str, Any]) -> bool:
    teachers: Collection[Mapping[str, Any]] = key["teachers"]
    return key["autocast"] is None and all(
        each.get("dtype") == "float32" and each["quantization"] is None for each in teachers
    )
