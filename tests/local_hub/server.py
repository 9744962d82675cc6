"""The local Hub: a threaded HTTP server over the store, with a log of requests and faults on demand."""

import os
import sys
import time
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from local_hub import reading, routing, writing  # noqa: F401 - writing has only routes
from local_hub.faults import MESSAGES, Faults, Kind, refusal
from local_hub.routing import Answer, Ask
from local_hub.storage import Commit, File, Refused, Repo, Store, goes_by_lfs

# Not part of what is tested, so not in the log: asked for once in a process, to name the caller's tools.
_UNLOGGED = "/api/agent-harnesses"
_SETTINGS = ("HF_HUB", "HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_DATASETS", "HF_EVALUATE", "HUGGING", "TRANSFORMERS_")
_PIECES = 8


class Logged(NamedTuple):
    method: str
    path: str  # with its query
    status: int  # 0: no answer was given
    step: str  # the name that `LocalHub.fault` takes


class LocalHub(Store):
    """A Hub of its own for each test, with one user who may write.

    Args:
        home: a folder for the client's caches, which `environment` names.

    Attributes:
        url, token, user: what the client needs; the user's name is also a namespace.
        requests: every request in the order of the answers.
        errors: what went wrong in the server itself; the fixture fails a test for it.
        retry_after: seconds that a 429 asks for.
        slow_seconds: what the fault "slow" takes.
        regular_limit, part_size, page_size: see `Store`.
    """

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.user = "ada"
        self.token = self.add_user(self.user)
        self.requests: list[Logged] = []
        self.errors: list[str] = []
        self.faults = Faults()
        self.retry_after = 1
        self.slow_seconds = 1.0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment in which another process talks to this Hub and to no other."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_SETTINGS) and not name.lower().endswith("_proxy")
        }
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }

    def fault(self, step: str, kind: Kind, times: int | None = 1, *, method: str | None = None) -> None:
        """Let a step of the protocol go wrong.

        Args:
            step: one of `known_steps`.
            kind: a status; "drop" (nothing is done, no answer), "lost" (done, no answer), "half" (done, half an
                answer), "slow" (done, answered late and in pieces); or a function to call before the request is
                served.
            times: how often; None for always.
            method: only requests of this method.
        """
        if step not in self.known_steps:
            raise ValueError(f"no such step: {step!r}; there are {', '.join(sorted(self.known_steps))}")
        self.faults.add(step, kind, times, method)

    @property
    def known_steps(self) -> set[str]:
        return {step for _, _, step, _ in routing.ROUTES}

    def steps(self) -> list[str]:
        """List the steps that were asked for, in order."""
        return [request.step for request in self.requests]

    def repo(self, repo_id: str, kind: str = "models") -> Repo:
        return self.repos[kind, repo_id]

    def commits(self, repo_id: str, revision: str = "main", kind: str = "models") -> list[Commit]:
        """List the commits, newest first; the last is the "initial commit" that every repository starts with."""
        return self.repo(repo_id, kind).history(revision)

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        return {path: file.content for path, file in self.repo(repo_id, kind).found(revision).files.items()}

    def write(
        self, repo_id: str, files: dict[str, bytes], *, title: str = "A change", author: str = "", kind: str = "models"
    ) -> Commit:
        """Commit to main as if someone else did; the repository is made if it is missing."""
        with self.lock:
            repo = self.repos.get((kind, repo_id)) or self.add_repo(kind, repo_id, author or self.user)
            before = repo.found("main").files
            rules = before.get(".gitattributes")
            added = {path: File(content, goes_by_lfs(path, content[:512], rules)) for path, content in files.items()}
            return repo.write("main", {**before, **added}, title, author or self.user)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: LocalHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hang up."""
        if not isinstance(sys.exception(), OSError):
            self.hub.errors.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        ask = Ask(self.command, url.path, query, self.headers, self._read_body(), hub.url)
        step, function, named = routing.find(ask.method, ask.path)
        kind = hub.faults.take(step, ask.method)
        if callable(kind):
            kind()
            kind = None
        answer = None if kind == "drop" else self._answer(ask, kind, function, named)
        if kind == "lost":
            answer = None
        if ask.path != _UNLOGGED:
            hub.requests.append(Logged(ask.method, self.path, int(answer.status) if answer else 0, step))
        if answer:
            self._send(answer, kind)
        else:
            self.close_connection = True

    def _answer(self, ask: Ask, kind: Any, function: routing.Route, named: dict[str, Any]) -> Answer:
        hub = self.server.hub
        try:
            with hub.lock:
                if not ask.path.startswith("/_storage/"):
                    routing.authenticate(hub, ask)
                if kind in MESSAGES:
                    # the client reads `url` from a 409 too
                    url = {"url": f"{hub.url}/{reading.asked_repo(ask)[1]}"} if ask.path == "/api/repos/create" else {}
                    raise refusal(kind, hub.retry_after, **url)
                return function(hub, ask, **named)
        except Refused as refused:
            return Answer.refusal(refused)
        except Exception:
            hub.errors.append(f"{ask.method} {ask.path}\n{traceback.format_exc()}")
            return Answer.refusal(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "The local Hub failed"))

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self._read(size))
            self.rfile.readline()
        if not self.rfile.readline():
            raise ConnectionError("the client went away")
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        found = self.rfile.read(size)
        if len(found) < size:
            raise ConnectionError("the client went away")
        return found

    def _send(self, answer: Answer, kind: Any) -> None:
        hub, size = self.server.hub, len(answer.body)
        pause = hub.slow_seconds / (_PIECES + 1) if kind == "slow" else 0.0
        time.sleep(pause)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        if kind == "half":
            self.wfile.write(body[: size // 2])
            self.close_connection = True
        elif kind == "slow":
            step = max(1, -(-size // _PIECES))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(pause)
        else:
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that http.server calls
