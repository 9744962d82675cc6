"""Requests, answers, and which function serves which address."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlencode

from local_hub.storage import Refused, Store, User


@dataclass
class Ask:
    method: str
    path: str  # as it came, quoted
    query: dict[str, str]
    headers: Any
    body: bytes
    base: str  # the server's address
    user: User | None = None

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body or b"{}")
        except ValueError:
            raise Refused(400, "The body is not valid JSON") from None
        if not isinstance(found, dict):
            raise Refused(400, "The body is not a JSON object")
        return found


@dataclass
class Answer:
    status: int = HTTPStatus.OK
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = HTTPStatus.OK, **headers: str) -> "Answer":
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def refusal(cls, refused: Refused) -> "Answer":
        code = {"X-Error-Code": refused.code} if refused.code else {}
        line = " ".join(refused.message.split()).encode("ascii", "replace").decode()
        headers = {"X-Error-Message": line, **code, **refused.headers}
        return cls.json({"error": refused.message, **refused.body}, refused.status, **headers)

    @classmethod
    def page(cls, ask: Ask, entries: list[Any], size: int) -> "Answer":
        start = int(ask.query.get("cursor", "0"))
        query = urlencode({**ask.query, "cursor": str(start + size)})
        more = {"Link": f'<{ask.base}{ask.path}?{query}>; rel="next"'} if len(entries) > start + size else {}
        return cls.json(entries[start : start + size], HTTPStatus.OK, **more)


Route = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], str, Route]] = []
_PLACES = {
    "kind": "(?P<kind>models|datasets|spaces)",
    "prefix": "(?:(?P<kind>datasets|spaces)/)?",
    "id": "(?P<id>[^/]+(?:/[^/]+)?)",
    "rev": "(?P<rev>[^/]+)",
    "path": "(?P<path>.+)",
    "num": r"(?P<num>\d+)",
    "part": r"(?P<part>\d+)",
    "upload": "(?P<upload>[0-9a-f]+)",
}


def route(methods: str, pattern: str, step: str) -> Callable[[Route], Route]:
    """Let a function serve what the pattern says; `step` is the name in the log and of faults."""
    regex = re.compile(re.sub(r"{(\w+)}", lambda place: _PLACES[place[1]], pattern))

    def register(function: Route) -> Route:
        ROUTES.extend((method, regex, step, function) for method in methods.split())
        return function

    return register


def find(method: str, path: str) -> tuple[str, Route, dict[str, Any]]:
    """Return the step, the function that serves it and its arguments."""
    for known, regex, step, function in ROUTES:
        if known == method and (match := regex.fullmatch(path)):
            named = {name: value and unquote(value) for name, value in match.groupdict().items()}
            if "kind" in named:
                named["kind"] = named["kind"] or "models"
            return step, function, named
    return "", _unknown, {}


def authenticate(store: Store, ask: Ask) -> None:
    """Find out who asks; a token that nobody has is refused even where none is needed."""
    token = ask.headers.get("Authorization", "").removeprefix("Bearer ")
    if token and token not in store.users:
        raise Refused(401, "Invalid credentials in Authorization header")
    ask.user = store.users.get(token)


def _unknown(store: Store, ask: Ask) -> Answer:
    raise Refused(404, f"Not found: {ask.method} {ask.path}")
