"""A trainer whose teacher answers for whole data sets, into a folder that keeps what it says."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers.utils import logging

import hf_distill
from hf_distill.data.fingerprints import (
    LABEL_COLUMNS,
    ItemDigests,
    columns_of,
    how_rows_change,
    identify,
    is_arrow,
    processor_settings,
)
from hf_distill.data.images import TEACHER_PIXELS
from hf_distill.data.teacher_views import TeacherViews
from hf_distill.teachers.cache.fill import Rows, Share, answer, answers_of, distance
from hf_distill.teachers.cache.key import ABOUT, check_key, names_of, read_key, teachers_key, write_key
from hf_distill.teachers.cache.shards import Layout, ShardWriter, held
from hf_distill.teachers.cache.store import SoftTargets, shards_in
from hf_distill.teachers.labels import names_in_order
from hf_distill.teachers.model import FrozenTeacher
from hf_distill.teachers.several import SeveralTeachers
from hf_distill.training.checks import check_what_is_kept
from hf_distill.training.config import TEACHER_LOGITS_DTYPES
from hf_distill.training.taught import TaughtTrainer

logger = logging.get_logger(__name__)

_FOLDER = "_teacher_logits"  # `Trainer.push_to_hub` uploads all of output_dir but what begins with an underscore
_NUM_COMPARED = 4
_TOLERANCE = 0.02  # of the largest logit; half precision keeps a thousandth of it
_TOLERANCE_OF_HALF = 0.1
_SECONDS_TO_APPEAR = 10.0  # what other processes have written, in a folder on a network


@dataclass(frozen=True)
class Known:
    """A data set whose rows have been digested.

    Attributes:
        dataset: the data set.
        changes: its rows are others in each epoch.
        digests: uint8 `(views, rows, 16)`.
        sizes: int64 `(rows,)`, how long they are.
        reader: what has digested them, if they are read one by one.
    """

    dataset: Any
    changes: bool
    digests: np.ndarray
    sizes: np.ndarray
    reader: ItemDigests | None

    def positions(self, targets: SoftTargets | None) -> np.ndarray:
        """Return where the rows' soft targets are, int64 `(views, rows)`, -1 for those that have none."""
        return np.full(self.digests.shape[:-1], -1, np.int64) if targets is None else targets.find(self.digests)

    def show(self, view: int) -> None:
        """Let the data set give the rows of a view."""
        if self.changes:
            self.dataset.set_epoch(view)


