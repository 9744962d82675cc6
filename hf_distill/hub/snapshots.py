"""Pushes of a student while it is trained, and after: from a folder that `Trainer` writes, in one commit each."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, ModelCard

from hf_distill.hub.client import Hub, HubError
from hf_distill.hub.commit import Change, found_or_made
from hf_distill.hub.destination import Destination, Found, in_full
from hf_distill.hub.files import ADAPTER, README, Outgoing, base_of_adapter, unknown_base
from hf_distill.hub.portable import is_local, last_name
from hf_distill.hub.readme import merge, our_section, read_readme, users_licence
from hf_distill.hub.reconciling import marked, reconciled
from hf_distill.hub.secrets import refuse, scan

# What `save_pretrained` writes, and what a README shows. Anything else, pickles and logs above all, may run code where
# it is loaded, or tell of this machine.
_TEXTS = (".json", ".txt", ".md", ".jinja", ".py", ".model", ".spm", ".safetensors")
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_STATE = "trainer_state.json"
_ARGUMENTS = "training_args.bin"  # a pickle, and nothing reads it
# What `from_pretrained` would read of another student that was there before.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "adapter_config.json")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_STAGED = "_push-"
_TRIES = 3  # of a push that others' commits get in the way of


@dataclass(frozen=True)
class Snapshot:
    """What is pushed.

    Attributes:
        title: of the commit.
        files: all of them but README.md.
        readme: where the local README.md is; it is brought to what was pushed.
        card: makes ours, which is written into README.md, for the licence that the user has set there, None if there
            is none. If there is no such function, README.md goes out as it is.
        replaced: a folder of the repository that is to hold nothing else than what is in `files`; none if empty.
        public: words that may be in the files though they are names of this machine; see `secrets.scan`.
    """

    title: str
    files: Sequence[Outgoing]
    readme: Path
    card: Callable[[str | None], ModelCard] | None
    replaced: str = ""
    public: Collection[str] = ()


def push(snapshot: Snapshot, to: Destination, token: str | None) -> CommitInfo:
    """Push in one commit, which holds all that has changed: no reader sees weights of one step and a config of another.

    Users' own text in README.md stays, here and on the Hub; see `reconciling.reconciled`. If somebody else commits
    meanwhile, the push is made again on top of that.

    Raises:
        ValueError: there is something in the files that must not be published, or (`HubError`) the Hub did not take it.
    """
    hub = Hub(token)  # whose token it is was asked when the repository was made, and is not asked at each push
    for tries_left in reversed(range(_TRIES)):
        try:
            return _pushed(snapshot, to, hub)
        except HubError as error:
            if error.status != 412 or not tries_left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def make_repository(repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Make a repository if there is none of that name.

    Raises:
        ValueError: the name cannot be one, or (`HubError`) the Hub did not make it.
    """
    hub = Hub(token).sign_in()
    to = in_full(Destination(repo_id, private=private), hub)
    found_or_made(hub, to)
    return to.repo_id


def student_files(folder: Path, *, left_out: Collection[Path] = ()) -> list[Outgoing]:
    """Return what of a folder makes the student: what loading reads, and what a README shows.

    Left out are README.md itself, the state of a training, checkpoints, hidden files and files and folders whose names
    begin with `_`.
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


def stage(folder: Path, beside: Path) -> Path:
    """Keep the files of a folder for a push in the background: a checkpoint may be deleted before it has ended."""
    staged = Path(tempfile.mkdtemp(prefix=f"{_STAGED}{os.getpid()}-", dir=beside))
    shutil.copytree(folder, staged, copy_function=_linked, dirs_exist_ok=True)
    return staged


def delete_staged(beside: Path) -> None:
    """Delete what another process has left, which was killed while it pushed."""
    for folder in beside.glob(f"{_STAGED}*"):
        if not folder.name.startswith(f"{_STAGED}{os.getpid()}-"):
            shutil.rmtree(folder, ignore_errors=True)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _portable_state(path: Path) -> bytes:
    """Return the state of a training without the folders of this machine: `Trainer` finds the best checkpoint anew."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = last_name(state["best_model_checkpoint"])
    return (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()


def _pushed(snapshot: Snapshot, to: Destination, hub: Hub) -> CommitInfo:
    found = found_or_made(hub, to)
    here = read_readme(snapshot.readme)
    text = here if snapshot.card is None else _with_card(snapshot.card, here, found.readme, to)
    files = [*snapshot.files, *([] if text is None else [Outgoing(README, text.encode())])]
    _refuse_local_base(files)
    _refuse_secrets(files, snapshot, to, hub)
    change = Change(hub, to, found, files, _left_over(found, files, snapshot.replaced))
    change.make_branch()
    commit = found.head if change.is_none else change.commit(snapshot.title, collect_remarks=False)[0]
    if text is not None and text != here and read_readme(snapshot.readme) == here:  # nobody has written there meanwhile
        snapshot.readme.write_bytes(text.encode())
    return CommitInfo(
        commit_url=f"{hub.api.endpoint}/{to.repo_id}/commit/{commit}",
        commit_message=snapshot.title,
        commit_description=f"Content: {change.mark}",
        oid=commit,
    )


def _with_card(card: Callable[[str | None], ModelCard], here: str | None, there: str | None, to: Destination) -> str:
    try:
        readme = reconciled(here, there)
        return merge(readme, marked(card(users_licence(readme)), readme, is_shared=True))
    except ValueError as error:
        raise ValueError(f"{error} (the one here, or that of {to.repo_id})") from error


def _left_over(found: Found, files: Sequence[Outgoing], replaced: str) -> list[str]:
    """Return the paths that would mix with what is pushed, and pickled arguments, which may hold a token."""
    ours = {file.path_in_repo for file in files}
    return [
        path
        for path in found.files
        if path not in ours
        and (
            path in (*_WEIGHTS, _ARGUMENTS) or _SHARD.fullmatch(path) or (replaced and path.startswith(f"{replaced}/"))
        )
    ]


def _refuse_local_base(files: Sequence[Outgoing]) -> None:
    """Refuse an adapter whose base others would look for on this machine; one without a name is their own to build."""
    for file in files:
        base = base_of_adapter(file) if PurePosixPath(file.path_in_repo).name == ADAPTER else None
        if base and is_local(base):
            raise ValueError(f"nothing was sent. {file.path_in_repo}: {unknown_base(base)}")


def _refuse_secrets(files: Sequence[Outgoing], snapshot: Snapshot, to: Destination, hub: Hub) -> None:
    """Refuse keys in any text, and paths and names of this machine in what its user has not written for others."""
    texts = [file for file in files if PurePosixPath(file.path_in_repo).suffix in _TEXTS]
    readme = [file for file in texts if file.path_in_repo == README]
    ours = [Outgoing(README, our_section(file.read().decode()).encode()) for file in readme if snapshot.card]
    public = {to.repo_id.partition("/")[0], *snapshot.public}
    others = [file for file in texts if file.path_in_repo != README]
    findings = scan([*others, *ours], token=hub.token, public=public)
    findings += scan(readme, token=hub.token, only_keys=True)
    refuse(findings, f"Take them out of {snapshot.readme.parent} first")
