"""What must not go out, and what looks like it and may."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_distill.hub.files import Outgoing
from hf_distill.hub.secrets import check_secrets

KEYS = {
    "a Hugging Face token": "hf_" + "abcdEFGH1234" * 3,
    "an AWS key": "AKIA" + "ABCDEFGH12345678",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "an API key": "sk-proj-" + "a1B2" * 8,
    "a signed token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2ln",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password": "https://marlene:opensesame@example.org/data.csv",
}
FOLDER = "a folder of this machine"
NAME = "the name of this machine's user"


@pytest.fixture(autouse=True)
def _marlene(monkeypatch):
    """Let this machine belong to somebody."""
    monkeypatch.setenv("LOGNAME", "marlene")
    monkeypatch.setenv("HOME", "/homes/marlene")


def found(text: str | bytes | Path, name: str = "notes.md", **options) -> str:
    """Return what is said of a file; nothing if it may go."""
    try:
        check_secrets([Outgoing(name, text.encode() if isinstance(text, str) else text)], **options)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "secret"), KEYS.items())
@pytest.mark.parametrize("name", ["config.json", "README.md", "recipe.yaml", "tokenizer.json", "vocab.txt", "mlp.py"])
def test_keys_are_found_wherever_they_stand_and_never_repeated(kind, secret, name):
    """A key that is published is used within minutes; one in the message of the error ends up in a log."""
    said = found(f'first\n"x": "{secret}"\n', name)
    assert said.startswith("push stopped, secrets found: ")
    assert f"{name}, line 2: {kind}" in said
    assert secret not in said


def test_the_token_in_use_is_found_whatever_its_form():
    """A server of one's own gives tokens that no pattern knows."""
    assert "the token in use" in found("x = correct-horse", token="correct-horse")
    assert found("x = correct-horse") == ""


def test_the_folders_of_the_run_are_found(tmp_path):
    """The layout of a cluster, and whose run it was."""
    for text in (f"data: {Path.cwd()}/x.", "see /homes/marlene", f'"path": "{tmp_path}/run"', f"file://{tmp_path}"):
        assert FOLDER in found(text, folders=[tmp_path])
    assert found(f"{tmp_path}-other and /homes/other", folders=[tmp_path]) == ""


def test_what_json_writes_as_escapes_is_read_as_what_it_means(monkeypatch):
    """A name with an accent, which does not stand in the file as it is."""
    monkeypatch.setenv("LOGNAME", "marl\u00e8ne")
    text = json.dumps({"x": "made by marl\u00e8ne"})
    assert "marl\u00e8ne" not in text
    assert NAME in found(text, "config.json")
    assert found(json.dumps({"x": "as follows T:\nfirst"}), "config.json") == ""


@pytest.mark.parametrize("text", ["trained by marlene", "marlene@host", "runs/marlene/1", "marlene's", "(marlene)"])
def test_the_user_of_this_machine_is_found_as_a_whole_word(text):
    """A name says whose machine it was."""
    assert NAME in found(text)


@pytest.mark.parametrize(
    "text",
    [
        "marlenes and amarlene",  # other words
        '"_name_or_path": "marlene/teacher"',  # a Hub id
        "https://example.org/marlene/home/x",
        "/m/09x0r",  # a label of some data sets
        "hf_distill_mlp and hf_hub_download_and_something_long_enough",
        "sk-learn-compatible-estimators-and-more",
        "pad_token: [PAD], max_password: 3",
        "https://example.org:8080/x@y",
    ],
)
def test_what_only_looks_like_a_secret_may_go(text):
    """A false alarm blocks a push that has nothing wrong with it."""
    assert found(text) == ""


def test_a_public_name_may_go():
    """On the Hub and on this machine most people have the same name; and it may be a label."""
    assert found("trained by marlene", public={"marlene"}) == ""


@pytest.mark.parametrize("name", ["root", "student", "jo"])
def test_names_that_give_nothing_away_are_not_looked_for(monkeypatch, name):
    """Every card has the word `student`, and then no student of any university could push."""
    monkeypatch.setenv("LOGNAME", name)
    monkeypatch.setenv("HOME", f"/homes/{name}")
    assert found(f"{name} {name}") == ""


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"])
def test_a_vocabulary_holds_any_word(name):
    """`marlene` is a piece of somebody's corpus."""
    assert found("marlene\n", name) == ""


def test_the_users_own_text_is_searched_for_keys_alone():
    """Who signs a README with a name means it."""
    check_secrets([], users_text=[Outgoing("README.md", b"by marlene")])
    with pytest.raises(ValueError, match=r"README\.md, line 1: an AWS key"):
        check_secrets([], users_text=[Outgoing("README.md", KEYS["an AWS key"].encode())])


def test_the_header_of_weights_is_looked_through(tmp_path):
    """Tools note in it where a file came from."""
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"source": "/homes/marlene/x"})
    assert f"model.safetensors, in its header: {FOLDER}" in found(tmp_path / "model.safetensors", "model.safetensors")


def test_our_own_cards_and_recipes_may_go():
    """A rule that refuses what every push holds."""
    root = Path(__file__).parents[2]
    files = [path for folder in ("model_cards", "recipes") for path in sorted((root / folder).rglob("*.[my][da]*"))]
    assert len(files) > 5
    check_secrets([Outgoing(path.name, path) for path in files])
