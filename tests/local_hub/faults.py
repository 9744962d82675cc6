"""What goes wrong on demand: one fault for one step of the protocol, a number of times."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from local_hub.storage import Refused

MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Forbidden: you are not allowed to do this",
    404: "Repository not found",
    409: "Conflict",
    412: "A commit has happened since. Please refresh and try again.",
    429: "Too Many Requests",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
# "drop": the request is read, nothing is done, no answer. "lost": it is done, no answer.
# "half": it is done, and the answer ends in its middle. "slow": the answer comes late and in small pieces.
WAYS = ("drop", "lost", "half", "slow")
Kind = int | str | Callable[[], object]


@dataclass
class Fault:
    step: str
    kind: Kind
    times: int | None
    method: str | None


@dataclass
class Faults:
    waiting: list[Fault] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def add(self, step: str, kind: Kind, times: int | None, method: str | None) -> None:
        if not callable(kind) and kind not in MESSAGES and kind not in WAYS:
            raise ValueError(f"no such fault: {kind!r}; there are {', '.join(map(repr, [*MESSAGES, *WAYS]))}")
        self.waiting.append(Fault(step, kind, times, method))

    def take(self, step: str, method: str) -> Kind | None:
        """Return what goes wrong with this request, if anything does."""
        with self.lock:
            for fault in self.waiting:
                if fault.step == step and fault.method in (None, method):
                    if fault.times is not None:
                        fault.times -= 1
                        if fault.times == 0:
                            self.waiting.remove(fault)
                    return fault.kind
        return None


def refusal(status: int, retry_after: int, **body: str) -> Refused:
    """Return the answer that stands for a status."""
    code = "RepoNotFound" if status == 404 else ""
    limits = {"Retry-After": str(retry_after), "RateLimit": f'"api";r=0;t={retry_after}'} if status == 429 else {}
    return Refused(status, MESSAGES[status], code, headers=limits, **body)
