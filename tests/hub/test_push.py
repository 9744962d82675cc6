"""Pushing a run to a Hub, by the genuine client over a socket, whatever goes wrong on the way."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model
from PIL import Image
from pushing import NAME, changed, push, pushes, state, write_digits_recipe
from sklearn.datasets import load_digits
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, pipeline

from hf_distill.evaluation.results import Results
from hf_distill.hub.client import HubClient, HubError
from hf_distill.hub.readme import BEGIN
from hf_distill.runs.recipe.reading import load_recipe, to_yaml
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.train import distill

pytest_plugins = ["pushing_fixture"]
pytestmark = pytest.mark.usefixtures("left_alone", "no_waiting")

FILES = 8
TEXT = "\n## For whom\r\n\nMine, with  two spaces, a tab\tand `---`.\n"


def images(count: int = 30) -> list[Image.Image]:
    return [Image.fromarray((digit * 15.9).astype("uint8")).convert("RGB") for digit in load_digits().images[:count]]


def predictions(folder: str, **options) -> list[tuple[str, float]]:
    classify = pipeline("image-classification", model=folder, device="cpu", **options)
    return [(best["label"], best["score"]) for (best, *_) in classify(images())]


class TestAndBack:
    """What was pushed is what was trained."""

    @pytest.mark.slow
    def test_pushed_by_the_real_program_deleted_here_and_loaded_by_pipeline(self, hub, run):
        """Weights without their labels or processor load, and answer something else."""
        before = predictions(str(run / "student"))
        ended = subprocess.run(
            [sys.executable, "-m", "hf_distill", "push", "run", "--repo-id", NAME],
            capture_output=True,
            text=True,
            check=False,
            env=hub.environment,
        )
        assert ended.returncode == 0, ended.stderr
        (commit,) = pushes(hub)
        assert (
            ended.stdout == f"{FILES} files pushed to {NAME} in commit {commit.oid[:8]}: {hub.url}/{NAME}/tree/main\n"
        )
        shutil.rmtree(run)
        assert predictions(NAME) == before
        assert predictions(NAME, revision=commit.oid) == before
        assert len({label for label, _ in before}) > 5

    def test_a_private_repository_is_its_owners_alone(self, hub, trained):
        """Everybody's for the moment between its making and a change of its settings."""
        done = push(trained, private=True)
        assert hub.repo(NAME).private
        AutoModelForImageClassification.from_pretrained(NAME, revision=done.commit)
        bob = hub.add_user("bob")
        with pytest.raises(OSError, match="not a valid model identifier"):
            AutoModelForImageClassification.from_pretrained(NAME, token=bob, force_download=True)
        with pytest.raises(HubError, match="404, Repository not found"):
            HubClient(bob).ask("tell", lambda: HubClient(bob).api.model_info(NAME))

    def test_a_repository_that_is_public_is_not_taken_for_a_private_one(self, hub, trained):
        """What was to be private is seen by everybody."""
        hub.write(NAME, {"README.md": b"mine"})
        with pytest.raises(ValueError, match=f"{NAME} is there already and public: make it private in its settings"):
            push(trained, private=True)
        assert pushes(hub) == []

    def test_a_branch_is_made_and_main_stays(self, hub, run):
        """A trial that replaced the model that others use."""
        first = push(run)
        again = push(changed(run, 7), revision="trial")
        assert hub.commits(NAME)[0].oid == first.commit
        assert hub.commits(NAME, "trial")[0].oid == again.commit
        assert hub.commits(NAME, "trial")[1].oid == first.commit
        assert json.loads(hub.files(NAME, "trial")["results.json"])["environment"]["hardware"] == "7 abaci"
        assert set(again.files) == {"README.md", "results.json"}
        assert again.url == f"{hub.url}/{NAME}/tree/trial"
        AutoModelForImageClassification.from_pretrained(NAME, revision="trial")
        assert push(run, revision="trial").files == ()

    def test_a_branch_of_what_is_there_already_is_made_without_a_commit(self, hub, trained):
        """No branch, since there was nothing to commit."""
        first = push(trained)
        assert push(trained, revision="v1").commit == first.commit
        assert hub.repo(NAME).branches["v1"] == first.commit

    def test_a_pull_request_leaves_main(self, hub, trained):
        """A proposal that is merged by the way."""
        hub.write(NAME, {"README.md": b"Mine\n"}, author="ada")
        head = hub.commits(NAME)[0].oid
        done = push(trained, create_pr=True)
        (request,) = hub.repo(NAME).discussions
        assert done.pull_request == f"{hub.url}/{NAME}/discussions/{request.num}"
        assert hub.commits(NAME)[0].oid == head
        assert predictions(NAME, revision="refs/pr/1") == predictions(str(trained / "student"))
        assert b"Mine\n" in hub.files(NAME, "refs/pr/1")["README.md"]

    @pytest.mark.parametrize("fault", ["lost", 503])
    def test_a_pull_request_that_may_have_been_opened_is_not_opened_again(self, hub, trained, fault):
        """Two proposals of one student, since the first reply was lost."""
        hub.write(NAME, {"README.md": b"Mine\n"}, author="ada")
        hub.fault("commit", fault)
        with pytest.raises(HubError, match="may have opened it: look there before pushing again"):
            push(trained, create_pr=True)
        assert len(hub.repo(NAME).discussions) == (1 if fault == "lost" else 0)

    def test_a_pull_request_to_a_repository_of_others(self, hub, trained):
        """Who may not write may propose."""
        hub.add_user("bob")
        hub.write("bob/digits", {"README.md": b"His\n"}, author="bob")
        with pytest.raises(HubError, match=r"403, .*: the token of ada may not do that"):
            push(trained, "bob/digits")
        assert push(trained, "bob/digits", create_pr=True).pull_request == f"{hub.url}/bob/digits/discussions/1"

    def test_it_teaches_by_its_pinned_commit(self, hub, run, tmp_path):
        """A teacher whose `main` moves between two runs of one recipe."""
        done = push(run)
        hub.write(NAME, {"model.safetensors": b"no weights"}, author="ada")
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe |= {"teacher": {"model": NAME, "revision": done.commit}, "output_dir": "out", "baseline": False}
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        results = distill(load_recipe("recipe.yaml"), "second")
        assert results.teacher.metrics == json.loads((run / "results.json").read_text())["student"]["metrics"]
        assert results.lineage["teachers"][0]["model"] == NAME
        assert results.lineage["teachers"][0]["revision"] == done.commit
        second = push(Path("out"), "ada/second")
        assert f"base_model: {NAME}" in hub.files("ada/second")["README.md"].decode()
        assert second.notes == ()
        (license_conflict,) = second.license_warnings
        assert license_conflict.startswith(f"teacher `{NAME}`: its license is not known")

    def test_the_card_is_one_that_the_hub_accepts(self, hub, trained):
        """Metadata that are refused after everything was uploaded."""
        push(trained)
        card = ModelCard.load(NAME)
        card.validate()
        assert {"knowledge-distillation", "distillation"} <= set(card.data.tags)


