"""Where the models and the data of a run come from: Hub ids, commits and licenses, and never a local path."""

import re
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import constants, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.repocard import REGEX_YAML_BLOCK, RepoCard
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from hf_distill.hub.portable import is_local

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LICENSE = re.compile(r"[\w.+-]{1,60}", re.ASCII)
NOWHERE: dict[str, Any] = {"model": None, "revision": None, "license": None}


def model_origin(source: str | None, revision: str | None = None) -> dict[str, Any]:
    """Tell where a model comes from that has just been loaded."""
    if source is None:
        return dict(NOWHERE)
    if is_local(source):
        return {**NOWHERE, **_license(_text(Path(source).expanduser() / "README.md"))}
    commit = _commit(source, revision or "main")
    return {"model": source, "revision": commit, **_license(_hub_card(source, commit or revision or "main"))}


def data_origin(dataset: str | None, revision: str | None, rows: datasets.DatasetDict) -> dict[str, Any]:
    """Tell where data come from that have just been loaded."""
    if dataset is None or is_local(dataset):
        return {"id": None, "revision": None}
    # The builder of a data set on the Hub caches it in a folder named after the commit.
    folders = {Path(file["filename"]).parent.name for split in rows.values() for file in split.cache_files}
    found = {folder for folder in folders if _COMMIT.fullmatch(folder)}
    if revision is not None and _COMMIT.fullmatch(revision):
        found = {revision}
    return {"id": dataset, "revision": found.pop() if len(found) == 1 else None}


def _commit(model: str, revision: str) -> str | None:
    """Return the commit whose files the cache holds under a revision, which loading has just brought up to date."""
    if _COMMIT.fullmatch(revision):
        return revision
    config = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent.name  # snapshots/<commit>/config.json
    return folder if _COMMIT.fullmatch(folder) else None


def _hub_card(model: str, revision: str) -> str:
    """Return a model's card from the cache, or from the Hub if that can be asked; empty where there is none."""
    cached = try_to_load_from_cache(model, "README.md", revision=revision)
    if isinstance(cached, str):
        return _text(Path(cached))
    if constants.HF_HUB_OFFLINE or cached is not None:  # not None: the Hub has said that there is no such file
        return ""
    try:
        # Once and not for long: no license is worth the client's half a minute of retries.
        url = hf_hub_url(model, "README.md", revision=revision)
        reply = get_session().get(url, headers=build_hf_headers(), timeout=5, follow_redirects=True)
        return str(reply.text) if reply.status_code == 200 else ""
    except Exception:  # no network, a proxy's certificate, an reply that is cut off: the license is not known
        return ""


def _text(card: Path) -> str:
    try:
        return card.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _license(card: str) -> dict[str, Any]:
    """Return what a model card states in its metadata."""
    front = REGEX_YAML_BLOCK.search(card)
    try:
        stated = {} if front is None else vars(RepoCard(front.group()).data)
    except Exception:  # no YAML, no mapping: nothing is stated
        stated = {}
    license = stated.get("license")
    if isinstance(license, list) and len(license) == 1:
        license = license[0]
    if not isinstance(license, str) or not _LICENSE.fullmatch(license):
        return {"license": None}
    found = {"license": license.lower()}
    if found["license"] == "other":
        name, link = stated.get("license_name"), stated.get("license_link")
        found |= {"license_name": name} if isinstance(name, str) and _LICENSE.fullmatch(name) else {}
        # A name of a file would point into the student's own repository, which has no such file.
        found |= {"license_link": link} if isinstance(link, str) and link.startswith("https://") else {}
    return found
