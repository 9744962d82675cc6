"""The recipes on a few rows of the real data and the real pretrained model that they name."""

import pytest

from hf_distill.runs.recipe.reading import command_for, load_recipe
from hf_distill.runs.train import distill

FEW = ("use_cpu=true", "max_steps=2", "disable_tqdm=true", "per_device_eval_batch_size=64", 'eval_strategy="no"')
SHORT = [f"{section}.{setting}" for section in ("training", "teacher.training") for setting in FEW]


@pytest.mark.slow
def test_sst2_minilm(test_data):
    """A recipe that works on made-up data only; the pretrained weights are in half precision."""
    overrides = [
        f"data.path={test_data}/data/sst2",
        f"teacher.model={test_data}/models/all-MiniLM-L6-v2",
        "data.max_train_rows=64",
        "data.eval_split=validation[:120]",
        "training.allow_untrained_teacher=true",
        *SHORT,
    ]
    recipe = load_recipe("text/sst2_minilm", overrides)
    # 64 rows hold too few word pieces to be the vocabulary of others.
    with pytest.warns(UserWarning, match="the word pieces that are kept are .*% of those in the evaluated texts"):
        found = distill(recipe, "text/sst2_minilm")
    assert found.data["num_eval_rows"] == 120
    assert found.data["vocabulary"]["coverage"] < 0.9
    assert found.data["vocabulary"]["of"] == 30_522
    assert found.data["label_names"] == ["negative", "positive"]
    assert found.teacher.size_mib == pytest.approx(found.teacher.num_parameters * 4 / 2**20, abs=1e-3)
    command = command_for(recipe, "text/sst2_minilm")
    assert "data.path=sst2" in command
    assert "training.use_cpu=true" in command
    assert """'training.eval_strategy="no"'""" in command  # a bare no would be read as false
    assert str(test_data) not in command


@pytest.mark.slow
def test_mnist_hinton(test_data):
    """The same for images: 60,000 of them are checked before two steps are trained."""
    overrides = [f"data.path={test_data}/data/mnist", "training.allow_untrained_teacher=true", *SHORT]
    found = distill(load_recipe("vision/mnist_hinton", overrides), "vision/mnist_hinton")
    assert found.data["num_train_rows"] == 60_000
    assert found.data["num_eval_rows"] == 10_000
    assert found.teacher.num_parameters == 785 * 1200 + 1201 * 1200 + 1201 * 10
    assert found.student.num_parameters == 785 * 800 + 801 * 800 + 801 * 10
