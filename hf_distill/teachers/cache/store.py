"""Soft targets in a folder, found by what the rows say.

The folder holds `key.json`, which tells how they were made, and files whose names are the first 32 hexadecimal digits
of the SHA-256 of their content: a file that its name fits is whole, whoever has written it.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from hf_distill.data.fingerprints import DIGEST_SIZE
from hf_distill.teachers.cache.key import read_key
from hf_distill.teachers.cache.shards import spread

_SHARD_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_MERGED_BYTES = 64 * 2**20  # shards that are no more together are read into memory


def shards_in(path: Path) -> list[Path]:
    """Return the files of soft targets in a folder, whole or damaged."""
    return sorted(entry for entry in path.glob("*.safetensors") if _SHARD_NAME.fullmatch(entry.name))


class _Member(NamedTuple):
    """What one teacher says in a shard: all its logits, or the largest and how much the others have together."""

    width: int
    values: np.ndarray
    indices: np.ndarray | None
    rest: np.ndarray | None

    def at(self, places: Any) -> np.ndarray:
        """Return the logits `(places, width)`; those that are not kept share what they have together evenly."""
        if self.indices is None or self.rest is None:
            chosen: np.ndarray = self.values[places]
            return chosen
        return spread(self.values[places], self.indices[places], self.rest[places], self.width)


class Form(NamedTuple):
    """How a shard keeps soft targets.

    Attributes:
        is_token_level: each token has some.
        widths: how many logits each member has.
        dtypes: of the members' logits.
        num_kept: how many of the largest logits of each member are kept; None for all.
    """

    is_token_level: bool
    widths: tuple[int, ...]
    dtypes: tuple[str, ...]
    num_kept: tuple[int | None, ...]


class _Shard(NamedTuple):
    digests: np.ndarray
    offsets: np.ndarray | None
    members: list[_Member]

    @property
    def form(self) -> Form:
        return Form(
            self.offsets is not None,
            tuple(member.width for member in self.members),
            tuple(str(member.values.dtype) for member in self.members),
            tuple(None if member.indices is None else member.values.shape[-1] for member in self.members),
        )


class SoftTargets:
    """Soft targets in a folder, opened for reading; large ones are mapped into memory, not read.

    It can be pickled, so that worker processes may be spawned.

    Attributes:
        key: how they were made.
        damaged: files whose content is not what their name says; their rows are not found.

    Raises:
        ValueError: the folder has no key, or one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        key = read_key(path)
        if key is None:
            raise ValueError(f"teacher_logits_dir: there are no soft targets in {path}")
        self.path = path
        self.key = key
        files = shards_in(path)
        self.damaged = [file for file in files if not _is_whole(file)]
        self._files = [file for file in files if file not in self.damaged]
        self._metadata: list[dict[str, str]] = []
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "key": self.key, "damaged": self.damaged, "_files": self._files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def widths(self) -> list[int]:
        """Return how many logits each member has; nothing if there are no rows."""
        return [member.width for member in self._shards[0].members] if self._shards else []

    @property
    def forms(self) -> list[Form]:
        """Return how the shards keep soft targets: one form, unless shards of other soft targets are among them."""
        return list(dict.fromkeys(shard.form for shard in self._shards))

    @property
    def token_level(self) -> bool:
        """Tell whether each token has soft targets."""
        return self.key["level"] == "tokens"

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Return where rows are: int64 `(...)` for digests `(..., 16)`, -1 for those that are not here."""
        if not len(self):
            return np.full(digests.shape[:-1], -1, np.int64)
        wanted = _as_keys(digests)
        places = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        found = np.where(self._sorted[places] == wanted, self._order[places], -1)
        return found.reshape(digests.shape[:-1])

    def fetch(self, positions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        """Return what the members say of rows.

        Args:
            positions: int64 `(rows,)`, as `find` returns them; none is -1.

        Returns:
            for each row one array for each member: `(num_labels,)`, or `(tokens, num_labels)` with NaN at tokens that
            have no soft target.
        """
        rows: list[tuple[np.ndarray, ...]] = [()] * len(positions)
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers):
            shard = self._shards[number]
            places = np.flatnonzero(numbers == number)
            inside = positions[places] - self._starts[number]
            if shard.offsets is None:
                found = zip(*(member.at(inside) for member in shard.members), strict=True)
            else:
                slices = [slice(shard.offsets[row], shard.offsets[row + 1]) for row in inside]
                found = (tuple(member.at(tokens) for member in shard.members) for tokens in slices)  # type: ignore[assignment]
            for place, row in zip(places, found, strict=True):
                rows[place] = tuple(row)
        return rows

    def top_k_error(self) -> tuple[float, float] | None:
        """Return the mean and the largest divergence of what was kept from all logits, None if all were kept."""
        noted = [json.loads(metadata["top_k_error"]) for metadata in self._metadata if "top_k_error" in metadata]
        count = sum(each["count"] for each in noted)
        if not count:
            return None
        return sum(each["mean"] * each["count"] for each in noted) / count, max(each["max"] for each in noted)

    def _load(self) -> None:
        opened = [_open_shard(file) for file in self._files]
        self._metadata = [metadata for _, metadata in opened]
        self._shards = [shard for shard, _ in opened if len(shard.digests)]
        if sum(file.stat().st_size for file in self._files) <= _MERGED_BYTES:
            self._shards = _merged(self._shards)
        self._starts = np.cumsum([0, *(len(shard.digests) for shard in self._shards)])
        keys = _as_keys(np.concatenate([shard.digests for shard in self._shards])) if self._shards else np.zeros(0)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]


def _open_shard(file: Path) -> tuple[_Shard, dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata()
        # Tensors of torch are views of the mapped file, which stays mapped with no open descriptor.
        arrays = {name: opened.get_tensor(name).numpy() for name in opened.keys()}  # noqa: SIM118
    members = []
    for number, width in enumerate(json.loads(metadata["widths"])):
        name = f"member-{number}"
        members.append(_Member(width, arrays[name], arrays.get(f"{name}.indices"), arrays.get(f"{name}.rest")))
    return _Shard(arrays["digests"], arrays.get("offsets"), members), metadata


def _merged(shards: list[_Shard]) -> list[_Shard]:
    """Make one shard of several, in memory: a batch of rows is then found at one place."""
    if not shards or len({shard.form for shard in shards}) > 1:
        return shards
    offsets = None
    if shards[0].offsets is not None:
        lengths = [np.diff(shard.offsets) for shard in shards if shard.offsets is not None]
        offsets = np.cumsum(np.concatenate([[0], *lengths]))
    members = []
    for parts in zip(*(shard.members for shard in shards), strict=True):
        columns = [
            None if arrays[0] is None else np.concatenate(arrays)
            for arrays in zip(*((part.values, part.indices, part.rest) for part in parts), strict=True)
        ]
        members.append(_Member(parts[0].width, *columns))  # type: ignore[arg-type]  # values are always there
    return [_Shard(np.concatenate([shard.digests for shard in shards]), offsets, members)]


def _as_keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).reshape(-1, DIGEST_SIZE).view(f"V{DIGEST_SIZE}").ravel()


def _is_whole(file: Path) -> bool:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32] == file.stem
