"""Soft targets shared as a data set, and learnt from, by the genuine client over a socket."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from huggingface_hub import DatasetCard
from local_hub.server import LocalHub
from local_hub.storage import Commit, Refused
from safetensors.torch import load_file
from sharing import TARGETS, recipe_file

from hf_distill import DistillationConfig, DistillationTrainer
from hf_distill.data.loading import load_rows, prepare_splits
from hf_distill.data.text import tokenize_text
from hf_distill.hub.client import HubError
from hf_distill.hub.destination import Destination
from hf_distill.runs.cache import Cached, cache_soft_targets, share_soft_targets
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.teachers.cache.shards import ShardWriter, StorageFormat
from tests.runs.test_train import SMALL, run, text_recipe

pytest_plugins = ["pushing_fixture"]
pytestmark = pytest.mark.usefixtures("no_waiting")

NAME = "ada/targets"
TRAINING = {**SMALL, "num_train_epochs": 1, "allow_untrained_teacher": True}
ON = "training.precompute_teacher_logits=true"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with a recipe, its data and its soft targets, which no test may change."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        recipe = text_recipe(student={"model": "base"}, training=TRAINING, baseline=False)
        cache_soft_targets(load_recipe(recipe_file(recipe), [ON]), "sentences")
    return folder


@pytest.fixture
def here(made) -> Path:
    """Work in a copy of it."""
    shutil.copytree(made, ".", dirs_exist_ok=True)
    return Path(".")


def cached() -> Cached:
    return Cached(Path(TARGETS), 0, 0, 0, 0.0, {})


def share(name: str = NAME, **to):
    return share_soft_targets(cached(), Destination(name, kind="dataset", **to))


def shares(hub: LocalHub, name: str = NAME, revision: str = "main") -> list[Commit]:
    found = hub.commits(name, revision, kind="datasets") if ("datasets", name) in hub.repos else []
    return [commit for commit in found if commit.title.startswith("Share ")]


def files(hub: LocalHub, name: str = NAME, revision: str = "main") -> dict[str, bytes]:
    return hub.files(name, revision, kind="datasets")


def taught(**changes) -> dict:
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    return {**recipe, "teacher": {"logits": NAME}, "output_dir": "shared", **changes}


def refusal(recipe: dict) -> str:
    with pytest.raises(ValueError) as found:  # noqa: PT011 - the caller looks at the message
        run(recipe)
    assert not Path("shared/student").exists()
    return str(found.value)


class TestAndBack:
    @pytest.mark.slow
    def test_shared_by_the_real_program_and_learnt_from_without_a_teacher(self, hub, here, command):
        """Soft targets that are another machine's, or of which a part is lost."""
        ended = subprocess.run(
            [sys.executable, "-m", "hf_distill", "cache", "recipe.yaml", "--push", "targets"],
            capture_output=True,
            text=True,
            check=False,
            env=hub.environment,
        )
        assert ended.returncode == 0, ended.stderr
        (commit,) = shares(hub)
        number = len(files(hub)) - 1  # .gitattributes
        assert ended.stdout.splitlines()[-1] == (
            f"{number} files pushed to {NAME} in commit {commit.oid[:8]}: {hub.url}/datasets/{NAME}/tree/main"
        )
        assert "Soft targets: 0 computed" in ended.stdout.splitlines()[-2]
        first = run({**taught(), "teacher": {"logits": TARGETS}, "output_dir": "alone"})
        for folder in ("out", "alone/teacher"):
            shutil.rmtree(folder, ignore_errors=True)
        second = run(taught())
        one, other = (load_file(f"{folder}/student/model.safetensors") for folder in ("alone", "shared"))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert (second.teacher, second.agreement) == (first.teacher, first.agreement)
        (origin,) = second.lineage["teachers"]
        assert origin["soft_targets"] == {"id": NAME, "revision": commit.oid}
        card = Path("shared/student/README.md").read_text()
        assert f"datasets:\n- {NAME}\n" in card
        assert f"by its soft targets [{NAME}](https://huggingface.co/datasets/{NAME}/tree/{commit.oid})" in card
        code, _out, _ = command("push", "shared", "--repo-id", "student")
        assert code == 0
        pushed = hub.files("ada/student")
        assert yaml.safe_load(pushed["recipe.yaml"])["teacher"]["logits"] == NAME
        assert f"- {NAME}\n" in pushed["README.md"].decode()

    def test_the_teacher_on_the_hub_is_the_base_of_student(self, hub, here):
        """A student whose page does not say whom it learnt from, and what that one's license asks."""
        teacher = tiny.bert(1, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1})
        teacher.save_pretrained("ready")
        tiny.tokenizer().save_pretrained("ready")
        content = {path.name: path.read_bytes() for path in Path("ready").iterdir()}
        commit = hub.write("ada/large", {**content, "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"})
        shutil.rmtree("out")
        recipe = {**taught(output_dir="out"), "teacher": {"model": "ada/large"}}
        cache_soft_targets(load_recipe(recipe_file(recipe), [ON]), "sentences")
        share()
        about = json.loads(files(hub)["key.json"])["about"]["teachers"]
        assert about == [{"commit": commit.oid, "name": "ada/large"}]
        assert "[ada/large](https://huggingface.co/ada/large)" in files(hub)["README.md"].decode()
        run({**taught(), "stages": []})
        card = Path("shared/student/README.md").read_text()
        assert "base_model:" in card
        assert "ada/large" in card.split("---")[1]
        assert "distilled with hf_distill from `ada/large`, by its soft targets" in card
        assert "cc-by-nc-4.0 does not allow commercial use" in card

    def test_its_card_is_true_and_one_that_the_hub_accepts(self, hub, here, made):
        """Numbers of another folder; a snippet that does not run; what nobody else should read."""
        share()
        text = files(hub)["README.md"].decode()
        card = DatasetCard(text)
        assert card.data.tags == ["hf-distill", "knowledge-distillation", "soft-targets"]
        assert card.data.task_categories == ["text-classification"]
        assert card.data.to_dict()["viewer"] is False
        size = sum(path.stat().st_size for path in Path(TARGETS).glob("*.safetensors"))
        assert "| labels, in the order of the logits | `negative`, `positive` |" in text
        assert f"| size | {size / 2**20:.2f} MiB, {size / 135:.0f} bytes a row |" in text
        assert "| rows | 135, alike ones counted once |" in text
        assert "| what is kept | all logits, float16 |" in text
        everything = b"".join(content for name, content in files(hub).items() if name != ".gitattributes")
        for secret in (str(Path.cwd()), str(made), str(Path.home()), hub.token):
            assert secret.encode() not in everything
        shown = text.split("```yaml\n")[1].split("```")[0]
        fragment = yaml.safe_load(shown)
        assert fragment["teacher"] == {"logits": NAME}
        own = taught()
        assert (fragment["task"], fragment["training"]) == ("text-classification", {"seed": 42})
        assert load_recipe(recipe_file(fragment)).teachers[0].logits == NAME
        fragment |= {"data": {"path": "data"}, "student": own["student"], "training": own["training"]}
        run({**own, **fragment, "output_dir": own["output_dir"]})
        rows = load_rows(path="data")
        splits = prepare_splits(rows, "text-classification")
        tokenizer = tiny.tokenizer()
        splits = {
            role: tokenize_text(rows, tokenizer, ("text",), None, segments=True)
            for role, rows in splits.named().items()
        }
        known = {
            "student": tiny.bert(0, id2label={0: "negative", 1: "positive"}),
            "data": splits["train"],
            "dev": splits["evaluation"],
            "tokenizer": type(tokenizer).from_pretrained("base"),
        }
        snippet = text.split("```python\n")[1].split("```")[0]
        snippet = snippet.replace('    "student",\n', '    "student", use_cpu=True, max_steps=2, disable_tqdm=True,\n')
        snippet = snippet.replace("trainer.train()", "trainer.args.allow_untrained_teacher = True; trainer.train()")
        exec(compile(snippet, "README.md", "exec"), known)
        assert known["trainer"].state.global_step == 2

    def test_a_private_one_a_branch_and_a_pinned_commit(self, hub, here):
        """Everybody's for a moment; `main` replaced by a trial; a student whose soft targets move under it."""
        first = share(private=True)
        assert hub.repo(NAME, "datasets").private
        again = share(revision="trial")
        assert (again.commit, again.files) == (first.commit, ())
        hub.write(NAME, {"key.json": b"{}"}, kind="datasets")
        assert "was not written by hf-distill" in refusal(taught()) or "cannot be read" in refusal(taught())
        run(taught(teacher={"logits": NAME, "revision": first.commit}))
        run(taught(teacher={"logits": NAME, "revision": "trial"}, output_dir="branch"))

    def test_check_downloads_no_soft_targets(self, hub, here, command):
        """A gigabyte, to be told that a key is misspelt."""
        share()
        hub.requests.clear()
        code, out, err = command("check", recipe_file(taught(), "taught.yaml"))
        assert (code, err) == (0, "")
        assert f"none is loaded: soft targets {NAME} at " in out
        asked = [request.path for request in hub.requests if request.step == "resolve"]
        assert asked
        assert not [path for path in asked if "safetensors" in path]

    def test_what_was_downloaded_is_enough_without_a_network(self, hub, here):
        """A run that cannot be repeated on a train."""
        share()
        first = run(taught())
        hub.fault("model_info", 503, times=None)
        hub.requests.clear()
        assert run(taught(output_dir="again")).student.metrics == first.student.metrics
        assert {request.step for request in hub.requests} == {"model_info"}


