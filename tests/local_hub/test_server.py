"""The genuine client against the local Hub, over a real socket."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets
import httpx2
import pytest
import tiny
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    file_exists,
    get_token,
    hf_hub_download,
    repo_exists,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from local_hub import writing
from local_hub.server import LocalHub
from transformers import AutoModelForSequenceClassification, pipeline

pytest_plugins = ["local_hub.fixture"]

REPO = "ada/student"
CARD = b"---\nlicense: mit\n---\n# Student\n"
WEIGHTS = bytes(range(256)) * 20


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    found = HfApi()
    found.create_repo(REPO)
    hub.requests.clear()
    return found


def add(api: HfApi, files: dict[str, bytes], **options: Any) -> Any:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, **{"commit_message": "Add files", **options})


def post(hub: LocalHub, path: str, body: bytes) -> httpx2.Response:
    """Send what the client never would."""
    return httpx2.post(f"{hub.url}{path}", content=body, headers={"Authorization": f"Bearer {hub.token}"})


def commit_lines(*changes: str, header: str = '{"key": "header", "value": {"summary": "by hand"}}') -> bytes:
    return "\n".join([header, *changes]).encode()


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return int(caught.value.response.status_code)


# ---- Users and repositories ----


def test_the_token_tells_who_one_is(hub: LocalHub) -> None:
    """Tests that pass with whatever token, or none, and hide that ours is not sent."""
    other = hub.add_user("bob", role="read", orgs=["lab"])
    assert HfApi().whoami()["name"] == "ada"
    bob = HfApi(token=other).whoami()
    assert (bob["name"], [org["name"] for org in bob["orgs"]]) == ("bob", ["lab"])
    assert bob["auth"]["accessToken"]["role"] == "read"
    assert get_token() == hub.token


def test_a_wrong_token_is_refused_everywhere(hub: LocalHub, api: HfApi) -> None:
    """An expired token that works for public repositories here and nowhere else."""
    wrong = HfApi(token="hf_wrong")
    assert status_of(wrong.whoami) == 401
    assert status_of(lambda: wrong.model_info(REPO)) == 401
    assert status_of(lambda: wrong.create_repo("ada/new")) == 401


def test_a_repository_starts_with_one_commit(hub: LocalHub) -> None:
    """A head that is missing here and always there on the Hub."""
    url = HfApi().create_repo(REPO)
    assert (url.repo_id, url.repo_type) == (REPO, "model")
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit"]
    assert list(hub.files(REPO)) == [".gitattributes"]
    assert HfApi().model_info(REPO).sha == hub.commits(REPO)[0].oid
    assert HfApi().create_repo("student2").repo_id == "ada/student2"


def test_a_taken_name_is_a_conflict_unless_it_may_exist(hub: LocalHub, api: HfApi) -> None:
    """A repository emptied by its second creation."""
    add(api, {"config.json": b"{}"})
    assert status_of(lambda: api.create_repo(REPO)) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert "config.json" in hub.files(REPO)
    assert api.create_repo(REPO, repo_type="dataset").repo_type == "dataset"
    assert set(hub.repos) == {("models", REPO), ("datasets", REPO)}


def test_a_private_repository_is_missing_for_others(hub: LocalHub) -> None:
    """A private student that everyone can read."""
    HfApi().create_repo(REPO, private=True)
    bob = HfApi(token=hub.add_user("bob"))
    assert HfApi().model_info(REPO).private is True
    with pytest.raises(RepositoryNotFoundError):
        bob.model_info(REPO)
    with pytest.raises(RepositoryNotFoundError) as caught:
        hf_hub_download(REPO, ".gitattributes", token=False)
    assert caught.value.response.status_code == 401
    assert repo_exists(REPO)
    assert not bob.repo_exists(REPO)
    HfApi().update_repo_settings(REPO, private=False)
    assert bob.repo_exists(REPO)


def test_only_members_write(hub: LocalHub, api: HfApi) -> None:
    """A push into another's namespace that works here."""
    bob, reader = HfApi(token=hub.add_user("bob", orgs=["lab"])), HfApi(token=hub.add_user("ada", role="read"))
    assert status_of(lambda: bob.create_repo("ada/other")) == 403
    assert status_of(lambda: reader.create_repo("ada/other")) == 403
    assert bob.create_repo("lab/shared").repo_id == "lab/shared"
    assert status_of(lambda: add(bob, {"a.txt": b"a"})) == 403
    assert status_of(lambda: add(reader, {"a.txt": b"a"})) == 403
    assert status_of(lambda: bob.delete_repo(REPO)) == 403
    assert status_of(lambda: bob.create_branch(REPO, branch="mine")) == 403
    assert len(hub.commits(REPO)) == 1


