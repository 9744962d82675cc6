"""The routes that change no file: users, repositories, listings, downloads, refs."""

import json
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs

from local_hub import metadata
from local_hub.routing import Answer, Ask, route
from local_hub.storage import Commit, File, Refused, Repo, Store

# ---- Users and repositories ----


@route("GET", "/api/whoami-v2", "whoami")
def whoami(store: Store, ask: Ask) -> Answer:
    user = ask.user
    if user is None:
        raise Refused(401, "Invalid username or password.")
    token = {"displayName": "test", "role": user.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in sorted(user.namespaces - {user.name})]
    auth = {"type": "access_token", "accessToken": token}
    return Answer.json({"type": "user", "name": user.name, "orgs": orgs, "auth": auth})


def asked_repo(ask: Ask) -> tuple[str, str]:
    """Return the kind and the id of the repository that the body names."""
    asked = ask.json()
    if not re.fullmatch(r"[\w-][\w.-]{0,95}", str(asked.get("name"))):
        raise Refused(400, f"Invalid repo name: {asked.get('name')}")
    owner = asked.get("organization") or (ask.user.name if ask.user else "")
    return f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"


@route("POST", "/api/repos/create", "create_repo")
def create_repo(store: Store, ask: Ask) -> Answer:
    (kind, id), asked = asked_repo(ask), ask.json()
    user, namespace = store.writer(ask.user, id, pull=True), id.split("/")[0]
    if namespace not in user.namespaces:
        raise Refused(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"')
    url = f"{ask.base}/{id if kind == 'models' else f'{kind}/{id}'}"
    private = asked.get("visibility") == "private" or asked.get("private") is True
    try:
        store.add_repo(kind, id, user.name, private=private)
    except Refused as refused:
        raise Refused(refused.status, refused.message, url=url) from None
    return Answer.json({"url": url, "name": id})


@route("DELETE", "/api/repos/delete", "delete_repo")
def delete_repo(store: Store, ask: Ask) -> Answer:
    kind, id = asked_repo(ask)
    store.readable(ask.user, kind, id)
    store.writer(ask.user, id)
    del store.repos[kind, id]
    return Answer.json({})


@route("PUT", "/api/{kind}/{id}/settings", "settings")
def settings(store: Store, ask: Ask, kind: str, id: str) -> Answer:
    repo, asked = store.readable(ask.user, kind, id), ask.json()
    store.writer(ask.user, id)
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    return Answer.json({"private": repo.private})


@route("POST", "/api/validate-yaml", "validate_yaml")
def validate_yaml(store: Store, ask: Ask) -> Answer:
    errors, warnings = metadata.problems(ask.json()["content"])
    status = HTTPStatus.BAD_REQUEST if errors else HTTPStatus.OK
    if ask.headers.get("Accept") == "text/plain":  # as `ModelCard.validate` wants it
        return Answer(status, "\n".join([*errors, *warnings]).encode(), {"Content-Type": "text/plain"})
    listed = {"errors": errors, "warnings": warnings}
    return Answer.json({key: [{"message": line} for line in lines] for key, lines in listed.items()}, status)


# ---- What is in a repository ----


@route("GET", "/api/{kind}/{id}", "model_info")
@route("GET", "/api/{kind}/{id}/revision/{rev}", "model_info")
def info(store: Store, ask: Ask, kind: str, id: str, rev: str = "main") -> Answer:
    repo = store.readable(ask.user, kind, id)
    commit = repo.found(rev)
    siblings = [
        {"rfilename": path, **(_blob(file) if ask.flag("blobs") else {})} for path, file in commit.files.items()
    ]
    card = _card(commit)
    found = {
        "id": id,
        "author": id.split("/")[0],
        "sha": commit.oid,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "cardData": card,
        "tags": card.get("tags", []),
        "siblings": siblings,
    }
    if kind == "models":
        found |= {"modelId": id, **{name: card.get(name) for name in ("pipeline_tag", "library_name")}}
    return Answer.json(found)


def _card(commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    card = metadata.front_matter(readme.content.decode()) if readme else None
    return json.loads(json.dumps(card, default=str)) if isinstance(card, dict) else {}


def _blob(file: File) -> dict[str, Any]:
    lfs = {"size": file.size, "sha256": file.sha256, "pointerSize": len(file.pointer)}
    return {"size": file.size, "blobId": file.oid, **({"lfs": lfs} if file.lfs else {})}


def _entries(files: dict[str, File], paths: list[str]) -> list[dict[str, Any]]:
    """Describe files and folders as listings do; what is not there is left out."""
    found = []
    for path in paths:
        if file := files.get(path):
            entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
            found.append(entry)
        elif any(name.startswith(f"{path}/") for name in files):
            found.append({"type": "directory", "path": path, "oid": f"{0:040x}", "size": 0})
    return found


@route("GET", "/api/{kind}/{id}/tree/{rev}(?:/{path})?", "tree")
def tree(store: Store, ask: Ask, kind: str, id: str, rev: str, path: str | None) -> Answer:
    files = store.readable(ask.user, kind, id).found(rev).files
    folder = f"{path.strip('/')}/" if path else ""
    folders = {f"{parent}" for name in files for parent in PurePosixPath(name).parents} - {"."}
    names = sorted(name for name in {*files, *folders} if name.startswith(folder))
    if not names:
        raise Refused(404, f"{path} does not exist on {rev}", "EntryNotFound")
    if not ask.flag("recursive"):
        names = [name for name in names if "/" not in name.removeprefix(folder)]
    return Answer.page(ask, _entries(files, names), min(store.page_size, 50 if ask.flag("expand") else 1000))


@route("POST", "/api/{kind}/{id}/paths-info/{rev}", "paths_info")
def paths_info(store: Store, ask: Ask, kind: str, id: str, rev: str) -> Answer:
    paths = [path.strip("/") for path in parse_qs(ask.body.decode()).get("paths", [])]
    return Answer.json(_entries(store.readable(ask.user, kind, id).found(rev).files, paths))


@route("GET", "/api/{kind}/{id}/commits/{rev}", "commits")
def commits(store: Store, ask: Ask, kind: str, id: str, rev: str) -> Answer:
    listed = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.description,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in store.readable(ask.user, kind, id).history(rev)
    ]
    return Answer.page(ask, listed, min(store.page_size, 50))


@route("GET HEAD", "/{prefix}{id}/resolve/{rev}/{path}", "resolve")
def resolve(store: Store, ask: Ask, kind: str, id: str, rev: str, path: str) -> Answer:
    commit = store.readable(ask.user, kind, id).found(rev)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    file = commit.files.get(path)
    if file is None:
        raise Refused(404, f"Entry not found: {path}", "EntryNotFound", headers=headers)
    headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    span = re.fullmatch(r"bytes=(\d*)-(\d*)", ask.headers.get("Range", ""))
    if not span or span.groups() == ("", ""):
        return Answer(HTTPStatus.OK, file.content, headers)
    start = int(span[1]) if span[1] else max(file.size - int(span[2]), 0)
    end = min(int(span[2]), file.size - 1) if span[1] and span[2] else file.size - 1
    if start > end:
        raise Refused(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{file.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
    return Answer(HTTPStatus.PARTIAL_CONTENT, file.content[start : end + 1], headers)


# ---- Refs ----


@route("GET", "/api/{kind}/{id}/refs", "refs")
def refs(store: Store, ask: Ask, kind: str, id: str) -> Answer:
    repo = store.readable(ask.user, kind, id)

    def listed(named: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{folder}/{name}", "targetCommit": oid} for name, oid in named.items()]

    pulls = {str(pull.num): pull.head for pull in repo.discussions if pull.head}
    found = {"branches": listed(repo.branches, "refs/heads"), "tags": listed(repo.tags, "refs/tags"), "converts": []}
    return Answer.json(found | ({"pullRequests": listed(pulls, "refs/pr")} if ask.flag("include_prs") else {}))


@route("POST DELETE", "/api/{kind}/{id}/branch/{rev}", "branch")
def branch(store: Store, ask: Ask, kind: str, id: str, rev: str) -> Answer:
    repo = _own(store, ask, kind, id)
    if rev.startswith("refs/") or (ask.method == "DELETE" and rev == "main"):
        raise Refused(403, f"Forbidden: {rev} cannot be made or deleted")
    return _change(repo.branches, rev, ask.method, lambda: repo.found(ask.json().get("startingPoint", "main")))


@route("POST DELETE", "/api/{kind}/{id}/tag/{rev}", "tag")
def tag(store: Store, ask: Ask, kind: str, id: str, rev: str) -> Answer:
    repo = _own(store, ask, kind, id)
    name = rev if ask.method == "DELETE" else str(ask.json().get("tag"))
    return _change(repo.tags, name, ask.method, lambda: repo.found(rev))


def _own(store: Store, ask: Ask, kind: str, id: str) -> Repo:
    store.writer(ask.user, store.readable(ask.user, kind, id).id)
    return store.repos[kind, id]


def _change(named: dict[str, str], name: str, method: str, target: Callable[[], Commit]) -> Answer:
    if method == "DELETE":
        if named.pop(name, None) is None:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    elif name in named:
        raise Refused(409, f"Reference already exists: {name}")
    else:
        named[name] = target().oid
    return Answer.json({})