def test_the_snippets_of_the_docs_run(hub, here, monkeypatch):
    """Whoever copies them must not meet an error; what they do not define is what every training has."""
    text = (Path(__file__).parents[2] / "docs" / "soft_targets.md").read_text()
    making, learning = (block.split("```")[0] for block in text.split("```python\n")[1:])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    words = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    tokenizer, splits = tiny.tokenizer(), prepare_splits(load_rows(path="data"), "text-classification").named()
    known = {
        "DistillationConfig": partial(DistillationConfig, max_steps=2, allow_untrained_teacher=True, disable_tqdm=True),
        "DistillationTrainer": DistillationTrainer,
        "student": tiny.bert(0, **words),
        "teacher": tiny.bert(1, **words),
        "data": tokenize_text(splits["train"], tokenizer, ("text",), None),
        "dev": tokenize_text(splits["evaluation"], tokenizer, ("text",), None),
        "tokenizer": tokenizer,
    }
    exec(compile(making, "soft_targets.md", "exec"), known)
    made = {path.name: path.read_bytes() for path in Path("soft-targets").iterdir() if not path.name.startswith(".")}
    assert len(made) == 2
    (name,) = re.findall(r'snapshot_download\("([^"]+)"', learning)
    hub.write(name, made, kind="datasets", author="your-name")
    shutil.rmtree("soft-targets")
    del known["teacher"]
    exec(compile(learning, "soft_targets.md", "exec"), known)
    assert name in text.split("```yaml")[1]


