"""A repository on the Hub, as a push finds it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Literal

from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo, GitCommitInfo, GitRefs, ModelInfo, RepoFile, RepoFolder

from hf_distill.hub.client import HubClient
from hf_distill.hub.files import README, Outgoing
from hf_distill.hub.readme import BEGIN

MAIN = "main"
SHOWN = 3
"""Of a list in a message so many are named."""
_RESULTS = "results.json"
_MODELS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.keras", "*.msgpack", "*.gguf", "*.onnx")

_NO_DATA = (".git*", README, "LICENSE*", "*.png", "*.jpg")


@dataclass(frozen=True)
class Destination:
    """Where a student goes, or soft targets.

    Attributes:
        repo_id: `name`, which is taken to be in the user's own namespace, or `namespace/name`.
        private: whether a new repository is seen by its owner alone; None leaves that to the Hub.
        revision: the branch, made if there is none; None for main.
        create_pr: propose it by a pull request.
        overwrite: replace a model that this package has not made; or go beside the files of such a data set.
        kind: a model's repository or a data set's.

    Raises:
        ValueError: there can be no such repository or branch.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False
    kind: Literal["model", "dataset"] = "model"

    def __post_init__(self) -> None:
        check_destination_words(self.repo_id, self.revision, create_pr=self.create_pr)

    def options(self) -> list[str]:
        """Return the options of `hf-distill push` that say the same."""
        return [
            *("--repo-id", self.repo_id),
            *(["--private"] if self.private else []),
            *(["--revision", self.revision] if self.revision is not None else []),
            *(["--create-pr"] if self.create_pr else []),
            *(["--overwrite"] if self.overwrite else []),
        ]

    @property
    def branch(self) -> str:
        """Return the branch's name."""
        return self.revision or MAIN

    @property
    def page(self) -> str:
        """Return the repository's part of an address on the Hub."""
        return self.repo_id if self.kind == "model" else f"datasets/{self.repo_id}"


@dataclass(frozen=True)
class RemoteState:
    """What a branch of a repository holds."""

    head: str
    files: dict[str, RepoFile]
    readme: str | None
    has_branch: bool

    @property
    def is_ours(self) -> bool:
        """Tell whether an earlier push has made it."""
        return _RESULTS in self.files or self.has_our_card

    @property
    def has_our_card(self) -> bool:
        """Tell whether a card of ours is in README.md."""
        return BEGIN in (self.readme or "")


def in_full(to: Destination, hub: HubClient) -> Destination:
    """Return the destination with its namespace."""
    return to if "/" in to.repo_id else replace(to, repo_id=f"{hub.user}/{to.repo_id}")


def look(hub: HubClient, to: Destination) -> RemoteState | None:
    """Return what is there, None if there is no such repository (or none that the token may see)."""
    name = to.repo_id

    def question() -> ModelInfo | DatasetInfo | None:
        try:
            return info_of(hub, to)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 404:
                return None
            raise

    info = hub.ask(f"tell of {name}", question)
    if info is None:
        return None
    if to.private and info.private is False:
        raise ValueError(
            f"{name} is there already and public: make it private in its settings, or do not ask for a private one"
        )
    head, has_branch = str(info.sha), True
    if to.branch != MAIN:
        refs = hub.ask(f"list the branches of {name}", lambda: _refs(hub, to))
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        heads |= {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
        if to.branch in {tag.name for tag in refs.tags}:
            raise ValueError(f"{to.branch} is a tag of {name}, and tags do not move: name a branch")
        has_branch = to.branch in heads
        head = heads.get(to.branch, head)
    files = files_at(hub, to, head)
    text = hub.text(name, README, head, kind=to.kind) if README in files else None
    return RemoteState(head, files, text, has_branch)


def info_of(hub: HubClient, to: Destination, revision: str | None = None) -> ModelInfo | DatasetInfo:
    """Ask once what a repository is; None is main."""
    if to.kind == "dataset":
        return hub.api.dataset_info(to.repo_id, revision=revision)
    return hub.api.model_info(to.repo_id, revision=revision)


def files_at(hub: HubClient, to: Destination, commit: str) -> dict[str, RepoFile]:
    """Return the files of a commit by their paths."""

    def question() -> list[RepoFile | RepoFolder]:
        return list(hub.api.list_repo_tree(to.repo_id, revision=commit, recursive=True, repo_type=to.kind))

    listed = hub.ask(f"list the files of {to.repo_id}", question)
    return {each.path: each for each in listed if isinstance(each, RepoFile)}


def _refs(hub: HubClient, to: Destination) -> GitRefs:
    return hub.api.list_repo_refs(to.repo_id, include_pull_requests=True, repo_type=to.kind)


def check_not_foreign(to: Destination, found: RemoteState) -> None:
    """Refuse to replace a model, or data, that are none of ours, unless told to.

    Raises:
        ValueError: there is one.
    """
    if to.overwrite or to.create_pr or (found.is_ours if to.kind == "model" else found.has_our_card):
        return
    if to.kind == "dataset":
        data = [path for path in found.files if not any(fnmatch(path, name) for name in _NO_DATA)]
        if data:
            raise ValueError(
                f"the name {to.repo_id} is taken by a data set that hf-distill has not made "
                f"({', '.join(data[:SHOWN])}): choose another, propose yours by --create-pr, or put them beside its "
                "files by --overwrite"
            )
        return
    models = [path for path in found.files if any(fnmatch(path, name) for name in _MODELS)]
    if models:
        raise ValueError(
            f"the name {to.repo_id} is taken by a model that hf-distill has not made ({', '.join(models[:SHOWN])}): "
            "choose another, propose the student by --create-pr, or replace that model by --overwrite"
        )


def is_same(file: Outgoing, there: RepoFile | None) -> bool:
    """Tell whether a file is on the Hub already, by its hash."""
    if there is None or there.size != file.size:
        return False
    return there.lfs.sha256 == file.sha256 if there.lfs is not None else there.blob_id == file.git_sha1


def who(commits: Sequence[GitCommitInfo]) -> str:
    """Say who made commits, when, and under which title."""
    shown = [
        f"{', '.join(commit.authors)} ({commit.title!r}, {commit.created_at:%Y-%m-%d %H:%M} UTC)"
        for commit in commits[:SHOWN]
    ]
    return "; ".join(shown) or "somebody"


def what_changed(before: dict[str, RepoFile], after: dict[str, RepoFile]) -> str:
    """Name the files in which two commits differ."""
    changed = sorted(
        path
        for path in before.keys() | after.keys()
        if path not in before or path not in after or before[path].blob_id != after[path].blob_id
    )
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return (", ".join(changed[:SHOWN]) or "nothing") + more


def check_destination_words(repo_id: str, revision: str | None, *, create_pr: bool) -> None:
    """Refuse names that no repository or branch on the Hub can have.

    Raises:
        ValueError: with what is wrong.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} can be no repository's name: expected name or namespace/name, each of at most 96 letters, "
            "digits, '-', '_' and '.' (but no '--' and no '..')"
        ) from error
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"revision {revision} is a commit, and nothing is added to one: name a branch")
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"a pull request goes to main: leave out create_pr, or the revision {revision!r}")
