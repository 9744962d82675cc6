"""The one way to the Hub, for runs, trainers and soft targets: what has changed, in one commit."""

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub.repocard import RepoCard

from hf_distill.hub.client import HubClient, HubError
from hf_distill.hub.commit import Change, PushResult, found_or_created
from hf_distill.hub.destination import (
    MAIN,
    Destination,
    RemoteState,
    check_destination_words,
    check_not_foreign,
    in_full,
    look,
)
from hf_distill.hub.files import README, Outgoing, is_text, left_over
from hf_distill.hub.readme import combined, merge, our_section, users_license
from hf_distill.hub.secrets import check_secrets

Card = Callable[[str | None, str], RepoCard]
_STALE = 412


@dataclass(frozen=True)
class Content:
    """What is pushed.

    Attributes:
        title: of the commit.
        files: all of them but README.md.
        folder: where they come from.
        card: makes our section and metadata of README.md, for the license that the user has set there (None if there is
            none) and the repository. If there is no such function, the README of the user goes out as it is.
        readme: the README here, which may hold text of the user's.
        public: words that may be in the files though the user of this machine is called so, such as labels.
        left_over: names the paths of the repository that would mix with the files, and are removed.
        may_replace: a model or data that this package has not made may be in the repository.
        notes: what to tell the user of a change.
    """

    title: str
    files: Sequence[Outgoing]
    folder: Path
    card: Card | None
    readme: str | None = None
    public: Collection[str] = ()
    left_over: Callable[[Collection[str]], list[str]] | None = None
    may_replace: bool = False
    notes: Callable[[Change], list[str]] = lambda change: []


def push(
    content: Content,
    to: Destination,
    *,
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    tries: int = 1,
    is_signed_in: bool = False,
    written: Callable[[str | None], None] = lambda readme: None,
) -> PushResult:
    """Push in one commit, so that no reader ever sees weights of one step and a config of another.

    Text and metadata that users have written in README.md stay, here and on the Hub. What is there already is not sent
    again, and if all of it is there nothing is done.

    Args:
        content: what is pushed.
        to: where.
        token: of the user; None is that of the last login.
        sleep: waits before a request is made again.
        tries: pushes on top of what others have committed meanwhile.
        is_signed_in: the token was looked at before, and warnings are somebody else's, as in the background.
        written: gets the text of README.md that is on the Hub now.

    Raises:
        ValueError: there is something in the files that must not be published, or (`HubError`) the Hub did not take it.
    """
    _check_secrets(content, _readme(content, None, to), to, token or os.environ.get("HF_TOKEN"))
    hub = HubClient(token, sleep) if is_signed_in else HubClient(token, sleep).sign_in()
    to = in_full(to, hub)
    while True:
        tries -= 1
        try:
            found = found_or_created(hub, to)
            if not content.may_replace:
                check_not_foreign(to, found)
            change, text = _change(content, hub, to, found)
            result = change.settle(content.title, collect_notes=not is_signed_in)
        except HubError as error:
            if error.status != _STALE or tries <= 0:
                raise
            continue
        written(text)
        return replace(result, notes=(*content.notes(change), *result.notes))


def preview(content: Content, to: Destination, *, token: str | None = None) -> list[Outgoing]:
    """Return what a push would send into an empty repository, README.md first; the Hub is not asked.

    Raises:
        ValueError: there is something in the files that must not be published.
    """
    text = _readme(content, None, to)
    _check_secrets(content, text, to, token or os.environ.get("HF_TOKEN"))
    return [*_readme_file(text), *sorted(content.files, key=lambda file: file.path_in_repo)]


def create_repository(repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Create a repository if there is none of that name; return it with its namespace.

    Raises:
        ValueError: the name cannot be one, or (`HubError`) the Hub did not create it.
    """
    hub = HubClient(token).sign_in()
    to = in_full(Destination(repo_id, private=private), hub)
    found_or_created(hub, to)
    return to.repo_id


def check_destination(
    to: Destination, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Find out, before anything is computed, whether a push could go there; nothing is made or changed.

    Raises:
        ValueError: it could not (`HubError`), and why.
    """
    hub = HubClient(token, sleep).sign_in()
    to = in_full(to, hub)
    found = look(hub, to)
    if found is not None:
        check_not_foreign(to, found)


def download_texts(
    repo_id: str, names: Sequence[str], revision: str | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> dict[str, str]:
    """Return text files of a model's repository, all of the same commit.

    Raises:
        ValueError: the Hub did not give one of them (`HubError`).
    """
    check_destination_words(repo_id, None, create_pr=False)
    hub = HubClient(sleep=sleep)
    head = hub.ask(f"tell of {repo_id}", lambda: hub.api.model_info(repo_id, revision=revision)).sha
    return {name: hub.text(repo_id, name, head or MAIN) for name in names}


def _change(content: Content, hub: HubClient, to: Destination, found: RemoteState) -> tuple[Change, str | None]:
    text = _readme(content, found.readme, to)
    _check_secrets(content, text, to, hub.token)
    files = [*_readme_file(text), *content.files]
    removed = left_over(found.files, files, whole=True) if content.left_over is None else content.left_over(found.files)
    return Change(hub, to, found, files, removed), text


def _readme(content: Content, there: str | None, to: Destination) -> str | None:
    """Return README.md with the card in it; the one on the Hub is the base."""
    if content.card is None:
        return content.readme
    try:
        existing = combined(there, content.readme)
        return merge(existing, content.card(users_license(existing), to.repo_id))
    except ValueError as error:
        where = f"{content.folder} or, on the Hub, {to.repo_id}" if there is not None else content.folder
        raise ValueError(f"{where}: {error}") from error


def _readme_file(text: str | None) -> list[Outgoing]:
    return [] if text is None else [Outgoing(README, text.encode())]


def _check_secrets(content: Content, text: str | None, to: Destination, token: str | None) -> None:
    """Refuse keys in any text, and names and folders of this machine in what its user has not written for others."""
    ours = "" if text is None or content.card is None else our_section(text)
    check_secrets(
        [*(file for file in content.files if is_text(file.path_in_repo)), Outgoing(README, ours.encode())],
        token=token,
        folders=[content.folder],
        public={to.repo_id.partition("/")[0], *(word for each in content.public for word in each.split())},
        users_text=_readme_file(text),
        remedy=f"Take them out of {content.folder} first",
    )
