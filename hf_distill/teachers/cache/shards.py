"""Write soft targets into a folder so that a kill, a full disk or a second builder leaves whole files alone."""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from transformers.utils import logging

logger = logging.get_logger(__name__)

_LOCK, _BUILDER, _PART = ".lock", ".builder", ".part"
_FLUSH_SECONDS = 30.0
_SECONDS_BETWEEN_SIGNS = 60.0
_FLUSH_BYTES = 64 * 2**20


@contextlib.contextmanager
def held(path: Path, while_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Make a folder and hold it against other builders; wait for one that writes in it.

    What a builder that was killed has left half written is removed.

    Raises:
        ValueError: the folder cannot be written.
    """
    lock = FileLock(path / _LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning(f"teacher_logits_dir: waiting for {_builder(path)}, which fills {path}")
            while not lock.is_locked:
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=_SECONDS_BETWEEN_SIGNS)
                if while_waiting is not None and not lock.is_locked:
                    while_waiting()
        for part in path.glob(f"*{_PART}"):
            part.unlink()
        (path / _BUILDER).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except OSError as error:
        lock.release()
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def is_trace(entry: Path) -> bool:
    """Tell whether a file is one that a builder that runs, or one that was killed, has beside its results."""
    return entry.name in (_LOCK, _BUILDER) or entry.name.endswith(_PART)


@dataclass(frozen=True)
class StorageFormat:
    """How soft targets are kept.

    Attributes:
        dtype: `float16` or `float32`.
        top_k: keep so many of the largest logits, and what the others have together; None keeps all.
        token_level: each token has soft targets.
        temperature: at which the error of `top_k` is measured.
    """

    dtype: str
    top_k: int | None
    token_level: bool
    temperature: float


@dataclass
class ShardWriter:
    """Collect soft targets, and write a shard of them from time to time: every 30 s, or 2 % of the time so far.

    Attributes:
        path: the folder, held by this process or by one that it works with.
        layout: how they are kept.
        num_rows: how many rows were collected so far, those that are not yet written among them.
        flush_seconds: the shortest time between two shards, unless 64 MiB are full.
    """

    path: Path
    layout: StorageFormat
    num_rows: int = 0
    flush_seconds: float = _FLUSH_SECONDS
    _digests: list[np.ndarray] = field(default_factory=list)
    _lengths: list[np.ndarray] = field(default_factory=list)
    _members: list[list[dict[str, np.ndarray]]] = field(default_factory=list)
    _widths: list[int] = field(default_factory=list)
    _errors: list[np.ndarray] = field(default_factory=list)
    _num_bytes: int = 0
    _start: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def add(self, digests: np.ndarray, members: Sequence[np.ndarray], lengths: np.ndarray | None = None) -> None:
        """Collect rows.

        Args:
            digests: uint8 `(rows, 16)`.
            members: what each teacher says, float32 `(rows, num_labels)`, or `(tokens of all rows, num_labels)` with
                NaN at tokens that have no soft target.
            lengths: the rows' numbers of tokens.

        Raises:
            ValueError: the logits are out of the range of the type, or the disk is full.
        """
        self._widths = [values.shape[-1] for values in members]
        kept = [self._kept(values) for values in members]
        self._members.append(kept)
        self._digests.append(digests)
        if lengths is not None:
            self._lengths.append(lengths)
        self.num_rows += len(digests)
        self._num_bytes += digests.nbytes + sum(array.nbytes for entry in kept for array in entry.values())
        now = time.monotonic()
        if self._num_bytes >= _FLUSH_BYTES or now - self._last >= max(self.flush_seconds, (now - self._start) / 50):
            self.flush()

    @property
    def num_bytes(self) -> int:
        """Return the size of what is not yet written."""
        return self._num_bytes

    def flush(self) -> None:
        """Write what was collected.

        Raises:
            ValueError: the disk is full, or the folder cannot be written; the shards in it are whole.
        """
        self._last = time.monotonic()
        if not self._digests:
            return
        arrays = {"digests": np.concatenate(self._digests)}
        for number, entries in enumerate(zip(*self._members, strict=True)):
            for suffix in entries[0]:
                arrays[f"member-{number}{suffix}"] = np.concatenate([entry[suffix] for entry in entries])
        if self._lengths:
            arrays["offsets"] = np.cumsum(np.concatenate([[0], *self._lengths])).astype(np.int64)
        metadata = {"widths": json.dumps(self._widths)}
        if self._errors:
            errors = np.concatenate(self._errors)
            noted = {"count": len(errors), "mean": float(errors.mean()), "max": float(errors.max())}
            metadata["top_k_error"] = json.dumps({**noted, "temperature": self.layout.temperature})
        data = safetensors.numpy.save(arrays, metadata)
        write_whole(self.path / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors", data)
        for collected in (self._digests, self._lengths, self._members, self._errors):
            collected.clear()  # type: ignore[attr-defined]
        self._num_bytes = 0

    def _kept(self, values: np.ndarray) -> dict[str, np.ndarray]:
        count, width = self.layout.top_k, values.shape[-1]
        if count is None or count >= width - 1:
            return {"": self._converted(values)}
        indices = np.sort(np.argpartition(values, -count, axis=-1)[:, -count:], axis=-1)
        others = values.copy()
        np.put_along_axis(others, indices, -np.inf, axis=-1)
        top = self._converted(np.take_along_axis(values, indices, axis=-1))
        rest = self._converted(_log_sum_exp(others))
        has_targets = ~np.isnan(values).any(-1)
        approximate = spread(top, indices, rest, width).astype(np.float64)
        self._errors.append(_divergence(values[has_targets], approximate[has_targets], self.layout.temperature))
        return {"": top, ".indices": indices.astype(np.uint16 if width <= 2**16 else np.int32), ".rest": rest}

    def _converted(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            converted = values.astype(self.layout.dtype)
        lost = np.isinf(converted) & ~np.isinf(values)
        if lost.any():
            raise ValueError(
                f"the teacher's logits reach {values[lost][np.abs(values[lost]).argmax()]:.6g}, and "
                f"{self.layout.dtype} ends at {np.finfo(self.layout.dtype).max:.6g}: set teacher_logits_dtype to "
                "float32"
            )
        return converted


def spread(values: np.ndarray, indices: np.ndarray, rest: np.ndarray, width: int) -> np.ndarray:
    """Make logits of the largest ones and what the others have together, which they share evenly.

    Args:
        values: `(rows, k)`.
        indices: their classes `(rows, k)`.
        rest: `(rows,)`, the logarithm of the sum of the exponentials of the others.
        width: the number of classes.

    Returns:
        `(rows, width)`, in the type of the values.
    """
    each = rest - np.asarray(math.log(width - values.shape[-1]), rest.dtype)
    logits = np.repeat(each[:, None], width, axis=1)
    np.put_along_axis(logits, indices.astype(np.int64), values, axis=1)
    return logits


def _log_sum_exp(values: np.ndarray) -> np.ndarray:
    highest = values.max(-1, keepdims=True)
    shift = np.where(np.isinf(highest), 0, highest)
    with np.errstate(divide="ignore"):
        total: np.ndarray = np.log(np.exp(values - shift).sum(-1)) + shift[..., 0]
    return total


def _divergence(exact: np.ndarray, approximate: np.ndarray, temperature: float) -> np.ndarray:
    """Return `KL(softmax(exact / T) || softmax(approximate / T))` of each row."""
    logs = []
    for logits in (exact.astype(np.float64) / temperature, approximate / temperature):
        logs.append(logits - _log_sum_exp(logits)[:, None])
    probabilities = np.exp(logs[0])
    with np.errstate(invalid="ignore"):
        terms = np.where(probabilities > 0, probabilities * (logs[0] - logs[1]), 0)
    divergence: np.ndarray = terms.sum(-1)
    return divergence


def write_whole(file: Path, data: bytes) -> None:
    """Write a file under its name when it is whole and on the disk.

    Raises:
        ValueError: the disk is full, or the folder cannot be written.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}{_PART}")
    try:
        with open(part, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
        _sync_folder(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _unwritable(file.parent, error) from error


def _sync_folder(path: Path) -> None:
    """Make a new name last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> ValueError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ValueError(
            f"teacher_logits_dir: the disk of {path} is full: what was written is whole and is kept, so make room and "
            "start again, or set another teacher_logits_dir"
        )
    return ValueError(
        f"teacher_logits_dir: cannot write to {path}: {error.strerror or error}. Set another teacher_logits_dir."
    )


def _builder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return (path / _BUILDER).read_text(encoding="utf-8")
    return "another process"