class TestAgain:
    """The same push a second time, and the next one."""

    def test_what_is_there_is_not_sent_again(self, hub, trained, command):
        """A history full of commits that change nothing."""
        first = push(trained)
        hub.requests.clear()
        code, out, err = command("push", trained, "--repo-id", "digits")
        assert (code, err) == (0, "")
        assert out == f"Nothing to push, {NAME} holds this student already: {hub.url}/{NAME}/tree/main\n"
        assert {"commit", "preupload"}.isdisjoint(hub.steps())
        assert hub.commits(NAME)[0].oid == first.commit

    def test_ten_pushes_keep_the_text_of_the_readme(self, hub, run):
        """A line of the user's lost, doubled, or with other ends of lines; one added on the Hub meanwhile, too."""
        hub.write(NAME, {"README.md": f"---\nlicense: mit\nmine: kept\n---\n# Digits\n{TEXT}".encode()}, author="ada")
        for number in range(10):
            push(changed(run, number))
            card = hub.files(NAME)["README.md"]
            assert TEXT.encode() in card
            assert card.count(b"# Digits\n") == 1
            assert card.count(BEGIN.encode()) == 1
            hub.write(NAME, {"README.md": card + f"line {number}\r\n".encode()}, author="ada")
        push(run)
        card = hub.files(NAME)["README.md"].decode()
        assert card.endswith("".join(f"line {number}\r\n" for number in range(10)))
        assert "license: mit" in card
        assert "mine: kept" in card
        assert "9 abaci" in card
        assert len(pushes(hub)) == 10

    def test_text_that_is_here_and_another_that_is_there(self, hub, run):
        """One of the two replaced in silence."""
        push(run)
        card = run / "student" / "README.md"
        card.write_text(card.read_text() + "\nHere.\n")
        push(run)
        assert hub.files(NAME)["README.md"].endswith(b"\nHere.\n")
        hub.write(NAME, {"README.md": hub.files(NAME)["README.md"].replace(b"Here.", b"There.")}, author="ada")
        for number in range(2):
            push(changed(run, number))
            assert hub.files(NAME)["README.md"].endswith(b"\nThere.\n\nHere.\n")

    def test_what_another_student_left_is_removed_and_the_users_files_are_not(self, hub, run):
        """An adapter or a tokenizer of the last student, which is loaded in place of this one's weights."""
        push(run)
        left = {"adapter_config.json": b"{}", "tokenizer.json": b"{}", "model-00001-of-00002.safetensors": b"x"}
        kept = {"notes.txt": b"x", "onnx/config.json": b"{}", "half/model-2.safetensors": b"x"}
        hub.write(NAME, {**left, **kept}, author="ada")
        done = push(run)
        assert set(done.removed) == set(left)
        assert set(hub.files(NAME)) >= set(kept)
        assert not set(hub.files(NAME)) & set(left)
        assert len(pushes(hub)) == 2