class TestAgain:
    def test_what_is_there_is_not_sent_again(self, hub, here, command):
        """A history full of commits that change nothing."""
        assert command("cache", "recipe.yaml", "--push", "targets")[0] == 0
        hub.requests.clear()
        code, out, _ = command("cache", "recipe.yaml", "--push", "targets")
        assert code == 0
        assert out.splitlines()[-1] == (
            f"Nothing to push, {NAME} holds these soft targets already: {hub.url}/datasets/{NAME}/tree/main"
        )
        assert {"commit", "preupload"}.isdisjoint(hub.steps())

    def test_more_rows_are_one_more_commit_and_what_users_wrote_stays(self, hub, here):
        """Text of the owner's lost; soft targets of before that stay beside the new ones, twice."""
        share()
        text = files(hub)["README.md"].decode()
        hub.write(NAME, {"README.md": (text + "\nMine.\n").encode(), "notes.txt": b"x"}, kind="datasets")
        shutil.rmtree(TARGETS)
        lines = Path("data/train.jsonl").read_text().splitlines()
        Path("data/train.jsonl").write_text("\n".join([*lines, json.dumps({"text": "very good", "label": "positive"})]))
        shutil.rmtree("out")
        cache_soft_targets(load_recipe("recipe.yaml", [ON]), "sentences")
        done = share()
        assert len(done.removed) == 1
        assert "(teachers.0.weights is" in done.notes[0]  # it was trained again, on one row more
        assert files(hub)["README.md"].endswith(b"\nMine.\n")
        assert files(hub)["notes.txt"] == b"x"
        assert {name for name in files(hub) if name.endswith(".safetensors")} == {
            path.name for path in Path(TARGETS).glob("*.safetensors")
        }
        assert len(shares(hub)) == 2

    @pytest.mark.parametrize("create_pr", [False, True])
    def test_what_takes_the_place_of_another_teachers_is_told(self, hub, here, command, create_pr):
        """The work of a night gone from main, and a name of a file as the only trace."""
        first = share()
        assert first.notes == ()
        key = json.loads(Path(TARGETS, "key.json").read_text())
        key["about"]["torch"] = "another"
        Path(TARGETS, "key.json").write_text(json.dumps(key))
        writer = ShardWriter(Path(TARGETS), StorageFormat("float16", None, token_level=False, temperature=1.0))
        writer.add(np.zeros((1, 16), np.uint8), [np.zeros((1, 2), np.float32)])
        writer.flush()
        first = share()
        assert (len(first.files), first.notes) == (3, ())  # key.json, README.md and one file of soft targets more
        tiny.bert(7, id2label={0: "negative", 1: "positive"}).save_pretrained("base")
        for folder in ("out", TARGETS):
            shutil.rmtree(folder, ignore_errors=True)
        code, _, err = command("cache", "recipe.yaml", "--push", NAME, *["--create-pr"] * create_pr)
        assert code == 0
        (note,) = (line for line in err.splitlines() if line.startswith("note: this replaces"))
        assert note.startswith(
            "note: this replaces soft targets of another teacher, or made in another way (teachers.0."
        )
        assert 'teachers.0.weights is "' in note
        assert note.endswith(f'..." here); commit {first.commit[:8]} still holds them')
        if not create_pr:
            assert share().notes == ()

    @pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]"])
    def test_a_key_there_that_nobody_can_read_is_replaced_and_told(self, hub, here, content):
        """A data set that no push can mend."""
        share()
        spoiled = hub.write(NAME, {"key.json": content}, kind="datasets")
        (remark,) = share().notes
        assert f"; commit {spoiled.oid[:8]} still holds them" in remark.replace(")", "")
        run(taught())

    def test_a_data_set_of_others_is_not_replaced(self, hub, here, command):
        """A typo in the name, and a data set is gone from main."""
        hub.write(NAME, {"train.parquet": b"rows", "README.md": b"Mine\n"}, kind="datasets")
        code, _, err = command("cache", "recipe.yaml", "--push", NAME)
        assert code == 2
        assert err.startswith(
            f"error: the name {NAME} is taken by a data set that hf-distill has not made (train.parquet)"
        )
        with pytest.raises(ValueError, match="by a data set that hf-distill has not made"):
            share()
        assert shares(hub) == []
        assert command("cache", "recipe.yaml", "--push", NAME, "--overwrite")[0] == 0
        assert files(hub)["train.parquet"] == b"rows"
        assert b"Mine\n" in files(hub)["README.md"]
        run(taught())

    def test_a_pull_request_leaves_main(self, hub, here, command):
        """Soft targets pushed to main of a data set that is others'."""
        hub.write(NAME, {"train.parquet": b"rows"}, kind="datasets")
        code, out, _ = command("cache", "recipe.yaml", "--push", NAME, "--create-pr")
        assert code == 0
        assert shares(hub) == []
        (proposal,) = shares(hub, revision="refs/pr/1")
        page = f"{hub.url}/datasets/{NAME}/discussions/1"
        number = len(files(hub, revision="refs/pr/1")) - len(files(hub))
        assert out.splitlines()[-1] == f"{number} files proposed to {NAME} in commit {proposal.oid[:8]}: {page}"

    def test_a_dry_run_lists_what_would_go_out_and_asks_nobody(self, hub, here, command):
        """A look before the push that makes a data set, or shows other files than the push sends."""
        code, out, _ = command("cache", "recipe.yaml", "--push", NAME, "--dry-run")
        assert code == 0
        assert hub.requests == []
        *listed, total = (line.split() for line in out.split("s).\n")[1].splitlines())
        share()
        sent = {name: len(content) for name, content in files(hub).items() if name != ".gitattributes"}
        assert {name: size for size, name in listed} == {name: f"{size:,}" for name, size in sent.items()}
        assert total == [f"{sum(sent.values()):,}", "bytes", "in", str(len(sent)), "files", "would", "go", "to", NAME]

    def test_a_data_set_with_a_card_alone_is_filled(self, hub, here):
        """One is made by hand first, to choose a license."""
        hub.write(NAME, {"README.md": b"---\nlicense: mit\n---\n"}, kind="datasets")
        share()
        assert "license: mit" in files(hub)["README.md"].decode()


