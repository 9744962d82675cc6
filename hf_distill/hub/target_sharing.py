"""Soft targets, shared as a data set on the Hub in one commit, however often it is tried."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard

from hf_distill.hub.card.dataset_card import target_card
from hf_distill.hub.client import Hub
from hf_distill.hub.commit import Change, Published, found_or_made
from hf_distill.hub.destination import SHOWN, Destination, in_full, refuse_foreign
from hf_distill.hub.files import README, Outgoing
from hf_distill.hub.portable import is_local, last_name
from hf_distill.hub.readme import merge
from hf_distill.hub.secrets import refuse_secrets

KEY, FACTS = "key.json", "teacher.json"
_SHARD = re.compile(r"([0-9a-f]{32})\.safetensors")


def share(
    folder: Path,
    to: Destination,
    *,
    key: Mapping[str, Any],
    facts: Mapping[str, Any],
    num_rows: int,
    differences: Callable[[Mapping[str, Any], Mapping[str, Any]], str],
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Published:
    """Share soft targets in one commit, so that no reader ever sees a part of them.

    The folder is only read. Text of the user's in the data set's README.md stays; what is there already is not sent
    again, and if all of it is there nothing is done. Soft targets that were there before and are not in the folder go;
    if they were made in another way, a remark says so.

    Raises:
        ValueError: the soft targets are not fit to go out, or (`HubError`) the Hub did not take them; what to do is in
            the message.
    """
    files = outgoing(folder, key, facts)
    hub = Hub(token, sleep).sign_in()
    to = in_full(to, hub)
    card = _card(files, to, key, facts, num_rows)
    # What somebody has written into the README that is there is theirs.
    _refuse_secrets([*files, Outgoing(README, str(card).encode())], folder, to, key, hub.token)
    found = found_or_made(hub, to)
    refuse_foreign(to, found)
    try:
        files = [Outgoing(README, merge(found.readme, card).encode()), *files]
    except ValueError as error:
        raise ValueError(f"on the Hub, {to.repo_id}: {error}") from error
    ours = {file.path_in_repo for file in files}
    change = Change(hub, to, found, files, [p for p in found.files if _SHARD.fullmatch(p) and p not in ours])
    change.remarks += _remarks_on_replaced(change, lambda there: differences(there, key))
    return change.settle(f"Share soft targets of {num_rows:,} rows, kept with hf_distill")


def preview(
    folder: Path,
    to: Destination,
    *,
    key: Mapping[str, Any],
    facts: Mapping[str, Any],
    num_rows: int,
    token: str | None = None,
) -> list[Outgoing]:
    """Return what `share` would send into an empty data set; the Hub is not asked.

    Raises:
        ValueError: the soft targets are not fit to go out.
    """
    files = outgoing(folder, key, facts)
    card = Outgoing(README, merge(None, _card(files, to, key, facts, num_rows)).encode())
    _refuse_secrets([*files, card], folder, to, key, token or os.environ.get("HF_TOKEN"))
    return [card, *files]


def outgoing(folder: Path, key: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Outgoing]:
    """Return what of a folder of soft targets goes out, README.md left out.

    Raises:
        ValueError: there are no soft targets, or some are damaged.
    """
    shards = [path for path in sorted(folder.iterdir()) if _SHARD.fullmatch(path.name)]
    if not shards:
        raise ValueError(f"nothing was sent, there are no soft targets in {folder}")
    files = [Outgoing(path.name, path) for path in shards]
    damaged = [file.path_in_repo for file in files if not file.path_in_repo.startswith(file.sha256[:32])]
    if damaged:
        more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise ValueError(
            f"nothing was sent, in {folder} {', '.join(damaged[:SHOWN])}{more} {'is' if len(damaged) == 1 else 'are'} "
            "damaged: let `hf-distill cache` mend the folder, which asks the teacher about these rows again"
        )
    return [Outgoing(KEY, _text(_portable_key(key, facts))), Outgoing(FACTS, _text(_portable_facts(facts))), *files]


def _portable_key(key: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key whose teachers are named by their ids on the Hub alone; names are not compared with anything."""
    named = [{"name": each["model"], "commit": each["revision"]} for each in facts["teachers"]]
    return {**key, "about": {**key.get("about", {}), "teachers": named}}


def _portable_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    recipe = facts["recipe"]
    return {"format": 1, **facts, "recipe": last_name(recipe) if recipe and is_local(recipe) else recipe}


def _text(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _card(
    files: list[Outgoing], to: Destination, key: Mapping[str, Any], facts: Mapping[str, Any], num_rows: int
) -> DatasetCard:
    size = sum(file.size for file in files if file.path_in_repo not in (KEY, FACTS))
    return target_card(key, facts, num_rows=num_rows, num_bytes=size, repo_id=to.repo_id)


def _remarks_on_replaced(change: Change, differences: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Say that soft targets which go were made in another way, and which commit still has them."""
    to, found = change.to, change.found
    is_other = KEY in found.files and KEY in {file.path_in_repo for file in change.changed}
    if not is_other or not any(_SHARD.fullmatch(path) for path in found.files):
        return []
    try:
        there = json.loads(change.hub.text(to.repo_id, KEY, found.head, kind=to.kind))
        differing = differences(there) if isinstance(there, dict) else f"their {KEY} is none of ours"
    except (ValueError, RecursionError):
        differing = f"their {KEY} cannot be read"
    if not differing:
        return []
    return [
        f"this replaces soft targets of another teacher, or made in another way ({differing}); commit {found.head[:8]} "
        "still holds them"
    ]


def _refuse_secrets(
    files: list[Outgoing], folder: Path, to: Destination, key: Mapping[str, Any], token: str | None
) -> None:
    public = (to.repo_id.partition("/")[0], *map(str, key["labels"] or []))
    remedy = f"Make the soft targets of {folder} anew from models, data and labels whose names are nobody's"
    refuse_secrets(files, token=token, public=public, remedy=remedy)
