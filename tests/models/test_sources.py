"""Sources that a user has named: what is not there, and what is something else."""

from pathlib import Path

import pytest
import tiny

from hf_distill.models.sources import check_folder


def test_a_run_is_no_model_and_its_models_are_named():
    """`Unrecognized model. Should have a model_type key`, to one who has just trained it."""
    tiny.bert().save_pretrained("runs/own/teacher")
    tiny.bert().save_pretrained("runs/own/student")
    message = "it is the folder of a run: name a model in it, runs/own/teacher or runs/own/student"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_folder("runs/own")
    check_folder("runs/own/teacher")


@pytest.mark.parametrize("source", ["/no/such/model", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_path_with_nothing_there_is_said_to_be_one(source):
    """`Repo id must be in the form 'repo_name'`, to one who has misspelt a folder."""
    with pytest.raises(ValueError, match=r"^no such folder$"):
        check_folder(source)


@pytest.mark.parametrize("source", ["bert-base-uncased", "you/model"])
def test_what_may_be_on_the_hub_is_left_to_it(source):
    """A Hub id refused, since no folder has that name."""
    check_folder(source)
    Path("you/model").mkdir(parents=True)
    check_folder("you/model")