class TestTheNameIsTaken:
    """A repository with somebody's work in it."""

    def test_a_model_of_others_is_not_replaced(self, hub, trained, command):
        """A typo in the name, and a model is gone from main."""
        hub.write(NAME, {"README.md": b"Mine\n", "model.safetensors": b"weights"}, author="ada")
        code, out, err = command("push", trained, "--repo-id", NAME)
        assert (code, out) == (2, "")
        assert err.startswith(
            f"error: the name {NAME} is taken by a model that hf-distill has not made (model.safetens"
        )
        assert all(remedy in err for remedy in ("choose another", "--create-pr", "--overwrite"))
        assert pushes(hub) == []
        assert push(trained, create_pr=True).pull_request is not None
        assert hub.files(NAME)["model.safetensors"] == b"weights"
        code, out, _ = command("push", trained, "--repo-id", NAME, "--overwrite")
        assert code == 0
        assert hub.files(NAME)["model.safetensors"] == (trained / "student" / "model.safetensors").read_bytes()
        assert b"Mine\n" in hub.files(NAME)["README.md"]

    @pytest.mark.parametrize("there", [{}, {"README.md": b"---\nlicense: mit\n---\n"}, {"notes.txt": b"x"}])
    def test_a_repository_without_a_model_is_filled(self, hub, trained, there):
        """One is made by hand first, on the Hub's page, to choose a license."""
        hub.write(NAME, there, author="ada")
        assert len(push(trained).files) == FILES
        assert len(pushes(hub)) == 1


