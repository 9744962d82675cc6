"""A finished run, published on the Hub in one commit, however often it is tried."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from hf_distill.evaluation.results import Results
from hf_distill.publishing.asking import Hub
from hf_distill.publishing.committing import Change, Published, found_or_made
from hf_distill.publishing.files import Outgoing, collect, own_readme, own_text, readme, start_of, with_readme
from hf_distill.publishing.repository import (
    MAIN,
    Destination,
    Found,
    in_full,
    look,
    refuse_foreign,
)
from hf_distill.publishing.secrets import refuse_secrets
from hf_distill.schema import check_destination_words

# What `from_pretrained` reads at the top of a repository: left over from another student, it would change this one.
_READ_BY_LOADING = (
    *("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json", "preprocessor_config.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.*"),
    *("added_tokens.json", "merges.txt", "*.model", "training_curves.png"),
)


def publish(
    run: Path, to: Destination, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> Published:
    """Publish a finished run in one commit, so that no reader ever sees half a model.

    The run's folder is only read. Text of the user's in the repository's README.md stays, whatever it is; what is
    there already is not sent again, and if all of it is there nothing is done.

    Args:
        run: the output folder of `hf-distill train`.
        to: the repository.
        token: the user's; None for the one of the environment or of the last login.
        sleep: waits so many seconds, where the Hub is busy or an answer got lost.

    Raises:
        ValueError: the run is not fit to go out, or (`HubError`) the Hub did not take it; what to do is in the message.
    """
    files = outgoing(run, to, token)
    hub = Hub(token, sleep).sign_in()
    to = in_full(to, hub)
    _refuse_secrets(files, run, to, hub.token)
    return _Push(hub, run, to, files).done()


def outgoing(run: Path, to: Destination, token: str | None = None) -> list[Outgoing]:
    """Return what of a run would go out into an empty repository; the Hub is not asked.

    Raises:
        ValueError: the run is not finished or its student cannot be loaded by others; or there are keys, paths or names
            of this machine in a file.
    """
    files = collect(run, to.repo_id)
    _refuse_secrets(files, run, to, token or os.environ.get("HF_TOKEN"))
    return files


def check_destination(
    to: Destination, *, token: str | None = None, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Find out, before anything is computed, whether a push could go there; nothing is made or changed.

    Raises:
        ValueError: it could not (`HubError`), and why.
    """
    hub = Hub(token, sleep).sign_in()
    to = in_full(to, hub)
    found = look(hub, to)
    if found is not None:
        refuse_foreign(to, found)


def download_texts(
    repo_id: str, names: Sequence[str], revision: str | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> dict[str, str]:
    """Return text files of a model's repository, all of the same commit.

    Raises:
        ValueError: the Hub did not give one of them (`HubError`).
    """
    check_destination_words(repo_id, None, create_pr=False)
    hub = Hub(sleep=sleep)
    head = hub.ask(f"tell of {repo_id}", lambda: hub.api.model_info(repo_id, revision=revision)).sha
    return {name: hub.text(repo_id, name, head or MAIN) for name in names}


class _Push:
    """One push of one run."""

    def __init__(self, hub: Hub, run: Path, to: Destination, files: list[Outgoing]) -> None:
        self.hub = hub
        self.run, self.to, self.files = run, to, files
        self.remarks: list[str] = []
        self.objections: list[str] = []

    def done(self) -> Published:
        """Look what is there, and send what is not."""
        found = found_or_made(self.hub, self.to)
        refuse_foreign(self.to, found)
        self.files = with_readme(self.files, self._readme(found))
        change = Change(self.hub, self.to, found, self.files, self._left_over(found))
        published = change.settle(f"Publish {Results.read(self.run).recipe}, a student distilled with hf_distill")
        return replace(published, remarks=(*self.remarks, *published.remarks), objections=tuple(self.objections))

    def _readme(self, found: Found) -> bytes:
        """Write the card into the README that is there."""
        own = own_readme(self.run)
        try:
            existing = start_of(found.readme, own)
            if own and own_text(own) not in (existing or ""):
                self.remarks.append(
                    f"README.md of {self.to.repo_id} has text of its own, which was kept; that in {self.run} is another"
                )
            content, made = readme(self.run, self.to.repo_id, existing)
        except ValueError as error:
            raise ValueError(f"on the Hub, {self.to.repo_id}: {error}") from error
        self.objections = made.objections
        return content

    def _left_over(self, found: Found) -> list[str]:
        ours = {file.path_in_repo for file in self.files}
        at_the_top = [path for path in found.files if "/" not in path and path not in ours]
        return [path for path in at_the_top if any(fnmatch(path, name) for name in _READ_BY_LOADING)]


def _refuse_secrets(files: Sequence[Outgoing], run: Path, to: Destination, token: str | None) -> None:
    labels = Results.read(run).data.get("label_names") or []
    public = (to.repo_id.partition("/")[0], *map(str, labels))
    refuse_secrets(files, token=token, public=public, remedy=f"Take them out of {run} first")