def test_a_deleted_repository_is_gone(hub: LocalHub, api: HfApi) -> None:
    """Leftovers that the next push finds."""
    api.delete_repo(REPO)
    assert not hub.repos
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)
    api.delete_repo(REPO, missing_ok=True)


def test_what_is_missing_is_named_by_the_right_error(hub: LocalHub, api: HfApi) -> None:
    """Code that catches one kind of 404 and meets another on the Hub."""
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ada/none")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("none", "config.json")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, ".gitattributes", revision="none")
    with pytest.raises(RevisionNotFoundError):
        add(api, {"a.txt": b"a"}, revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "none.json")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "\N{SNOWMAN} and spaces.json")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "none"))
    assert not file_exists(REPO, "none.json")
    assert file_exists(REPO, ".gitattributes")


# ---- Commits ----


def test_a_commit_holds_regular_and_large_files(hub: LocalHub, api: HfApi) -> None:
    """Large files that never leave the client, or regular ones that arrive changed."""
    info = add(api, {"README.md": CARD, "empty.txt": b"", "model.safetensors": WEIGHTS}, commit_description="Why")
    assert [request.step for request in hub.requests] == [
        "validate_yaml",
        "preupload",
        "lfs_batch",
        "lfs_put",
        "lfs_verify",
        "commit",
    ]
    files = hub.files(REPO)
    assert {name: files[name] for name in ("README.md", "empty.txt", "model.safetensors")} == {
        "README.md": CARD,
        "empty.txt": b"",
        "model.safetensors": WEIGHTS,
    }
    commit = hub.commits(REPO)[0]
    assert (commit.oid, commit.title, commit.description, commit.author) == (info.oid, "Add files", "Why", "ada")
    assert info.repo_url.repo_id == REPO
    about = api.model_info(REPO, files_metadata=True)
    assert about.card_data.license == "mit"
    sizes = {sibling.rfilename: sibling.lfs and sibling.lfs["size"] for sibling in about.siblings}
    assert sizes == {".gitattributes": None, "README.md": None, "empty.txt": None, "model.safetensors": len(WEIGHTS)}


def test_a_large_file_goes_up_in_parts(hub: LocalHub, api: HfApi) -> None:
    """Parts in the wrong order, or a last part that is lost."""
    hub.part_size = 1000
    add(api, {"model.safetensors": WEIGHTS, "small.bin": b"\0" * 10})
    assert hub.files(REPO)["model.safetensors"] == WEIGHTS
    assert hub.steps().count("lfs_put") == 6 + 1
    assert hub.steps().count("lfs_complete") == 1


@pytest.mark.parametrize(
    ("path", "content", "lfs"),
    [
        ("model.safetensors", b"text", True),
        ("curves.png", b"\x89PNG\r\n\x1a\n", True),
        ("tokenizer.json", b"{}" * 600, True),
        ("config.json", "{} \N{SNOWMAN}".encode(), False),
        ("long.txt", b"x" * 511 + "\N{SNOWMAN}".encode(), False),
    ],
)
def test_rules_size_and_content_say_what_is_large(
    hub: LocalHub, api: HfApi, path: str, content: bytes, lfs: bool
) -> None:
    """A picture that git would keep, or text that cannot be read in the browser."""
    hub.regular_limit = 1000
    add(api, {path: content})
    (found,) = api.get_paths_info(REPO, path)
    assert (found.lfs is not None, found.size) == (lfs, len(content))
    line = f"{path} filter=lfs diff=lfs merge=lfs -text\n"
    assert hub.files(REPO)[".gitattributes"].decode().endswith(line) == (path in ("curves.png", "tokenizer.json"))


