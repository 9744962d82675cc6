"""Pushing a run, and what it leaves on the Hub and here."""

import json
from pathlib import Path

import yaml
from local_hub.server import LocalHub
from local_hub.storage import Commit

from hf_distill.hub.commit import PushResult
from hf_distill.hub.destination import Destination
from hf_distill.runs.publish import publish
from tests.runs.test_train import digits_recipe

NAME = "ada/digits"


def write_digits_recipe(file: Path, **changes) -> Path:
    """Write a recipe of three seconds, with a curve to draw."""
    recipe = digits_recipe(**changes)
    recipe["training"]["logging_steps"] = 20
    file.write_text(yaml.safe_dump(recipe))
    return file


def push(run: Path, repo_id: str = NAME, token: str | None = None, **to) -> PushResult:
    return publish(run, Destination(repo_id, **to), token=token, sleep=lambda seconds: None)


def pushes(hub: LocalHub, repo_id: str = NAME, revision: str = "main") -> list[Commit]:
    """Return the commits that pushes have made, to a branch or in pull requests."""
    if ("models", repo_id) not in hub.repos or revision not in hub.repo(repo_id).branches:
        return []
    found = hub.commits(repo_id, revision)
    for discussion in hub.repo(repo_id).discussions:
        found = [*found, *hub.commits(repo_id, f"refs/pr/{discussion.num}")]
    return list({commit.oid: commit for commit in found if commit.title.startswith("Publish ")}.values())


def changed(run: Path, number: int) -> Path:
    """Let a run have found something else, so that there is something to push."""
    results = json.loads((run / "results.json").read_text())
    results["environment"]["hardware"] = f"{number} abaci"
    (run / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return run


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return each file's bytes and time: what must stay as it was."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
