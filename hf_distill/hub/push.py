"""A finished run, published on the Hub in one commit, however often it is tried."""

import time
from collections.abc import Callable, Sequence

from hf_distill.hub.client import Hub
from hf_distill.hub.destination import (
    MAIN,
    Destination,
    check_destination_words,
    in_full,
    look,
    refuse_foreign,
)


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