def test_what_has_not_changed_is_not_sent_again(hub: LocalHub, api: HfApi) -> None:
    """Wrong names of blobs, with which every push sends every weight again."""
    files = {"README.md": CARD, "model.safetensors": WEIGHTS, "curves.png": b"\x89PNG\0"}
    first = add(api, files)
    hub.requests.clear()
    assert add(api, files).oid == first.oid
    assert hub.steps() == ["validate_yaml", "preupload", "lfs_batch", "model_info"]
    add(api, {**files, "README.md": CARD + b"More.\n"})
    assert len(hub.commits(REPO)) == 3
    add(api, {"copy.safetensors": WEIGHTS})
    assert hub.steps().count("lfs_put") == 0


def test_a_stale_parent_is_refused(hub: LocalHub, api: HfApi) -> None:
    """Another's change overwritten by a push that never saw it."""
    head = api.model_info(REPO).sha
    theirs = hub.write(REPO, {"README.md": b"theirs"}, title="Mine first", author="bob")
    assert status_of(lambda: add(api, {"README.md": CARD}, parent_commit=head)) == 412
    assert hub.commits(REPO)[0] == theirs
    add(api, {"README.md": CARD}, parent_commit=theirs.oid[:7])
    assert hub.files(REPO)["README.md"] == CARD