class TestRefusals:
    """Each is a line with its remedy, exit code 2, and nothing sent."""

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("a b", "'a b' can be no repository's name: expected name or namespace/name"),
            ("x--y", "'x--y' can be no repository's name"),
            ("models/ada/x", "'models/ada/x' can be no repository's name"),
            ("", "'' can be no repository's name"),
        ],
    )
    def test_a_name_that_is_none(self, hub, trained, command, name, words):
        """The Hub's own words come after the upload."""
        code, out, err = command("push", trained, "--repo-id", name)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {words}")
        assert hub.requests == []

    def test_options_that_exclude_each_other(self, hub, trained, command):
        """A branch that was named and is not where the student lands."""
        code, _, err = command("push", trained, "--repo-id", NAME, "--create-pr", "--revision", "x")
        assert (code, err) == (2, "error: a pull request goes to main: leave out create_pr, or the revision 'x'")
        code, _, err = command("push", trained, "--repo-id", NAME, "--revision", "ab" * 20)
        assert code == 2
        assert err.endswith("is a commit, and nothing is added to one: name a branch")

    def test_a_tag_is_no_branch(self, hub, trained):
        """A branch of a tag's name shadows it."""
        done = push(trained)
        HubClient().api.create_tag(NAME, tag="v1", revision=done.commit)
        with pytest.raises(ValueError, match=f"v1 is a tag of {NAME}, and tags do not move: name a branch"):
            push(trained, revision="v1")

    def test_no_token(self, hub, trained, command, monkeypatch):
        """An upload that ends in an error about an unknown repository."""
        monkeypatch.delenv("HF_TOKEN")
        code, _, err = command("push", trained, "--repo-id", NAME)
        assert (code, err) == (
            2,
            "error: there is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN",
        )
        assert hub.requests == []

    def test_a_token_that_cannot_be_fetched(self, hub, trained, command, monkeypatch):
        """A continuous integration without the right to ask for one, and a traceback."""
        monkeypatch.setenv("HF_OIDC_RESOURCE", NAME)
        code, _, err = command("push", trained, "--repo-id", NAME)
        assert code == 2
        assert err.startswith("error: the Hub did not give a token: ")
        assert "Traceback" not in err

    def test_a_wrong_token(self, hub, trained, command, monkeypatch):
        """The token itself in the message, and from there in a log."""
        monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)
        code, _, err = command("push", trained, "--repo-id", NAME)
        assert code == 2
        assert err.startswith("error: the Hub did not tell whose token this is: 401, ")
        assert err.endswith(": log in again with `hf auth login`, or set HF_TOKEN to a valid token")
        assert "wrong" not in err
        assert err.count("\n") == 0

    def test_a_token_that_may_only_read(self, hub, trained, command, monkeypatch):
        """Found out after the upload."""
        monkeypatch.setenv("HF_TOKEN", hub.add_user("bob", role="read"))
        code, _, err = command("push", trained, "--repo-id", "digits")
        assert code == 2
        assert err.startswith("error: the token of bob may only read: make one that may write at ")
        assert hub.steps() == ["whoami"]

    def test_a_namespace_of_others(self, hub, trained, command):
        """Which one of the two names is wrong."""
        hub.add_user("bob")
        code, _, err = command("push", trained, "--repo-id", "bob/digits")
        assert code == 2
        assert err.startswith("error: the Hub did not make bob/digits: 403, ")
        assert err.endswith(": the token of ada may not do that; use one that may, or another name")

    def test_offline(self, hub, trained, command, monkeypatch):
        """`HF_HUB_OFFLINE` from another day's work, and a traceback about a connection."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        code, _, err = command("push", trained, "--repo-id", NAME)
        assert (code, err) == (2, "error: HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it")

    def test_no_hub_at_all(self, hub, trained, command, monkeypatch):
        """A traceback for a cable that is unplugged."""
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        code, _, err = command("push", trained, "--repo-id", NAME)
        assert code == 2
        assert err.startswith("error: the Hub did not tell whose token this is: no reply (")
        assert err.endswith("): try again later")

    def test_metadata_that_the_hub_refuses(self, hub, trained, command):
        """The user's own, from the README there: ours are tested elsewhere."""
        hub.write(NAME, {"README.md": b"---\nlicense: no-such-license\n---\nMine\n"}, author="ada")
        code, _, err = command("push", trained, "--repo-id", NAME)
        assert code == 2
        assert err.startswith(f"error: the Hub did not take the commit to {NAME}: Invalid metadata in README.md")
        assert "license" in err
        assert err.count("\n") == 0
        assert pushes(hub) == []

    @pytest.mark.parametrize("where", ["here", "there"])
    def test_a_readme_whose_marks_are_broken(self, hub, run, command, where):
        """A section of ours in the middle of the user's text, and no way to tell where it ends."""
        push(run)
        broken = (hub.files(NAME)["README.md"].decode() + f"\n{BEGIN}\n").encode()
        if where == "here":
            (run / "student" / "README.md").write_bytes(broken)
        else:
            hub.write(NAME, {"README.md": broken}, author="ada")
        code, _, err = command("push", changed(run, 1), "--repo-id", NAME)
        assert code == 2
        assert err.startswith(
            f"error: {'run' if where == 'here' else f'run or, on the Hub, {NAME}'}: README.md: expected"
        )
        assert len(pushes(hub)) == 1

    def test_a_dry_run_lists_what_would_go_and_asks_nobody(self, hub, trained, command, monkeypatch):
        """A rehearsal that makes the repository."""
        monkeypatch.delenv("HF_TOKEN")
        code, out, err = command("push", trained, "--repo-id", "digits", "--dry-run")
        assert (code, err) == (0, "")
        *files, total = out.splitlines()
        sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in files}
        assert len(sizes) == FILES
        assert sizes["model.safetensors"] == (trained / "student" / "model.safetensors").stat().st_size
        assert total.split() == [f"{sum(sizes.values()):,}", *f"bytes in {FILES} files would go to digits".split()]
        assert hub.requests == []

    def test_secrets_stop_it_before_anything_is_asked(self, hub, run, command):
        """A key that was public for a minute is a key that is lost."""
        (run / "student" / "notes.txt").write_text(f"key: {hub.token}\n")
        for options in ([], ["--dry-run"]):
            code, out, err = command("push", run, "--repo-id", NAME, *options)
            assert (code, out) == (2, "")
            assert err.startswith("error: push stopped, secrets found: notes.txt, line 1: ")
            assert hub.token not in err
        assert hub.requests == []
        assert hub.repos == {}