class TestPushFaults:
    @pytest.mark.parametrize(
        ("step", "kind"),
        [
            ("commit", "lost"),
            ("commit", 503),
            ("lfs_put", 500),
            ("create_repo", "lost"),
            ("tree", 503),
            ("whoami", 503),
            ("model_info", "drop"),
        ],
    )
    def test_one_commit_whatever_happens_on_the_way(self, hub, here, step, kind):
        """Two commits of one thing, or none."""
        hub.fault(step, kind)
        share()
        assert len(shares(hub)) == 1
        assert share().files == ()
        assert len(shares(hub)) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("step", "seen"), [("lfs_put", 0), ("commit", 1)])
    def test_killed_on_the_way_all_of_it_is_seen_or_nothing_and_the_same_command_ends_it(self, hub, here, step, seen):
        """Shards without a key in main; or two commits of one thing."""
        process: list[subprocess.Popen] = []
        hub.fault(step, lambda: (process[0].send_signal(signal.SIGKILL), process[0].wait()))
        command = [sys.executable, "-m", "hf_distill", "cache", "recipe.yaml", "--push", NAME]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process.append(subprocess.Popen(command, env=hub.environment, **silent))
        assert process[0].wait() == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while step not in hub.steps() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(shares(hub)) == seen
        share()
        assert len(shares(hub)) == 1
        run(taught())

    def test_somebody_else_has_changed_it_meanwhile(self, hub, here):
        """Their change reverted."""
        share()
        hub.add_user("bob")
        hub.fault(
            "commit", lambda: hub.write(NAME, {"notes.txt": b"x"}, title="Say more", author="bob", kind="datasets")
        )
        info = json.loads(Path(TARGETS, "teacher.json").read_text())
        Path(TARGETS, "teacher.json").write_text(json.dumps({**info, "seed": 7}))
        with pytest.raises(HubError, match=r"bob \('Say more'.*Push again to put the soft targets on top of that"):
            share()
        assert files(hub)["notes.txt"] == b"x"
        share()
        assert len(shares(hub)) == 2

    def test_damaged_ones_do_not_go_out(self, hub, here, command):
        """Everybody's students refused, and the owner's machine alone could mend it."""
        (shard,) = Path(TARGETS).glob("*.safetensors")
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"in {TARGETS} {shard.name} is damaged, so nothing was pushed: `hf-distill"
        ):
            share()
        assert ("datasets", NAME) not in hub.repos
        assert command("cache", "recipe.yaml", "--push", NAME)[0] == 0
        run(taught())

    def test_who_may_not_write_is_told_before_the_teacher_is_asked(self, hub, here, command, monkeypatch):
        """A night of the teacher's answers, and then an error about rights."""
        shutil.rmtree(TARGETS)
        monkeypatch.setenv("HF_TOKEN", hub.add_user("bob", role="read"))
        code, _, err = command("cache", "recipe.yaml", "--push", NAME)
        assert code == 2
        assert "the token of bob may only read" in err
        assert not Path(TARGETS).exists()

    def test_a_data_set_of_others_may_not_be_changed(self, hub, here):
        """A traceback."""
        hub.add_user("bob")
        hub.write("bob/targets", {"README.md": b"His\n"}, author="bob", kind="datasets")
        with pytest.raises(HubError, match=r"403, .*: the token of ada may not do that"):
            share("bob/targets")

    def test_a_name_of_this_machine_stops_it(self, hub, here, monkeypatch):
        """The owner's name in public."""
        monkeypatch.setenv("LOGNAME", "grace")
        info = json.loads(Path(TARGETS, "teacher.json").read_text())
        info["teachers"][0]["words"] = "`grace-bert`"
        Path(TARGETS, "teacher.json").write_text(json.dumps(info))
        with pytest.raises(ValueError, match=r"push stopped, secrets found: teacher.json, line \d+: the"):
            share()
        assert ("datasets", NAME) not in hub.repos


