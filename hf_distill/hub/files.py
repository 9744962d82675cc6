"""Which files go out, under which names, and what each is for: one table for runs and trainers."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_distill.hub.portable import is_local, last_name

README, WEIGHTS, ADAPTER = "README.md", ".safetensors", "adapter_config.json"
_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"  # the second is a pickle that nothing reads

# What `save_pretrained` writes, and what a README shows. Anything else, pickles and logs above all, may run code where
# it is loaded, or tell of this machine.
_TEXTS = (".json", ".txt", ".md", ".jinja", ".py", ".model", ".spm", ".onnx", WEIGHTS)
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
# Any word is an entry of some vocabulary.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
# What loading reads at the top of a repository: left over from another student, it would change this one.
_WEIGHTS_OF_MODELS = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", ADAPTER),
)
_READ_BY_LOADING = (
    *("*.safetensors", "*.safetensors.index.json", ADAPTER),
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "vocab.*", "added_tokens.json", "merges.txt", "*.model", "training_curves.png"),
)


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


# ---- What goes out ----


def student_files(folder: Path, *, left_out: Collection[Path] = ()) -> list[Outgoing]:
    """Return what of a folder makes the student: what loading reads, and what a README shows, but no README.md.

    The state of a training, checkpoints, hidden files and what begins with `_` are left out.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_apart = any(part.startswith((".", "_", "checkpoint-", "last-checkpoint")) for part in parts)
        is_other = any(path.is_relative_to(other) for other in left_out)
        if path.suffix in (*_TEXTS, *_PICTURES) and path.is_file() and not is_apart and not is_other:
            found.append(Outgoing("/".join(parts), path))
    return [file for file in found if file.path_in_repo not in (README, _STATE)]


def checkpoint_files(folder: Path, name: str) -> list[Outgoing]:
    """Return what a training needs to go on at a checkpoint, pickled states of the optimizer among it."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_file() and inside not in (README, _ARGUMENTS):
            found.append(Outgoing(f"{name}/{inside}", _portable_state(path) if inside == _STATE else path))
    return found


def _portable_state(path: Path) -> bytes:
    """Return the state of a training without the folders of this machine: `Trainer` finds the best checkpoint anew."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = last_name(state["best_model_checkpoint"])
    return (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()


def is_text(path: str) -> bool:
    """Tell whether a file is searched for secrets."""
    return PurePosixPath(path).suffix in _TEXTS


def is_prose(path: str) -> bool:
    """Tell whether the words of a file are somebody's, and no vocabulary."""
    return PurePosixPath(path).name not in _VOCABULARIES and not path.endswith((".model", ".spm", *_PICTURES))


def left_over(there: Iterable[str], files: Sequence[Outgoing], *, whole: bool, replaced: str = "") -> list[str]:
    """Return the paths of a repository that would mix with what is pushed.

    Args:
        there: the repository's.
        files: what is pushed.
        whole: they are all that loading reads; if not, weights of another student go alone, and a tokenizer stays.
        replaced: a folder of the repository that is to hold nothing else than what is in `files`; none if empty.
    """
    ours, read = {file.path_in_repo for file in files}, _READ_BY_LOADING if whole else _WEIGHTS_OF_MODELS

    def mixes(path: str) -> bool:
        is_read = "/" not in path and any(fnmatch(path, name) for name in read)
        return is_read or path == _ARGUMENTS or bool(replaced and path.startswith(f"{replaced}/"))

    return [path for path in there if path not in ours and mixes(path)]


# ---- What others could not load ----


def check_loadable(folder: Path, files: Sequence[Outgoing]) -> None:
    """Refuse a student that a stranger's `from_pretrained` would not load, or not whole.

    Raises:
        ValueError: with the file and the remedy.
    """
    here = {file.path_in_repo: file for file in files}
    weights = [file for file in files if file.path_in_repo.endswith(WEIGHTS)]
    if not weights:
        raise ValueError(
            f"{folder} has no weights in safetensors: save the model again by `save_pretrained`; pickled weights "
            "(.bin) can run code where they are loaded, and are not published"
        )
    for file in weights:
        metadata_of_weights(file)
    for index in (file for file in files if file.path_in_repo.endswith(f"{WEIGHTS}.index.json")):
        lost = sorted(set(json.loads(index.read())["weight_map"].values()) - set(here))
        if lost:
            raise ValueError(f"{folder / index.path_in_repo} names {', '.join(lost)}, which is not there")
    if ADAPTER in here:
        check_adapter_base(here[ADAPTER], f"{folder / ADAPTER}", is_needed=True)
    elif "config.json" not in here:
        raise ValueError(f"{folder / 'config.json'} is missing: let `hf-distill train` make the student again")


def check_adapter_base(config: Outgoing, where: str, *, is_needed: bool = False) -> None:
    """Refuse an adapter whose base others would look for on this machine; one without a name may be theirs to build.

    Raises:
        ValueError: with the remedy.
    """
    base = json.loads(config.read()).get("base_model_name_or_path")
    if (is_needed and not base) or (base and is_local(str(base))):
        raise ValueError(
            f"{where}: base_model_name_or_path is {base!r}, which nobody else has: set it to the base model's Hub id "
            "(publish the base first if it has none), or merge the adapter (`merge_and_unload`)"
        )


def metadata_of_weights(file: Outgoing) -> dict[str, str]:
    """Return the metadata in the header of a file of weights.

    Raises:
        ValueError: the file is not whole.
    """
    assert isinstance(file.content, Path)
    try:
        with safe_open(file.content, framework="numpy") as weights:
            return weights.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{file.content} is no whole file of weights ({error}): was it cut when it was copied? Take it from the run"
        ) from error
