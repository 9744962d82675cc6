"""Whole runs, from recipe to results, on small real data."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
    PreTrainedModel,
    Trainer,
    pipeline,
)
from transformers.integrations import is_tensorboard_available

from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.hub.portable import portable
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill
from hf_distill.runs.workspace import Workspace
from hf_distill.teachers.model import TeacherModel
from hf_distill.training.config import DistillationConfig

SMALL = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 8, "learning_rate": 1e-2}


def run(recipe: dict, **options) -> Results:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return distill(load_recipe("recipe.yaml"), "recipe", **options)


def save_base(folder="base", **config):
    """Save an encoder without a head, with its tokenizer, as pretrained checkpoints come."""
    BertModel(tiny.bert(0, num_layers=3, initializer_range=0.2, **config).config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def sentences(count: int, unlabelled: int = 0) -> list[dict]:
    """Sentences whose sentiment one word decides."""
    random = torch.Generator().manual_seed(count)
    rows = []
    for place in range(count):
        good = place % 2 == 0
        words = [tiny.WORDS[int(i)] for i in torch.randint(0, 5, (3 + place % 4,), generator=random)]
        words.append(("good", "great")[place % 3 == 0] if good else ("bad", "dull")[place % 3 == 0])
        rows.append({"text": " ".join(words), "label": "positive" if good else "negative"})
    for row in rows[:unlabelled]:
        row["label"] = None
    return rows


def text_recipe(**changes) -> dict:
    save_base()
    Path("data").mkdir(exist_ok=True)
    for split, rows in (("train", sentences(96, unlabelled=16)), ("validation", sentences(40))):
        Path(f"data/{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {
        "task": "text-classification",
        "data": {"path": "data"},
        "teacher": {"model": "base", "training": {**SMALL, "num_train_epochs": 8}},
        "student": {"from_teacher": {"layers": [0, 2]}},
        "training": {**SMALL, "num_train_epochs": 3, "temperature": 2.0},
        "output_dir": "out",
        **changes,
    }


def digits_recipe(**changes) -> dict:
    shape = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1}
    return {
        "task": "image-classification",
        "data": {"dataset": "sklearn:digits", "eval_split": "test", "max_train_rows": 400},
        "teacher": {
            "config": {**shape, "hidden_sizes": [64]},
            "training": {**SMALL, "num_train_epochs": 3},
            "augment": {"crop_padding": 1},
        },
        "student": {"config": {**shape, "hidden_sizes": [16]}},
        "training": {**SMALL, "num_train_epochs": 2},
        "output_dir": "out",
        **changes,
    }


def test_text_from_recipe_to_results():
    """The whole way, as a user goes it; every product must be usable by itself."""
    found = run(text_recipe())
    assert found.teacher.metrics["accuracy"] > 0.9
    assert found.student.metrics.keys() == {"accuracy", "f1"}
    assert found.student.num_parameters < found.teacher.num_parameters
    assert found.data["unlabelled_share"] == pytest.approx(16 / 96)
    written = json.loads(Path("out/results.json").read_text())
    assert {"task", "recipe", "teacher", "student", "baseline", "agreement", "gap_closed", "environment"} <= set(
        written
    )
    assert set(written["student"]) == {field.name for field in fields(ModelResult)}
    assert Results.read(Path("out")) == found
    for stage, layers in (("teacher", 3), ("student", 2), ("baseline", 2)):
        model = AutoModelForSequenceClassification.from_pretrained(f"out/{stage}")
        assert model.config.num_hidden_layers == layers
        assert model.config.id2label == {0: "negative", 1: "positive"}
        AutoTokenizer.from_pretrained(f"out/{stage}")
        assert not list(Path(f"out/{stage}").glob("*.bin"))
    assert load_recipe("out/recipe.yaml").training["temperature"] == 2.0
    classify = pipeline("text-classification", model="out/student", device="cpu")
    assert classify("the film was great")[0]["label"] in ("negative", "positive")
    card = Path("out/student/README.md").read_text()
    assert f"{found.student.metrics['accuracy']:.4f}" in card
    assert str(Path.cwd()) not in card


@pytest.mark.filterwarnings("ignore:data. .* have inputs that the train split:UserWarning")
def test_a_teacher_that_learned_nothing_here_is_refused_for_its_training():
    """An hour of training called untrained; or lost, because the run can only begin anew."""
    recipe = text_recipe(baseline=False)
    labels = torch.randint(0, 2, (160,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{**row, "label": ["negative", "positive"][i]} for row, i in zip(sentences(160), labels, strict=True)]
    Path("data/validation.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match="the teacher predicts the evaluation labels no better than chance") as refused:
        run(recipe)
    message = str(refused.value)
    assert "most likely its training here was too short" in message
    assert "untrained," not in message
    assert message.endswith("; or set training.allow_untrained_teacher=true to use it all the same")
    before = load_file("out/teacher/model.safetensors")
    trained_at = Path("out/teacher/model.safetensors").stat().st_mtime_ns
    run({**recipe, "training": {**recipe["training"], "allow_untrained_teacher": True}})
    assert Path("out/teacher/model.safetensors").stat().st_mtime_ns == trained_at
    assert all(value.equal(before[name]) for name, value in load_file("out/teacher/model.safetensors").items())


def test_accuracy_in_results_is_that_of_the_saved_student():
    """Results that belong to another state of the model than the one that was saved."""
    found = run(text_recipe())
    model = AutoModelForSequenceClassification.from_pretrained("out/student").eval()
    tokenizer = AutoTokenizer.from_pretrained("out/student")
    rows = sentences(40)
    with torch.no_grad():
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in rows]
    right = [model.config.id2label[int(one.argmax())] == row["label"] for one, row in zip(logits, rows, strict=True)]
    assert found.student.metrics["accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.slow
def test_images_from_recipe_to_results():
    """An augmented teacher, a student without augmentation, and a processor made from the config."""
    found = run(digits_recipe())
    assert found.teacher.metrics["accuracy"] > 0.5
    model = AutoModelForImageClassification.from_pretrained("out/student")
    assert model.config.hidden_sizes == [16]
    processor = AutoImageProcessor.from_pretrained("out/student")
    assert processor.size["height"] == 8


def glyphs(count: int) -> Dataset:
    """Squares and bars in black: the picture is in the alpha channel alone."""
    pixels = np.zeros((count, 8, 8, 4), np.uint8)
    pixels[::2, 2:6, 2:6, 3] = 255
    pixels[1::2, 3:5, :, 3] = np.arange(count // 2).reshape(-1, 1, 1) + 155
    rows = {"image": [Image.fromarray(each) for each in pixels], "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(
        rows, features=Features({"image": datasets.Image(), "label": ClassLabel(names=["a", "b"])})
    )


@pytest.mark.filterwarnings("ignore:data. .* have inputs that the train split:UserWarning")
def test_transparent_images_from_recipe_to_results_and_card():
    """Glyphs that are one black picture: teacher and student at chance, and a card whose snippet drops the glyph."""
    DatasetDict({"train": glyphs(64), "test": glyphs(32)}).save_to_disk("data")
    recipe = digits_recipe(data={"path": "data"}, baseline=False)
    results = run(recipe)
    assert (results.teacher.metrics["accuracy"], results.student.metrics["accuracy"]) == (1.0, 1.0)
    assert results.data["unusual_images"] == {"transparent": 96}
    card = Path("out/student/README.md").read_text()
    assert card.count('ground = Image.new("RGBA", image.size, "white")') == 2
    with pytest.raises(ValueError, match=r"other settings \(data\.background: 'white' -> 'black'\)"):
        run({**recipe, "data": {"path": "data", "background": "black"}})


def test_words_with_tags_from_recipe_to_results():
    """Token classification with word-level labels, from a list column."""
    save_base()
    rows = []
    for row in sentences(64):
        words = row["text"].split()
        rows.append(
            {"tokens": words, "ner_tags": ["OPINION" if w in ("good", "great", "bad", "dull") else "O" for w in words]}
        )
    Path("train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = text_recipe(
        task="token-classification",
        data={"path": "train.jsonl", "eval_split": 0.25},
    )
    found = run(recipe)
    assert (found.data["num_train_rows"], found.data["num_eval_rows"]) == (48, 16)
    card = " ".join(Path("out/student/README.md").read_text().split())
    assert "Measured on the 16 rows of a held-out 25% of train, " in card
    assert "split: a held-out 25% of train" in card
    assert run(recipe) == found
    assert found.teacher.metrics["accuracy"] > 0.9
    model = AutoModelForTokenClassification.from_pretrained("out/student")
    assert set(model.config.id2label.values()) == {"O", "OPINION"}


@pytest.mark.slow
def test_a_ready_teacher_with_its_labels_in_another_order():
    """Its metrics and its soft targets must both be read in the data's order."""
    run(text_recipe(output_dir="first"))
    teacher = AutoModelForSequenceClassification.from_pretrained("first/teacher")
    teacher.classifier.weight.data = teacher.classifier.weight.data.flip(0)
    teacher.classifier.bias.data = teacher.classifier.bias.data.flip(0)
    teacher.config.id2label = {0: "POSITIVE", 1: "NEGATIVE"}
    teacher.save_pretrained("turned")
    AutoTokenizer.from_pretrained("first/teacher").save_pretrained("turned")
    found = run(text_recipe(teacher={"model": "turned"}, output_dir="second", baseline=False))
    assert found.teacher.metrics == Results.read(Path("first")).teacher.metrics
    assert found.teacher.train_seconds is None
    assert found.baseline is None
    assert found.gap_closed is None
    assert found.student.metrics["accuracy"] > 0.9