class TestAdapter:
    """A student that is a few weights on top of a model of others."""

    @pytest.fixture
    def adapter(self, hub, trained) -> Path:
        """Return a run whose student is an adapter, of a base that is on the Hub."""
        names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        tiny.bert(**names).save_pretrained("base")
        tiny.tokenizer().save_pretrained("base")
        HubClient().api.create_repo("ada/base")
        HubClient().api.upload_folder(repo_id="ada/base", folder_path="base")
        base = AutoModelForSequenceClassification.from_pretrained("ada/base")
        model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter)
        run = Path("adapter")
        model.save_pretrained(run / "student")
        tiny.tokenizer().save_pretrained(run / "student")
        task = "text-classification"
        recipe = {"task": task, "data": {"dataset": "ada/films"}, "output_dir": "adapter"}
        recipe |= {"teacher": {"model": "ada/base"}, "student": {"model": "ada/base"}}
        (run / "recipe.yaml").write_text(to_yaml(Recipe.model_validate(recipe)))
        results = replace(Results.read(trained), task=task, recipe="films")
        (run / "results.json").write_text(results.to_json())
        return run

    def test_pushed_deleted_here_and_loaded_by_pipeline(self, hub, adapter):
        """A base that is looked for where it was on this machine."""
        texts = ["a good film", "a bad film", "the film"]
        before = pipeline("text-classification", model="adapter/student", device="cpu")(texts)
        assert len({round(one["score"], 4) for one in before}) == 3
        base = pipeline("text-classification", model="ada/base", device="cpu")(texts)
        done = push(adapter, "ada/films")
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= set(done.files)
        shutil.rmtree(adapter)
        shutil.rmtree("base")
        assert pipeline("text-classification", model="ada/films", device="cpu")(texts) == before
        assert before != base


class TestVerify:
    """`card --verify`: are the figures of a published card those of its results?"""

    def test_a_card_as_it_was_pushed_agrees(self, hub, trained, command):
        """A check that finds differences where there are none."""
        done = push(trained)
        code, out, err = command("card", "--verify", NAME)
        assert (code, err) == (0, "")
        assert out == f"The numbers in the card of {NAME} are those of its results.json.\n"
        assert command("card", "--verify", NAME, "--revision", done.commit)[0] == 0

    def test_a_number_that_was_changed_is_named_and_the_exit_code_is_one(self, hub, trained, command):
        """A figure made better by hand."""
        done = push(trained)
        accuracy = json.loads((trained / "results.json").read_text())["student"]["metrics"]["accuracy"]
        card = hub.files(NAME)["README.md"].decode()
        hub.write(NAME, {"README.md": card.replace(f"{accuracy:.4f}", "0.9999").encode()}, author="ada")
        code, out, err = command("card", "--verify", NAME)
        assert (code, err) == (1, "")
        assert f"student accuracy: the card says 0.9999, results.json {accuracy:.4f}" in out.splitlines()
        assert command("card", "--verify", NAME, "--revision", done.commit)[0] == 0

    def test_what_is_not_there_is_a_line(self, hub, command, monkeypatch):
        """A traceback for a typo; or a stranger told to check a token that he has not got."""
        code, _, err = command("card", "--verify", "ada/nothing")
        assert code == 2
        assert err.startswith(
            "error: the Hub did not tell of ada/nothing: 404, Repository not found: look whether the name"
        )
        hub.write(NAME, {"README.md": b"Mine\n"}, author="ada")
        code, _, err = command("card", "--verify", NAME)
        assert code == 2
        assert err.startswith(f"error: the Hub did not give results.json of {NAME}: 404, ")
        hub.repo(NAME).private = True
        monkeypatch.delenv("HF_TOKEN")
        code, _, err = command("card", "--verify", NAME)
        assert code == 2
        assert err.endswith("look whether the name is right; if it is private, log in with `hf auth login`")

    @pytest.mark.parametrize("arguments", [[], ["run", "--verify", NAME], ["--verify", NAME, "--repo-id", "x"]])
    def test_either_a_run_or_a_name(self, hub, command, arguments):
        """An option that has no effect."""
        code, _, err = command("card", *arguments)
        assert code == 2
        assert err.startswith("error: expected RUN, to make its card, or --verify NAME alone")


