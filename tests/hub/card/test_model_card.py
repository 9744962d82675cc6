"""The card says what was distilled from what, how well, and what is not known."""

import ast
import io
import json
import os
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny
import torch
import transformers
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from peft import LoraConfig, get_peft_model
from PIL import ExifTags, Image
from transformers import AutoModelForSequenceClassification, BertForTokenClassification

from hf_distill.data.images import check_images
from hf_distill.evaluation.curves import PLOT, training_curves
from hf_distill.evaluation.results import Difference, ModelResult, Results
from hf_distill.hub.card.model_card import model_card, verify
from hf_distill.hub.card.parts import TEMPLATE
from hf_distill.hub.readme import merge
from hf_distill.models import GreyImageProcessor, MLPConfig, MLPForImageClassification
from hf_distill.models.pixels import image_array
from hf_distill.runs import run_card
from hf_distill.runs.recipe.reading import bundled_recipes, load_recipe
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.run_card import export_card, read_run

pytest_plugins = ["local_hub.fixture"]

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden"
CARDS = [path for path in sorted((ROOT / "model_cards").rglob("*.md")) if path.name != "template.md"]
SHA = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT = {"hf_distill": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0", "hardware": "2 CPU cores"}


def card_of(recipe: Recipe, results: Results, **options) -> run_card.RunCard:
    return run_card.card_of(recipe, results, training_curves(results), **options)


def origin(model=None, license=None, seed=None, **more) -> dict:
    return {"model": model, "revision": model and SHA, "license": license, "seed": seed, **more}


def found(
    accuracy: float, *, second: str = "f1", seconds: float | None = 30.0, parameters: int | None = 1000
) -> ModelResult:
    size = None if parameters is None else parameters * 4 / 2**20
    return ModelResult({"accuracy": accuracy, second: round(accuracy - 0.01, 4)}, parameters, size, seconds)


def results(
    task: str, *, name: str = "mine", student: float = 0.88, baseline: float | None = 0.8, second: str = "f1", **fields
) -> Results:
    return Results(
        **{
            "task": task,
            "recipe": name,
            "teacher": found(0.9, second=second, parameters=4000),
            "student": found(student, second=second),
            "baseline": None if baseline is None else found(baseline, second=second),
            "agreement": 0.95,
            "gap_closed": None if baseline is None else (student - baseline) / (0.9 - baseline),
            "environment": ENVIRONMENT,
            "data": {
                "num_train_rows": 1347,
                "num_eval_rows": 450,
                "num_eval_labels": 450,
                "unlabelled_share": 0.0,
                "label_names": ["negative", "positive"],
                "inputs": ["text"],
            },
            **fields,
        }
    )


TEXT = {
    "task": "text-classification",
    "data": {"dataset": "a/reviews", "eval_split": "validation", "max_length": 64},
    "teacher": {"model": "a/teacher"},
    "student": {"model": "a/small"},
    "training": {"alpha": 0.2, "temperature": 3.0, "num_train_epochs": 2},
    "output_dir": "runs/mine",
}
IMAGES = {
    "task": "image-classification",
    "data": {"dataset": "a/pictures", "name": "large", "eval_split": "validation", "test_split": "test"},
    "teacher": {"model": "a/teacher"},
    "student": {"config": {"model_type": "vit", "hidden_size": 16}},
    "training": {"temperature": 4.0},
    "output_dir": "runs/mine",
}
REVIEWS = {"id": "a/reviews", "revision": SHA}
PICTURES = {"id": "a/pictures", "revision": None}

# name: the recipe, and what the results have beside the usual.
SCENARIOS: dict[str, tuple[dict, dict]] = {
    "single_teacher": (
        TEXT,
        {
            "lineage": {
                "teachers": [origin("a/teacher", "apache-2.0")],
                "student": origin("a/small", "mit", 42, model_type="bert"),
                "dataset": REVIEWS,
            },
            "curves": {
                "student": [{"step": step, "loss": 1 / step, "soft_loss": 1 / step} for step in (10, 20)],
            },
        },
    ),
    "ensemble": (
        {
            **TEXT,
            "teacher": [
                {"model": "a/teacher"},
                {"model": "b/teacher", "training": {"num_train_epochs": 1, "seed": 7}},
                {"config": {"model_type": "bert"}, "training": {"num_train_epochs": 3}},
            ],
            "student": {"model": "a/small"},
            "training": {"teacher_weights": [2.0, 1.0, 1.0], "teacher_combination": "geometric"},
        },
        {
            "teachers": {f"teacher-{i + 1}": found(0.85 + i / 100) for i in range(3)},
            "lineage": {
                "teachers": [origin("a/teacher", "cc-by-nc-4.0"), origin("b/teacher", "llama3.1", 7), origin(seed=42)],
                "student": origin("a/small", "mit", 42),
                "dataset": REVIEWS,
            },
        },
    ),
    "specialists": (
        {
            **IMAGES,
            "teacher": [
                {"model": "a/teacher"},
                {"model": "a/cats", "specialist": {"oversampling": 5.0, "dustbin": "other"}},
            ],
        },
        {
            "teachers": {"teacher-1": found(0.89)},
            "lineage": {
                "teachers": [origin("a/teacher", "cc-by-nd-4.0"), origin("a/cats")],
                "student": origin(seed=42),
                "dataset": PICTURES,
            },
        },
    ),
    "stages": (
        {
            **TEXT,
            "teacher": {"model": "a/teacher", "training": {"num_train_epochs": 2, "learning_rate": 5e-5}},
            "stages": [{"from_teacher": {"layers": [0, 2, 4]}, "training": {"temperature": 8.0}}],
            "student": {"from_teacher": {"layers": [0, 2]}},
            "training": {
                "alpha": 0.0,
                "alpha_end": 0.5,
                "temperature": 8.0,
                "temperature_end": 2.0,
                "schedule": "linear",
            },
        },
        {
            "stages": {"stage-1": found(0.89)},
            "lineage": {
                "teachers": [origin("a/teacher", "gpl-3.0", 42)],
                "stages": [origin("a/teacher", "gpl-3.0", 42)],
                "student": origin("a/teacher", "gpl-3.0", 42),
                "dataset": REVIEWS,
            },
            "student": 0.79,
        },
    ),
    "adapter": (
        TEXT,
        {
            "lineage": {
                "teachers": [origin("a/teacher", "apache-2.0")],
                "student": origin("a/small", "mit", 42, adapter=True, model_type="bert"),
                "dataset": REVIEWS,
            }
        },
    ),
    "unlabelled": (
        {**TEXT, "baseline": False, "student": {"config": {"model_type": "bert"}}},
        {
            "baseline": None,
            "lineage": {
                "teachers": [
                    origin("a/teacher", "other", license_name="own-terms", license_link="https://x.example/terms")
                ],
                "student": origin(seed=42),
                "dataset": REVIEWS,
            },
        },
    ),
    "column_teacher": (
        {
            **TEXT,
            "data": {"path": "/home/lovelace/secret/rows.parquet", "text_column": "a", "text_pair_column": "b"},
            "teacher": {"column": "teacher_probs"},
        },
        {
            "teacher": found(0.9, seconds=None, parameters=None),
            "lineage": {
                "teachers": [origin()],
                "student": origin("a/small", None, 42),
                "dataset": {"id": None, "revision": None},
            },
        },
    ),
    "tokens": (
        {
            **TEXT,
            "task": "token-classification",
            "metrics": [{"name": "seqeval", "trust_remote_code": True}, "accuracy"],
        },
        {
            "second": "overall_f1",
            "lineage": {
                "teachers": [origin("a/teacher", "unknown")],
                "student": origin("a/small", "mit", 42),
                "dataset": REVIEWS,
            },
        },
    ),
    "local": (
        {
            **IMAGES,
            "data": {"path": "/home/lovelace/secret/images", "eval_split": "test", "max_train_rows": 1000},
            "teacher": {
                "model": "/home/lovelace/secret/teacher",
                "training": {"run_name": "/home/lovelace/secret/first"},
            },
            "student": {"config": {"model_type": "hf_distill_mlp", "num_channels": 1}},
            "training": {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
        },
        {
            "student": 0.81,
            "lineage": {
                "teachers": [origin(seed=42)],
                "student": origin(seed=42, model_type="hf_distill_mlp"),
                "dataset": {"id": None, "revision": None},
            },
        },
    ),
}


def scenario(name: str) -> tuple[Recipe, Results]:
    """Return a recipe, checked as `train` checks it, and results that fit it."""
    values, fields = SCENARIOS[name]
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe("mine.yaml")
    return recipe, results(recipe.task, **fields)


def card_text(name: str, repo_id: str | None = None) -> str:
    return merge(None, card_of(*scenario(name), repo_id=repo_id).card)


class TestGolden:
    @pytest.mark.parametrize("name", SCENARIOS)
    def test_the_card_is_the_one_that_was_read_and_found_right(self, name):
        """Any change of the text; run with HF_DISTILL_UPDATE_GOLDEN=1, and read what has changed."""
        repo_id = "ada/tiny-reviews" if name in ("single_teacher", "adapter") else None
        text = card_text(name, repo_id)
        file = GOLDEN / f"{name}.md"
        if os.environ.get("HF_DISTILL_UPDATE_GOLDEN"):
            file.write_text(text)
        assert text == file.read_text()

    def test_there_is_no_other(self):
        """A golden file that no test looks at."""
        assert {path.stem for path in GOLDEN.glob("*")} == set(SCENARIOS)

    @pytest.mark.parametrize("name", SCENARIOS)
    def test_nothing_of_this_machine_is_in_it(self, name):
        """A path of somebody's folders on the Hub."""
        text = card_text(name)
        for word in ("/home", "lovelace", "secret", "None", "{{", "{%"):
            assert word not in text.replace("None is stated", ""), word

    @pytest.mark.parametrize("name", SCENARIOS)
    def test_the_hubs_client_reads_the_metadata_that_were_meant(self, name):
        """Metadata that YAML or `ModelCardData` reads in another way than they were written."""
        recipe, found = scenario(name)
        card = card_of(recipe, found).card
        Path("README.md").write_text(merge(None, card))
        loaded = metadata_load("README.md")
        assert loaded == card.data.to_dict()
        model_name, flat = model_index_to_eval_results(loaded["model-index"])
        assert eval_results_to_model_index(model_name, flat) == loaded["model-index"]
        values = {each.metric_type: each.metric_value for each in flat}
        assert values == found.student.metrics
        assert {"knowledge-distillation", "distillation"} <= set(loaded["tags"])
        assert loaded["pipeline_tag"] == recipe.task

    def test_a_hub_accepts_every_card(self, hub):
        """A base model, a license or an index that the Hub refuses when everything else is uploaded."""
        texts = [card_text(name) for name in SCENARIOS] + [path.read_text() for path in CARDS]
        for text in texts:
            ModelCard(text).validate()
        with pytest.raises(ValueError, match="license"):
            ModelCard(texts[0].replace("license: mit", "license: none of those")).validate()
        assert hub.steps() == ["validate_yaml"] * (len(texts) + 1)

    @pytest.mark.parametrize("name", SCENARIOS)
    def test_its_snippets_are_python(self, name):
        """A bracket that is lost with one of the options."""
        snippets = re.findall(r"```python\n(.*?)```", card_text(name), re.DOTALL)
        assert snippets
        for snippet in snippets:
            ast.parse(snippet)


class TestFacts:
    @pytest.mark.parametrize("name", ["vision/digits", "vision/mnist_hinton", "text/sst2_minilm"])
    def test_it_tells_objective_data_results_and_command(self, name):
        """A card whose template has lost a place, or that names other settings than the recipe's."""
        recipe = load_recipe(name, ["training.seed=7"])
        text = card_of(recipe, results(recipe.task, name=name)).card.content
        assert f"T = {recipe.training['temperature']}" in text
        assert "| student | 0.8800 | 0.8700 | 97.8% | 1,000 |" in text
        assert "(seed 7)" in text
        assert f"`hf-distill train {name} training.seed=7`" in text

    def test_a_teacher_from_the_hub_is_the_base_model_and_a_local_one_is_not(self):
        """A path of somebody's machine in the metadata of a published model."""
        hub = load_recipe("text/sst2_minilm")
        card = card_of(hub, results("text-classification")).card
        assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
        local = load_recipe(
            "text/sst2_minilm", ["teacher.model=/somewhere/secret/minilm", "data.path=/somewhere/secret/sst2"]
        )
        card = card_of(local, results("text-classification", name="text/sst2_minilm")).card
        assert "secret" not in card.content
        assert "data.path=sst2" in card.content
        assert card.data.base_model is None

    def test_several_base_models_are_no_merge(self):
        """The Hub takes two base models for a merge of their weights, unless it is told."""
        card = card_of(*scenario("single_teacher")).card
        assert card.data.base_model == ["a/teacher", "a/small"]
        assert card.data["base_model_relation"] == "finetune"
        adapter = card_of(*scenario("adapter")).card
        assert adapter.data.base_model == ["a/small", "a/teacher"]
        assert adapter.data["base_model_relation"] == "adapter"
        assert adapter.data.library_name == "peft"

    def test_a_license_that_forbids_is_told_where_the_license_stands(self):
        """A student under MIT of a teacher that forbids commercial use, and not a word of it."""
        made = card_of(*scenario("ensemble"))
        assert made.card.data.license == "mit"
        assert len(made.license_warnings) == 2
        section = made.card.text.split("## License")[1].split("## Limits")[0]
        for line in made.license_warnings:
            assert line in section
        assert "cc-by-nc-4.0 does not allow commercial use" in section

    def test_the_publisher_may_name_the_license(self):
        """A license that the card overrules."""
        recipe, found = scenario("single_teacher")
        assert card_of(recipe, found, license="gpl-3.0").card.data.license == "gpl-3.0"

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (
                0.004,
                "It is better than the baseline: on these 900 rows their accuracies differ by +1.0 points, with a 95%",
            ),
            (0.006, "**No gain over the baseline is shown**: on these 900 rows their accuracies differ by +1.0 points"),
        ],
    )
    def test_the_gain_is_told_by_the_rows_on_which_the_two_differ(self, error, words):
        """A verdict in the terminal, and another one in the card."""
        recipe, found = scenario("single_teacher")
        better = replace(found.student, metrics={**found.student.metrics, "accuracy": 0.9})
        worse = replace(found.baseline or found.student, metrics={**found.student.metrics, "accuracy": 0.89})
        told = replace(
            found, student=better, baseline=worse, differences={"student_baseline": Difference(0.01, error, 900)}
        )
        assert words in card_of(recipe, told).card.text

    @pytest.mark.parametrize(
        ("student", "baseline", "words"),
        [
            (0.88, None, "No baseline was trained"),
            (0.88, 0.8, "It is better than the baseline (0.8000), which lies below that interval"),
            (0.88, 0.87, r"**No gain over the baseline is shown**"),
            (0.88, 0.88, r"**It does not beat the baseline**"),
            (0.86, 0.88, r"**It does not beat the baseline** (accuracy 0.8600 against 0.8800)"),
        ],
    )
    def test_the_gain_is_told_as_it_is(self, student, baseline, words):
        """A gain of two rows of 450 sold as one."""
        recipe, _ = scenario("single_teacher")
        text = card_of(recipe, results(recipe.task, student=student, baseline=baseline)).card.text
        assert words in " ".join(text.split())

    def test_the_interval_is_that_of_a_share(self):
        """A standard error over the wrong number of rows."""
        recipe, found = scenario("single_teacher")
        text = card_of(recipe, replace(found, data={**found.data, "num_eval_labels": 100})).card.text
        assert (
            "measured on 100 rows of validation: its standard error is 0.0325, the 95% interval 0.8163 to 0.9437"
            in text
        )

    @pytest.mark.parametrize(("share", "words"), [(1.0, "got all right"), (0.0, "got none right")])
    def test_a_perfect_score_is_no_certainty(self, share, words):
        """A standard error of 0."""
        recipe, _ = scenario("single_teacher")
        text = card_of(recipe, results(recipe.task, student=share)).card.text
        assert words in text
        assert "up to 0.67% of others" in text

    def test_tokens_have_no_interval(self):
        """Tokens of one sentence taken for independent cases."""
        text = card_text("tokens")
        assert "interval" not in text.split("## Limits")[1]

    def test_a_metric_that_may_be_better_when_it_is_lower_is_not_judged(self):
        """A higher loss called a gain."""
        recipe, found = scenario("single_teacher")
        models = {
            role: replace(getattr(found, role), metrics={"brier": value})
            for role, value in (("teacher", 0.1), ("student", 0.2), ("baseline", 0.3))
        }
        text = card_of(recipe, replace(found, **models)).card.text
        assert "Its brier is 0.2000, the baseline's 0.3000" in text

    def test_without_lineage_names_tell_what_is_on_the_hub(self):
        """Results of a run from before lineage was noted."""
        recipe, found = scenario("single_teacher")
        card = card_of(recipe, replace(found, lineage={})).card
        assert card.data.base_model == ["a/teacher", "a/small"]
        assert card.data.datasets == ["a/reviews"]
        assert card.data.license is None

    def test_a_cell_with_a_bar_does_not_break_its_table(self):
        """A setting with a | in it, and the rest of the table as text."""
        recipe, found = scenario("single_teacher")
        settings = recipe.model_dump()
        settings["training"]["run_name"] = "a|b\nc"
        text = model_card(settings, found, "x").text
        assert "run_name a\\|b c" in text

    def test_a_token_among_the_settings_is_not_shown(self):
        """`hub_token` in a recipe, published with its card."""
        recipe, found = scenario("single_teacher")
        settings = recipe.model_dump()
        settings["training"]["hub_token"] = "hf_abcdefghijklmnop"
        assert "hf_abc" not in model_card(settings, found, "x").content

    def test_the_template_is_where_it_is_said_to_be(self):
        """A wheel without it fails only when a training has ended."""
        assert TEMPLATE.read_text().startswith("---\n{{ card_data }}")