def test_of_two_commits_on_one_parent_one_wins(hub: LocalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check and a write between which another write fits; the time between them is made long here."""
    head = api.model_info(REPO).sha
    changed = writing._changed

    def slowly_changed(*args: Any) -> dict[str, Any]:
        time.sleep(0.1)
        return changed(*args)

    monkeypatch.setattr(writing, "_changed", slowly_changed)

    def send(name: str) -> int:
        header = f'{{"key": "header", "value": {{"summary": "{name}", "parentCommit": "{head}"}}}}'
        lines = commit_lines(f'{{"key": "file", "value": {{"path": "{name}", "content": ""}}}}', header=header)
        return post(hub, f"/api/models/{REPO}/commit/main", lines).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(send, "abcd")) == [200, 412, 412, 412]
    assert len(hub.files(REPO)) == 2


def test_files_and_folders_are_deleted(hub: LocalHub, api: HfApi) -> None:
    """Checkpoints that stay although they were deleted, or more that goes than was asked for."""
    add(api, {"a/1.txt": b"1", "a/2.txt": b"2", "ab.txt": b"3"})
    api.create_commit(REPO, [CommitOperationDelete("a/")], commit_message="Clean")
    assert set(hub.files(REPO)) == {".gitattributes", "ab.txt"}
    with pytest.raises(EntryNotFoundError):
        api.delete_file("a", REPO)


def test_ignored_files_stay_away(hub: LocalHub, api: HfApi) -> None:
    """A cache in the repository, although .gitignore names it."""
    add(api, {".gitignore": b"# rubbish\n*.log\n__pycache__/\n!keep.log\n"})
    add(api, {"run.log": b"1", "src/__pycache__/x.txt": b"2", "keep.log": b"3", "log.txt": b"4"})
    assert set(hub.files(REPO)) == {".gitattributes", ".gitignore", "keep.log", "log.txt"}


def test_a_folder_is_one_commit(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    """A reader who sees half a model: with xet the client makes several commits."""
    (tmp_path / "sub").mkdir()
    for name in ("config.json", "sub/model.safetensors"):
        (tmp_path / name).write_bytes(WEIGHTS)
    api.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert len(hub.commits(REPO)) == 2
    assert hub.files(REPO)["sub/model.safetensors"] == WEIGHTS


OID = "0" * 64
GOOD = '{"key": "file", "value": {"path": "good.txt", "content": "good"}}'


@pytest.mark.parametrize(
    "lines",
    [
        commit_lines(GOOD, "{not json"),
        commit_lines(GOOD, '{"key": "file"}'),
        commit_lines(GOOD, '{"key": "file", "value": {"path": "a.txt", "content": "%%%", "encoding": "base64"}}'),
        commit_lines(GOOD, '{"key": "file", "value": {"path": "../a.txt", "content": ""}}'),
        commit_lines(GOOD, '{"key": "file", "value": {"path": "good.txt/a.txt", "content": ""}}'),
        commit_lines(GOOD, '{"key": "file", "value": {"path": "README.md", "content": "---\\nlicense: x\\n---\\n"}}'),
        commit_lines(GOOD, '{"key": "magic", "value": {"path": "a.txt"}}'),
        commit_lines(GOOD, f'{{"key": "lfsFile", "value": {{"path": "a.bin", "algo": "sha256", "oid": "{OID}"}}}}'),
        commit_lines(header=GOOD),
        commit_lines(GOOD, header='{"key": "header", "value": {"summary": ""}}'),
        b"",
    ],
    ids=[
        "json",
        "value",
        "base64",
        "path",
        "folder",
        "card",
        "kind",
        "not uploaded",
        "no header",
        "summary",
        "nothing",
    ],
)
def test_a_commit_that_cannot_be_made_changes_nothing(hub: LocalHub, api: HfApi, lines: bytes) -> None:
    """Half a commit: the files before the line that is wrong."""
    assert post(hub, f"/api/models/{REPO}/commit/main", lines).status_code == 400
    assert list(hub.files(REPO)) == [".gitattributes"]


@pytest.mark.parametrize("framing", ["Content-Length: 9999", "Transfer-Encoding: chunked"])
def test_a_commit_cut_off_at_the_end_of_a_line_is_not_made(hub: LocalHub, api: HfApi, framing: str) -> None:
    """A client that is killed while it pushes, and half of its files on the Hub."""
    body = commit_lines(GOOD) + b"\n"
    if "chunked" in framing:
        body = b"%x\r\n%s\r\n" % (len(body), body)
    head = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nAuthorization: Bearer {hub.token}\r\n{framing}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(hub.url).port)) as client:
        client.sendall(head.encode() + body)
        client.shutdown(socket.SHUT_WR)
        assert not client.recv(100)
    assert not hub.requests
    assert len(hub.commits(REPO)) == 1


def test_bytes_that_are_not_what_was_announced_are_refused(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    """Weights that change while they are sent, stored under the hash of what they were."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    operation = CommitOperationAdd(path.name, path)
    assert operation.upload_info.sha256
    path.write_bytes(WEIGHTS[::-1])
    with pytest.raises(RuntimeError, match=r"model\.safetensors") as caught:
        api.create_commit(REPO, [operation], commit_message="Add")
    assert isinstance(caught.value.__cause__, BadRequestError)
    assert len(hub.commits(REPO)) == 1


# ---- Branches, tags, pull requests ----


def test_branches_and_tags_name_commits(hub: LocalHub, api: HfApi) -> None:
    """A pinned revision that moves, a branch that is main by another name."""
    old = api.model_info(REPO).sha
    add(api, {"a.txt": b"main"})
    api.create_tag(REPO, tag="v1", revision=old)
    api.create_branch(REPO, branch="my/branch")
    add(api, {"a.txt": b"branch"}, revision="my/branch")
    assert hub.files(REPO) != hub.files(REPO, "my/branch")
    assert (hub.files(REPO)["a.txt"], hub.files(REPO, "my/branch")["a.txt"]) == (b"main", b"branch")
    assert Path(hf_hub_download(REPO, "a.txt", revision="my/branch")).read_bytes() == b"branch"
    refs = api.list_repo_refs(REPO)
    assert {branch.name for branch in refs.branches} == {"main", "my/branch"}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", old)]
    assert api.model_info(REPO, revision=old[:8]).sha == old
    assert status_of(lambda: api.create_branch(REPO, branch="my/branch")) == 409
    api.create_branch(REPO, branch="my/branch", exist_ok=True)
    assert status_of(lambda: api.create_tag(REPO, tag="v1")) == 409
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(REPO, branch="b", revision="none")
    with pytest.raises(RevisionNotFoundError):
        add(api, {"a.txt": b"tag"}, revision="v1")
    api.delete_branch(REPO, branch="my/branch")
    api.delete_tag(REPO, tag="v1")
    assert set(hub.repo(REPO).branches) == {"main"}
    assert status_of(lambda: api.delete_branch(REPO, branch="main")) == 403
    assert status_of(lambda: api.create_branch(REPO, branch="refs/pr/1")) == 403
    assert api.model_info(REPO, revision="refs/heads/main").sha == hub.commits(REPO)[0].oid


def test_a_commit_opens_a_pull_request(hub: LocalHub, api: HfApi) -> None:
    """A pull request that changes main, or one that holds nothing."""
    bob = HfApi(token=hub.add_user("bob"))
    info = add(bob, {"a.txt": b"theirs"}, create_pr=True, commit_message="My idea", commit_description="Because")
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert "a.txt" not in hub.files(REPO)
    assert hub.files(REPO, "refs/pr/1")["a.txt"] == b"theirs"
    assert Path(hf_hub_download(REPO, "a.txt", revision="refs/pr/1")).read_bytes() == b"theirs"
    (listed,) = api.get_repo_discussions(REPO, discussion_type="pull_request", discussion_status="open")
    assert (listed.num, listed.title, listed.author, listed.status) == (1, "My idea", "bob", "open")
    details = api.get_discussion_details(REPO, 1)
    assert details.target_branch == "refs/heads/main"
    assert [event.type for event in details.events] == ["comment", "commit"]
    assert details.events[0].content == "Because"
    assert [ref.ref for ref in api.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == ["refs/pr/1"]


def test_a_pull_request_opened_first_takes_commits(hub: LocalHub, api: HfApi) -> None:
    """The second way of opening one, which the client's own upload of folders uses."""
    bob, eve = HfApi(token=hub.add_user("bob")), HfApi(token=hub.add_user("eve"))
    pull = bob.create_pull_request(REPO, title="Later", description="Wait")
    assert (pull.num, pull.status, pull.git_reference) == (1, "draft", "refs/pr/1")
    add(bob, {"a.txt": b"1"}, revision="refs/pr/1")
    add(api, {"a.txt": b"2"}, revision="refs/pr/1")
    assert len(hub.commits(REPO, "refs/pr/1")) == 3
    assert status_of(lambda: add(eve, {"a.txt": b"3"}, revision="refs/pr/1")) == 403
    assert api.create_discussion(REPO, title="A question").num == 2
    assert [found.num for found in api.get_repo_discussions(REPO)] == [2, 1]
    assert not list(api.get_repo_discussions(REPO, discussion_status="closed"))


def test_a_pull_request_stands_on_the_parent_asked_for(hub: LocalHub, api: HfApi) -> None:
    """A pull request that takes back what has happened since."""
    head = api.model_info(REPO).sha
    hub.write(REPO, {"b.txt": b"since"})
    add(api, {"a.txt": b"1"}, create_pr=True, parent_commit=head)
    assert [commit.oid for commit in hub.commits(REPO, "refs/pr/1")][1:] == [head]


# ---- Listings and downloads ----


def test_listings_come_in_pages(hub: LocalHub, api: HfApi) -> None:
    """A listing that ends after its first page, without a word."""
    names = sorted(f"{folder}/{i}.txt" for folder in ("a", "a/b") for i in range(5))
    add(api, {name: name.encode() for name in names})
    hub.page_size = 3
    hub.requests.clear()
    assert sorted(api.list_repo_files(REPO)) == [".gitattributes", *names]
    assert len(hub.requests) == 5
    assert [entry.path for entry in api.list_repo_tree(REPO, "a/b")] == [f"a/b/{i}.txt" for i in range(5)]
    assert sorted(entry.path for entry in api.list_repo_tree(REPO)) == [".gitattributes", "a"]
    for i in range(5):
        hub.write(REPO, {"c.txt": bytes(i)}, title=f"Change {i}")
    titles = [commit.title for commit in api.list_repo_commits(REPO)]
    assert titles == [*(f"Change {i}" for i in (4, 3, 2, 1, 0)), "Add files", "initial commit"]


def test_files_come_from_the_cache_while_their_etag_stays(hub: LocalHub, api: HfApi) -> None:
    """A download that is made again and again, or one that is old."""
    add(api, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    hub.requests.clear()
    for name, content in (("config.json", b"{}"), ("model.safetensors", WEIGHTS)):
        for _ in range(2):
            assert Path(hf_hub_download(REPO, name)).read_bytes() == content
    assert [request.method for request in hub.requests] == ["HEAD", "GET", "HEAD"] * 2
    add(api, {"config.json": b"{1}"})
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{1}"


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=10-19", 206, WEIGHTS[10:20]),
        ("bytes=5000-", 206, WEIGHTS[5000:]),
        ("bytes=-7", 206, WEIGHTS[-7:]),
        ("bytes=5000-99999", 206, WEIGHTS[5000:]),
        ("bytes=99999-", 416, None),
        ("", 200, WEIGHTS),
    ],
)
def test_a_range_of_a_file(hub: LocalHub, wanted: str, status: int, content: bytes | None) -> None:
    """A resumed download with a hole or an overlap in its middle."""
    hub.write(REPO, {"model.safetensors": WEIGHTS})
    answer = httpx2.get(f"{hub.url}/{REPO}/resolve/main/model.safetensors", headers={"Range": wanted})
    assert answer.status_code == status
    assert content is None or answer.content == content
    assert answer.headers.get("Content-Range", "/").endswith(f"/{len(WEIGHTS)}" if status != 200 else "/")


def test_a_download_is_resumed(hub: LocalHub, tmp_path: Path) -> None:
    """A file whose first half is there twice."""
    hub.write(REPO, {"model.safetensors": WEIGHTS})
    path = tmp_path / "part"
    path.write_bytes(WEIGHTS[:2000])
    with path.open("ab") as part:
        url = f"{hub.url}/{REPO}/resolve/main/model.safetensors"
        http_get(url, part, resume_size=2000, expected_size=len(WEIGHTS))
    assert path.read_bytes() == WEIGHTS
    assert [request.status for request in hub.requests] == [206]


def test_a_snapshot_is_the_whole_repository(hub: LocalHub, api: HfApi) -> None:
    """Files in folders that are left out, or a snapshot of main for a pinned commit."""
    info = add(api, {"config.json": b"old", "sub/model.safetensors": WEIGHTS, "\N{SNOWMAN} a.txt": b"snow"})
    add(api, {"config.json": b"new"})
    folder = Path(snapshot_download(REPO, revision=info.oid))
    assert (folder / "config.json").read_bytes() == b"old"
    assert (folder / "sub" / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "\N{SNOWMAN} a.txt").read_bytes() == b"snow"
    assert (Path(snapshot_download(REPO)) / "config.json").read_bytes() == b"new"


# ---- Cards ----


RESULT = (
    "{task: {type: text-classification}, dataset: {type: sst2, name: SST-2}, metrics: [{type: accuracy, value: 1}]}"
)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: my-own", r'"license" must be one of \[apache-2\.0, mit'),
        ("license: [mit, my-own]", r'"license" must be one of'),
        ("base_model: /home/me/model", r'"base_model" with value "/home/me/model" is not valid'),
        ("datasets: [data/train.csv, null]", r'"datasets\[1\]" must be a string'),
        ("language: English", r'"language" with value "English" is not valid'),
        ("tags: one", r'"tags" must be an array'),
        ("model-index: no", r'"model-index" must be an array'),
        ("model-index: [{name: x}]", r'"model-index\[0\]\.results" is required'),
        (f"model-index: [{{results: [{RESULT}]}}]", r'"model-index\[0\]\.name" is required'),
        (
            f"model-index: [{{name: x, results: [{RESULT.replace(', value: 1', '')}]}}]",
            r'"model-index\[0\]\.results\[0\]\.metrics\[0\]\.value" is required',
        ),
        (
            f"model-index: [{{name: x, results: [{RESULT.replace('name: SST-2', 'name: SST-2, config: 1')}]}}]",
            r'"model-index\[0\]\.results\[0\]\.dataset\.config" must be a string',
        ),
        ("license: [mit", "Invalid YAML in README.md"),
        ("license: !!python/object/apply:os.getcwd []", "Invalid YAML in README.md"),
        ("- a list", "YAML metadata must be an object"),
    ],
)
def test_bad_metadata_is_refused_before_anything_is_sent(
    hub: LocalHub, api: HfApi, metadata: str, message: str
) -> None:
    """A card that the real Hub refuses, found only there."""
    card = f"---\n{metadata}\n---\n# Student\n".encode()
    with pytest.raises(ValueError, match=message):
        add(api, {"README.md": card, "model.safetensors": WEIGHTS})
    assert hub.steps() == ["validate_yaml"]