def test_evaluation_during_training_and_the_best_checkpoint():
    """Settings of the training must not reach the prediction of the results, which has no evaluation set."""
    recipe = text_recipe(baseline=False)
    recipe["training"] |= {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
    }
    run(recipe)
    history = json.loads(Path("out/stages/student.json").read_text())["log_history"]
    evaluated = [entry for entry in history if "eval_accuracy" in entry]
    assert len(evaluated) == 3
    assert {"eval_loss", "eval_soft_loss", "eval_label_loss", "eval_f1"} <= set(evaluated[0])
    assert "after the best evaluation of one run" in " ".join(Path("out/student/README.md").read_text().split())


@pytest.mark.slow
@pytest.mark.skipif(not is_tensorboard_available(), reason="needs tensorboard or tensorboardX")
@pytest.mark.parametrize("folder", ["out/tensorboard", "elsewhere"])
def test_tensorboard_has_the_curves_of_each_stage_after_the_run(folder, monkeypatch):
    """Events beside the checkpoints are deleted with them, and those of two trainings in one folder are one zigzag."""
    if folder == "elsewhere":
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", folder)
    recipe = digits_recipe(stages=[digits_recipe()["student"]])
    recipe["data"]["max_train_rows"] = 80
    recipe["training"]["allow_untrained_teacher"] = True
    for section in (recipe["training"], recipe["teacher"]["training"]):
        section |= {"report_to": "tensorboard", "logging_steps": 5, "eval_strategy": "epoch", "num_train_epochs": 1}

    def events() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in sorted(Path().rglob("*tfevents*"))}

    run(recipe)
    first = events()
    assert [file.parent for file in first] == [
        Path(folder, stage) for stage in ("baseline", "stage-1", "student", "teacher")
    ]
    for file, content in first.items():
        assert b"train/label_loss" in content
        assert b"eval/accuracy" in content
        assert (b"train/soft_loss" in content) == (file.parent.name in ("stage-1", "student"))
    run(recipe)
    assert events() == first
    shutil.rmtree("out/student")  # to have it trained again
    run(recipe)
    second = events()
    gone = [file.parent.name for file in first if file not in second]
    assert gone == (["student"] if folder == "out/tensorboard" else [])  # what is elsewhere is the user's own
    recipe["training"]["temperature"] = 8.0
    run(recipe, overwrite=True)
    assert (len(events()) == 4) == (folder == "out/tensorboard")


