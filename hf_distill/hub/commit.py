"""What changes a repository on the Hub: its making, its branches, and commits that are never made twice."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

from hf_distill.hub.client import HubClient, HubError
from hf_distill.hub.destination import Destination, RemoteState, files_at, info_of, is_same, look, what_changed, who
from hf_distill.hub.files import Outgoing

Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


def found_or_created(hub: HubClient, to: Destination) -> RemoteState:
    """Return what a repository holds, which is made first if there is none.

    Raises:
        HubError: it can neither be seen nor made.
    """
    found = look(hub, to)
    if found is None:
        # A repository that is there since the last question is the outcome of a lost reply, or is looked at below.
        hub.ask(
            f"make {to.repo_id}",
            lambda: hub.api.create_repo(to.repo_id, private=to.private, exist_ok=True, repo_type=to.kind),
        )
        found = look(hub, to)
    if found is None:
        raise HubError(
            f"the name {to.repo_id} is taken by a repository that the token of {hub.user} may not see: choose another, "
            "or use a token that may",
            409,
        )
    return found


@dataclass(frozen=True)
class PushResult:
    """What a push has done.

    Attributes:
        repo_id: `namespace/name`.
        commit: the commit that holds it all, 40 hexadecimal digits.
        url: where to see it.
        pull_request: the address of the pull request, if one was asked for.
        files: the paths that this push has written, none if all was there already.
        removed: the paths of another push that it has removed.
        notes: what there is to tell about the card, the Hub's own words included.
        license_warnings: what the teachers' licenses forbid.
    """

    repo_id: str
    commit: str
    url: str
    pull_request: str | None = None
    files: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    license_warnings: tuple[str, ...] = ()


class Change:
    """Files that come to a branch and files that go, in one commit.

    Attributes:
        changed: the files that are not there yet.
        removed: as given.
        mark: a digest of the content, by which a commit whose reply was lost is recognized.
        notes: what the Hub had to tell about the card.
    """

    def __init__(
        self,
        hub: HubClient,
        to: Destination,
        found: RemoteState,
        files: Sequence[Outgoing],
        removed: Sequence[str] = (),
    ) -> None:
        self.hub, self.api, self.to, self.found = hub, hub.api, to, found
        self.files, self.removed = list(files), list(removed)
        self.changed = [file for file in files if not is_same(file, found.files.get(file.path_in_repo))]
        self.mark = _digest(files, removed)
        self.notes: list[str] = []

    def settle(self, title: str, *, collect_notes: bool = True) -> PushResult:
        """Send what is to change, unless all of it is there.

        Raises:
            HubError: the Hub did not take it. The status is 412 if somebody else has changed the branch meanwhile.
        """
        commit, pull_request = self.found.head, None
        self._make_branch()
        if self.changed or self.removed:
            commit, pull_request = self._commit(title, collect_notes)
        return PushResult(
            repo_id=self.to.repo_id,
            commit=commit,
            url=pull_request or f"{self.api.endpoint}/{self.to.page}/tree/{self.to.branch}",
            pull_request=pull_request,
            files=tuple(file.path_in_repo for file in self.changed),
            removed=tuple(self.removed),
            notes=tuple(self.notes),
        )

    def _make_branch(self) -> None:
        """Make the branch, if it is not there."""
        if self.found.has_branch:
            return
        branch, start = self.to.branch, self.found.head
        self.hub.ask(
            f"make the branch {branch}",
            lambda: self.api.create_branch(
                self.to.repo_id, branch=branch, revision=start, exist_ok=True, repo_type=self.to.kind
            ),
        )

    def _commit(self, title: str, collect_notes: bool) -> tuple[str, str | None]:
        operations: list[Operation] = [
            *(CommitOperationAdd(file.path_in_repo, file.content) for file in self.changed),
            *(CommitOperationDelete(path) for path in self.removed),
        ]

        def send() -> tuple[str, str | None]:
            made = self.api.create_commit(
                self.to.repo_id,
                operations,
                commit_message=title,
                commit_description=f"Content: {self.mark}",
                revision=self.to.branch,
                create_pr=self.to.create_pr,
                parent_commit=self.found.head,
                repo_type=self.to.kind,
            )
            return made.oid, made.pr_url

        def question() -> tuple[str, str | None]:
            if not collect_notes:  # in the background, where warnings are the whole program's
                return send()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                made = send()
            self.notes += [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
            return made

        done = self._maybe_proposed if self.to.create_pr else self._committed
        return self.hub.ask(f"take the commit to {self.to.repo_id}", question, done=done)

    def _maybe_proposed(self) -> None:
        raise HubError(
            f"the Hub has not confirmed the pull request to {self.to.repo_id}, and may have opened it: look there "
            "before pushing again, which opens another one",
            409,
        )

    def _committed(self) -> tuple[str, str | None] | None:
        """Return the commit with this content that was made since `found`, None if nobody has made any."""
        name, branch, head = self.to.repo_id, self.to.branch, self.found.head
        info = self.hub.ask(f"tell of {name}", lambda: info_of(self.hub, self.to, branch))
        if info.sha == head:
            return None
        history = self.hub.ask(
            f"list the commits of {name}",
            lambda: self.api.list_repo_commits(name, revision=branch, repo_type=self.to.kind),
        )
        since = list(takewhile(lambda commit: commit.commit_id != head, history))
        for commit in since:
            if self.mark in commit.message:
                return commit.commit_id, None
        files = files_at(self.hub, self.to, str(info.sha))
        if all(is_same(file, files.get(file.path_in_repo)) for file in self.files):
            return str(info.sha), None
        what = "the student" if self.to.kind == "model" else "the soft targets"
        raise HubError(
            f"{name} has changed while this push was under way, and nothing was sent: {who(since)} changed "
            f"{what_changed(self.found.files, files)}. Push again to put {what} on top of that",
            412,
        )


def _digest(files: Sequence[Outgoing], removed: Sequence[str]) -> str:
    lines = sorted([f"{file.sha256} {file.path_in_repo}" for file in files] + [f"- {path}" for path in removed])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
