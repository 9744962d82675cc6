"""Requests to the Hub: made again when it is busy or a reply got lost, and errors in words with a remedy."""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

# Of httpx or httpx2, whichever this version of the client speaks by.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip

logger = logging.getLogger(__name__)
Reply = TypeVar("Reply")

PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a question is asked again."""
LONGEST_PAUSE = 300.0
"""Seconds; the Hub counts requests in windows of five minutes. Who is told to wait longer is told so."""

_STALE = 412
_BUSY = (408, 429, 500, 502, 503, 504)
# The client asks these six times by itself.
_RETRIED_BY_THE_CLIENT = re.compile(r"/preupload/|/tree/|\.git/info/lfs/|/commits/")
_LOGIN = "log in again with `hf auth login`, or set HF_TOKEN to a valid token"


class HubError(ValueError):
    """The Hub, or the way to it, did not do what was asked; the message says what the user can do about it.

    Attributes:
        status: the HTTP status; None without a reply.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Failure:
    """What went wrong with one question.

    Attributes:
        text: in the Hub's own words, where it said any.
        status: the HTTP status; None without a reply.
        is_transient: it may be otherwise a moment later.
        was_retried: the client has waited for that already.
        pause: seconds that the Hub wants to be left alone.
    """

    text: str
    status: int | None = None
    is_transient: bool = False
    was_retried: bool = False
    pause: float = 0.0


class HubClient:
    """The Hub, as the owner of a token sees it."""

    def __init__(self, token: str | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        if constants.HF_HUB_OFFLINE:
            raise HubError("HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it")
        self._sleep = sleep
        self.user, self.token = "", token
        self.token = token or self.ask("give a token", get_token)
        self.api = HfApi(token=self.token or False)

    def sign_in(self) -> "HubClient":
        """Find out whose token it is, and that it may write.

        Raises:
            HubError: there is none, it is not valid, or it may only read.
        """
        if self.token is None:
            raise HubError("there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN")
        me = self.ask("tell whose token this is", self.api.whoami)
        self.user = str(me["name"])
        if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(
                f"the token of {self.user} may only read: make one that may write at "
                f"{self.api.endpoint}/settings/tokens, and log in with it (`hf auth login`) or set HF_TOKEN",
                403,
            )
        return self

    def ask(self, what: str, question: Callable[[], Reply], *, done: Callable[[], Reply | None] | None = None) -> Reply:
        """Ask, and ask again after a while where that may help.

        Raises:
            HubError: with the remedy.
        """
        for pause in (*PAUSES, None):
            try:
                return question()
            except HubError:
                raise
            except Exception as error:
                failure = failure_of(error)
                if failure is None:
                    raise
                is_over = (
                    pause is None or not failure.is_transient or failure.was_retried or failure.pause > LONGEST_PAUSE
                )
                if not is_over:
                    seconds = max(pause or 0.0, failure.pause)
                    logger.warning(
                        self._clean(f"the Hub did not {what} ({failure.text}): trying again in {seconds:g} s")
                    )
                    self._sleep(seconds)
                if done is not None and not failure.was_retried and (failure.is_transient or failure.status == _STALE):
                    reply = self._looked_up(what, failure, done)
                    if reply is not None:
                        return reply
                if is_over:
                    raise self._error(what, failure) from error
        raise AssertionError("unreachable: the last pause is None")

    def text(self, repo_id: str, name: str, revision: str, *, kind: str = "model") -> str:
        """Return a text file of a model's repository, or a data set's."""

        def question() -> bytes:
            url = hf_hub_url(repo_id, name, revision=revision, endpoint=self.api.endpoint, repo_type=kind)
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
            return bytes(response.content)

        content = self.ask(f"give {name} of {repo_id}", question)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise HubError(f"{name} of {repo_id} is no text in UTF-8: mend it there") from error

    def _looked_up(self, what: str, failure: Failure, done: Callable[[], Reply | None]) -> Reply | None:
        try:
            return done()
        except HubError as error:
            if error.status not in (None, *_BUSY):
                raise
            raise HubError(
                self._clean(
                    f"the Hub did not {what} ({failure.text}), or did and the reply got lost, which cannot be asked "
                    "now: the same command finds out, and does nothing twice"
                ),
                error.status,
            ) from error

    def _error(self, what: str, failure: Failure) -> HubError:
        remedy = _remedy(failure, self.user, is_somebody=self.token is not None)
        return HubError(self._clean(f"the Hub did not {what}: {failure.text}{remedy and ': '}{remedy}"), failure.status)

    def _clean(self, text: str) -> str:
        return text.replace(self.token, "<token>") if self.token else text


def failure_of(error: BaseException) -> Failure | None:
    """Say what kind of failure an exception is; None if it is none of the Hub's."""
    was_retried = False
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # so the client wraps errors of its uploads
        error, was_retried = error.__cause__, True
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        words = error.server_message or error.response.reason_phrase or _one_line(error)
        return Failure(
            text=f"{status}, {' '.join(words.split()).rstrip('.')}",
            status=status,
            is_transient=status in _BUSY,
            was_retried=was_retried or _is_retried(error.response),
            pause=_asked_pause(error),
        )
    if isinstance(error, OfflineModeIsEnabled):
        return Failure("HF_HUB_OFFLINE is set: unset it")
    if isinstance(error, HTTPError | ConnectionError | TimeoutError):
        return Failure(
            f"no reply ({_one_line(error)})", is_transient=True, was_retried=was_retried or _is_retried(error)
        )
    if isinstance(error, json.JSONDecodeError | KeyError):
        return Failure("a reply that cannot be read", is_transient=True)
    is_of_the_client = type(error).__module__.split(".")[0] in ("huggingface_hub", "hf_xet")
    if is_of_the_client or isinstance(error, ValueError | RuntimeError | OSError):
        return Failure(_one_line(error))
    return None


def _is_retried(of: Any) -> bool:
    """Tell whether a response or an error is the outcome of a request that the client has repeated already."""
    try:
        return bool(_RETRIED_BY_THE_CLIENT.search(str(of.request.url)))
    except (RuntimeError, AttributeError):  # there is no request in it
        return False


def _asked_pause(error: HfHubHTTPError) -> float:
    """Return for how many seconds the Hub wants to be left alone: `Retry-After`, or its own `RateLimit` header."""
    headers = error.response.headers
    limit = re.search(r"\br=0;.*?\bt=(\d+)", headers.get("RateLimit", "").replace(" ", ""))
    after = headers.get("Retry-After", "")
    return float(limit[1]) if limit else float(after) if after.isdigit() else 0.0


def _remedy(failure: Failure, user: str, *, is_somebody: bool) -> str:
    status = failure.status
    if status == 401:
        # To strangers, a private repository and one that is not there are the same.
        return (
            _LOGIN if is_somebody else "look whether the name is right; if it is private, log in with `hf auth login`"
        )
    if status == 403:
        return f"the token{user and ' of '}{user} may not do that; use one that may, or another name"
    if status == 404:
        return "look whether the name is right, and whether the token may see it"
    if status == 409:
        return "something of that name is in the way, or is changing just now; try again, or use another name"
    if failure.pause > LONGEST_PAUSE:
        return f"try again in {failure.pause:.0f} s"
    if status == _STALE:
        return "something has changed meanwhile; try again"
    if failure.is_transient:
        return "try again later"
    return ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or type(error).__name__