@pytest.mark.slow
def test_run_again_it_trains_nothing():
    """A second start must neither repeat nor change what is finished."""
    first = run(digits_recipe())
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").rglob("model.safetensors")}
    assert len(stamps) == 3
    second = run(digits_recipe())
    assert second == first
    left = Path("out/checkpoints/student/checkpoint-1/optimizer.pt")  # as if killed before it was removed
    left.parent.mkdir(parents=True)
    left.touch()
    Path("out/results.json").unlink()
    second = run(digits_recipe())
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("model.safetensors")} == stamps
    assert second.student.metrics == first.student.metrics
    assert not left.exists()


@pytest.mark.slow
def test_other_settings_are_refused_and_named():
    """Results of two settings in one folder."""
    run(digits_recipe())
    before = Path("out/results.json").read_text()
    changed = digits_recipe()
    changed["training"]["temperature"] = 8.0
    with pytest.raises(ValueError, match=r"training\.temperature: [24]\.0 -> 8\.0.*--overwrite"):
        run(changed)
    assert Path("out/results.json").read_text() == before
    assert run(changed, overwrite=True).student.train_seconds > 0


@pytest.mark.slow
def test_changed_data_are_refused():
    """The settings are the same and the file is not: results of the old one would be taken for those of the new."""
    recipe = text_recipe(baseline=False)
    run(recipe)
    rows = Path("data/train.jsonl").read_text().splitlines()
    changed = json.dumps({**json.loads(rows[0]), "text": "the film was short"})
    Path("data/train.jsonl").write_text("\n".join([changed, *rows[1:]]))
    with pytest.raises(ValueError, match="holds a run on other data"):
        run(recipe)
    Path("data/train.jsonl").write_text("\n".join(rows))
    run(recipe)


