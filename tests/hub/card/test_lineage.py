"""Where models and data come from: ids, commits and licenses, from the Hub or its cache, and never a path."""

import json
import socket
from pathlib import Path

import datasets
import pytest
import tiny
import yaml
from huggingface_hub import constants
from local_hub.server import LocalHub

from hf_distill.data.loading import load_rows
from hf_distill.evaluation.results import Results
from hf_distill.hub.card.lineage import data_origin, model_origin
from hf_distill.models.students import model_from_checkpoint
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill

pytest_plugins = ["local_hub.fixture"]

NOWHERE = {"model": None, "revision": None, "license": None}
COMMIT = "a" * 40
ONE_STEP = {"use_cpu": True, "max_steps": 1, "disable_tqdm": True, "report_to": "none"}


def files_of(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def save_model(folder: str, **labels) -> None:
    tiny.bert(**labels).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def card(**metadata) -> bytes:
    return f"---\n{yaml.safe_dump(metadata)}---\n# A model\n".encode()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return a function that puts a file of a model into the cache, in a process that may not ask anyone."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*address):
        raise AssertionError(f"the network was asked: {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)

    def put(name: str, content: bytes, commit: str = COMMIT, branch: str = "main") -> None:
        folder = tmp_path / "hub" / "models--a--b"
        for file, text in (
            (folder / "snapshots" / commit / name, content),
            (folder / "refs" / branch, commit.encode()),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)

    return put


class TestOffline:
    def test_the_commit_is_that_of_the_cached_files(self, cache):
        """A branch's name in the place of a commit, which says nothing a week later."""
        cache("config.json", b"{}")
        cache("config.json", b"{}", "b" * 40, "dev")
        cache("README.md", card(license="MIT"))
        assert model_origin("a/b") == {"model": "a/b", "revision": COMMIT, "license": "mit"}
        assert model_origin("a/b", "dev") == {"model": "a/b", "revision": "b" * 40, "license": None}
        assert model_origin("a/b", "c" * 40)["revision"] == "c" * 40

    def test_what_is_not_in_the_cache_is_unknown_and_nobody_is_asked(self, cache):
        """A run without a network that waits for one at its end."""
        assert model_origin("a/b") == {"model": "a/b", "revision": None, "license": None}

    @pytest.mark.parametrize(
        ("text", "license"),
        [
            (b"---\nlicense: [apache-2.0]\n---\n", "apache-2.0"),
            (b"---\nlicense: [mit, gpl-3.0]\n---\n", None),
            (b"---\nlicense: {a: b}\n---\n", None),
            (b"---\nlicense: |\n  many\n  words\n---\n", None),
            (b"---\n- no\n- mapping\n---\n", None),
            (b"---\nlicense: [unclosed\n---\n", None),
            (b"no metadata\n", None),
            (b"\xff\xfe", None),
            (b"", None),
        ],
    )
    def test_a_license_that_is_not_stated_clearly_is_unknown(self, cache, text, license):
        """A run of hours that ends in an error over a README, or a license that was guessed."""
        cache("config.json", b"{}")
        cache("README.md", text)
        assert model_origin("a/b")["license"] == license

    def test_terms_of_its_own_keep_their_name_and_link(self, cache):
        """`license: other`, with nothing to tell which; a link that leads to a file of the student's repository."""
        cache("config.json", b"{}")
        cache("README.md", card(license="other", license_name="own", license_link="https://x.example/own"))
        assert model_origin("a/b") == {
            "model": "a/b",
            "revision": COMMIT,
            "license": "other",
            "license_name": "own",
            "license_link": "https://x.example/own",
        }
        cache("README.md", card(license="other", license_name="own", license_link="LICENSE"))
        assert "license_link" not in model_origin("a/b")

    def test_a_local_folder_has_a_license_and_no_name(self):
        """A path in results.json, which is published."""
        Path("mine").mkdir()
        Path("mine/README.md").write_bytes(card(license="gpl-3.0"))
        for source in ("mine", "./mine", str(Path("mine").resolve())):
            assert model_origin(source) == {**NOWHERE, "license": "gpl-3.0"}
        assert model_origin("/no/such/folder") == NOWHERE

    def test_a_new_model_comes_from_nowhere(self):
        """The last model's origin, given to one that was drawn at random."""
        assert model_origin(None) == NOWHERE

    def test_local_data_and_those_of_scikit_learn(self):
        """A path of somebody's data in results.json."""
        Path("rows.jsonl").write_text('{"text": "a", "label": 0}\n')
        rows = load_rows(path="rows.jsonl")
        assert data_origin(None, None, rows) == {"id": None, "revision": None}
        assert data_origin("./rows.jsonl", None, rows) == {"id": None, "revision": None}
        digits = load_rows(dataset="sklearn:digits")
        assert data_origin("sklearn:digits", None, digits) == {"id": "sklearn:digits", "revision": None}


class TestOnline:
    def test_a_models_commit_and_license_are_found(self, hub: LocalHub):
        """Nobody downloads a README to load a model, so the cache alone never knew a license."""
        save_model("model")
        first = hub.write("ada/model", {**files_of("model"), "README.md": card(license="mit")})
        second = hub.write("ada/model", {"README.md": card(license="apache-2.0")})
        model_from_checkpoint("ada/model", "text-classification", ["red", "green", "blue"])
        assert model_origin("ada/model") == {"model": "ada/model", "revision": second.oid, "license": "apache-2.0"}
        model_from_checkpoint("ada/model", "text-classification", ["red", "green", "blue"], revision=first.oid)
        found = {"model": "ada/model", "revision": first.oid, "license": "mit"}
        assert model_origin("ada/model", first.oid) == found

    @pytest.mark.parametrize("fault", [None, 403, 500, "drop"])
    def test_a_card_that_cannot_be_had_costs_nothing_but_the_license(self, hub: LocalHub, fault):
        """A run that fails over a README, or a model without one."""
        save_model("model")
        readme = {} if fault is None else {"README.md": card(license="mit")}
        commit = hub.write("ada/model", {**files_of("model"), **readme})
        model_from_checkpoint("ada/model", "text-classification", ["red", "green", "blue"])
        if fault is not None:
            hub.fault("resolve", fault, times=None)
        assert model_origin("ada/model") == {"model": "ada/model", "revision": commit.oid, "license": None}

    def test_a_data_sets_commit_is_the_one_that_was_read(self, hub: LocalHub):
        """The head of today for rows that were cached last year."""
        datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_parquet("train.parquet")
        rows = Path("train.parquet").read_bytes()
        first = hub.write("ada/rows", {"data/train.parquet": rows}, kind="datasets")
        assert data_origin("ada/rows", None, load_rows(dataset="ada/rows")) == {
            "id": "ada/rows",
            "revision": first.oid,
        }
        second = hub.write("ada/rows", {"data/test.parquet": rows}, kind="datasets")
        assert data_origin("ada/rows", None, load_rows(dataset="ada/rows"))["revision"] == second.oid
        old = load_rows(dataset="ada/rows", revision=first.oid)
        assert data_origin("ada/rows", first.oid, old)["revision"] == first.oid

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:data. .* have inputs that the train split:UserWarning")
    def test_a_run_notes_what_it_was_made_of_and_remembers_it_when_it_goes_on(self, hub: LocalHub):
        """The teacher's commit of the day on which a run was restarted, when it had learnt from an earlier one."""
        labels = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
        save_model("teacher", **labels)
        commit = hub.write("ada/teacher", {**files_of("teacher"), "README.md": card(license="cc-by-nc-4.0")})
        data = datasets.Dataset.from_dict({"text": ["a good film", "a bad film"] * 8, "label": ["pos", "neg"] * 8})
        data.to_parquet("rows.parquet")
        content = Path("rows.parquet").read_bytes()
        rows = hub.write("ada/rows", {f"data/{name}.parquet": content for name in ("train", "test")}, kind="datasets")
        recipe = {
            "task": "text-classification",
            "data": {"dataset": "ada/rows", "eval_split": "test"},
            "teacher": {"model": "ada/teacher", "training": {**ONE_STEP, "seed": 7}},
            "stages": [{"model": "ada/teacher"}],
            "student": {"from_teacher": {"layers": [0]}},
            "training": {**ONE_STEP, "allow_untrained_teacher": True, "logging_steps": 1},
            "output_dir": "out",
        }
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        found = distill(load_recipe("recipe.yaml"), "recipe")
        origin = {"model": "ada/teacher", "revision": commit.oid, "license": "cc-by-nc-4.0"}
        assert found.lineage == {
            "teachers": [{**origin, "seed": 7}],
            "stages": [{**origin, "seed": 42}],
            "student": {**origin, "seed": 42, "model_type": "bert"},
            "dataset": {"id": "ada/rows", "revision": rows.oid},
        }
        assert Results.read(Path("out")) == found
        assert set(found.curves) == {"teacher", "stage-1", "student", "baseline"}
        assert found.curves["student"][0]["step"] == 1
        assert json.loads(Path("out/stages/student.json").read_text())["origin"] == origin
        readme = Path("out/student/README.md").read_text()
        assert "license: cc-by-nc-4.0" in readme
        assert commit.oid in readme
        hub.write("ada/teacher", {"other.txt": b"the branch moves on"})
        assert distill(load_recipe("recipe.yaml"), "recipe") == found
        assert Path("out/student/README.md").read_text() == readme