class TestBundled:
    def test_each_recipe_has_a_card_with_what_it_was_made_from(self):
        """A recipe whose result nobody can look up, or an empty list in the tests below."""
        names = {path.relative_to(ROOT / "model_cards").with_suffix("").as_posix() for path in CARDS}
        assert names == set(bundled_recipes())
        for card in CARDS:
            files = {path.name for path in card.with_suffix("").iterdir()}
            assert files == {"recipe.yaml", "results.json", PLOT}

    @pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
    def test_it_is_what_its_recipe_and_results_give(self, card, tmp_path):
        """A number in a card that no run has given: make them by `hf-distill card RUN --output FILE`."""
        made = tmp_path / card.name
        export_card(card.with_suffix(""), made)
        assert made.read_text() == card.read_text()
        for name in ("recipe.yaml", "results.json"):
            assert (made.with_suffix("") / name).read_text() == (card.with_suffix("") / name).read_text(), name
        assert verify(card.read_text(), read_run(card.with_suffix(""))[1]) == []

    @pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
    def test_its_picture_is_that_of_its_results(self, card):
        """A picture of an earlier run. Letters differ a little with the version of matplotlib, curves do not."""
        drawn = training_curves(read_run(card.with_suffix(""))[1])
        assert drawn is not None
        with Image.open(card.with_suffix("") / PLOT) as kept, Image.open(io.BytesIO(drawn)) as new:
            assert kept.size == new.size
            difference = np.asarray(kept.convert("L"), dtype=int) - np.asarray(new.convert("L"), dtype=int)
        assert np.abs(difference).mean() < 2
        assert f"{card.stem}/{PLOT}" in card.read_text()


