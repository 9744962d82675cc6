"""The routes that change files: uploads, commits, pull requests."""

import base64
import binascii
import json
import secrets
from math import ceil
from pathlib import PurePosixPath
from typing import Any

from local_hub import metadata
from local_hub.routing import Answer, Ask, route
from local_hub.storage import Discussion, File, Refused, Repo, Store, Upload, goes_by_lfs, is_ignored, with_lfs_line

# ---- Uploads ----


@route("POST", "/api/{kind}/{id}/preupload/{rev}", "preupload")
def preupload(store: Store, ask: Ask, kind: str, id: str, rev: str) -> Answer:
    repo, asked = store.readable(ask.user, kind, id), ask.json()
    store.writer(ask.user, id, pull=ask.flag("create_pr") or rev.startswith("refs/pr/"))
    if len(asked["files"]) > 256:
        raise Refused(400, "At most 256 files can be asked for at once")
    files = repo.found(rev).files
    kept = files[".gitignore"].content.decode() if ".gitignore" in files else ""
    answers = []
    for item in asked["files"]:
        path, sample = item["path"], base64.b64decode(item["sample"])
        lfs = item["size"] > store.regular_limit or goes_by_lfs(path, sample, files.get(".gitattributes"))
        ignored = is_ignored(path, asked.get("gitIgnore", kept))
        answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": ignored})
        if path in files:
            answers[-1]["oid"] = files[path].etag
    return Answer.json({"files": answers})


@route("POST", "/{prefix}{id}.git/info/lfs/objects/batch", "lfs_batch")
def lfs_batch(store: Store, ask: Ask, kind: str, id: str) -> Answer:
    repo, asked = store.readable(ask.user, kind, id), ask.json()
    store.writer(ask.user, id, pull=True)
    if asked.get("operation") != "upload" or asked.get("hash_algo") != "sha256":
        raise Refused(400, "Only uploads named by SHA-256 are taken")
    parts = store.part_size if "multipart" in asked["transfers"] else None
    objects = [{"oid": item["oid"], "size": item["size"]} for item in asked["objects"]]
    for item in objects:
        if item["oid"] not in repo.lfs:
            upload = secrets.token_hex(16)
            store.uploads[upload] = Upload(repo, item["oid"], item["size"])
            action: dict[str, Any] = {"href": f"{ask.base}/_storage/{upload}"}
            if parts and item["size"] > parts:
                urls = {str(n): f"{action['href']}/{n}" for n in range(1, ceil(item["size"] / parts) + 1)}
                action["header"] = {"chunk_size": str(parts), **urls}
            verify = {"href": f"{ask.base}/{repo.path}.git/info/lfs/objects/verify"}
            item["actions"] = {"upload": action, "verify": verify}
    used = "multipart" if any("header" in item.get("actions", {}).get("upload", {}) for item in objects) else "basic"
    return Answer.json({"transfer": used, "objects": objects})


@route("PUT", "/_storage/{upload}(?:/{part})?", "lfs_put")
def lfs_put(store: Store, ask: Ask, upload: str, part: str | None) -> Answer:
    promise = _promise(store, upload)
    if part is None:
        promise.finish(ask.body)
        return Answer()
    promise.parts[int(part)] = ask.body
    return Answer(headers={"ETag": f'"{File(ask.body).oid}"'})


@route("POST", "/_storage/{upload}", "lfs_complete")
def lfs_complete(store: Store, ask: Ask, upload: str) -> Answer:
    promise, asked = _promise(store, upload), ask.json()
    etags = {part["partNumber"]: part["etag"].strip('"') for part in asked["parts"]}
    if asked["oid"] != promise.oid or etags != {part: File(body).oid for part, body in promise.parts.items()}:
        raise Refused(400, "The parts are not those that were uploaded")
    promise.finish(b"".join(promise.parts[part] for part in sorted(promise.parts)))
    return Answer.json({})


def _promise(store: Store, upload: str) -> Upload:
    if upload not in store.uploads:
        raise Refused(403, "Request has expired")
    return store.uploads[upload]


@route("POST", "/{prefix}{id}.git/info/lfs/objects/verify", "lfs_verify")
def lfs_verify(store: Store, ask: Ask, kind: str, id: str) -> Answer:
    repo, asked = store.readable(ask.user, kind, id), ask.json()
    store.writer(ask.user, id, pull=True)
    if len(repo.lfs.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, f"Object {asked['oid']} was not uploaded")
    return Answer.json({})


# ---- Commits ----