def test_a_card_is_judged_without_a_repository(hub: LocalHub) -> None:
    """`ModelCard.validate` that asks the real Hub, or nobody."""
    with pytest.raises(ValueError, match='"license" must be one of'):
        ModelCard("---\nlicense: my-own\n---\n# Student\n").validate()
    assert hub.steps() == ["validate_yaml"]


def test_good_metadata_passes(hub: LocalHub, api: HfApi) -> None:
    """Checks that are stricter than the Hub's."""
    index = f"model-index: [{{name: x, results: [{RESULT}]}}]"
    lines = ["license: mit", "language: [en, zh-Hant]", "base_model: google-bert/bert-base-uncased", index]
    card = ModelCard("---\n" + "\n".join(lines) + "\n---\n# Student\n")
    card.validate()
    card.push_to_hub(REPO)
    assert hub.files(REPO)["README.md"].decode() == str(card)
    about = api.model_info(REPO)
    assert about.card_data.base_model == "google-bert/bert-base-uncased"
    assert about.card_data.eval_results[0].metric_value == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("# No metadata\n", "empty or missing yaml metadata"), ("---\npipeline_tag: magic\n---\n", "not in the official")],
)
def test_doubtful_metadata_is_a_warning(hub: LocalHub, api: HfApi, text: str, message: str) -> None:
    """A push stopped for what the Hub takes."""
    with pytest.warns(UserWarning, match=message):
        add(api, {"README.md": text.encode()})
    assert len(hub.commits(REPO)) == 2