class TestVerify:
    @pytest.mark.parametrize("name", SCENARIOS)
    def test_a_card_agrees_with_its_results(self, name):
        """A false alarm on every card."""
        assert verify(card_text(name), scenario(name)[1]) == []

    def test_a_number_that_was_changed_is_told(self):
        """An accuracy that somebody has polished."""
        text, found = card_text("stages"), scenario("stages")[1]
        for before, after, line in [
            (
                "| student | 0.7900 |",
                "| student | 0.9900 |",
                "student accuracy: the card says 0.9900, results.json 0.7900",
            ),
            ("| teacher | 0.9000 | 0.8900 | 100.0% |", "| teacher | 0.9000 | 0.8900 | 99% |", "teacher of teacher: "),
            ("| 4,000 |", "| 400 |", "teacher parameters: the card says 400, results.json 4,000"),
            ("| stage-1 | 0.8900", "| stage-1 | 0.8", "stage-1 accuracy: the card says 0.8, results.json 0.8900"),
            ("on 95.00% of", "on 99.00% of", "agreement: the card says 99.00%, results.json 95.00%"),
            ("closes -10.0% of", "closes 10.0% of", "gap closed: the card says 10.0%, results.json -10.0%"),
            ("value: 0.79\n", "value: 0.97\n", "model-index accuracy: the card says 0.97, results.json 0.79"),
        ]:
            assert before in text
            lines = verify(text.replace(before, after), found)
            assert len(lines) == 1, lines
            assert lines[0].startswith(line)

    def test_figures_of_an_older_student_beside_the_new_are_told(self):
        """Two accuracies on the same data in the metadata, and only one of them was looked for."""
        text, found = card_text("stages"), scenario("stages")[1]
        entry = text[text.index("    - type: accuracy\n") : text.index("    - type: f1\n")]
        twice = text.replace(entry, entry + entry.replace("0.79", "0.97"))
        assert verify(twice, found) == ["model-index accuracy: the card says 0.97, results.json 0.79"]
        assert verify(text.replace(entry, entry.replace("0.79", ".nan")), found) != []

    def test_a_number_that_is_missing_is_told(self):
        """A row or an entry that was taken out, and the comparison has nothing to compare."""
        text, found = card_text("stages"), scenario("stages")[1]
        without_row = re.sub(r"\| baseline \|.*\n", "", text)
        assert "baseline accuracy: the card says nothing, results.json 0.8000" in verify(without_row, found)
        without_index = text.replace("model-index:", "other:")
        assert verify(without_index, found) == [
            f"model-index {name}: the card says nothing, results.json {value}"
            for name, value in found.student.metrics.items()
        ]
        assert len(verify("# Nothing\n", found)) >= 4 * 6

    def test_a_row_that_no_model_has_is_told(self):
        """A second student, better than the one that was measured."""
        text, found = card_text("stages"), scenario("stages")[1]
        row = "| student |"
        more = text.replace(row, "| student-large | 0.99 | 0.99 | 110% | 1 | 1 | 1 |\n| student |", 1)
        assert verify(more, found) == ["student-large: the card has a row for it, results.json none"]

    def test_a_users_own_table_and_results_are_not_judged(self):
        """A false alarm on what the user has measured elsewhere."""
        recipe, found = scenario("stages")
        users = (
            "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: text-classification}\n    dataset: {name: b, "
            "type: b/data}\n    metrics:\n    - {type: accuracy, value: 0.1}\n---\n| model | accuracy |\n| --- | --- "
            "|\n| student | 0.1 |\n\n"
        )
        assert verify(merge(users, card_of(recipe, found).card), found) == []

    def test_numbers_written_otherwise_are_the_same(self):
        """0.79 for 0.7900, after somebody's editor has shortened it."""
        text, found = card_text("stages"), scenario("stages")[1]
        assert verify(text.replace("| student | 0.7900 |", "|student|0.79|"), found) == []