@route("POST", "/api/{kind}/{id}/commit/{rev}", "commit")
def commit(store: Store, ask: Ask, kind: str, id: str, rev: str) -> Answer:
    repo, opens = store.readable(ask.user, kind, id), ask.flag("create_pr")
    ref = rev.removeprefix("refs/heads/")
    pull = None if opens else repo.pull(ref)
    user = store.writer(ask.user, id, pull=opens or pull is not None)
    if ref not in repo.branches and pull is None:
        raise Refused(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    if pull and user.name != pull.author:
        store.writer(user, id)
    header, changes = _read(ask.body)
    parent = header.get("parentCommit")
    before = repo.found(parent) if parent and opens else repo.found(ref)
    if parent and not before.oid.startswith(parent):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = _changed(repo, before.files, changes, store.regular_limit)
    title, text = header["summary"], header.get("description", "")
    answer: dict[str, Any] = {"success": True}
    if opens:
        num = repo.discuss(title, user.name, text, status="open", base=ref, head=before.oid).num
        ref = f"refs/pr/{num}"
        answer["pullRequestUrl"] = f"{ask.base}/{repo.path}/discussions/{num}"
    oid = repo.write(ref, files, title, user.name, text).oid
    return Answer.json(answer | {"commitOid": oid, "commitUrl": f"{ask.base}/{repo.path}/commit/{oid}"})


def _read(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Return the header and the changes of a commit, which come as a JSON object in each line."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        (first, header), *changes = [(line["key"], line["value"]) for line in lines]
        paths = [value["path"] for _, value in changes]
        if first != "header" or not header["summary"]:
            raise ValueError("a commit starts with a header that has a summary")
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, f"The commit cannot be read: {error!r}") from None
    for path in paths:
        if {"", ".", "..", ".git"} & set(path.removesuffix("/").split("/")):
            raise Refused(400, f"Invalid path: {path!r}")
    return header, changes


def _changed(
    repo: Repo, before: dict[str, File], changes: list[tuple[str, dict[str, Any]]], limit: int
) -> dict[str, File]:
    """Return the files after all changes; one that is impossible refuses the whole commit."""
    files = dict(before)
    for key, value in changes:
        path = value["path"].removesuffix("/")
        if key == "file":
            files[path] = File(_content(value))
            if files[path].size > limit:
                raise Refused(400, f"{path} is too large for a regular file: use LFS")
        elif key == "lfsFile":
            content = repo.lfs.get(value.get("oid", ""))
            if value.get("algo") != "sha256" or content is None or value.get("size", len(content)) != len(content):
                raise Refused(400, f"The LFS pointer of {path} points to a file that does not exist")
            files[path] = File(content, lfs=True)
            files[".gitattributes"] = with_lfs_line(path, files.get(".gitattributes"))
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))]
            if not gone:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            files = {name: file for name, file in files.items() if name not in gone}
        else:
            raise Refused(400, f"A commit has no changes of the kind {key!r}")
    for path in files:
        if any(str(parent) in files for parent in PurePosixPath(path).parents):
            raise Refused(400, f"{path} would lie inside a file")
    if "README.md" in files and (errors := metadata.problems(files["README.md"].content.decode())[0]):
        raise Refused(400, "Invalid metadata in README.md", errors=[{"message": line} for line in errors])
    return files


def _content(value: dict[str, Any]) -> bytes:
    try:
        text = str(value["content"])
        return base64.b64decode(text, validate=True) if value.get("encoding") == "base64" else text.encode()
    except (KeyError, binascii.Error) as error:
        raise Refused(400, f"The content of {value['path']} cannot be read: {error!r}") from None


# ---- Discussions, of which pull requests are some ----


@route("GET POST", "/api/{kind}/{id}/discussions", "discussion")
def discussions(store: Store, ask: Ask, kind: str, id: str) -> Answer:
    repo = store.readable(ask.user, kind, id)
    if ask.method == "POST":
        user, asked = store.writer(ask.user, id, pull=True), ask.json()
        pull = {"status": "draft", "base": "main", "head": repo.branches["main"]}
        about = pull if asked.get("pullRequest") else {"status": "open"}
        return Answer.json({"num": repo.discuss(asked["title"], user.name, asked["description"], **about).num})
    wanted = {
        "type": lambda one: "pull_request" if one.base else "discussion",
        "status": lambda one: "open" if one.status in ("open", "draft") else "closed",
        "author": lambda one: one.author,
    }
    asked = {name: ask.query[name] for name in wanted if ask.query.get(name, "all") != "all"}
    found = [one for one in reversed(repo.discussions) if all(wanted[name](one) == asked[name] for name in asked)]
    start = int(ask.query.get("p", "0")) * store.page_size
    page = [_described(repo, one) for one in found[start : start + store.page_size]]
    return Answer.json({"count": len(found), "start": start, "discussions": page})


@route("GET", "/api/{kind}/{id}/discussions/{num}", "discussion")
def discussion(store: Store, ask: Ask, kind: str, id: str, num: str) -> Answer:
    repo = store.readable(ask.user, kind, id)
    if int(num) not in range(1, len(repo.discussions) + 1):
        raise Refused(404, f"Discussion {num} not found")
    found = repo.discussions[int(num) - 1]
    changes = {"changes": {"base": f"refs/heads/{found.base}"}} if found.base else {}
    return Answer.json(
        {**_described(repo, found), **changes, "events": found.events, "filesWithConflicts": [], "diff": ""}
    )


def _described(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "status": discussion.status,
        "isPullRequest": discussion.base is not None,
        "repo": {"name": repo.id, "type": repo.kind[:-1]},
    }
