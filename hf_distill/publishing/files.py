"""What of a run goes out, and under which names."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_distill.publishing.curves import PLOT
from hf_distill.publishing.portable import is_local
from hf_distill.publishing.readme import merge, text_around, users_licence, with_users_part
from hf_distill.publishing.run_card import RunCard, card_of_run, published, read_readme, read_run
from hf_distill.recipe import to_yaml

README = "README.md"
_WEIGHTS = ".safetensors"
# What `save_pretrained` of models and processors writes. Pickles (.bin, .pt) can run code where they are loaded, and
# hold this machine's paths.
_SUFFIXES = frozenset((".json", ".txt", ".md", ".jinja", ".py", ".model", ".spm", ".png", _WEIGHTS))
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


def collect(run: Path, repo_id: str | None = None) -> list[Outgoing]:
    """Return what of a finished run goes out, README.md first, as it would be in an empty repository.

    Nothing is written, and of weights no more than the header is read.

    Args:
        run: the output folder of `hf-distill train`.
        repo_id: for the snippets of the card.

    Raises:
        ValueError: the run is not finished, or the student is one that others could not load.
    """
    _refuse_unfinished(run)
    recipe, results = read_run(run)
    student = run / "student"
    files = {
        path.relative_to(student).as_posix(): path for path in sorted(student.rglob("*")) if _goes_out(student, path)
    }
    found = [Outgoing(name, path) for name, path in files.items() if name != README]
    _refuse_unloadable(student, found)
    try:
        content, made = readme(run, repo_id, own_readme(run))
    except ValueError as error:
        raise ValueError(f"{student}: {error}") from error
    if made.plot is not None and PLOT not in files:
        found.append(Outgoing(PLOT, made.plot))
    found += [
        Outgoing("recipe.yaml", to_yaml(published(recipe, results)).encode()),
        Outgoing("results.json", (run / "results.json").read_bytes()),
    ]
    return [Outgoing(README, content), *sorted(found, key=lambda file: file.path_in_repo)]


def readme(run: Path, repo_id: str | None, existing: str | None) -> tuple[bytes, RunCard]:
    """Return a README.md with the card of a run written into what is there already, and that card."""
    made = card_of_run(run, repo_id=repo_id, license=users_licence(existing))
    return merge(existing, made.card).encode(), made


def with_readme(files: list[Outgoing], content: bytes) -> list[Outgoing]:
    """Return the files with another README.md."""
    return [replace(file, content=content) if file.path_in_repo == README else file for file in files]


def own_readme(run: Path) -> str | None:
    """Return the README that lies beside the student, which may hold text of the user's."""
    return read_readme(run / "student" / README)


def start_of(there: str | None, own: str | None) -> str | None:
    """Return the README that a card is written into: the one on the Hub, with what only the run's own says.

    Text and metadata that somebody has set on the Hub stay.
    """
    if there is None or own is None:
        return own if there is None else there
    return with_users_part(there, own)


def own_text(text: str) -> str:
    """Return what a README says besides its metadata and our section."""
    return "".join(text_around(text)).strip()


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


def _refuse_unfinished(run: Path) -> None:
    if not run.is_dir():
        raise ValueError(f"{run}: there is no such folder; expected the output folder of `hf-distill train`")
    missing = [name for name in ("recipe.yaml", "results.json", "student") if not (run / name).exists()]
    if missing and (run.resolve().parent / "results.json").is_file():
        raise ValueError(f"{run} is a part of a run: name the run's folder, {run.resolve().parent}")
    if missing:
        raise ValueError(
            f"{run} holds no finished run, {', '.join(missing)} is missing: let `hf-distill train` end first"
        )


def _goes_out(student: Path, path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.relative_to(student).parts)
    return path.suffix in _SUFFIXES and not is_hidden and path.is_file()


def _refuse_unloadable(student: Path, files: list[Outgoing]) -> None:
    """Refuse a student that a stranger's `from_pretrained` would not load, or not whole."""
    here = {file.path_in_repo: file for file in files}
    weights = [file for file in files if file.path_in_repo.endswith(_WEIGHTS)]
    if not weights:
        raise ValueError(
            f"{student} has no weights in safetensors: save the model again by `save_pretrained`; pickled weights "
            "(.bin) can run code where they are loaded, and are not published"
        )
    for file in weights:
        safetensors_header(file)
    for index in (file for file in files if file.path_in_repo.endswith(f"{_WEIGHTS}.index.json")):
        lost = sorted(set(json.loads(index.read())["weight_map"].values()) - set(here))
        if lost:
            raise ValueError(f"{student / index.path_in_repo} names {', '.join(lost)}, which is not there")
    if ADAPTER in here:
        base = base_of_adapter(here[ADAPTER])
        if not base or is_local(base):
            raise ValueError(f"{student / ADAPTER}: {unknown_base(base)}")
    elif "config.json" not in here:
        raise ValueError(f"{student / 'config.json'} is missing: let `hf-distill train` make the student again")