class TestDownloadFaults:
    """Each ends before anything is computed, in words with a remedy."""

    def test_there_is_none_of_that_name(self, hub, here):
        """Words about a model that is none."""
        assert refusal(taught()).startswith(
            f"teacher.logits: the Hub does not give the data set {NAME}: there is none of that name, or the token may"
        )

    def test_another_revision(self, hub, here):
        """`main` in its place."""
        share()
        message = refusal(taught(teacher={"logits": NAME, "revision": "nightly"}))
        assert message.endswith("it has no such branch, tag or commit (teacher.revision)")

    def test_a_data_set_that_is_none_of_ours(self, hub, here):
        """Any safetensors taken for soft targets."""
        hub.write(NAME, {"data.safetensors": b"x", "README.md": b"x"}, kind="datasets")
        assert refusal(taught()).startswith(f"teacher.logits: {NAME} has no key.json, so it holds no soft targets")

    def test_a_key_without_soft_targets(self, hub, here):
        """A run in which all rows are missing."""
        share()
        kept = {name: content for name, content in files(hub).items() if name.endswith(".json")}
        hub.write("ada/empty", kept, kind="datasets")
        assert "ada/empty has a key.json, and no soft targets beside it" in refusal(
            taught(teacher={"logits": "ada/empty"})
        )

    def test_a_damaged_file_is_named(self, hub, here):
        """Soft targets that nobody has given."""
        share()
        (name,) = (name for name in files(hub) if name.endswith(".safetensors"))
        hub.write(NAME, {name: files(hub)[name][:-1] + b"?"}, kind="datasets")
        message = refusal(taught())
        assert message.startswith(f"teacher.logits: of {NAME} {name} is damaged, not what the name says: delete ")
        assert message.endswith("if it is so there too, its owner must push it anew")

    @pytest.mark.parametrize("status", [401, 403])
    def test_who_may_not_read_it(self, hub, here, status):
        """A traceback of the client's."""
        share()
        for step in ("model_info", "tree", "resolve"):
            hub.fault(step, status, times=None)
        assert "or the token may not see it: look whether the name is right" in refusal(taught())

    def test_its_owner_lets_in_some(self, hub, here):
        """An error about a name that is right."""
        share()

        def gated(*_: object) -> None:
            raise Refused(403, "Access to this data set is restricted", "GatedRepo")

        hub.readable = gated
        message = refusal(taught())
        assert message.endswith("ask on its page, and log in with `hf auth login` or set HF_TOKEN")

    def test_the_hub_is_away(self, hub, here, command):
        """`check` of a good recipe that fails for want of a network; `train` that goes on without a teacher."""
        share()
        for step in hub.known_steps:
            hub.fault(step, "drop", times=None)
        assert command("check", recipe_file(taught(), "taught.yaml"))[0] == 2  # as `train` would end
        code, out, _ = command("check", "taught.yaml", "--no-data")
        assert code == 0
        assert f"the data set {NAME} is not in the cache, and the Hub cannot be reached" in out
        assert "cannot be reached" in refusal(taught())
