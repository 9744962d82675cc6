"""A repository on the Hub, as a push finds it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import GitCommitInfo, ModelInfo, RepoFile, RepoFolder

from hf_distill.publishing.asking import Hub
from hf_distill.publishing.files import README, Outgoing
from hf_distill.publishing.readme import BEGIN
from hf_distill.recipe import check_destination_words

MAIN = "main"
SHOWN = 3
"""Of a list in a message so many are named."""
_RESULTS = "results.json"
_MODELS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.keras", "*.msgpack", "*.gguf", "*.onnx")


@dataclass(frozen=True)
class Destination:
    """Where a student goes.

    Attributes:
        repo_id: `name`, which is taken to be in the user's own namespace, or `namespace/name`.
        private: whether a new repository is seen by its owner alone; None leaves that to the Hub.
        revision: the branch, made if there is none; None for main.
        create_pr: propose it by a pull request.
        overwrite: replace a model that this package has not made.

    Raises:
        ValueError: there can be no such repository or branch.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False

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


@dataclass(frozen=True)
class Found:
    """What a branch of a repository holds."""

    head: str
    files: dict[str, RepoFile]
    readme: str | None
    has_branch: bool

    @property
    def is_ours(self) -> bool:
        """Tell whether an earlier push has made it."""
        return _RESULTS in self.files or BEGIN in (self.readme or "")


def in_full(to: Destination, hub: Hub) -> Destination:
    """Return the destination with its namespace."""
    return to if "/" in to.repo_id else replace(to, repo_id=f"{hub.user}/{to.repo_id}")


def look(hub: Hub, to: Destination) -> Found | None:
    """Return what is there, None if there is no such repository (or none that the token may see)."""
    api, name = hub.api, to.repo_id

    def question() -> ModelInfo | None:
        try:
            return api.model_info(name)
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
        refs = hub.ask(f"list the branches of {name}", lambda: api.list_repo_refs(name, include_pull_requests=True))
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        heads |= {ref.ref: ref.target_commit for ref in refs.pull_requests or []}
        if to.branch in {tag.name for tag in refs.tags}:
            raise ValueError(f"{to.branch} is a tag of {name}, and tags do not move: name a branch")
        has_branch = to.branch in heads
        head = heads.get(to.branch, head)
    files = files_at(hub, name, head)
    text = hub.text(name, README, head) if README in files else None
    return Found(head, files, text, has_branch)


def files_at(hub: Hub, name: str, commit: str) -> dict[str, RepoFile]:
    """Return the files of a commit by their paths."""

    def question() -> list[RepoFile | RepoFolder]:
        return list(hub.api.list_repo_tree(name, revision=commit, recursive=True))

    return {each.path: each for each in hub.ask(f"list the files of {name}", question) if isinstance(each, RepoFile)}


def refuse_foreign(to: Destination, found: Found) -> None:
    """Refuse to replace a model that is none of ours, unless told to.

    Raises:
        ValueError: there is one.
    """
    if found.is_ours or to.overwrite or to.create_pr:
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
