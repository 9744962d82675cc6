"""What `check` says a recipe would do."""

import re
from pathlib import Path

import pytest
import tiny
import yaml

from hf_distill.runs.recipe.describe import plan
from hf_distill.runs.recipe.reading import load_recipe

MIB = 2**20


def mlp(*hidden_sizes: int) -> dict:
    return {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [*hidden_sizes]}


def num_parameters(hidden: int) -> int:
    """Count the parameters of a perceptron of 64 pixels, one hidden layer and, as configs have by default, 2 labels."""
    return 64 * hidden + hidden + hidden * 2 + 2


def lines(**changes) -> list[tuple[str, str]]:
    recipe = {
        "task": "image-classification",
        "data": {"dataset": "sklearn:digits", "eval_split": "test"},
        "teacher": {"config": mlp(8), "training": {"use_cpu": True}},
        "student": {"config": mlp(4)},
        "training": {"use_cpu": True},
        "output_dir": "out",
        **changes,
    }
    Path("x.yaml").write_text(yaml.safe_dump(recipe))
    # How much memory this machine has free is no part of the plan that can be known here.
    return [(name, re.sub(r" \(\d+ GiB free\)", "", text)) for name, text in plan(load_recipe("x.yaml"))]


def of(name: str, found: list[tuple[str, str]]) -> list[str]:
    return [text for each, text in found if each == name]


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ({}, "train for training, the validation or test split for the results"),
        ({"eval_split": "test"}, "train for training, test for the results"),
        ({"eval_split": 0.1}, "train for training, a held-out 10% of train for the results"),
        ({"eval_split": 0.1, "test_split": 0.075}, "train for training, a held-out 7.5% of train for the results"),
    ],
)
def test_splits(splits, words):
    """A number in the place of a split's name."""
    assert of("data", lines(data={"dataset": "sklearn:digits", **splits})) == [f"sklearn:digits: {words}"]


def test_rows_that_the_teacher_alone_labels():
    """Sixty times the training rows, and a plan that knows nothing of them."""
    unlabelled = {"dataset": "sklearn:digits", "split": "train[100:]", "max_rows": 50}
    found = lines(data={"dataset": "sklearn:digits", "train_split": "train[:100]", "unlabelled": unlabelled})
    assert of("further", found) == ["at most 50 rows of train[100:] of sklearn:digits, which the teacher alone labels"]
    assert of("further", lines()) == []


def test_an_ensemble():
    """Two teachers shown as one, or nobody can tell whose memory is meant."""
    tiny.resnet(num_channels=1).save_pretrained("special")
    found = lines(
        teacher=[
            {"config": mlp(8), "training": {"seed": 0, "use_cpu": True}},
            {"config": mlp(8), "training": {"seed": 1, "use_cpu": True}},
            {"model": "special", "specialist": {"oversampling": 9}},
        ],
        training={"use_cpu": True, "teacher_weights": [2, 1]},
    )
    new = "a new hf_distill_mlp (hidden_sizes [8], image_size 8, num_channels 1), trained on the labels first"
    assert of("teacher", found) == [
        f"{new} (seed 0, use_cpu True)",
        f"{new} (seed 1, use_cpu True)",
        "special, a specialist (oversampling 9), ready",
    ]
    assert of("student", found) == [
        "a new hf_distill_mlp (hidden_sizes [4], image_size 8, num_channels 1), alpha 0.1, temperature 4.0 "
        "(teacher_weights [2, 1], use_cpu True)"
    ]
    assert [text.split(" on ")[0] for text in of("memory", found)] == [
        "teacher 1",
        "teacher 1, in its training,",
        "teacher 2",
        "teacher 2, in its training,",
        "teacher 3",
        "student",
    ]
    assert of("output", found) == ["out, new"]


