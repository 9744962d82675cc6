"""A push whose every step goes wrong in every way: what the user sees, and how often the commit is made."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.errors import RepositoryNotFoundError
from local_hub.server import LocalHub
from pushing import NAME, changed, push, pushes

from hf_distill.hub import client as asking
from hf_distill.hub.client import HubClient, HubError
from hf_distill.hub.destination import Destination
from hf_distill.runs.publish import publish

pytest_plugins = ["pushing_fixture"]
pytestmark = pytest.mark.usefixtures("left_alone", "no_waiting")

KINDS = (401, 403, 404, 409, 412, 429, 500, 503, "drop", "lost", "half", "slow")
PASSING = (429, 500, 503, "drop", "lost", "half", "slow")
TROUBLES = [*((kind, 1) for kind in KINDS), *((kind, None) for kind in (429, 503, "drop", "lost"))]
# Each step in a push that takes it.
STEPS = {
    "whoami": "new",
    "model_info": "new",
    "create_repo": "new",
    "tree": "new",
    "resolve": "readme",
    "refs": "branch",
    "branch": "branch",
    "validate_yaml": "new",
    "preupload": "new",
    "lfs_batch": "new",
    "lfs_put": "new",
    "lfs_verify": "new",
    "commit": "new",
}
# The kinds that differ run always; the rest where the environment says, as `make faults` does.
USUAL = [(503, 1), (503, None), ("lost", 1), (403, 1)]
CASES = [
    pytest.param(step, kind, times, id=f"{step}-{kind}-{'once' if times else 'always'}")
    for step in STEPS
    for kind, times in (TROUBLES if os.environ.get("HF_DISTILL_ALL_FAULTS") else USUAL)
]


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, ...]]]:
    """Collect what was seen, and write it as Markdown where the environment says."""
    rows: list[tuple[str, ...]] = []
    yield rows
    target = os.environ.get("HF_DISTILL_FAULT_TABLE")
    if target:
        header = ("step", "fault", "the user saw", "commits then", "commits after the same push again")
        lines = [" | ".join(("", *row, "")).strip() for row in (header, ("---",) * len(header), *rows)]
        Path(target).write_text("\n".join(lines) + "\n")


def prepared(hub: LocalHub, case: str) -> dict:
    """Set up what a push needs to take a step, and return its options."""
    if case == "readme":
        hub.write(NAME, {"README.md": b"---\nlicense: mit\n---\nMine\n"}, author="ada")
    return {"revision": "trial"} if case == "branch" else {}


@pytest.mark.parametrize(("step", "kind", "times"), CASES)
def test_one_commit_whatever_goes_wrong(hub, trained, table, step, kind, times):
    """A push made twice, half a model, a traceback, or a push that cannot be repeated."""
    options = prepared(hub, STEPS[step])
    branch = options.get("revision", "main")
    hub.slow_seconds = 0.1
    hub.fault(step, kind, times)
    try:
        saw = f"{len(push(trained, **options).files)} files pushed"
    except ValueError as error:
        saw = str(error)
    assert len(saw) < 400
    assert "\n" not in saw
    assert hub.token not in saw
    commits = len(pushes(hub, NAME, branch))
    assert commits <= 1
    if times and kind in PASSING:
        assert saw == "8 files pushed"
    hub.faults.waiting.clear()
    again = push(trained, **options)
    (commit,) = pushes(hub, NAME, branch)
    assert again.commit == commit.oid
    sent = hub.files(NAME, commit.oid)
    assert sent["model.safetensors"] == (trained / "student" / "model.safetensors").read_bytes()
    assert sent["results.json"] == (trained / "results.json").read_bytes()
    if STEPS[step] == "readme":
        assert "\nMine\n" in sent["README.md"].decode()
    saw = saw.replace(hub.url, "https://hub").replace("|", "/")
    table.append((step, f"{kind}, {'once' if times else 'always'}", saw, str(commits), "1"))


def test_every_step_of_a_push_is_in_the_table(hub, run):
    """A step that was added, and that nobody has seen fail."""
    hub.write(NAME, {"README.md": b"Mine\n"}, author="ada")
    hub.fault("commit", "lost")
    for number, options in enumerate(({}, {"revision": "trial"})):
        push(changed(run, number), **options)
    push(run, "ada/other")
    assert set(hub.steps()) == {*STEPS, "commits"}  # that one after a loss, see below


class TestLost:
    """The commit is made, and nobody says so."""

    def test_another_is_on_top_before_it_is_asked_for(self, hub, trained):
        """Ours is not the head any more, so that it was made a second time, or taken for somebody else's."""
        hub.fault("commit", "lost")
        hub.fault("model_info", lambda: None, times=2)  # before and after the making of the repository
        hub.fault("model_info", lambda: hub.write(NAME, {"README.md": b"Bob's\n"}, author="bob", title="Mine"))
        done = push(trained)
        assert hub.commits(NAME)[0].title == "Mine"
        (commit,) = pushes(hub)
        assert done.commit == commit.oid
        assert len(done.files) == 8

    @pytest.mark.parametrize("step", ["model_info", "commits"])
    def test_what_asks_for_it_goes_wrong_too(self, hub, trained, step):
        """Two faults in a row are common: it is one network."""
        first = push(trained, "ada/other")
        del first
        for kind in (503, "drop", "half"):
            name = f"ada/{step.replace('_', '-')}-{kind}"
            hub.fault("commit", "lost")
            if step == "model_info":
                hub.fault(step, lambda: None, times=2)
            hub.fault(step, kind)
            assert len(push(trained, name).files) == 8
            assert len(pushes(hub, name)) == 1

    def test_nothing_answers_afterwards(self, hub, trained):
        """Nobody can know then, and it must be said."""
        hub.fault("model_info", lambda: None, times=2)
        hub.fault("model_info", "drop", times=None)
        hub.fault("commit", "lost")
        with pytest.raises(
            HubError, match="or did and the reply got lost, which cannot be asked now: the same command"
        ):
            push(trained)
        assert len(pushes(hub)) == 1
        hub.faults.waiting.clear()
        assert push(trained).files == ()
        assert len(pushes(hub)) == 1

    def test_the_same_push_is_made_by_another_process_meanwhile(self, hub, trained):
        """Two commits of one model, or an error about a change that is one's own."""
        hub.fault("commit", lambda: push(trained))
        done = push(trained)
        (commit,) = pushes(hub)
        assert done.commit == commit.oid

    def test_uploads_are_not_sent_again(self, hub, trained):
        """Gigabytes a second time, since the commit after them was refused once."""
        hub.fault("commit", 503, times=2)
        push(trained)
        assert hub.steps().count("commit") == 3
        assert hub.steps().count("lfs_put") == 2  # weights and curves


