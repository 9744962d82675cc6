"""What must not go out, and what looks like it and may."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_distill.hub.files import Outgoing
from hf_distill.hub.secrets import machine_names, scan

HF_TOKEN = "hf_" + "abcdEFGH1234" * 3
KEYS = {
    "a Hugging Face token": HF_TOKEN,
    "an AWS key": "AKIA" + "ABCDEFGH12345678",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "an API key": "sk-proj-" + "a1B2" * 8,
    "a signed token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2ln",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password": "https://marlene:opensesame@example.org/data.csv",
}
PATH = "a path of a machine"
NAME = "the name of this machine's user"


@pytest.fixture(autouse=True)
def _marlene(monkeypatch):
    """Let this machine belong to somebody."""
    monkeypatch.setenv("LOGNAME", "marlene")
    monkeypatch.setenv("HOME", "/home/marlene")


def kinds(text: str, name: str = "notes.md", **options) -> set[str]:
    return {finding.kind for finding in scan([Outgoing(name, text.encode())], **options)}


@pytest.mark.parametrize(("kind", "secret"), KEYS.items())
@pytest.mark.parametrize("name", ["config.json", "README.md", "recipe.yaml", "tokenizer.json", "vocab.txt", "mlp.py"])
def test_keys_are_found_wherever_they_stand_and_never_repeated(kind, secret, name):
    """A key that is published is used within minutes; one in the message of the error ends up in a log."""
    (finding,) = [one for one in scan([Outgoing(name, f'first\n"x": "{secret}"\n'.encode())]) if one.kind == kind]
    assert (finding.file, finding.line) == (name, 2)
    assert str(finding) == f"{name}, line 2: {kind}"
    assert secret not in repr(finding)


def test_the_token_in_use_is_found_whatever_its_form():
    """A server of one's own gives tokens that no pattern knows."""
    assert kinds("x = correct-horse", token="correct-horse") == {"the token in use"}
    assert kinds("x = correct-horse") == set()


@pytest.mark.parametrize(
    "text",
    [
        "/home/somebody/data",
        '{"path": "/Users/somebody/run"}',
        "see /root/x",
        "--data=/mnt/disk1/x",
        "file:///home/somebody/x",
        "/workspace/run, or so",
        "/scratch/jobs/1",
        r"C:\Users\somebody",
        "C:/Users/somebody",
        r"D:\data",
    ],
)
def test_paths_of_any_machine_are_found(text):
    """The layout of a cluster, and whose run it was."""
    assert PATH in kinds(text)


def test_a_path_that_is_here_is_found_wherever_it_is(tmp_path):
    """Only some machines keep their data where others do."""
    assert kinds(f"data: {tmp_path}.") == {PATH}
    assert kinds("data: /somewhere/else") == set()


def test_what_json_writes_as_escapes_is_read_as_what_it_means(monkeypatch):
    """A path of Windows and a name with an accent, neither of which stands in the file as it is."""
    monkeypatch.setenv("LOGNAME", "marl\u00e8ne")
    monkeypatch.setenv("HOME", "/home/marl\u00e8ne")
    assert PATH in kinds(json.dumps({"x": "C:\\Users\\somebody"}), "config.json")
    text = json.dumps({"x": "made by marl\u00e8ne"})
    assert "marl\u00e8ne" not in text
    assert kinds(text, "config.json") == {NAME}
    assert kinds(json.dumps({"x": "as follows T:\nfirst"}), "config.json") == set()


@pytest.mark.parametrize("text", ["trained by marlene", "marlene@host", "runs/marlene/1", "marlene's", "(marlene)"])
def test_the_user_of_this_machine_is_found_as_a_whole_word(text):
    """A name says whose machine it was."""
    assert NAME in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "marlenes and amarlene",  # other words
        '"_name_or_path": "marlene/teacher"',  # a Hub id
        "https://example.org/marlene/home/x",
        "see https://example.org/home/user/notes",
        "accuracy and/or F1, 1/2 of it, T^2/home/x",
        "</home/x>",
        "../home/x and ./tmp/x and ~/mnt/x",
        "/m/09x0r",  # a label of some data sets
        "#!/usr/bin/env python",
        "km/h, n/a, /, //",
        "hf_distill_mlp and hf_hub_download_and_something_long_enough",
        "sk-learn-compatible-estimators-and-more",
        "pad_token: [PAD], max_password: 3",
        "https://example.org:8080/x@y",
    ],
)
def test_what_only_looks_like_a_secret_may_go(text):
    """A false alarm blocks a push that has nothing wrong with it."""
    assert kinds(text) == set()


def test_a_public_name_may_go():
    """On the Hub and on this machine most people have the same name; and it may be a label."""
    assert kinds("trained by marlene", public={"marlene"}) == set()


@pytest.mark.parametrize("name", ["root", "ubuntu", "train", "jo", "Runner"])
def test_names_that_are_nobodys_are_not_looked_for(monkeypatch, name):
    """Every card has the word `train`."""
    monkeypatch.setenv("LOGNAME", name)
    monkeypatch.setenv("HOME", f"/home/{name}")
    assert machine_names() == set()
    assert kinds(f"{name} {name}") == set()


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"])
def test_a_vocabulary_holds_any_word(name):
    """`marlene` and `/home/` are pieces of somebody's corpus."""
    assert kinds("marlene\n/home/x\n", name) == set()


def test_the_header_of_weights_is_looked_through(tmp_path):
    """Tools note in it where a file came from."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"source": "/home/somebody/x"})
    (finding,) = scan([Outgoing("model.safetensors", tmp_path / "model.safetensors")])
    assert str(finding) == f"model.safetensors, in its header: {PATH}"


def test_our_own_cards_and_recipes_may_go():
    """A rule that refuses what every push holds."""
    root = Path(__file__).parents[2]
    files = [path for folder in ("model_cards", "recipes") for path in sorted((root / folder).rglob("*.[my][da]*"))]
    assert len(files) > 5
    assert scan([Outgoing(path.name, path) for path in files]) == []


def test_a_setting_that_is_a_path_of_any_machine_is_found():
    """A cluster's folders are under none of the usual roots, and are not there on the machine that pushes."""
    found = scan([Outgoing("tokenizer_config.json", b'{"name_or_path": "/cluster/somebody/models/x"}')])
    assert [str(each) for each in found] == ["tokenizer_config.json, line 1: a path of a machine"]
    assert scan([Outgoing("config.json", b'{"id2label": {"0": "/m/0dgw9r", "1": "and/or/not/both"}}')]) == []