def test_a_chain():
    """A stage shown with the settings of the run where it has its own."""
    found = lines(
        stages=[{"config": mlp(6), "training": {"alpha": 0.5, "temperature_end": None, "schedule": "constant"}}],
        training={"use_cpu": True, "schedule": "linear", "temperature": 8.0, "temperature_end": 1.0},
    )
    assert [name for name, _ in found if name != "memory"] == [
        "task",
        "data",
        "teacher",
        "stage-1",
        "student",
        "baseline",
        "metrics",
        "output",
    ]
    assert of("stage-1", found) == [
        "a new hf_distill_mlp (hidden_sizes [6], image_size 8, num_channels 1), alpha 0.5, temperature 8.0 "
        "(schedule constant, use_cpu True)"
    ]
    assert of("student", found) == [
        "a new hf_distill_mlp (hidden_sizes [4], image_size 8, num_channels 1), alpha 0.1, temperature 8.0 to 1.0 "
        "(schedule linear, use_cpu True)"
    ]


def test_a_column():
    """A teacher that is no model has no memory of its own."""
    found = lines(teacher={"column": "teacher_logits"}, baseline=False)
    assert of("teacher", found) == ["the column teacher_logits of the data"]
    assert of("baseline", found) == ["none"]
    assert [text.split(" on ")[0] for text in of("memory", found)] == ["student"]


@pytest.mark.parametrize(
    ("settings", "moments"), [({}, 2), ({"optim": "sgd"}, 0), ({"optim": "adagrad"}, 1), ({"optim": "adafactor"}, 0)]
)
def test_memory_is_that_of_weights_gradients_and_moments(settings, moments):
    """A model that does not fit where the plan said that it would."""
    found = of("memory", lines(student={"config": mlp(4000)}, training={"use_cpu": True, **settings}))
    size = num_parameters(4000) * 4 / MIB
    assert f"{size:.1f}" == "1.0"
    assert found[-1] == (
        f"student on cpu: {size:,.1f} + {size:,.1f} + {size * moments:,.1f} MiB of weights, gradients, optimizer "
        "state, and activations"
    )


def test_memory_of_a_stage_goes_by_its_own_optimizer():
    """Moments of Adam, counted for a stage that is trained with another optimizer."""
    stages = [{"config": mlp(4000), "training": {"optim": "sgd"}}]
    teacher = {"config": mlp(4000), "training": {"optim": "adagrad", "use_cpu": True}}
    found = of("memory", lines(stages=stages, teacher=teacher, student={"config": mlp(4000)}))
    parts = [re.search(r": ([\d.]+) \+ ([\d.]+) \+ ([\d.]+) MiB", text) for text in found]
    assert [part and part.groups() for part in parts] == [
        None,
        ("1.0", "1.0", "1.0"),
        ("1.0", "1.0", "0.0"),
        ("1.0", "1.0", "2.0"),
    ]


@pytest.mark.parametrize(("dtype", "width"), [(None, 4), ("bfloat16", 2), ("float16", 2), ("auto", 4)])
def test_memory_of_a_teacher_goes_by_its_type(dtype, width):
    """A narrow teacher counted at full width, or a trained one without its gradients."""
    found = of(
        "memory",
        lines(
            teacher={"config": mlp(8000), "training": {"use_cpu": True}},
            training={"use_cpu": True, "teacher_dtype": dtype},
        ),
    )
    size = num_parameters(8000) / MIB
    shown = "float32" if dtype is None else dtype
    assert found[0] == f"teacher on cpu: {size * width:,.1f} MiB of weights ({shown})"
    assert found[1].startswith(
        f"teacher, in its training, on cpu: {size * 4:,.1f} + {size * 4:,.1f} + {size * 8:,.1f} MiB"
    )


def test_a_config_that_cannot_be_read_is_said_and_stops_nothing():
    """A check that needs the network."""
    found = lines(teacher={"model": "nowhere/at-all"})
    assert of("memory", found)[0].startswith("not known, since a model's config cannot be read: ")
    assert of("teacher", found) == ["nowhere/at-all, ready"]


def test_a_placement_that_is_none_is_refused():
    """It would be found out when the teacher is loaded."""
    with pytest.raises(ValueError, match="teacher_placement must be same, cpu, auto, sharded or a device"):
        lines(training={"use_cpu": True, "teacher_placement": "gpu"})