class AnsweringTrainer(TaughtTrainer):
    """`TaughtTrainer` whose teacher answers for rows that a folder has no soft targets of."""

    @property
    def _folder(self) -> Path:
        named = self.args.teacher_logits_dir
        return Path(self.args.output_dir, _FOLDER) if named is None else Path(named).expanduser()

    # ---- Which rows, and how they are known ----

    def _columns_read(self) -> set[str] | None:
        """Name the columns that may reach the teacher; None: any."""
        if not self.args.remove_unused_columns:
            return None
        members = self._members_at_work()
        columns: set[str] = set()
        if not members or not all(member.inputs for member in members):
            self._set_signature_columns_if_needed()
            columns.update(self._signature_columns or ())
            return columns - set(LABEL_COLUMNS)
        for member in members:
            if member.view is None or self._is_token_level:  # the student's tokens decide where an answer belongs
                columns |= member.inputs
        return columns | ({*self._raw_columns, TEACHER_PIXELS} if self._views.processors else set())

    def _members_at_work(self) -> list[FrozenTeacher]:
        if isinstance(self._teaching, SeveralTeachers):
            return self._teaching.members()
        return [self._teaching] if isinstance(self._teaching, FrozenTeacher) else []

    def _identified(self, dataset: Any, columns: set[str] | None, is_trained_on: bool) -> Known:
        change = how_rows_change(dataset, columns)
        if change == "each time":
            raise ValueError(
                "the rows of the data are others each time that they are read, so nothing said of them can be kept: "
                "let their augmentation depend on the row and on the epoch alone (a method set_epoch), and set "
                "teacher_logits_views, or leave precompute_teacher_logits out"
            )
        changes, num_views = change == "each epoch", self.args.teacher_logits_views
        if changes and num_views is None:
            raise ValueError(
                "the rows of the data are augmented anew in each epoch, and soft targets of one epoch are of other "
                "rows than the student's in the next: set teacher_logits_views=N to keep N views of each row (epoch e "
                "then has view e % N again), or leave precompute_teacher_logits out"
            )
        if is_trained_on and not changes and num_views is not None:
            raise ValueError(
                f"teacher_logits_views is {num_views}, and the training rows are the same in each epoch: leave it out"
            )
        found = []
        for view in range(num_views if changes and is_trained_on and num_views is not None else 1):
            if changes:
                dataset.set_epoch(view)
            found.append(identify(dataset, columns, num_workers=self.args.dataloader_num_workers))
        is_read_one_by_one = not is_arrow(dataset) and not hasattr(dataset, "row_digests")
        reader = ItemDigests(columns) if is_read_one_by_one else None
        return Known(dataset, changes, np.stack([each.digests for each in found]), found[0].sizes, reader)

    def _missing(self, known: Sequence[Known], targets: SoftTargets | None) -> list[tuple[Known, int, np.ndarray]]:
        """Return for each data set and view the rows that lack soft targets, those that are alike once."""
        missing, seen = [], set()
        for each in known:
            for view, positions in enumerate(each.positions(targets)):
                rows = []
                for row in np.flatnonzero(positions < 0).tolist():
                    digest = each.digests[view, row].tobytes()
                    if digest not in seen:
                        seen.add(digest)
                        rows.append(row)
                missing.append((each, view, np.array(rows, np.int64)))
        return missing

    def _num_missing(self, known: Sequence[Known], targets: SoftTargets | None) -> int:
        return sum(len(rows) for _, _, rows in self._missing(known, targets))

    # ---- How they are asked about ----

    def _key_of_student(self, student: nn.Module) -> dict[str, Any]:
        id2label = getattr(getattr(student, "config", None), "id2label", None)
        return {
            "labels": None if id2label is None else names_in_order(id2label),
            "level": "tokens" if self._is_token_level else "rows",
        }

    def _key(self, dataset: Any, columns: set[str] | None) -> dict[str, Any]:
        assert self._teaching is not None
        members, collator = self._members_at_work(), self.data_collator
        reads_student = self._is_token_level or not members or any(member.view is None for member in members)
        lengths = collator.max_lengths if isinstance(collator, TeacherViews) else []
        return {
            **self._key_of_student(self._bare_student()),
            "autocast": ("bfloat16" if self.args.bf16 else "float16") if self.args.bf16 or self.args.fp16 else None,
            "columns": columns_of(dataset, columns),
            "logits": {"dtype": self._dtype_kept(), "top_k": self.args.teacher_logits_top_k},
            "student_processor": processor_settings(self.processing_class) if reads_student else None,
            # Of a pair the order, which rows that are known by their columns' names do not tell.
            "teacher_columns": list(self._raw_columns) if self._views.processors else None,
            "teachers": teachers_key(self._teaching, self._views.processors, lengths),
            ABOUT: {
                "hf_distill": hf_distill.__version__,
                "teachers": names_of(self._teaching),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _dtype_kept(self) -> str:
        if self.args.teacher_logits_dtype is not None:
            return self.args.teacher_logits_dtype
        there = (read_key(self._folder) or {}).get("logits") if shards_in(self._folder) else None
        if isinstance(there, Mapping) and there.get("dtype") in TEACHER_LOGITS_DTYPES:
            return str(there["dtype"])
        # Of a number that is large, float16 has no more than three digits; of logits that is enough.
        return "float32" if self._problem_type == "regression" else "float16"

    def _settle_problem_type(self, dataset: Any) -> None:
        if self._problem_type is None:
            rows, collator = self._readable(dataset)
            self._resolve_problem_type(collator([rows[0]]).get("labels"))
        names = self._key_of_student(self._bare_student())["labels"]
        check_what_is_kept(
            self.args, self._problem_type or "single_label_classification", None if names is None else len(names)
        )

    # ---- Asking ----

    def _answered(self, known: Sequence[Known], columns: set[str] | None) -> SoftTargets:
        """Return soft targets of all rows, which the teacher has given now or before."""
        self._settle_problem_type(known[0].dataset)
        key = self._key(known[0].dataset, columns)
        targets = self._opened(key)
        before = [each.positions(targets) for each in known]
        num_missing = self._num_missing(known, targets)
        if self._is_so_for_any(targets is None or num_missing > 0):
            targets = self._completed(known, key, num_missing)
        assert targets is not None
        for each, found in zip(known, before, strict=True):
            self._compare(each, found, targets, key)
        return targets

    def _is_so_for_any(self, flag: bool) -> bool:
        """Tell whether something holds in any process: all must go the same way, and may see a folder differently."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.args.device), reduction="sum"))

    def _give_sign(self) -> None:
        self._is_so_for_any(True)

    def _opened(self, key: dict[str, Any], *, must_exist: bool = False) -> SoftTargets | None:
        found = read_key(self._folder)
        # A folder without any soft targets is anyone's: its builder has failed at once.
        if found is None or (not shards_in(self._folder) and not must_exist):
            return None
        check_key(self._folder, found, key)
        return SoftTargets(self._folder)

    def _completed(self, known: Sequence[Known], key: dict[str, Any], num_missing: int) -> SoftTargets:
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if self.accelerator.is_main_process:
                try:
                    # The others wait for a sign of this one no longer than their group's timeout: `ddp_timeout`.
                    stack.enter_context(held(self._folder, while_waiting=self._give_sign))
                except ValueError as error:
                    raise ValueError(f"{error} {num_missing} rows have no soft targets there.") from error
                self._make_ready(key)
                self._is_so_for_any(False)
            else:
                while self._is_so_for_any(False):
                    pass
            targets = self._opened(key, must_exist=True)
            if targets is None:
                raise ValueError(
                    f"the main process keeps soft targets in {self._folder}, and this one does not see them: the "
                    "folder must be one that all machines share"
                )
            num_missing = self._num_missing(known, targets)  # another builder may have been at work until now
            self._ask_about(known, targets)
            self.accelerator.wait_for_everyone()
        targets = self._grown(known, key)
        size = sum(file.stat().st_size for file in shards_in(targets.path)) / 2**20
        logger.info(
            f"Soft targets: made {num_missing} rows in {time.perf_counter() - start:.1f} s, {len(targets)} rows "
            f"({size:.2f} MiB) are in {targets.path}"
        )
        lost = targets.top_k_error()
        if lost is not None:
            logger.info(
                f"Soft targets: the {self.args.teacher_logits_top_k} largest logits of a row are from all of them by a "
                f"KL divergence of {lost[0]:.2e} on average and {lost[1]:.2e} at most, at the temperature of the run "
                "that has kept them"
            )
        return targets

    def _make_ready(self, key: dict[str, Any]) -> None:
        """Give the folder, which is held, its key, and remove damaged files from it."""
        found = read_key(self._folder)
        if found is None or not shards_in(self._folder):
            write_key(self._folder, key)
            return
        check_key(self._folder, found, key)
        for file in SoftTargets(self._folder).damaged:
            logger.warning(f"{file} is damaged: its rows are asked about again")
            file.unlink(missing_ok=True)

    def _grown(self, known: Sequence[Known], key: dict[str, Any]) -> SoftTargets:
        """Open the folder again, when all that the processes have written is seen there."""
        deadline = time.monotonic() + (_SECONDS_TO_APPEAR if self.accelerator.num_processes > 1 else 0.0)
        while True:
            targets = self._opened(key, must_exist=True)
            assert targets is not None
            num_missing = self._num_missing(known, targets)
            if not num_missing:
                return targets
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{num_missing} rows have no soft targets in {targets.path} after all processes have written "
                    "theirs: the folder must be one that all machines share"
                )
            time.sleep(0.5)

    def _ask_about(self, known: Sequence[Known], targets: SoftTargets) -> None:
        layout = Layout(
            dtype=self._dtype_kept(),
            top_k=self.args.teacher_logits_top_k,
            token_level=self._is_token_level,
            temperature=self.args.temperature,
        )
        writer = ShardWriter(targets.path, layout)
        missing = self._missing(known, targets)
        if self.accelerator.num_processes > 1:  # the work is shared out from one list
            rows_of_main = broadcast_object_list([rows for _, _, rows in missing])
            missing = [(each, view, rows) for (each, view, _), rows in zip(missing, rows_of_main, strict=True)]
        share = Share(
            self.accelerator.process_index, self.accelerator.num_processes, self.args.teacher_placement == "sharded"
        )
        progress = logging.tqdm(
            total=math.ceil(sum(len(rows) for _, _, rows in missing) / share.num_processes),
            desc="Teacher logits",
            unit=" rows",
            disable=self.args.disable_tqdm or not self.is_local_process_zero(),
        )
        with progress:
            for each, view, rows in missing:
                each.show(view)
                answer(
                    self._rows(each, view, rows),
                    self._ask,
                    writer,
                    batch_size=self._num_rows_at_once,
                    num_workers=self.args.dataloader_num_workers,
                    share=share,
                    progress=progress,
                )
            writer.flush()

    @property
    def _num_rows_at_once(self) -> int:
        # Without a graph to keep, the teacher has room for more rows than the student. It is on one device, also where
        # `train_batch_size` is that of several.
        return self.args.teacher_logits_batch_size or 4 * self.args.per_device_train_batch_size

    def _rows(self, known: Known, view: int, numbers: np.ndarray) -> Rows:
        dataset, collator = self._readable(known.dataset)
        return Rows(
            dataset,
            collator,
            numbers,
            known.digests[view, numbers],
            known.sizes[numbers],
            known.reader,
            token_level=self._is_token_level,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def _readable(self, dataset: Any) -> tuple[Any, Callable[[list], Any]]:
        """Return a data set and its collator as the parent's data loaders have them."""
        if isinstance(dataset, datasets.Dataset):
            return self._remove_unused_columns(dataset, description="soft targets"), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description="soft targets")

    def _ask(self, inputs: dict[str, Any]) -> tuple[list[Tensor], Tensor | None]:
        assert self._teaching is not None
        inputs = self._prepare_inputs(inputs)
        try:
            with self.accelerator.autocast():
                return self._teaching.start(inputs)(), self._teaching.mask(inputs)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"the teacher's memory was not enough for {self._num_rows_at_once} rows at once: set "
                f"teacher_logits_batch_size below that ({' '.join(str(error).split())[:200]})"
            ) from error

    def _compare(self, known: Known, before: np.ndarray, targets: SoftTargets, key: dict[str, Any]) -> None:
        """Ask about a few rows again, of all lengths: some whose soft targets were there before, some of the others.

        The key tells how soft targets were made, and cannot tell all: what a data collator of one's own does, or a
        library.
        """
        by_size = np.argsort(known.sizes, kind="stable")
        chosen = [
            rows[np.unique(np.linspace(0, len(rows) - 1, _NUM_COMPARED).astype(int))]
            for rows in (by_size[before[0, by_size] >= 0], by_size[before[0, by_size] < 0])
            if len(rows)
        ]
        if not chosen:
            return
        known.show(0)
        numbers = np.concatenate(chosen)
        rows = self._rows(known, 0, numbers)
        is_exact = key["autocast"] is None and all(
            each.get("dtype") == "float32" and each["quantization"] is None for each in key["teachers"]
        )
        tolerance = _TOLERANCE if is_exact else _TOLERANCE_OF_HALF
        alone = answers_of(rows, self._ask, alone=True)
        change = distance(answers_of(rows, self._ask, alone=True), alone)
        if change > tolerance:
            raise ValueError(
                f"asked twice about the same row, the teacher says another thing, by up to {change:.2g} of the largest "
                "logit, so nothing that it says can be kept: the data collator, or the teacher, draws random numbers. "
                "Augment rows in the data set's `set_epoch` alone, with teacher_logits_views, or leave "
                "precompute_teacher_logits out"
            )
        spread = distance(answers_of(rows, self._ask), alone)
        if spread > tolerance:
            tolerance = 2 * spread  # what is kept was said in batches
            warnings.warn(
                f"what the teacher says of a row depends on the other rows of its batch, by up to {spread:.2g} of the "
                "largest logit: padding is not masked, or moves the positions of tokens (padding on the left). The "
                "soft targets that are kept are of batches of rows of like length.",
                UserWarning,
                stacklevel=2,
            )
        kept = targets.fetch(targets.find(known.digests[0, numbers]))
        off = distance(kept, alone, self.args.teacher_logits_top_k)
        if off > tolerance:
            raise ValueError(
                f"soft targets in {targets.path} are not what the teacher says of these rows now (off by {off:.2g} of "
                f"the largest logit, in {len(numbers)} rows looked at): the data collator, or a library, makes other "
                "inputs than when they were kept. Set another teacher_logits_dir, or delete that folder."
            )