@pytest.mark.slow
def test_a_teacher_with_another_tokenizer_gets_its_own_ids(monkeypatch):
    """A teacher fed with another vocabulary's ids teaches noise, with no error anywhere."""
    recipe = text_recipe(baseline=False)
    backend = json.loads(Path("base/tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    vocabulary["the"], vocabulary["film"] = vocabulary["film"], vocabulary["the"]
    save_base("other")
    Path("other/tokenizer.json").write_text(json.dumps(backend))
    asked = []
    run_teacher = TeacherModel.__call__

    def listening(teacher, inputs):
        asked.append((inputs["teacher_inputs"][0]["input_ids"], inputs["input_ids"]))
        return run_teacher(teacher, inputs)

    monkeypatch.setattr(TeacherModel, "__call__", listening)
    run({**recipe, "student": {"model": "other"}})
    teacher, student = (AutoTokenizer.from_pretrained(folder) for folder in ("base", "other"))
    texts = [
        [reader.batch_decode(ids) for ids in each]
        for reader, each in zip((teacher, student), zip(*asked, strict=True), strict=True)
    ]
    assert texts[0] == texts[1]
    assert any("film" in text for batch in texts[0] for text in batch)
    assert not all(torch.equal(one, other) for one, other in asked)


def test_texts_longer_than_the_models_take_are_cut():
    """A tokenizer that does not know the limit, and an index error after hours of training."""
    recipe = text_recipe(baseline=False)
    recipe["training"]["allow_untrained_teacher"] = True
    settings = json.loads(Path("base/tokenizer_config.json").read_text())
    Path("base/tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 10**30}))
    Path("data/train.jsonl").write_text(
        "\n".join(json.dumps({**row, "text": row["text"] + " the" * 100}) for row in sentences(32))
    )
    run(recipe)
    with pytest.raises(ValueError, match=r"max_length: must be at most 32, .* got 64"):
        run({**recipe, "data": {"path": "data", "max_length": 64}, "output_dir": "other"})


def test_data_without_any_label_need_a_ready_teacher():
    """There is nothing to train a teacher or a baseline on."""
    recipe = text_recipe(data={"path": "data", "label_names": ["negative", "positive"]})
    rows = [{**row, "label": None} for row in sentences(96)]
    rows[0]["label"] = ""  # keeps the column one of text
    Path("data/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="no row of the train split has a label"):
        run(recipe)


@pytest.mark.slow
def test_a_narrow_teacher_leaves_the_baseline_as_it_was():
    """The teacher is converted in place: a baseline made of its layers began elsewhere than the student."""
    recipe = text_recipe()
    recipe["training"]["teacher_dtype"] = "bfloat16"
    run(recipe)
    first = load_file("out/baseline/model.safetensors")
    shutil.rmtree("out/baseline")
    Path("out/stages/baseline.json").unlink()
    run(recipe)  # with a teacher that no student has learnt from since it was loaded
    second = load_file("out/baseline/model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_ready_narrow_teacher_of_images_is_measured():
    """ResNet and others do not convert their input to the type of their weights."""
    shape = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    once = {**SMALL, "num_train_epochs": 1}
    student = {"config": {**shape, "layer_type": "basic"}}
    teacher = {**student, "training": once}
    trained = run(digits_recipe(teacher=teacher, student=student, training=once, baseline=False, output_dir="first"))
    narrow = run(
        digits_recipe(
            teacher={"model": "first/teacher"},
            student=student,
            training={**once, "teacher_dtype": "bfloat16", "allow_untrained_teacher": True},
            baseline=False,
        )
    )
    assert narrow.teacher.size_mib < trained.teacher.size_mib
    assert narrow.teacher.metrics["accuracy"] == pytest.approx(trained.teacher.metrics["accuracy"], abs=0.05)


def test_results_are_those_of_the_saved_weights_whatever_training_evaluates_in():
    """bf16_full_eval converts a model for good, and halved the size in the results."""
    recipe = digits_recipe(baseline=False)
    recipe["training"] |= {"bf16_full_eval": True}
    found = run(recipe)
    assert found.student.size_mib == pytest.approx(found.student.num_parameters * 4 / 2**20, abs=1e-3)


@pytest.mark.parametrize("setting", ["prediction_loss_only", "batch_eval_metrics", "eval_do_concat_batches"])
def test_settings_that_withhold_the_predictions_are_refused(setting):
    """They ended a run with a TypeError once its teacher was trained."""
    recipe = digits_recipe()
    recipe["training"] |= {setting: setting != "eval_do_concat_batches"}
    with pytest.raises(ValueError, match=rf"training\.{setting}: would keep the predictions from the metrics"):
        run(recipe)


@pytest.mark.slow
def test_killed_in_any_stage_it_ends_with_the_same_weights():
    """A run that is restarted must not differ from one that was not."""
    recipe = text_recipe()
    for section in (recipe["teacher"]["training"], recipe["training"]):
        section |= {"save_steps": 5, "num_train_epochs": 12}
    recipe["training"]["seed"] = 7
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))

    def start(output: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "hf_distill", "train", "recipe.yaml", f"output_dir={output}"]
        with open("log", "w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    assert start("whole").wait() == 0, Path("log").read_text()
    killed = []
    for stage in ("teacher", "student", "baseline"):
        process = start("killed")
        checkpoints = Path("killed/checkpoints") / stage
        while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None, Path("log").read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not Path(f"killed/{stage}").exists()
        killed.append(stage)
    assert start("killed").wait() == 0
    assert killed == ["teacher", "student", "baseline"]
    for stage in killed:
        one, other = (load_file(f"{run}/{stage}/model.safetensors") for run in ("whole", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), stage
    results = [Results.read(Path(run)) for run in ("whole", "killed")]
    assert results[0].student.metrics == results[1].student.metrics
    assert results[0].agreement == results[1].agreement


@pytest.mark.slow
def test_a_run_builds_no_more_than_it_needs(monkeypatch):
    """Models, trainers and settings made again for each question: seconds on the demo, minutes on a large teacher."""
    made: Counter[str] = Counter()

    def count(kind: type, method: str, name: str) -> None:
        original = getattr(kind, method)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            made[name if torch.empty(0).device.type == "cpu" else f"{name} without memory"] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, method, counted)

    count(PreTrainedModel, "__init__", "models")
    count(Trainer, "__init__", "trainers")
    count(DistillationConfig, "__post_init__", "settings")
    run(digits_recipe())
    assert made["models"] == 3
    assert made["models without memory"] <= 2
    assert made["trainers"] <= 4
    assert made["settings"] <= 6


def test_rows_without_labels_and_a_smaller_vocabulary_from_recipe_to_pipeline():
    """A teacher that makes steps without a gradient, or a student whose tokens are numbered apart from its weights."""
    recipe = text_recipe(training={**SMALL, "num_train_epochs": 1})
    Path("more.jsonl").write_text("\n".join(json.dumps(row) for row in sentences(64)))
    recipe["data"] = {**recipe["data"], "unlabelled": {"path": "more.jsonl", "max_rows": 48}}
    recipe["student"] = {"from_teacher": {"num_layers": 2, "strategy": "first", "vocabulary": {"from": "train"}}}
    found = run(recipe)
    assert found.data["num_train_rows"] == 96 + 48
    assert found.data["unlabelled_share"] == pytest.approx((16 + 48) / (96 + 48))
    kept = found.data["vocabulary"]
    assert kept["coverage"] == 1.0
    assert kept["num_tokens"] <= kept["of"]
    steps = {stage: entries[-1]["step"] for stage, entries in found.curves.items()}
    assert steps["baseline"] * (96 + 48) <= steps["student"] * 96
    model = AutoModelForSequenceClassification.from_pretrained("out/student")
    assert model.config.vocab_size == kept["num_tokens"]
    assert len(AutoTokenizer.from_pretrained("out/student")) == kept["num_tokens"]
    classify = pipeline("text-classification", model="out/student", device="cpu")
    assert classify("the film was great")[0]["label"] in ("negative", "positive")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {**SMALL, "soft_loss": "dkd"}}, "at least 3 classes"),
        ({"student": {"from_teacher": {"num_layers": 4}}}, "num_layers must be 1 to 3"),
        ({"data": {"path": "data", "unlabelled": {"path": "none.csv"}}}, "data.unlabelled: cannot read none.csv"),
        (
            {"data": {"path": "data", "unlabelled": {"path": "data", "split": "x"}}},
            "data.unlabelled.split: .* no split",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_training(changes: dict, words: str):
    """A teacher trained for hours before a word about its student."""
    with pytest.raises(ValueError, match=words):
        run(text_recipe(**changes))
    assert not Path("out/teacher").exists()


def test_the_folder_of_unlabelled_rows_is_not_published():
    """The names of a machine's folders on a public card."""
    values = text_recipe(data={"path": "data", "unlabelled": {"path": "home/me/more.jsonl"}})
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    shared = portable(load_recipe("recipe.yaml").model_dump())
    assert shared["data"]["unlabelled"]["path"] == "more.jsonl"


LORA = {"from_teacher": {"layers": [0, 2]}, "peft": {"r": 4, "lora_alpha": 8}}


@pytest.mark.slow
def test_an_adapter_alone_is_trained_and_is_in_the_saved_weights(monkeypatch):
    """A student that needs PEFT where it is used, or all of which was trained; a stop between the last two steps."""
    run(text_recipe(baseline=False, student=LORA))
    teacher, student = (
        AutoModelForSequenceClassification.from_pretrained(f"out/{each}") for each in ("teacher", "student")
    )
    assert not Path("out/student/adapter_config.json").exists()
    frozen, adapted = "output.dense.weight", "attention.self.query.weight"
    for name in (frozen, adapted):
        both = [model.get_parameter(f"bert.encoder.layer.0.{name}") for model in (teacher, student)]
        assert torch.equal(*both) == (name == frozen)
    assert not torch.equal(teacher.classifier.weight, student.classifier.weight)

    def stop(self, stage, save, record):
        if stage == "student":
            raise KeyboardInterrupt
        return finish(self, stage, save, record)

    finish = Workspace.finish
    monkeypatch.setattr(Workspace, "finish", stop)
    recipe = text_recipe(baseline=False, student=LORA, output_dir="again")
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    monkeypatch.setattr(Workspace, "finish", finish)
    run(recipe)
    again = AutoModelForSequenceClassification.from_pretrained("again/student")
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("fields", "message"), [({"rank": 4}, "has no field rank"), ({"target_modules": ["no"]}, "No modules")]
)
def test_an_adapter_that_cannot_be_is_refused_before_the_teacher_is_trained(fields, message):
    """Hours of a teacher's training, and then a name that PEFT does not know."""
    with pytest.raises(ValueError, match=f"student.peft: .*{message}"):
        run(text_recipe(student={**LORA, "peft": fields}))
    assert not Path("out/teacher").exists()


@pytest.mark.slow
def test_changed_copies_of_texts_are_rows_that_the_teacher_alone_labels():
    """Copies with the labels of texts that they are no longer, or a baseline that is trained on rows without any."""
    augment = {"copies": 2, "mask": 0.2, "swap": 0.1, "drop": 0.1}
    recipe = text_recipe(data={"path": "data", "augment": augment})
    recipe["training"]["precompute_teacher_logits"] = True
    found = run(recipe)
    assert found.data["num_train_rows"] == 3 * 96
    assert found.data["unlabelled_share"] == pytest.approx((16 + 2 * 96) / (3 * 96))
    steps = {stage: curve[-1]["step"] for stage, curve in found.curves.items()}
    assert steps["student"] > 3 * steps["baseline"]
    assert found.student.metrics["accuracy"] > 0.8
