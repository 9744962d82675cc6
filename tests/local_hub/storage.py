"""What the local Hub keeps: users, repositories, their commits, refs, pull requests and large files. No HTTP."""

import base64
import codecs
import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

# The patterns of the `.gitattributes` that the Hub puts into a new repository.
MODEL_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*"
)
MEDIA_PATTERNS = "*.pcm *.sam *.raw *.aac *.flac *.mp3 *.ogg *.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp"
_AS_LFS = "filter=lfs diff=lfs merge=lfs -text"
_serial = itertools.count()


class Refused(Exception):  # noqa: N818 - an answer, not a failure of the server
    """A request that the Hub answers with an error."""

    def __init__(self, status: int, message: str, code: str = "", *, headers: Mapping[str, str] = {}, **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.headers, self.body = status, message, code, headers, body


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @property
    def size(self) -> int:
        return len(self.content)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """Return the name of the blob that git keeps, which is the pointer of a large file."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    description: str
    author: str
    date: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Discussion:
    num: int
    title: str
    author: str
    status: str
    base: str | None = None  # the branch that a pull request is for; None for a mere discussion
    head: str | None = None  # the commit that refs/pr/NUM names
    date: str = field(default_factory=lambda: now())
    events: list[dict[str, Any]] = field(default_factory=list)

    def add_event(self, kind: str, author: str, **data: Any) -> None:
        about = {"id": f"{next(_serial):024x}", "type": kind, "createdAt": now(), "author": {"name": author}}
        self.events.append(about | {"data": data})


@dataclass
class User:
    name: str
    role: str
    namespaces: set[str]


@dataclass
class Repo:
    kind: str  # "models", "datasets" or "spaces"
    id: str
    private: bool
    created: str
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    lfs: dict[str, bytes] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Return the repository's part of an address."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def found(self, revision: str) -> Commit:
        """Return the commit that a branch, a tag, a pull request's ref or a (short) hash names."""
        name = revision.removeprefix("refs/heads/")
        pull = self.pull(revision)
        oid = self.branches.get(name) or self.tags.get(name) or (pull and pull.head)
        named = [oid] if oid else [known for known in self.commits if len(name) >= 7 and known.startswith(name)]
        if len(named) != 1:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[named[0]]

    def pull(self, ref: str) -> Discussion | None:
        return next((pull for pull in self.discussions if pull.head and ref == f"refs/pr/{pull.num}"), None)

    def history(self, revision: str) -> list[Commit]:
        """List the commits, newest first."""
        commits = [self.found(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def write(self, ref: str, files: dict[str, File], title: str, author: str, description: str = "") -> Commit:
        """Add a commit that holds `files` and move a branch or a pull request's ref to it."""
        pull = self.pull(ref)
        parent = pull.head if pull else self.branches.get(ref)
        tree = sorted((path, file.oid) for path, file in files.items())
        oid = hashlib.sha1(json.dumps([next(_serial), parent, title, description, author, tree]).encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, description, author, now(), parent, files)
        if pull:
            pull.head = oid
            pull.add_event("commit", author, subject=title, oid=oid)
        else:
            self.branches[ref] = oid
        return self.commits[oid]

    def discuss(self, title: str, author: str, text: str, **about: Any) -> Discussion:
        """Open a discussion; one with `base` and `head` is a pull request."""
        discussion = Discussion(len(self.discussions) + 1, title, author, **about)
        latest = {"raw": text, "html": text, "updatedAt": now(), "author": {"name": author}}
        discussion.add_event("comment", author, edited=False, hidden=False, latest=latest, history=[latest])
        self.discussions.append(discussion)
        return discussion


@dataclass
class Upload:
    """A promise of the LFS batch answer: where the bytes of one object go."""

    repo: Repo
    oid: str
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)

    def finish(self, content: bytes) -> None:
        if len(content) != self.size or hashlib.sha256(content).hexdigest() != self.oid:
            raise Refused(400, f"The content's size or SHA-256 is not what was announced for {self.oid}")
        self.repo.lfs[self.oid] = content


class Store:
    """All that the Hub knows, and who may do what with it.

    Attributes:
        regular_limit: bytes; larger files go by LFS.
        part_size: bytes; larger LFS files go in parts of this size. None for never.
        page_size: entries in a page of a listing.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}  # by token
        self.repos: dict[tuple[str, str], Repo] = {}
        self.uploads: dict[str, Upload] = {}
        self.regular_limit = 10_000_000
        self.part_size: int | None = None
        self.page_size = 1000

    def add_user(self, name: str, role: str = "write", orgs: Iterable[str] = ()) -> str:
        """Add a user, or another token of one, and return the token."""
        token = "hf_" + base64.b32encode(hashlib.sha256(f"{name} {role}".encode()).digest()).decode()[:34]
        self.users[token] = User(name, role, {name, *orgs})
        return token

    def add_repo(self, kind: str, id: str, author: str, *, private: bool = False) -> Repo:
        if (kind, id) in self.repos:
            raise Refused(409, f"You already created this {kind[:-1]} repo")
        repo = self.repos[kind, id] = Repo(kind, id, private, now())
        patterns = MODEL_PATTERNS if kind == "models" else f"{MODEL_PATTERNS} {MEDIA_PATTERNS}"
        attributes = "".join(f"{pattern} {_AS_LFS}\n" for pattern in patterns.split())
        repo.write("main", {".gitattributes": File(attributes.encode())}, "initial commit", author)
        return repo

    def readable(self, user: User | None, kind: str, id: str) -> Repo:
        """Return a repository; a private one does not exist for those who may not read it."""
        repo = self.repos.get((kind, id))
        if repo and (not repo.private or (user and id.split("/")[0] in user.namespaces)):
            return repo
        if user is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        raise Refused(404, "Repository not found", "RepoNotFound")

    def writer(self, user: User | None, id: str, *, pull: bool = False) -> User:
        """Let pass who may write; everyone with a write token may open a pull request."""
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user.role == "read":
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull and id.split("/")[0] not in user.namespaces:
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return user


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def goes_by_lfs(path: str, sample: bytes, attributes: File | None) -> bool:
    """Say whether a file is kept outside git: by the repository's rules, or because it is binary."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the sample may end inside a character
    except UnicodeDecodeError:
        return True
    return b"\0" in sample or matches_attributes(path, attributes)


def matches_attributes(path: str, attributes: File | None) -> bool:
    lines = attributes.content.decode().splitlines() if attributes else []
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line.split()]
    return any(fnmatch(path if "/" in pattern else path.rsplit("/", 1)[-1], pattern) for pattern in patterns)


def with_lfs_line(path: str, attributes: File | None) -> File:
    """Return `.gitattributes` with a line for a large file that no pattern of it covers, as the Hub writes one."""
    if attributes and matches_attributes(path, attributes):
        return attributes
    return File((attributes.content if attributes else b"") + f"{path} {_AS_LFS}\n".encode())


def is_ignored(path: str, gitignore: str) -> bool:
    """Read the common part of .gitignore: names, globs, folders, `!` for exceptions."""
    ignored = False
    parts = path.split("/")
    for line in map(str.strip, gitignore.splitlines()):
        pattern = line.removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        anchored = "/" in pattern.rstrip("/")
        names = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)] if anchored else parts
        if any(fnmatch(name, pattern.strip("/")) for name in (names[:-1] if pattern.endswith("/") else names)):
            ignored = not line.startswith("!")
    return ignored
