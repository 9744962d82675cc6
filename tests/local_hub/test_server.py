"""The genuine client against the local Hub, over a real socket."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pytest
import tiny
import torch
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    get_token,
    hf_hub_download,
    repo_exists,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
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


OID = "0" * 64
GOOD = '{"key": "file", "value": {"path": "good.txt", "content": "good"}}'


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


# ---- Listings and downloads ----


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
