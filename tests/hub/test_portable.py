"""A recipe as strangers may see it."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.hub.portable import is_local, last_name, portable
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.recipe.schema import Recipe


def recipe(**changes) -> dict:
    return {
        "task": "image-classification",
        "data": {"path": "/home/lovelace/data/faces", "processor": {"size": 8}, "label_names": [".", "/", "~"]},
        "teacher": {"model": "/home/lovelace/models/teacher", "processor": "../processors/one"},
        "stages": [{"model": "~/models/assistant", "training": {}}],
        "student": {"config": {"model_type": "vit"}},
        "training": {
            "deepspeed": "/home/lovelace/ds.json",
            "teacher_label_map": {"/": "./"},
            "report_to": ["none"],
            "fsdp_config": {"path": "C:\\Users\\Lovelace\\fsdp.json"},
        },
        "metrics": ["accuracy", "/home/lovelace/metrics/mine", {"name": "../metrics/other"}],
        "output_dir": "/home/lovelace/runs/first",
        **changes,
    }


class TestPortable:
    def test_of_a_local_path_the_last_name_is_left(self):
        """Folders and users of one machine, published."""
        found = portable(recipe())
        assert "lovelace" not in json.dumps(found).lower()
        assert found["data"]["path"] == "faces"
        assert found["teacher"] == {"model": "teacher", "processor": "one"}
        assert found["stages"][0]["model"] == "assistant"
        assert found["training"]["deepspeed"] == "ds.json"
        assert found["training"]["fsdp_config"]["path"] == "fsdp.json"
        assert found["metrics"] == ["accuracy", "./mine", {"name": "./other"}]
        assert found["output_dir"] == "first"

    def test_labels_stay_as_they_are(self):
        """The tag of a full stop, taken for a folder."""
        found = portable(recipe())
        assert found["data"]["label_names"] == [".", "/", "~"]
        assert found["training"]["teacher_label_map"] == {"/": "./"}
        with_dustbin = recipe(teacher=[{"model": "a/b", "specialist": {"dustbin": "/other"}}])
        assert portable(with_dustbin)["teacher"][0]["specialist"]["dustbin"] == "/other"

    def test_it_publishes_nothing(self):
        """A published recipe that pushes to its author's repository when somebody else repeats it."""
        assert "hub" not in portable(recipe(hub={"repo_id": "lovelace/faces"}))

    def test_the_recipe_itself_is_not_changed(self):
        """A run that goes on with paths that are not there."""
        before = recipe()
        kept = copy.deepcopy(before)
        portable(before)
        assert before == kept

    def test_twice_is_once(self):
        """A card that changes when it is made from what was published."""
        once = portable(recipe())
        assert portable(once) == once

    def test_a_folder_in_sight_is_no_hub_id(self):
        """`models/bert`, which may be either."""
        values = recipe(teacher={"model": "models/bert"}, data={"path": "x/y/", "dataset": None})
        assert portable(values)["teacher"]["model"] == "models/bert"
        Path("models/bert").mkdir(parents=True)
        assert portable(values)["teacher"]["model"] == "bert"
        assert portable(values)["data"]["path"] == "y"

    def test_lineage_knows_what_came_from_the_hub(self):
        """A relative folder that is not in sight from where the card is made; a Hub id that is also a folder here."""
        values = recipe(
            teacher=[{"model": "models/bert"}, {"model": "a/b"}],
            student={"model": "models/small"},
            data={"dataset": "c/d"},
        )
        lineage = {
            "teachers": [{"model": None}, {"model": "a/b"}],
            "student": {"model": None},
            "dataset": {"id": "c/d"},
        }
        for folder in ("a/b", "c/d"):
            Path(folder).mkdir(parents=True)
        found = portable(values, lineage)
        assert [teacher["model"] for teacher in found["teacher"]] == ["bert", "a/b"]
        assert found["student"]["model"] == "small"
        assert found["data"]["dataset"] == "c/d"
        assert portable(values, {**lineage, "dataset": {"id": None}})["data"]["dataset"] == "d"

    @pytest.mark.parametrize("name", ["vision/digits", "vision/mnist_hinton", "text/sst2_minilm"])
    def test_a_recipe_without_paths_stays_as_it_is(self, name):
        """A Hub id that is cut to its last name."""
        loaded = load_recipe(name, ["output_dir=digits"])
        found = portable(loaded.model_dump())
        assert found == loaded.model_dump(exclude={"hub"})
        assert Recipe.model_validate(found) == loaded


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/b", "b"),
        ("/a/b/", "b"),
        ("a\\b", "b"),
        ("C:\\Users\\me\\x.csv", "x.csv"),
        ("file:///a/b.json", "b.json"),
        ("b", "b"),
        (".", "here"),
        ("..", "here"),
        ("../..", "here"),
        ("/", "here"),
        ("~", "here"),
        ("~lovelace", "here"),
        ("~lovelace/data", "data"),
    ],
)
def test_the_last_name_of_a_path(path, name):
    """A path that keeps its user because it has one part only."""
    assert last_name(path) == name


@given(st.text(alphabet="/\\.~:aB ", min_size=1, max_size=12))
def test_the_last_name_is_no_path(path):
    """A corner of some system's paths that is left over."""
    name = last_name(path)
    assert name
    assert not set(name) & {"/", "\\", "~"} or not name.startswith(("~", "/", "\\"))
    assert last_name(name) == name


@pytest.mark.parametrize(
    "source", ["/a", "./a", "../a", ".", "..", "~", "~/a", "C:\\a", "C:/a", "\\\\server\\a", "file:/a"]
)
def test_paths_are_told_by_their_form(source):
    """A path of another machine, which is not there to be found."""
    assert is_local(source)


@pytest.mark.parametrize("source", ["a/b", "bert-base-uncased", "sklearn:digits", ".hidden", "a.b/c"])
def test_hub_ids_are_no_paths(source):
    """A base model that the card does not name."""
    assert not is_local(source)