class TestSnippets:
    """Every snippet of a card runs as it stands, with the student's folder for its id."""

    def run(self, text: str, folder: str, expected: set[str]) -> list[str]:
        """Run the snippets of a card, and return what they print."""
        snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert snippets
        printed = []
        for snippet in snippets:
            assert "ada/student" in snippet
            output = io.StringIO()
            with redirect_stdout(output):
                exec(compile(snippet.replace("ada/student", folder), "README.md", "exec"), {})
            printed.append(output.getvalue())
            assert any(label in printed[-1] for label in expected)
        return printed

    def card(self, recipe: dict, labels: list[str], **data) -> str:
        Path("x.yaml").write_text(yaml.safe_dump(recipe))
        loaded = load_recipe("x.yaml")
        plain = results(loaded.task)
        found = replace(plain, data={**plain.data, "label_names": labels, **data})
        return card_of(loaded, found, repo_id="ada/student").card.text

    def test_text(self):
        """The wrong Auto class, or a tokenizer that is not loaded from the student."""
        tiny.bert().save_pretrained("student")
        tiny.tokenizer().save_pretrained("student")
        printed = self.run(self.card(TEXT, ["red", "green", "blue"]), "student", {"red", "green", "blue"})
        assert len(printed) == 2

    def test_pairs_of_texts(self):
        """A pair given to the pipeline as a list is two texts."""
        tiny.bert().save_pretrained("student")
        tiny.tokenizer().save_pretrained("student")
        text = self.card(TEXT, ["red", "green", "blue"], inputs=["a", "b"])
        pipe, model = self.run(text, "student", {"red", "green", "blue"})
        label = model.strip()
        assert label in pipe

    def test_words(self):
        """One label for a text whose every word has one."""
        model = tiny.bert_for_tokens()
        assert isinstance(model, BertForTokenClassification)
        model.save_pretrained("student")
        tiny.tokenizer().save_pretrained("student")
        recipe = {**TEXT, "task": "token-classification"}
        pipe, plain = self.run(self.card(recipe, ["red", "green", "blue"]), "student", {"red", "green", "blue"})
        assert len(ast.literal_eval(plain)) > 3
        assert "word" in pipe

    def test_colour_images(self):
        """An image that reaches the model in another size or with other channels."""
        tiny.vit().save_pretrained("student")
        image_processor((8, 8), 3).save_pretrained("student")
        save_image()
        recipe = {**IMAGES, "student": {"model": "a/student"}}
        printed = self.run(self.card(recipe, ["red", "green", "blue"]), "student", {"red", "green", "blue"})
        assert len(printed) == 2
        assert printed[1].strip() in printed[0]

    def test_grey_images_in_the_packages_own_architecture(self):
        """Transformers does not know `hf_distill_mlp`, and its pipeline gives a grey model colour images."""
        labels = tiny.labels()
        MLPForImageClassification(MLPConfig(image_size=8, hidden_sizes=[4], **labels)).save_pretrained("student")
        size = {"height": 8, "width": 8}
        GreyImageProcessor(size=size, image_mean=[0.0], image_std=[1.0]).save_pretrained("student")
        save_image()
        recipe = {**IMAGES, "student": {"config": {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1}}}
        text = self.card(recipe, ["red", "green", "blue"], num_channels=1)
        assert "import hf_distill.models  # registers" in text
        printed = self.run(text, "student", {"red", "green", "blue"})
        assert printed[1].strip() in printed[0]

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("kind", ["16-bit", "float", "transparent", "rotated"])
    def test_images_are_read_as_in_training(self, kind, channels):
        """A snippet whose pixels are white, black or on their side, and whose labels are wrong."""
        random = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 6
        image, options = {
            "16-bit": (Image.fromarray(random[..., 0].astype(np.uint16) * 200), {}),
            "float": (Image.fromarray(np.float32(random[..., 0] / 300)), {}),
            "transparent": (Image.fromarray(random), {}),
            "rotated": (Image.fromarray(random[..., :3].copy()), {"exif": turned}),
        }[kind]
        image.save("image.png", "TIFF" if kind == "float" else "PNG", **options)
        rows = Dataset.from_dict({"image": ["image.png"]}).cast_column("image", datasets.Image())
        counts = dict(check_images(rows, "image", "train", "#204060"))
        assert counts == {kind: 1}
        shape = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": channels}
        recipe = {**IMAGES, "student": {"config": shape}, "data": {**IMAGES["data"], "background": "#204060"}}
        MLPForImageClassification(MLPConfig(image_size=8, num_channels=channels, **tiny.labels())).save_pretrained("s")
        size = {"height": 8, "width": 8}
        (image_processor((8, 8), 3) if channels == 3 else GreyImageProcessor(size=size)).save_pretrained("s")
        text = self.card(recipe, ["red", "green", "blue"], num_channels=channels, unusual_images=counts)
        assert "Among the images of its data were 1 " in text
        expected = image_array(rows[0]["image"], channels, "#204060")
        for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            variables: dict = {}
            with redirect_stdout(io.StringIO()) as output:
                exec(compile(snippet.replace("ada/student", "s"), "README.md", "exec"), variables)
            assert any(label in output.getvalue() for label in ("red", "green", "blue"))
            assert np.array_equal(np.asarray(variables["image"]).reshape(expected.shape), expected)

    def test_an_adapter_reads_images_as_in_training(self):
        """Its one snippet has the image for both ways of use."""
        recipe, plain = scenario("adapter")
        recipe = recipe.model_copy(update={"task": "image-classification"})
        found = replace(plain, task="image-classification", data={**plain.data, "unusual_images": {"16-bit": 3}})
        text = card_of(recipe, found, repo_id="ada/student").card.text
        (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert snippet.startswith(
            "import numpy as np\nimport torch\nfrom peft import PeftModel\nfrom PIL import Image\n"
        )
        assert snippet.count("np.asarray(image) / 257") == 1
        assert snippet.rstrip().endswith("print(classify(image))")
        compile(snippet, "README.md", "exec")

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    def test_an_adapter(self):
        """The adapter's head has other labels than its base model, which `pipeline(model=...)` cannot load."""
        tiny.bert().save_pretrained("small")
        names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
        base = AutoModelForSequenceClassification.from_pretrained("small", ignore_mismatched_sizes=True, **names)
        student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
        with torch.no_grad():
            for name, weight in student.named_parameters():
                if "lora_" in name:
                    weight.normal_()
        student.save_pretrained("student")
        tiny.tokenizer().save_pretrained("student")
        text = card_of(*scenario("adapter"), repo_id="ada/student").card.text
        text = text.replace("a/small", "small").replace(f'    revision="{SHA}",\n', "")
        (printed,) = self.run(text, "student", {"negative", "positive"})
        with torch.no_grad():
            inputs = tiny.tokenizer()("A text to classify.", return_tensors="pt")
            label = ["negative", "positive"][int(student.eval()(**inputs).logits.argmax())]
        first, second = printed.splitlines()
        assert first == label
        assert label in second


def image_processor(size: tuple[int, int], channels: int):
    return transformers.models.auto.image_processing_auto.get_image_processor_class_from_name("ViTImageProcessorPil")(
        size={"height": size[0], "width": size[1]}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )


def save_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")


def test_results_without_the_newer_fields_still_make_a_card():
    """A run of an earlier version, which has no lineage and no curves."""
    recipe, found = scenario("single_teacher")
    kept = json.loads(found.to_json())
    for name in ("lineage", "curves"):
        del kept[name]
    for name in ("num_eval_labels", "inputs"):
        del kept["data"][name]
    card = card_of(recipe, Results.from_json(json.dumps(kept))).card
    assert "training_curves" not in card.text
    assert ModelCard(card.content).data.license is None
