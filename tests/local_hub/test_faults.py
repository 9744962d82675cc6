"""What the genuine client does about each fault, and what the local Hub holds afterwards."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import _http
from local_hub.server import LocalHub

pytest_plugins = ["local_hub.fixture"]
pytestmark = pytest.mark.slow

REPO = "ada/student"
WEIGHTS = bytes(range(256)) * 20


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    hub.write(REPO, {"README.md": b"---\nlicense: mit\n---\n"})
    hub.part_size = 4000
    return HfApi()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the seconds between the client's tries in place of waiting for them."""
    found: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=found.append))
    return found


def push(api: HfApi, **options: Any) -> Any:
    """Send a card, weights in one piece and weights in two parts."""
    files = {"README.md": b"---\nlicense: apache-2.0\n---\n", "a.bin": b"\0", "model.safetensors": WEIGHTS}
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message="Push", **options)


def num_pushes(hub: LocalHub) -> int:
    return sum(commit.title == "Push" for commit in hub.commits(REPO))


# What a call leaves on the server, by which is seen whether it was done.
WITHOUT_RETRY: dict[str, tuple[Callable[[HfApi], object], Callable[[LocalHub], object]]] = {
    "whoami": (lambda api: api.whoami(), lambda hub: None),
    "create_repo": (lambda api: api.create_repo("ada/new"), lambda hub: len(hub.repos)),
    "delete_repo": (lambda api: api.delete_repo(REPO), lambda hub: len(hub.repos)),
    "settings": (lambda api: api.update_repo_settings(REPO, private=True), lambda hub: hub.repo(REPO).private),
    "model_info": (lambda api: api.model_info(REPO), lambda hub: None),
    "refs": (lambda api: api.list_repo_refs(REPO), lambda hub: None),
    "paths_info": (lambda api: api.get_paths_info(REPO, "README.md"), lambda hub: None),
    "branch": (lambda api: api.create_branch(REPO, branch="b"), lambda hub: len(hub.repo(REPO).branches)),
    "tag": (lambda api: api.create_tag(REPO, tag="t"), lambda hub: len(hub.repo(REPO).tags)),
    "discussion": (
        lambda api: api.create_pull_request(REPO, title="t"),
        lambda hub: len(hub.repo(REPO).discussions),
    ),
    "validate_yaml": (push, num_pushes),
    "commit": (push, num_pushes),
}
WITH_RETRY: dict[str, Callable[[HfApi], object]] = {
    "preupload": push,
    "lfs_batch": push,
    "lfs_put": push,
    "lfs_complete": push,
    "lfs_verify": push,
    "tree": lambda api: list(api.list_repo_tree(REPO)),
    "commits": lambda api: api.list_repo_commits(REPO),
}


def test_every_step_is_in_one_table(hub: LocalHub, api: HfApi) -> None:
    """A step that no fault is tried on."""
    tried = {*WITHOUT_RETRY, *WITH_RETRY, "resolve"}
    for step in tried:
        hub.fault(step, 503)
    with pytest.raises(ValueError, match="no such step"):
        hub.fault("push", 503)
    with pytest.raises(ValueError, match="no such fault: 418"):
        hub.fault("commit", 418)
    hub.faults.waiting.clear()
    assert tried == hub.known_steps


# ---- Steps that the client tries once ----


@pytest.mark.parametrize("kind", [401, 403, 404, 409, 412, 429, 500, 503, "drop"])
@pytest.mark.parametrize("step", WITHOUT_RETRY)
def test_an_error_is_raised_at_once_and_nothing_is_done(
    hub: LocalHub, api: HfApi, waits: list[float], step: str, kind: int | str
) -> None:
    """A fault that is too late: the thing is done although the client is told that it is not."""
    call, trace = WITHOUT_RETRY[step]
    before = trace(hub)
    hub.fault(step, kind)
    with pytest.raises((HfHubHTTPError, httpx2.RemoteProtocolError)) as caught:
        call(api)
    assert isinstance(caught.value, httpx2.RemoteProtocolError) == (kind == "drop")
    if isinstance(caught.value, HfHubHTTPError):
        assert caught.value.response.status_code == kind
        assert isinstance(caught.value, RepositoryNotFoundError) == (kind == 404)
    assert hub.steps().count(step) == 1
    assert hub.requests[-1].status == (0 if kind == "drop" else kind)
    assert (trace(hub), waits) == (before, [])
    call(api)
    assert hub.steps().count(step) >= 2


