"""Compute the soft targets that a folder lacks: its key, its lock, the work of several processes, and a spot check."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

import hf_distill
from hf_distill.data.fingerprints import LABEL_COLUMNS, columns_of
from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.processors import processor_settings
from hf_distill.data.teacher_views import TeacherInputCollator
from hf_distill.teachers.cache.fill import Rows, WorkShare, compute_rows, logits_of_rows, max_relative_difference
from hf_distill.teachers.cache.key import ABOUT, check_key, names_of, read_key, teachers_key, write_key
from hf_distill.teachers.cache.lookup import HashedRows, missing_rows, num_missing
from hf_distill.teachers.cache.shards import ShardWriter, StorageFormat, held
from hf_distill.teachers.cache.store import SoftTargets, shards_in
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.model import TeacherModel
from hf_distill.teachers.source import SoftTargetSource
from hf_distill.teachers.views import Views

logger = logging.get_logger(__name__)

LOGITS_DTYPES = ("float16", "float32")
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
        tell: is told how many rows are done, and of how many.
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
    tell: Callable[[int, int], None]

    @property
    def members(self) -> list[TeacherModel]:
        """Return the teachers that are models."""
        if isinstance(self.source, TeacherEnsemble):
            return self.source.members
        return [self.source] if isinstance(self.source, TeacherModel) else []


class CacheBuilder:
    """Brings the soft targets in a folder to those of a teacher for all rows.

    Args:
        args: a DistillationConfig.
        accelerator: the run's.
        folder: where the soft targets are, or will be.
        student_key: what of the key is about the student.
        run: the teacher.
    """

    def __init__(self, args: Any, accelerator: Any, folder: Path, student_key: dict[str, Any], run: TeacherRun) -> None:
        self._args = args
        self._accelerator = accelerator
        self._folder = folder
        self._student_key = student_key
        self._is_token_level = student_key["level"] == "tokens"
        self._run = run

    @property
    def columns(self) -> set[str] | None:
        """Name the columns that may reach the teacher; None: any."""
        run = self._run
        if run.signature_columns is None:
            return None
        members = run.members
        if not members or not all(member.inputs for member in members):
            return run.signature_columns - set(LABEL_COLUMNS)
        columns: set[str] = set()
        for member in members:
            if member.view is None or self._is_token_level:  # the student's tokens decide where soft targets belong
                columns |= member.inputs
        return columns | ({*run.raw_columns, TEACHER_PIXELS} if run.views.processors else set())

    def _key(self, dataset: Any, columns: set[str] | None) -> dict[str, Any]:
        args, members, collator = self._args, self._run.members, self._run.collator
        reads_student = self._is_token_level or not members or any(member.view is None for member in members)
        lengths = collator.max_lengths if isinstance(collator, TeacherInputCollator) else []
        return {
            **self._student_key,
            "autocast": ("bfloat16" if args.bf16 else "float16") if args.bf16 or args.fp16 else None,
            "columns": columns_of(dataset, columns),
            "logits": {"dtype": self._dtype(), "top_k": args.teacher_logits_top_k},
            "student_processor": processor_settings(self._run.processing_class) if reads_student else None,
            # Of a pair the order, which rows that are known by their columns' names do not tell.
            "teacher_columns": list(self._run.raw_columns) if self._run.views.processors else None,
            "teachers": teachers_key(self._run.source, self._run.views.processors, lengths),
            ABOUT: {
                "hf_distill": hf_distill.__version__,
                "teachers": names_of(self._run.source),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _dtype(self) -> str:
        if self._args.teacher_logits_dtype is not None:
            return str(self._args.teacher_logits_dtype)
        there = (read_key(self._folder) or {}).get("logits") if shards_in(self._folder) else None
        if isinstance(there, Mapping) and there.get("dtype") in LOGITS_DTYPES:
            return str(there["dtype"])
        # Of a number that is large, float16 has no more than three digits; of logits that is enough.
        return "float32" if self._run.problem_type == "regression" else "float16"

    def _check_top_k(self) -> None:
        """Refuse to keep a part of the logits where that is no part of a distribution, or no smaller."""
        count, labels = self._args.teacher_logits_top_k, self._student_key["labels"]
        if count is None:
            return
        if self._run.problem_type != "single_label_classification":
            raise ValueError(
                "teacher_logits_top_k keeps the likeliest of classes that exclude each other, "
                f"{self._run.problem_type} has none: leave it out"
            )
        if labels is not None and count > len(labels) - 2:
            raise ValueError(
                f"teacher_logits_top_k is {count}, and of {len(labels)} labels at most {len(labels) - 2} can be kept "
                "with anything saved: leave it out"
            )

    # ---- Computing ----

    def build(self, rows: Sequence[HashedRows]) -> SoftTargets:
        """Return soft targets of all rows, computed now or before."""
        self._check_top_k()
        key = self._key(rows[0].dataset, self.columns)
        targets = self._opened(key)
        before = [each.positions(targets) for each in rows]
        count = num_missing(rows, targets)
        if self._is_so_for_any(targets is None or count > 0):
            targets = self._completed(rows, key, count)
        assert targets is not None
        for each, found in zip(rows, before, strict=True):
            self._compare(each, found, targets, key)
        return targets

    def _is_so_for_any(self, flag: bool) -> bool:
        """Tell whether something holds in any process: all must go the same way, and may see a folder differently."""
        if self._accelerator.num_processes == 1:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self._args.device), reduction="sum"))

    def _give_sign(self) -> None:
        self._is_so_for_any(True)

    def _opened(self, key: dict[str, Any], *, must_exist: bool = False) -> SoftTargets | None:
        found = read_key(self._folder)
        # A folder without any soft targets is anyone's: its builder has failed at once.
        if found is None or (not shards_in(self._folder) and not must_exist):
            return None
        check_key(self._folder, found, key)
        return SoftTargets(self._folder)

    def _completed(self, rows: Sequence[HashedRows], key: dict[str, Any], count: int) -> SoftTargets:
        start = time.perf_counter()
        with self._locked(key, count):
            targets = self._opened(key, must_exist=True)
            if targets is None:
                raise ValueError(
                    f"the main process caches soft targets in {self._folder}, and this one does not see them: the "
                    "folder must be one that all machines share"
                )
            count = num_missing(rows, targets)  # another builder may have been there until now
            self._compute_missing(rows, targets)
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
                    stack.enter_context(held(self._folder, while_waiting=self._give_sign))
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
        found = read_key(self._folder)
        if found is None or not shards_in(self._folder):
            write_key(self._folder, key)
            return
        check_key(self._folder, found, key)
        for file in SoftTargets(self._folder).damaged:
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

    def _compute_missing(self, rows: Sequence[HashedRows], targets: SoftTargets) -> None:
        args, accelerator = self._args, self._accelerator
        layout = StorageFormat(
            dtype=self._dtype(),
            top_k=args.teacher_logits_top_k,
            token_level=self._is_token_level,
            temperature=args.temperature,
        )
        writer = ShardWriter(targets.path, layout)
        missing = missing_rows(rows, targets)
        if accelerator.num_processes > 1:  # the work is shared out from one list
            rows_of_main = broadcast_object_list([numbers for _, _, numbers in missing])
            missing = [(each, view, numbers) for (each, view, _), numbers in zip(missing, rows_of_main, strict=True)]
        share = WorkShare(accelerator.process_index, accelerator.num_processes, args.teacher_placement == "sharded")
        total = math.ceil(sum(len(numbers) for _, _, numbers in missing) / share.num_processes)
        done, disable = 0, args.disable_tqdm or not accelerator.is_local_main_process
        with logging.tqdm(total=total, desc="Teacher logits", unit=" rows", disable=disable) as bar:

            def advance(num_rows: int) -> None:
                nonlocal done
                done += num_rows
                bar.update(num_rows)
                self._run.tell(done, total)

            advance(0)
            for each, view, numbers in missing:
                each.show(view)
                compute_rows(
                    self._chosen(each, view, numbers),
                    self._run_teacher,
                    writer,
                    batch_size=self._batch_size,
                    num_workers=args.dataloader_num_workers,
                    share=share,
                    advance=advance,
                )
            writer.flush()

    @property
    def _batch_size(self) -> int:
        # Without a graph to keep, the teacher has room for more rows than the student. It is on one device, also where
        # `train_batch_size` is that of several.
        return int(self._args.teacher_logits_batch_size or 4 * self._args.per_device_train_batch_size)

    def _chosen(self, rows: HashedRows, view: int, numbers: np.ndarray) -> Rows:
        dataset, collator = self._run.readable(rows.dataset)
        return Rows(
            dataset,
            collator,
            numbers,
            rows.digests[view, numbers],
            rows.sizes[numbers],
            rows.reader,
            token_level=self._is_token_level,
            pin_memory=self._args.dataloader_pin_memory and self._args.device.type == "cuda",
        )

    def _run_teacher(self, batch: dict[str, Any]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        batch = self._run.prepare_inputs(batch)
        try:
            with self._accelerator.autocast():
                return self._run.source(batch).logits, self._run.source.mask(batch)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the teacher's memory was not enough for {self._batch_size} rows at once: set "
                f"teacher_logits_batch_size below that ({' '.join(str(error).split())[:200]})"
            ) from error

    def _compare(self, rows: HashedRows, before: np.ndarray, targets: SoftTargets, key: dict[str, Any]) -> None:
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
        numbers, compute = np.concatenate(chosen), self._run_teacher
        some = self._chosen(rows, 0, numbers)
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


def _is_exact(key: Mapping[str, Any]) -> bool:
    teachers: Collection[Mapping[str, Any]] = key["teachers"]
    return key["autocast"] is None and all(
        each.get("dtype") == "float32" and each["quantization"] is None for each in teachers
    )