class TestRecipe:
    """`hub` in a recipe: `train` publishes at its end."""

    @pytest.mark.slow
    def test_train_publishes_and_again_only_what_is_new(self, hub, command):
        """A student that nobody has published; or a commit each time that somebody looks at the results."""
        write_digits_recipe(Path("x.yaml"), hub={"repo_id": "digits", "private": True})
        code, out, _ = command("check", "x.yaml")
        assert code == 0
        assert "hub the student to digits, private if it is new" in " ".join(out.split())
        assert hub.requests == []
        code, out, err = command("train", "x.yaml")
        assert (code, err) == (0, "")
        (commit,) = pushes(hub)
        assert (
            out.splitlines()[-1] == f"8 files pushed to {NAME} in commit {commit.oid[:8]}: {hub.url}/{NAME}/tree/main"
        )
        assert hub.repo(NAME).private
        assert "hub:" not in hub.files(NAME)["recipe.yaml"].decode().replace("hub: null", "")
        assert "hub." not in hub.files(NAME)["README.md"].decode()
        before = state(Path("out/student"))
        code, out, _ = command("train", "x.yaml")
        assert code == 0
        assert out.splitlines()[-1].startswith(f"Nothing to push, {NAME} holds this student already")
        code, out, _ = command("train", "x.yaml", "hub.repo_id=again")
        assert code == 0
        assert len(pushes(hub, "ada/again")) == 1
        assert {name: content for name, (content, _) in before.items()} == {
            name: content for name, (content, _) in state(Path("out/student")).items()
        }

    @pytest.mark.slow
    def test_a_push_that_fails_leaves_a_whole_run_and_the_command_for_it(self, hub, command):
        """Hours of training that seem lost, and a table that was never shown."""
        write_digits_recipe(Path("x.yaml"), hub={"repo_id": "digits", "create_pr": True}, output_dir="a run")
        hub.fault("commit", 403)
        code, out, err = command("train", "x.yaml")
        assert code == 2
        assert 'pipeline("image-classification", "a run/student")' in out
        first, second = err.splitlines()
        assert first.startswith(f"error: the Hub did not take the commit to {NAME}: 403, ")
        words, again = second.split(" to try that again: ")
        assert words == "error: the run is whole, and was not published;"
        assert again == "hf-distill push 'a run' --repo-id digits --create-pr"
        code, out, _ = command(*shlex.split(again)[1:])
        assert code == 0
        assert out.startswith(f"8 files proposed to {NAME}")

    @pytest.mark.parametrize(
        ("trouble", "words"),
        [
            ("token", "error: the Hub did not tell whose token this is: 401, "),
            ("no token", "error: there is no token for the Hub"),
            ("offline", "error: HF_HUB_OFFLINE is set"),
            ("taken", f"error: the name {NAME} is taken by a model that hf-distill has not made"),
        ],
    )
    def test_what_makes_it_impossible_is_found_before_anything_is_computed(
        self, hub, command, monkeypatch, trouble, words
    ):
        """A night of training, and then no right to publish."""
        write_digits_recipe(Path("x.yaml"), hub={"repo_id": "digits"})
        if trouble == "token":
            monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        elif trouble == "no token":
            monkeypatch.delenv("HF_TOKEN")
        elif trouble == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            hub.write(NAME, {"pytorch_model.bin": b"weights"}, author="ada")
        code, out, err = command("train", "x.yaml")
        assert (code, out) == (2, "")
        assert err.startswith(words)
        assert not Path("out").exists()
        assert pushes(hub) == []

    def test_mistakes_in_it_are_found_with_all_others(self, hub, command):
        """One start of the program for each; or a token in a file that is published."""
        write_digits_recipe(Path("x.yaml"), hub={"repo_id": "a b", "privat": True})
        code, _, err = command("check", "x.yaml", "training.hub_token=x", "training.hub_model_id=y", "training.alpha=2")
        assert code == 2
        lines = [line.removeprefix("error: x.yaml: ") for line in err.splitlines()]
        assert [line.split(":")[0] for line in lines] == [
            *("hub.privat", "training.hub_token", "training.hub_model_id", "training.alpha")
        ]
        assert "did you mean private?" in lines[0]
        assert "is a secret, and a recipe is published: log in with `hf auth login`" in lines[1]
        assert "name the repository at the top of the recipe, hub: {repo_id: ...}" in lines[2]
        code, _, err = command("check", "x.yaml", "hub={repo_id: a b}")
        assert (code, err.startswith("error: x.yaml: hub: 'a b' can be no repository's name")) == (2, True)