@pytest.mark.parametrize("kind", ["lost", "half"])
@pytest.mark.parametrize("step", WITHOUT_RETRY)
def test_a_lost_answer_is_an_error_although_the_thing_is_done(
    hub: LocalHub, api: HfApi, waits: list[float], step: str, kind: str
) -> None:
    """A push that is made twice, because the first looked like a failure: it is the caller who must look."""
    call, trace = WITHOUT_RETRY[step]
    before = trace(hub)
    hub.fault(step, kind)
    with pytest.raises(httpx2.RemoteProtocolError):
        call(api)
    assert hub.steps().count(step) == 1
    assert (trace(hub) != before) == (before is not None and step != "validate_yaml")
    assert not waits


@pytest.mark.parametrize("kind", [503, 412, "lost"])
@pytest.mark.parametrize("way", ["upload_file", "upload_folder"])
def test_uploads_commit_once_too(hub: LocalHub, api: HfApi, tmp_path: Path, way: str, kind: int | str) -> None:
    """With xet the client sends a folder's commit again, which makes two; the fixture has that off."""
    (tmp_path / "a.txt").write_text("a")
    hub.fault("commit", kind)
    calls = {
        "upload_file": lambda: api.upload_file(path_or_fileobj=tmp_path / "a.txt", path_in_repo="a.txt", repo_id=REPO),
        "upload_folder": lambda: api.upload_folder(folder_path=tmp_path, repo_id=REPO),
    }
    with pytest.raises((HfHubHTTPError, httpx2.RemoteProtocolError)):
        calls[way]()
    assert hub.steps().count("commit") == 1
    assert ("a.txt" in hub.files(REPO)) == (kind == "lost")


def test_a_lost_commit_made_again_is_there_once_if_its_parent_is_named(hub: LocalHub, api: HfApi) -> None:
    """The client's own check for what has not changed hides a second commit only while the files are the same."""
    head = api.model_info(REPO).sha
    hub.fault("commit", "lost")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api, parent_commit=head)
    assert num_pushes(hub) == 1
    assert push(api, parent_commit=head).oid == hub.commits(REPO)[0].oid
    assert num_pushes(hub) == 1


def test_a_lost_pull_request_is_open(hub: LocalHub, api: HfApi) -> None:
    """A second pull request: those of before are in no listing of files."""
    hub.fault("commit", "lost")
    with pytest.raises(httpx2.RemoteProtocolError):
        push(api, create_pr=True)
    assert push(api, create_pr=True).pr_num == 2
    assert num_pushes(hub) == 0


# ---- Steps that the client repeats ----


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (step, kind)
        for step in WITH_RETRY
        for kind in (429, 500, 502, 503, 504, "drop", "lost", "half")
        if (step, kind) != ("lfs_put", "half")  # its answer has no body
    ],
)
def test_an_error_is_repeated_and_forgotten(
    hub: LocalHub, api: HfApi, waits: list[float], step: str, kind: int | str
) -> None:
    """A repeat that the server takes for something else, such as an upload that is already there."""
    WITH_RETRY[step](api)
    plain = hub.steps().count(step)
    del hub.repos["models", REPO]
    hub.write(REPO, {"README.md": b"---\nlicense: mit\n---\n"})
    hub.requests.clear()
    hub.fault(step, kind)
    WITH_RETRY[step](api)
    assert hub.steps().count(step) == plain + 1
    assert waits == [2 if kind == 429 else 1]
    assert num_pushes(hub) == (WITH_RETRY[step] is push)


@pytest.mark.parametrize("kind", [401, 403, 404, 409])
def test_a_refusal_is_not_repeated(hub: LocalHub, api: HfApi, waits: list[float], kind: int) -> None:
    """Six tries with a token that will not get better."""
    hub.fault("preupload", kind, times=None)
    with pytest.raises(HfHubHTTPError):
        push(api)
    assert hub.steps().count("preupload") == 1
    assert not waits


