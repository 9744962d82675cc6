"""The card says what was distilled from what, and how well."""

import pytest
from huggingface_hub import ModelCard

from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.publishing.model_card import model_card, template_path
from hf_distill.recipe import command_for, load_recipe


def results(recipe: str) -> Results:
    teacher, student, baseline = (
        ModelResult({"accuracy": value, "f1": value}, 1000, 0.004, seconds)
        for value, seconds in ((0.9, 30.0), (0.88, 20.0), (0.8, 10.0))
    )
    facts = {"num_train_rows": 1347, "num_eval_rows": 450, "unlabelled_share": 0.25, "label_names": ["a", "b"]}
    return Results("image-classification", recipe, teacher, student, baseline, 0.95, 0.8, {"torch": "2.13.0"}, facts)


@pytest.mark.parametrize("name", ["vision/digits", "vision/mnist_hinton", "text/sst2_minilm"])
def test_it_tells_objective_data_results_and_command(name):
    """A card whose template has lost a place, or that names other settings than the recipe's."""
    recipe = load_recipe(name, ["training.seed=7"])
    card = model_card(recipe.model_dump(), results(name), command_for(recipe, name))
    text = card.content
    assert "{{" not in text
    assert f"T = {recipe.training['temperature']}" in text
    assert "| student | 0.8800 | 0.8800 | 97.8% | 1,000 |" in text
    assert "25.0% without a label" in text
    assert "(seed 7)" in text
    assert f"`hf-distill train {name} training.seed=7`" in text
    assert "knowledge-distillation" in card.data.tags
    assert ModelCard(text).data.to_dict()["pipeline_tag"] == "image-classification"


def test_a_teacher_from_the_hub_is_the_base_model_and_a_local_one_is_not():
    """A path of somebody's machine in the metadata of a published model."""
    recipe = load_recipe("text/sst2_minilm")
    card = model_card(recipe.model_dump(), results("x"), "x")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    local = load_recipe(
        "text/sst2_minilm", ["teacher.model=/somewhere/secret/minilm", "data.path=/somewhere/secret/sst2"]
    )
    card = model_card(local.model_dump(), results("x"), command_for(local, "text/sst2_minilm"))
    assert "secret" not in card.content
    assert "data.path=sst2" in card.content
    assert card.data.base_model is None


def test_the_template_is_where_it_is_said_to_be():
    """A wheel without it fails only when a training has ended."""
    assert template_path().read_text().startswith("---\n{{ card_data }}")
