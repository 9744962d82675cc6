"""Soft targets as a data set on the Hub: what of their folder goes out."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_distill.hub.card.dataset_card import target_card
from hf_distill.hub.commit import Change
from hf_distill.hub.destination import SHOWN
from hf_distill.hub.files import Outgoing
from hf_distill.hub.portable import is_local, last_name
from hf_distill.hub.push import Content

KEY, INFO = "key.json", "teacher.json"
_SHARD = re.compile(r"([0-9a-f]{32})\.safetensors")


def soft_target_content(
    folder: Path,
    *,
    key: Mapping[str, Any],
    info: Mapping[str, Any],
    num_rows: int,
    differences: Callable[[Mapping[str, Any], Mapping[str, Any]], str],
) -> Content:
    """Return what of a folder of soft targets is pushed; those that were there before and are not in it go.

    Raises:
        ValueError: there are no soft targets, or some are damaged.
    """
    shards = [Outgoing(path.name, path) for path in sorted(folder.iterdir()) if _SHARD.fullmatch(path.name)]
    if not shards:
        raise ValueError(f"there are no soft targets in {folder}, so nothing was pushed")
    damaged = [file.path_in_repo for file in shards if not file.path_in_repo.startswith(file.sha256[:32])]
    if damaged:
        more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise ValueError(
            f"in {folder} {', '.join(damaged[:SHOWN])}{more} {'is' if len(damaged) == 1 else 'are'} damaged, so "
            "nothing was pushed: `hf-distill cache` mends the folder, by computing these rows' soft targets again"
        )
    files = [Outgoing(KEY, _text(_portable_key(key, info))), Outgoing(INFO, _text(_portable_info(info))), *shards]
    size = sum(file.size for file in shards)
    ours = {file.path_in_repo for file in files}
    return Content(
        title=f"Share soft targets of {num_rows:,} rows, cached with hf_distill",
        files=files,
        folder=folder,
        card=lambda _, repo_id: target_card(key, info, num_rows=num_rows, num_bytes=size, repo_id=repo_id),
        public=list(map(str, key["labels"] or [])),
        left_over=lambda there: [path for path in there if _SHARD.fullmatch(path) and path not in ours],
        notes=lambda change: _notes_on_replaced(change, lambda there: differences(there, key)),
    )


def _portable_key(key: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key whose teachers are named by their ids on the Hub alone; names are not compared with anything."""
    named = [{"name": each["model"], "commit": each["revision"]} for each in info["teachers"]]
    return {**key, "about": {**key.get("about", {}), "teachers": named}}


def _portable_info(info: Mapping[str, Any]) -> dict[str, Any]:
    recipe = info["recipe"]
    return {"format": 1, **info, "recipe": last_name(recipe) if recipe and is_local(recipe) else recipe}


def _text(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _notes_on_replaced(change: Change, differences: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Tell that soft targets which go were made in another way, and which commit still has them."""
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
