"""What of a run goes out, and under which names."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

README = "README.md"
_WEIGHTS = ".safetensors"
ADAPTER = "adapter_config.json"
_METADATA = re.compile(r"\A\ufeff?---\r?\n(?:.*?\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Outgoing:
    """A file that goes out: its path in the repository, and its bytes or where they lie on the disk."""

    path_in_repo: str
    content: bytes | Path

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """Return all bytes; not for weights, which may be larger than the memory."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @cached_property
    def sha256(self) -> str:
        """Return the hash by which a large file is known on the Hub."""
        return self._hashed(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        """Return the hash by which any other file is known there: git's name of a blob."""
        return self._hashed(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    def _hashed(self, state: Any) -> str:
        for block in self._blocks():
            state.update(block)
        return str(state.hexdigest())

    def _blocks(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
            return
        with self.content.open("rb") as file:
            while block := file.read(2**22):
                yield block


def safetensors_header(file: Outgoing) -> dict[str, Any]:
    """Return the header of a file of weights: its tensors, and `__metadata__`.

    Raises:
        ValueError: the file is not whole.
    """
    assert isinstance(file.content, Path)
    try:
        with file.content.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length)) if length < file.size else {}
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) == file.size:
            return header
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{file.content} is no whole file of weights: was it cut when it was copied? Take it from the run")


def base_of_adapter(config: Outgoing) -> str | None:
    """Return the id or folder of the model that an adapter is beside, as its adapter_config.json has it."""
    base = json.loads(config.read()).get("base_model_name_or_path")
    return None if base is None else str(base)


def unknown_base(base: str | None) -> str:
    """Say what is wrong with the base of an adapter that others could not load, and the remedy."""
    return (
        f"base_model_name_or_path is {base!r}, which nobody else has: set it to the base model's Hub id (publish the "
        "base first if it has none), or merge the adapter (`merge_and_unload`)"
    )