# ---- The libraries above the client ----


def test_a_model_goes_up_and_comes_down(hub: LocalHub) -> None:
    """Weights or labels that change on the way."""
    model, tokenizer = tiny.bert(id2label={0: "bad", 1: "fine", 2: "good"}).eval(), tiny.tokenizer()
    model.push_to_hub(REPO, private=True)
    tokenizer.push_to_hub(REPO, revision="main")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(hub.files(REPO))
    loaded = AutoModelForSequenceClassification.from_pretrained(REPO)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    text = "the film was great"
    expected = pipeline("text-classification", model=model, tokenizer=tokenizer)(text)
    assert pipeline("text-classification", model=REPO, device="cpu")(text) == expected
    with pytest.raises(OSError, match="ada/student"):
        AutoModelForSequenceClassification.from_pretrained(REPO, token=False, force_download=True)


def test_a_dataset_is_loaded(hub: LocalHub, tmp_path: Path) -> None:
    """Rows of another revision, or a search for the dataset viewer, which is not here."""
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    rows.to_parquet(tmp_path / "train.parquet")
    first = hub.write("ada/rows", {"data/train.parquet": (tmp_path / "train.parquet").read_bytes()}, kind="datasets")
    hub.write("ada/rows", {"data/test.parquet": (tmp_path / "train.parquet").read_bytes()}, kind="datasets")
    loaded = datasets.load_dataset("ada/rows")
    assert set(loaded) == {"train", "test"}
    assert loaded["train"].to_list() == rows.to_list()
    assert set(datasets.load_dataset("ada/rows", revision=first.oid)) == {"train"}


def test_another_process_talks_to_this_hub(hub: LocalHub) -> None:
    """A command line that pushes to the real Hub in a test."""
    program = "from huggingface_hub import HfApi; print(HfApi().create_repo('other', private=True).repo_id)"
    run = subprocess.run(
        [sys.executable, "-c", program], env=hub.environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "ada/other"
    assert hub.repo("ada/other").private
