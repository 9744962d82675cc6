"""Which settings reach which stage, and so decide what it makes."""

import pytest

from hf_distill.runs.recipe.conflicts import conflicts
from hf_distill.runs.recipe.reading import with_all
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.settings import _OF_NO_RESULT, decisive_settings, training_arguments
from hf_distill.training.config import DistillationConfig

TRAINED = {"config": {"model_type": "bert"}, "training": {"seed": 1}}
LAYERS = {"from_teacher": {"layers": [0]}}


def recipe(**sections) -> Recipe:
    base = {"task": "text-classification", "data": {"path": "x"}, "teacher": [TRAINED, {"model": "c/d"}]}
    rest = {"student": {"model": "a/b"}, "training": {}, "stages": [LAYERS], "output_dir": "x"}
    return Recipe.model_validate({**base, **rest, **sections})


@pytest.mark.parametrize(
    ("sections", "reached"),
    [
        ({"student": {"model": "e/f", "processor": "e/f"}}, {"student", "baseline"}),
        ({"baseline": False, "metrics": ["f1"], "hub": {"repo_id": "me/x"}, "output_dir": "y"}, set()),
        ({"training": {"alpha": 0.3}}, {"stage-1", "student"}),
        ({"training": {"teacher_dtype": "float16"}}, {"stage-1", "student"}),
        ({"training": {"learning_rate": 0.1, "eval_steps": 3}}, {"stage-1", "student", "baseline"}),
        (
            {"training": {"logging_steps": 3, "save_steps": 3, "report_to": "none", "allow_untrained_teacher": True}},
            set(),
        ),
        ({"training": {"seed": 3}}, {"stage-1", "student", "baseline"}),
        (
            {"teacher": [{**TRAINED, "training": {"seed": 1, "num_train_epochs": 9}}, {"model": "c/d"}]},
            {"teacher-1", "stage-1", "student"},
        ),
        ({"teacher": [{**TRAINED, "training": {"seed": 1, "logging_steps": 9}}, {"model": "c/d"}]}, set()),
        ({"teacher": [TRAINED, {"model": "e/f"}]}, {"stage-1", "student"}),
        ({"stages": [{**LAYERS, "training": {"max_steps": 5}}]}, {"stage-1", "student"}),
        ({"stages": [{**LAYERS, "training": {"logging_steps": 5}}]}, set()),
        ({"data": {"path": "x", "max_train_rows": 5}}, {"teacher-1", "stage-1", "student", "baseline"}),
        ({"task": "token-classification"}, {"teacher-1", "stage-1", "student", "baseline"}),
    ],
)
def test_a_setting_decides_the_stages_that_it_reaches(sections, reached):
    """A teacher's hours refused for another alpha; or results of two settings in one folder."""
    stages = ("teacher-1", "stage-1", "student", "baseline")
    assert {
        stage for stage in stages if decisive_settings(recipe(), stage) != decisive_settings(recipe(**sections), stage)
    } == reached


@pytest.mark.parametrize(
    "data",
    [{"max_train_rows": 5}, {"augment": {"copies": 1, "drop": 0.1}}, {"unlabelled": {"path": "y", "max_rows": 5}}],
)
def test_the_seed_decides_a_teacher_where_it_draws_the_rows(data):
    """A teacher that is kept for other rows, or trained anew for the same."""
    data = {"path": "x", **data}
    old, new = (recipe(data=data, training=training) for training in ({}, {"seed": 3}))
    assert decisive_settings(old, "teacher-1") != decisive_settings(new, "teacher-1")


def test_a_process_has_one_precision():
    """A teacher trained for an hour, and then an error: one process cannot have two precisions."""
    known = recipe(training={"bf16": True, "use_cpu": True})
    assert [training_arguments(known, stage, "x").bf16 for stage in ("teacher-1", "student", "baseline")] == [True] * 3
    assert with_all(known).teacher[0].training["bf16"]
    assert conflicts(with_all(known)) == conflicts(known) == []
    for of_teacher, of_all in (({"bf16": True}, {}), ({"fp16": False}, {"fp16": True})):
        (problem,) = conflicts(recipe(teacher=[{**TRAINED, "training": of_teacher}], training=of_all))
        assert problem.startswith(f"teacher.0.training.{next(iter(of_teacher))}: ")
    (problem,) = conflicts(recipe(stages=[{**LAYERS, "training": {"use_cpu": True}}]))
    assert problem.startswith("stages.0.training.use_cpu: True differs from training.use_cpu (not set)")


def test_layers_make_the_teacher_decide_the_baseline_too():
    """A baseline begun with the layers of a teacher that has gone."""
    old, new = (recipe(student=LAYERS, teacher={"model": name}, stages=[]) for name in ("a/b", "c/d"))
    assert decisive_settings(old, "baseline") != decisive_settings(new, "baseline")


def test_what_chooses_the_best_checkpoint_decides():
    """The best of other steps, by another metric, under the same name."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 5}
    changes = ({"training": {**best, "save_steps": 10}}, {"training": best, "metrics": ["f1"]})
    for sections in changes:
        assert decisive_settings(recipe(training=best), "student") != decisive_settings(recipe(**sections), "student")


def test_what_decides_nothing_is_a_field_of_a_training():
    """A name that no training has, so that nothing is left out."""
    assert DistillationConfig.__dataclass_fields__.keys() >= _OF_NO_RESULT


@pytest.mark.parametrize("stage", ["teacher-1", "baseline"])
def test_what_is_said_not_to_reach_a_stage_does_not(stage):
    """A teacher found again that this recipe would have trained otherwise."""
    own = {
        "alpha": 0.3,
        "temperature": 3.0,
        "schedule": "linear",
        "teacher_dtype": "float16",
        "teacher_logits_top_k": 2,
    }
    fields = {name: value for name, value in own.items() if name in DistillationConfig.__dataclass_fields__}
    assert len(fields) > 3
    found = [
        recipe(training={"use_cpu": True, "report_to": "none", **more})
        for more in ({}, {**fields, "precompute_teacher_logits": True})
    ]
    assert decisive_settings(found[0], stage) == decisive_settings(found[1], stage)
    settings = [training_arguments(each, stage, "x").to_dict() for each in found]
    assert settings[0] == settings[1]