def test_a_fault_that_stays_is_an_error_after_six_tries(hub: LocalHub, api: HfApi, waits: list[float]) -> None:
    """A client that never comes back."""
    hub.fault("preupload", 503, times=None)
    with pytest.raises(HfHubHTTPError):
        push(api)
    assert hub.steps().count("preupload") == 6
    assert waits == [1, 2, 4, 8, 8]


def test_a_429_says_how_long(hub: LocalHub, api: HfApi, waits: list[float]) -> None:
    """A wait that is as long as any other, so that the limit is never over."""
    hub.retry_after = 7
    hub.fault("preupload", 429, times=2)
    push(api)
    assert waits == [8, 8]


# ---- Downloads ----


def test_a_download_asks_twice_for_the_name_and_once_for_the_bytes(
    hub: LocalHub, api: HfApi, waits: list[float]
) -> None:
    """A fault on GET that HEAD swallows."""
    hub.fault("resolve", 503, method="HEAD")
    hf_hub_download(REPO, "README.md")
    assert [request.method for request in hub.requests] == ["HEAD", "HEAD", "GET"]
    hub.requests.clear()
    hub.fault("resolve", 503, method="GET")
    with pytest.raises(HfHubHTTPError):
        hf_hub_download(REPO, ".gitattributes")
    assert [request.method for request in hub.requests] == ["HEAD", "GET"]
    hub.requests.clear()
    hub.fault("resolve", 429, method="GET")
    hf_hub_download(REPO, ".gitattributes")
    assert [request.status for request in hub.requests] == [200, 429, 200]
    assert waits == [2]


@pytest.mark.parametrize("kind", ["drop", "lost", "half"])
def test_an_interrupted_download_goes_on(hub: LocalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A file with a hole: the second half is asked for by a Range."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what of a chunk has come is forgotten
    push(api)
    hub.requests.clear()
    hub.fault("resolve", kind, method="GET")
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == WEIGHTS
    first = 200 if kind == "half" else 0
    last = 206 if kind == "half" else 200
    assert [(request.method, request.status) for request in hub.requests][1:] == [("GET", first), ("GET", last)]


def test_a_hub_that_is_down_leaves_the_cache(hub: LocalHub, api: HfApi, waits: list[float]) -> None:
    """A model that cannot be loaded although it lies on the disk."""
    path = hf_hub_download(REPO, "README.md")
    hub.fault("resolve", 503, times=None)
    assert hf_hub_download(REPO, "README.md") == path
    with pytest.raises((HfHubHTTPError, LocalEntryNotFoundError)):
        hf_hub_download(REPO, ".gitattributes")


# ---- Slow answers, races ----


@pytest.mark.parametrize("step", [*WITHOUT_RETRY, *WITH_RETRY])
def test_a_slow_answer_is_an_answer(hub: LocalHub, api: HfApi, step: str) -> None:
    """An answer in pieces of which only the first is read."""
    hub.slow_seconds = 0.05
    hub.fault(step, "slow")
    start = time.monotonic()
    WITH_RETRY.get(step, lambda api: WITHOUT_RETRY[step][0](api))(api)
    assert time.monotonic() - start > 0.02
    assert all(request.status == 200 for request in hub.requests)


def test_a_slow_download_is_whole(hub: LocalHub, api: HfApi) -> None:
    """Weights cut off at the first pause."""
    push(api)
    hub.slow_seconds = 0.2
    hub.fault("resolve", "slow", times=None)
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == WEIGHTS


def test_a_function_runs_just_before_the_request(hub: LocalHub, api: HfApi) -> None:
    """A race that is tested before or after the moment at which it hurts."""
    hub.fault("commit", lambda: hub.write(REPO, {"theirs.txt": b""}, title="Theirs", author="bob"))
    with pytest.raises(HfHubHTTPError) as caught:
        push(api, parent_commit=api.model_info(REPO).sha)
    assert caught.value.response.status_code == 412
    assert [commit.author for commit in hub.commits(REPO)][:1] == ["bob"]
    push(api)
    assert set(hub.files(REPO)) >= {"theirs.txt", "model.safetensors"}


def test_a_fault_is_over_when_it_was_there_as_often_as_asked(hub: LocalHub, api: HfApi) -> None:
    """A second fault that spoils the next test's request."""
    hub.fault("whoami", 503, times=2)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError):
            api.whoami()
    assert api.whoami()["name"] == "ada"