class TestSomebodyElse:
    """The branch has moved while the files went up."""

    def test_who_has_changed_what_is_said_and_nothing_is_lost(self, hub, run):
        """Their change reverted by a commit on top of what was there before."""
        push(run)
        hub.add_user("bob")
        theirs = {"README.md": b"Bob's own text\n", "notes.txt": b"x"}
        hub.fault("commit", lambda: hub.write(NAME, theirs, title="Say more", author="bob"))
        with pytest.raises(HubError) as found:
            push(changed(run, 1))
        text = str(found.value)
        assert text.startswith(
            f"{NAME} has changed while this push was under way, and nothing was sent: bob ('Say more', 2"
        )
        assert "changed README.md, notes.txt" in text
        assert text.endswith("Push again to put the student on top of that")
        assert hub.files(NAME)["notes.txt"] == b"x"
        assert len(pushes(hub)) == 1
        push(run)
        assert "Bob's own text\n" in hub.files(NAME)["README.md"].decode()
        assert len(pushes(hub)) == 2

    def test_a_commit_refused_for_no_visible_change(self, hub, trained):
        """The Hub says so, and its head is the same: no names to give."""
        hub.fault("commit", 412)
        with pytest.raises(
            HubError, match=f"the Hub did not take the commit to {NAME}: 412, A commit has happened since"
        ):
            push(trained)
        assert pushes(hub) == []


class TestWaiting:
    """How long, and that it is said."""

    def test_pauses_grow_and_are_said(self, hub, trained, monkeypatch, caplog):
        """A hammer on a server that is down; or a command that hangs and says nothing."""
        monkeypatch.setattr(asking, "PAUSES", (1.0, 2.0, 4.0, 8.0))
        waited: list[float] = []
        hub.fault("commit", 503, times=None)
        with pytest.raises(HubError, match="503, Service Unavailable: try again later"):
            publish(trained, Destination(NAME), sleep=waited.append)
        assert waited == [1.0, 2.0, 4.0, 8.0]
        assert all(one < next for one, next in pairwise(waited))
        (first, *_) = [record.message for record in caplog.records if record.name == asking.__name__]
        assert first == (f"the Hub did not take the commit to {NAME} (503, Service Unavailable): trying again in 1 s")

    def test_the_hubs_own_pause_is_kept(self, hub, trained, monkeypatch):
        """Too early, and the next refusal is for longer."""
        monkeypatch.setattr(asking, "PAUSES", (1.0, 2.0, 4.0, 8.0))
        waited: list[float] = []
        hub.retry_after = 30
        hub.fault("commit", 429)
        publish(trained, Destination(NAME), sleep=waited.append)
        assert waited == [30.0]
        hub.retry_after = 3600
        hub.fault("whoami", 429)
        with pytest.raises(HubError, match=r"429, .*: try again in 3600 s"):
            publish(trained, Destination(NAME), sleep=waited.append)
        assert waited == [30.0]

    def test_what_the_client_has_repeated_is_not_repeated_on_top(self, hub, trained):
        """Six tries of six tries each: minutes for an answer that is known."""
        hub.fault("preupload", 503, times=None)
        with pytest.raises(HubError, match="503"):
            push(trained)
        assert hub.steps().count("preupload") == 6


class TestWords:
    """What is said is fit to be read by others."""

    def test_a_token_is_never_repeated(self, hub):
        """It was in a URL, and with it in a message."""

        def question() -> None:
            raise OSError(f"cannot open https://x?token={hub.token}")

        with pytest.raises(HubError, match=r"cannot open https://x\?token=<token>"):
            HubClient().ask("do it", question)

    def test_an_expired_token_at_the_real_hub_is_no_missing_repository(self, hub):
        """The client takes a 401 of huggingface.co for a missing repository, and that of a local Hub for what it is."""
        client = get_session()
        response = type(client.get(f"{hub.url}/api/whoami-v2"))(
            401, request=client.build_request("GET", "https://huggingface.co/api/models/ada/digits")
        )
        with pytest.raises(RepositoryNotFoundError):
            hf_raise_for_status(response)
        with pytest.raises(HubError, match="401, Unauthorized: log in again with `hf auth login`"):
            HubClient().ask("do it", lambda: hf_raise_for_status(response))

    def test_what_is_no_trouble_of_the_hubs_is_not_hidden(self, hub):
        """A bug of ours, shown as a bad network."""
        with pytest.raises(ZeroDivisionError):
            HubClient().ask("do it", lambda: 1 / 0)
