"""Whole runs with several teachers, columns, stages, processors of their own and schedules."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)

from hf_distill.cli import main as cli
from hf_distill.data.loading import load_rows
from hf_distill.evaluation.latency import Speed
from hf_distill.evaluation.results import ModelResult, Results
from hf_distill.training.trainer import DistillationTrainer
from tests.runs.test_train import SMALL, digits_recipe, run, save_base, sentences, text_recipe

ONE = {**SMALL, "num_train_epochs": 1, "allow_untrained_teacher": True}
SENTIMENT = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
DECISIVE = {"good": 1, "great": 1, "bad": 0, "dull": 0}


def ensemble_recipe(**changes) -> dict:
    """Two teachers of the digits that differ in their seed."""
    recipe = digits_recipe(**changes)
    first = {"config": recipe["teacher"]["config"], "training": {**SMALL, "num_train_epochs": 1}}
    recipe["data"] = {**recipe["data"], "max_train_rows": 200}
    recipe["training"] = {**ONE, **changes.get("training", {})}
    recipe["teacher"] = [{**first, "training": {**first["training"], "seed": seed}} for seed in (0, 1)]
    return recipe


def vocabulary_turned(folder: str) -> None:
    """Change a tokenizer's ids: the words are the same, and their numbers run backwards."""
    file = Path(folder) / "tokenizer.json"
    backend = json.loads(file.read_text())
    vocabulary = backend["model"]["vocab"]
    numbers = [vocabulary[word] for word in tiny.WORDS]
    vocabulary.update(zip(tiny.WORDS, reversed(numbers), strict=True))
    file.write_text(json.dumps(backend))


def logits_of_texts(folder: str, texts: list[str]) -> torch.Tensor:
    """Ask a saved model one text at a time, with the tokenizer beside it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts])


def without_times(result: ModelResult) -> tuple:
    return result.metrics, result.num_parameters, result.size_mib


def files_below(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def refusal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, recipe: dict, *overrides: str) -> str:
    """Run a recipe with a mistake from the command line; what goes for every mistake is seen to here."""
    Path("x.yaml").write_text(yaml.safe_dump(recipe))
    before = files_below(".")
    monkeypatch.setattr(sys, "argv", ["hf-distill", "train", "x.yaml", *overrides])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    lines = [line for line in printed.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2, printed.err
    assert "Traceback" not in printed.err
    assert len(lines) in (1, 2), lines
    assert all(len(line) < 500 for line in lines)
    assert files_below(".") == before
    assert not Path("out").exists()
    return "\n".join(line.removeprefix("error: ") for line in lines)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    return lambda recipe, *overrides: refusal(capsys, monkeypatch, recipe, *overrides)


class TestEnsemble:
    @pytest.mark.slow
    def test_each_teacher_is_trained_kept_and_measured(self):
        """One teacher trained twice, or its results taken for those of both."""
        found = run(ensemble_recipe())
        assert {"teacher-1", "teacher-2", "student", "baseline"} <= {path.name for path in Path("out").iterdir()}
        one, other = (load_file(f"out/teacher-{number}/model.safetensors") for number in (1, 2))
        assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
        assert list(found.teachers) == ["teacher-1", "teacher-2"]
        parts = list(found.teachers.values())
        assert found.teacher.num_parameters == sum(part.num_parameters for part in parts)
        assert found.teacher.train_seconds == pytest.approx(sum(part.train_seconds for part in parts), abs=2e-3)
        rows = load_dataset_of_digits()
        probabilities = [logits_of_images(f"out/teacher-{number}", rows["image"]).softmax(-1) for number in (1, 2)]
        labels = torch.tensor(rows["label"])
        for part, one_probabilities in zip(parts, probabilities, strict=True):
            assert part.metrics["accuracy"] == pytest.approx(accuracy(one_probabilities, labels))
        together = (probabilities[0] + probabilities[1]) / 2
        assert found.teacher.metrics["accuracy"] == pytest.approx(accuracy(together, labels))
        agreement = accuracy(logits_of_images("out/student", rows["image"]), together.argmax(-1))
        assert found.agreement == pytest.approx(agreement)
        assert Results.read(Path("out")) == found

    @pytest.mark.slow
    def test_started_again_without_its_student_it_ends_the_same(self):
        """Teachers that come from the folder in another order, or are trained once more."""
        first = run(ensemble_recipe(baseline=False))
        weights = load_file("out/student/model.safetensors")
        stamps = {path: path.stat().st_mtime_ns for path in Path("out").glob("teacher-*/model.safetensors")}
        shutil.rmtree("out/student")
        Path("out/stages/student.json").unlink()
        second = run(ensemble_recipe(baseline=False))
        assert len(stamps) == 2
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
        again = load_file("out/student/model.safetensors")
        assert all(torch.equal(weights[name], again[name]) for name in weights)
        assert second.teachers == first.teachers
        timed = Speed._fields
        assert replace(second.teacher, **dict.fromkeys(timed)) == replace(first.teacher, **dict.fromkeys(timed))
        assert second.agreement == first.agreement

    @pytest.mark.slow
    def test_all_the_weight_on_the_first_is_the_first(self):
        """Weights that reach the training and not the results, or the other way round, or in another order."""
        training = {"teacher_weights": [1, 0], **tiny.SGD}
        recipe = ensemble_recipe(training=training, baseline=False, output_dir="both")
        found = run(recipe)
        assert found.teacher.metrics == found.teachers["teacher-1"].metrics != found.teachers["teacher-2"].metrics
        alone = {**recipe, "teacher": recipe["teacher"][0], "training": {**ONE, **tiny.SGD}, "output_dir": "one"}
        assert run(alone).teacher.metrics == found.teacher.metrics
        both, one = (load_file(f"{kind}/student/model.safetensors") for kind in ("both", "one"))
        for name, value in one.items():
            torch.testing.assert_close(both[name], value, rtol=0, atol=1e-5)

    @pytest.mark.slow
    def test_teacher_weights_are_of_the_teachers_and_not_of_a_stage(self):
        """A stage teaches alone: refused for the two weights only after both teachers and the stage are trained."""
        recipe = ensemble_recipe(training={"teacher_weights": [3, 1]}, baseline=False)
        found = run({**recipe, "stages": [recipe["student"]]})
        assert list(found.stages) == ["stage-1"]

    @pytest.mark.slow
    def test_a_specialist_beside_a_trained_teacher(self):
        """A specialist that is counted as one more teacher, or whose classes are taken for others."""
        shape = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [16]}
        names = ["3", "8", "9", "dustbin"]
        run(digits_recipe(baseline=False, output_dir="ready", training=ONE))
        special = AutoModelForImageClassification.from_pretrained(
            "ready/student",
            num_labels=4,
            **{
                "id2label": dict(enumerate(names)),
                "label2id": {name: i for i, name in enumerate(names)},
                "ignore_mismatched_sizes": True,
            },
        )
        special.save_pretrained("special")
        AutoImageProcessor.from_pretrained("ready/student").save_pretrained("special")
        recipe = digits_recipe(baseline=False, student={"config": shape}, training=ONE)
        generalist = {**recipe["teacher"], "training": {**SMALL, "num_train_epochs": 1}}
        settings = {"model": "special", "specialist": {"oversampling": 2}}
        found = run({**recipe, "teacher": [settings, generalist]})
        assert found.teacher.num_parameters == sum(
            AutoModelForImageClassification.from_pretrained(folder).num_parameters()
            for folder in ("special", "out/teacher-2")
        )
        rows = load_dataset_of_digits()
        general = logits_of_images("out/teacher-2", rows["image"])
        helped = by_equation_5(general, logits_of_images("special", rows["image"]), [3, 8, 9], 2.0)
        assert found.teacher.metrics["accuracy"] == pytest.approx(accuracy(helped, torch.tensor(rows["label"])))
        assert not torch.equal(helped.argmax(-1), general.argmax(-1))


def by_equation_5(general: torch.Tensor, special: torch.Tensor, classes: list[int], oversampling: float):
    """Minimise equation 5 with one specialist: its dustbin goes to the other classes in the generalist's ratio."""
    own, other = general.double().softmax(-1), special.double()
    other[:, -1] += np.log(oversampling)
    other = other.softmax(-1)
    total = own.clone()
    total[:, classes] += other[:, :-1]
    outside = [label for label in range(own.shape[-1]) if label not in classes]
    total[:, outside] *= 1 + other[:, -1:] / own[:, outside].sum(-1, keepdim=True)
    is_active = torch.tensor([int(label) in classes for label in general.argmax(-1)])
    return torch.where(is_active[:, None], total / total.sum(-1, keepdim=True), own)


def load_dataset_of_digits() -> dict:
    return load_rows(dataset="sklearn:digits")["test"][:]


def logits_of_images(folder: str, images: list) -> torch.Tensor:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        arrays = [np.array(image)[..., None] for image in images]
        return model(processor(arrays, input_data_format="channels_last", return_tensors="pt")["pixel_values"]).logits


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(-1) == labels).double().mean())


class TestStages:
    @pytest.mark.slow
    @pytest.mark.parametrize("count", [1, 2])
    def test_a_chain_of_assistants(self, count):
        """A student taught by the teacher where its assistant should, or with another one's layers or settings."""
        stages = [
            {"from_teacher": {"layers": [0, 2, 3]}, "training": {"temperature": 1.0, "seed": 3}},
            {"from_teacher": {"layers": [0, 2]}, "training": {"num_train_epochs": 2}},
        ][:count]
        recipe = text_recipe(stages=stages, student={"from_teacher": {"layers": [1]}})
        BertModel(tiny.bert(0, num_layers=4, initializer_range=0.2).config).save_pretrained("base")
        recipe["training"] |= {"num_train_epochs": 1, "logging_steps": 1}
        recipe["teacher"]["training"] |= {"learning_rate": 3e-3}
        found = run(recipe)
        assert list(found.stages) == [f"stage-{number + 1}" for number in range(count)]
        for number, layers in enumerate((3, 2)[:count]):
            model = AutoModelForSequenceClassification.from_pretrained(f"out/stage-{number + 1}")
            assert model.config.num_hidden_layers == layers
            AutoTokenizer.from_pretrained(f"out/stage-{number + 1}")
        histories = {
            stage: json.loads(Path(f"out/stages/{stage}.json").read_text())["log_history"]
            for stage in [*found.stages, "student"]
        }
        epochs = {stage: max(entry["epoch"] for entry in history) for stage, history in histories.items()}
        assert epochs == {"stage-1": 1, "student": 1} | ({"stage-2": 2} if count == 2 else {})
        texts = [row["text"] for row in sentences(40)]
        last = logits_of_texts(f"out/stage-{count}", texts).argmax(-1)
        teacher = logits_of_texts("out/teacher", texts).argmax(-1)
        student = logits_of_texts("out/student", texts)
        assert found.agreement == pytest.approx(accuracy(student, teacher))
        labels = torch.tensor([row["label"] == "positive" for row in sentences(40)]).long()
        assert found.stages[f"stage-{count}"].metrics["accuracy"] == pytest.approx(
            float((last == labels).double().mean())
        )

    @pytest.mark.slow
    def test_a_student_learns_from_the_stage_before_it(self):
        """Run that are trained and then passed over."""
        recipe = ensemble_recipe(baseline=False, training={"alpha": 0.0})
        recipe["teacher"] = recipe["teacher"][0]
        recipe["stages"] = [{**recipe["student"]}]
        first = run({**recipe, "output_dir": "a"})
        recipe["stages"][0]["training"] = {
            "max_steps": 1,
            "learning_rate": 1e-9,
        }  # an assistant that has learnt nothing
        second = run({**recipe, "output_dir": "b"})
        assert first.teacher.metrics == second.teacher.metrics
        assert second.student.metrics["accuracy"] < first.student.metrics["accuracy"] - 0.1

    def test_generations_of_the_same_shape(self):
        """Born-again networks; the second must not be the first one loaded again."""
        shape = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [16]}
        recipe = ensemble_recipe(baseline=False, student={"config": shape})
        recipe["teacher"] = {"config": shape, "training": {**SMALL, "num_train_epochs": 1}}
        recipe["stages"] = [{"config": shape, "training": {"seed": 1}}]
        found = run(recipe)
        assert len({model.num_parameters for model in found.models.values()}) == 1
        saved = [load_file(f"out/{stage}/model.safetensors") for stage in ("teacher", "stage-1", "student")]
        assert not any(
            torch.equal(saved[one]["classifier.weight"], saved[other]["classifier.weight"])
            for one, other in ((0, 1), (1, 2), (0, 2))
        )

    @pytest.mark.slow
    def test_started_again_without_its_student_a_chain_ends_the_same(self):
        """The stage comes from its folder this time, and its student must not notice."""
        recipe = ensemble_recipe(baseline=False)
        recipe |= {"teacher": recipe["teacher"][0], "stages": [recipe["student"]]}
        first = run(recipe)
        weights = load_file("out/student/model.safetensors")
        shutil.rmtree("out/student")
        Path("out/stages/student.json").unlink()
        second = run(recipe)
        again = load_file("out/student/model.safetensors")
        assert all(torch.equal(weights[name], again[name]) for name in weights)
        assert without_times(second.stages["stage-1"]) == without_times(first.stages["stage-1"])

    def test_a_map_of_the_teachers_labels_does_not_reach_a_later_student(self):
        """A stage has the data's labels, and was refused for lacking the teacher's after all the training."""
        other = {"id2label": {0: "+", 1: "-"}, "label2id": {"+": 0, "-": 1}}
        recipe = text_recipe(baseline=False, student={"model": "base"}, stages=[{"model": "base"}])
        tiny.bert(**other).save_pretrained("ready")
        tiny.tokenizer().save_pretrained("ready")
        label_map = {"negative": "-", "positive": "+"}
        found = run({**recipe, "teacher": {"model": "ready"}, "training": {**ONE, "teacher_label_map": label_map}})
        assert list(found.stages) == ["stage-1"]

    def test_layers_of_a_stage_are_fed_with_its_tokens(self):
        """A student made of a stage with another vocabulary would read the teacher's ids."""
        recipe = text_recipe(baseline=False, student={"from_teacher": {"layers": [0]}}, training=ONE)
        save_base("other")
        vocabulary_turned("other")
        run({**recipe, "teacher": {**recipe["teacher"], "training": ONE}, "stages": [{"model": "other"}]})
        ids = [
            AutoTokenizer.from_pretrained(f"out/{stage}")("the plot")["input_ids"] for stage in ("stage-1", "student")
        ]
        assert ids[0] == ids[1] != AutoTokenizer.from_pretrained("out/teacher")("the plot")["input_ids"]


class TestColumn:
    def column_recipe(self, column: str = "teacher_probs", **changes) -> dict:
        recipe = text_recipe(teacher={"column": column}, student={"model": "base"}, baseline=False, **changes)
        for split, rows in (("train", sentences(96, unlabelled=16)), ("validation", sentences(40))):
            for row in rows:
                is_good = DECISIVE[row["text"].split()[-1]]
                row[column] = (
                    [[0.9, 0.1], [0.2, 0.8]][is_good] if column == "teacher_probs" else [0.0, 3.0 * is_good - 1]
                )
            Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return recipe

    @pytest.mark.parametrize("column", ["teacher_probs", "teacher_logits"])
    def test_texts_with_soft_targets(self, column):
        """The column is dropped when the text is tokenized; or labels teach in its place, of which there are none."""
        recipe = self.column_recipe(column, training={**SMALL, "num_train_epochs": 8, "temperature": 1.0, "alpha": 0.0})
        found = run(recipe)
        assert found.teacher == ModelResult({"accuracy": 1.0, "f1": 1.0}, None, None, None)
        assert found.student.metrics["accuracy"] > 0.9
        assert found.agreement == found.student.metrics["accuracy"]
        classify = pipeline("text-classification", model="out/student", device="cpu")
        assert classify("the film was great")[0]["label"] == "positive"
        rows = [json.loads(line) for line in Path("data/train.jsonl").read_text().splitlines()]
        rows[0][column] = rows[0][column][::-1]
        Path("data/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(ValueError, match="holds a run on other data"):
            run(recipe)

    def test_a_stage_learns_from_the_column_and_its_student_from_the_stage(self):
        """With the column still there, the student has two teachers and is refused after the stage's training."""
        recipe = self.column_recipe(
            stages=[{"model": "base", "training": {"num_train_epochs": 8, "temperature": 1.0}}], training=ONE
        )
        found = run({**recipe, "student": {"from_teacher": {"layers": [0]}}})
        assert found.stages["stage-1"].metrics["accuracy"] > 0.9
        assert AutoModelForSequenceClassification.from_pretrained("out/student").config.num_hidden_layers == 1

    def test_rows_that_lack_soft_targets_are_no_agreement(self):
        """A row without an answer counted as one for the first class."""
        recipe = self.column_recipe(training={**SMALL, "num_train_epochs": 3})
        rows = [json.loads(line) for line in Path("data/validation.jsonl").read_text().splitlines()]
        for row in rows[1::2]:  # all of the first class, which zeros would be right about
            row["teacher_probs"] = None
        Path("data/validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.warns(
            UserWarning, match="how good the column teacher_probs is cannot be told"
        ):  # one class is left
            found = run(recipe)
        assert found.teacher.metrics["accuracy"] == 1.0
        predicted = logits_of_texts("out/student", [row["text"] for row in rows[::2]]).argmax(-1)
        assert found.agreement == pytest.approx(float((predicted == 1).double().mean()))

    def test_images_with_soft_targets(self):
        """The column must survive the processor and the augmentation."""
        Path("images").mkdir()
        for split, count in (("train", 64), ("validation", 32)):
            random = np.random.default_rng(count)
            Path(f"images/{split}").mkdir()
            lines = []
            for number in range(count):
                dark = number % 2
                pixels = random.integers(0, 100, (8, 8), dtype=np.uint8) + np.uint8(140 * (1 - dark))
                Image.fromarray(pixels).save(f"images/{split}/{number}.png")
                soft = [[2.0, 0.0], [0.0, 2.0]][dark]
                lines.append({"file_name": f"{number}.png", "label": ["bright", "dark"][dark], "teacher_logits": soft})
            Path(f"images/{split}/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        recipe = digits_recipe(
            data={"path": "images", "augment": {"crop_padding": 1}},
            teacher={"column": "teacher_logits"},
            training={**SMALL, "num_train_epochs": 3, "alpha": 0.0},
            baseline=False,
        )
        found = run(recipe)
        assert found.teacher.metrics["accuracy"] == 1.0
        assert found.student.metrics["accuracy"] > 0.9

    def test_tokens_with_soft_targets(self):
        """One line for each token, special ones included, padded as the tokens are."""
        save_base()
        tokenizer = tiny.tokenizer()
        for split, count in (("train", 64), ("validation", 30)):
            rows = []
            for row in sentences(count):
                words = row["text"].split()
                tags = ["OPINION" if word in DECISIVE else "O" for word in words]
                soft = [[0.5, 0.5]] + [[0.1, 0.9] if tag == "OPINION" else [0.9, 0.1] for tag in tags] + [[0.5, 0.5]]
                assert len(soft) == len(tokenizer(words, is_split_into_words=True)["input_ids"])
                rows.append({"tokens": words, "ner_tags": tags, "teacher_probs": soft})
            Path("data").mkdir(exist_ok=True)
            Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        recipe = {
            "task": "token-classification",
            "data": {"path": "data"},
            "teacher": {"column": "teacher_probs"},
            "student": {"model": "base"},
            "training": {**SMALL, "num_train_epochs": 3, "alpha": 0.0},
            "baseline": False,
            "output_dir": "out",
        }
        found = run(recipe)
        assert found.teacher.metrics["accuracy"] == 1.0
        assert found.student.metrics["accuracy"] > 0.9
        assert found.agreement == found.student.metrics["accuracy"]

    def test_a_column_that_is_not_in_every_split_is_refused(self, refused):
        """Found out when the teacher is measured, or never."""
        recipe = self.column_recipe(training=ONE)
        Path("data/validation.jsonl").write_text("\n".join(map(json.dumps, sentences(40))))
        # `datasets` wants one schema for all files of a folder, so the splits are named apart.
        rows = load_dataset("json", data_files={"train": "data/train.jsonl"})
        rows["validation"] = load_dataset("json", data_files="data/validation.jsonl")["train"]
        rows.save_to_disk("saved")
        assert refused(recipe, "data.path=saved").startswith(
            "teacher.column: the evaluation split has no column teacher_probs: every split needs it"
        )
        assert refused(
            recipe, "data.path=data/train.jsonl", "data.eval_split=0.1", "teacher.column=teacher_logits"
        ) == (
            "teacher.column: the train split has no column teacher_logits: every split needs it, that of the results "
            "too"
        )

    def test_another_number_of_soft_targets_is_refused(self, refused):
        """Found out in the first batch, with the folder begun."""
        recipe = self.column_recipe(training=ONE)
        for split, count in (("train", 96), ("validation", 40)):
            rows = [{**row, "teacher_probs": [0.2, 0.3, 0.5]} for row in sentences(count)]
            Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert refused(recipe).startswith(
            "teacher.column: teacher_probs of the train split has the shape (3,) in a row, expected 2 numbers in a "
            "row, in the order negative, positive"
        )


class TestOwnProcessors:
    def ready_teacher(self, **changes) -> dict:
        """Train a teacher, and return a recipe in which it is ready and the student has other ids for the words."""
        recipe = text_recipe(student={"model": "other"}, baseline=False, **changes)
        run({**recipe, "student": {"model": "base"}, "training": ONE, "output_dir": "first"})
        save_base("other")
        vocabulary_turned("other")
        return {**recipe, "teacher": {"model": "first/teacher"}}

    @pytest.mark.slow
    def test_each_model_reads_and_is_saved_with_its_own_tokenizer(self):
        """A teacher that is fed its student's ids is no better than chance, and nothing says so."""
        found = run(self.ready_teacher(training={**SMALL, "num_train_epochs": 8, "temperature": 2.0}))
        texts = [row["text"] for row in sentences(40)]
        labels = torch.tensor([row["label"] == "positive" for row in sentences(40)]).long()
        teacher, student = logits_of_texts("first/teacher", texts), logits_of_texts("out/student", texts)
        assert found.teacher.metrics["accuracy"] == pytest.approx(accuracy(teacher, labels))
        assert found.student.metrics["accuracy"] == pytest.approx(accuracy(student, labels))
        assert found.agreement == pytest.approx(accuracy(student, teacher.argmax(-1)))
        assert found.teacher.metrics["accuracy"] > 0.9
        assert found.student.metrics["accuracy"] > 0.9
        ids = {
            folder: AutoTokenizer.from_pretrained(folder)("the plot")["input_ids"]
            for folder in ("first/teacher", "other", "out/student")
        }
        assert ids["out/student"] == ids["other"] != ids["first/teacher"]
        classify = pipeline("text-classification", model="out/student", device="cpu")
        predicted = [each["label"] for each in classify(texts)]
        assert predicted == [["negative", "positive"][int(one)] for one in student.argmax(-1)]

    def test_a_teacher_that_is_trained_here_reads_with_its_own_tokenizer_too(self):
        """Trained on its own ids, and then asked about its student's."""
        recipe = text_recipe(baseline=False, student={"model": "base", "processor": "words"})
        save_base("other")
        vocabulary_turned("other")
        tokenizer = AutoTokenizer.from_pretrained("base")
        tokenizer.save_pretrained("words")
        found = run({**recipe, "teacher": {**recipe["teacher"], "processor": "other"}})
        texts = [row["text"] for row in sentences(40)]
        labels = torch.tensor([row["label"] == "positive" for row in sentences(40)]).long()
        teacher = logits_of_texts("out/teacher", texts)
        assert found.teacher.metrics["accuracy"] == pytest.approx(accuracy(teacher, labels))
        assert found.agreement == pytest.approx(accuracy(logits_of_texts("out/student", texts), teacher.argmax(-1)))
        ids = [
            AutoTokenizer.from_pretrained(f"out/{stage}")("the plot")["input_ids"] for stage in ("teacher", "student")
        ]
        assert ids[0] != ids[1] == tokenizer("the plot")["input_ids"]

    def test_a_student_keeps_the_tokens_that_its_teacher_lacks(self):
        """Alike to the teacher's on all that both know, its tokenizer was replaced by the teacher's."""
        recipe = text_recipe(baseline=False, student={"model": "more"}, training=ONE)
        tiny.bert(3, num_layers=1, **{**SENTIMENT, "vocab_size": len(tiny.VOCABULARY) + 1}).save_pretrained("more")
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens(["cinematography"])
        tokenizer.save_pretrained("more")
        run(recipe)
        assert "cinematography" in AutoTokenizer.from_pretrained("out/student").get_vocab()
        assert "cinematography" not in AutoTokenizer.from_pretrained("out/teacher").get_vocab()

    @pytest.mark.slow
    def test_words_are_aligned_between_tokenizers(self):
        """Token classification: the teacher's word 3 is another token than the student's word 3."""
        save_base()
        save_base("other", vocab_size=len(tiny.VOCABULARY))
        vocabulary_turned("other")
        # Without these, two words of the data are read in pieces by the student and whole by the teacher.
        backend = json.loads(Path("other/tokenizer.json").read_text())
        vocabulary = backend["model"]["vocab"]
        vocabulary["goo"], vocabulary["##d"] = vocabulary.pop("good"), vocabulary.pop("##er")
        Path("other/tokenizer.json").write_text(json.dumps(backend))
        assert AutoTokenizer.from_pretrained("other").tokenize("good film") == ["goo", "##d", "film"]
        Path("data").mkdir()
        for split, count in (("train", 64), ("validation", 30)):
            rows = [row["text"].split() for row in sentences(count)]
            lines = [
                {"tokens": row, "ner_tags": ["OPINION" if word in DECISIVE else "O" for word in row]} for row in rows
            ]
            Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        three = {**SMALL, "num_train_epochs": 3}
        recipe = {
            "task": "token-classification",
            "data": {"path": "data"},
            "teacher": {"model": "base", "training": three},
            "stages": [{"model": "base"}],
            "student": {"model": "other"},
            "training": {**three, "temperature": 2.0},
            "baseline": False,
            "output_dir": "out",
        }
        found = run(recipe)
        assert found.teacher.metrics["accuracy"] > 0.9
        assert found.student.metrics["accuracy"] > 0.9
        words = [json.loads(line)["tokens"] for line in Path("data/validation.jsonl").read_text().splitlines()]
        student, teacher = (tags_of_words(f"out/{stage}", words) for stage in ("student", "teacher"))
        expected = np.mean([one == other for one, other in zip(student, teacher, strict=True)])
        assert found.agreement == pytest.approx(expected)
        assert AutoTokenizer.from_pretrained("out/student").tokenize("good") == ["goo", "##d"]

    def test_an_image_teacher_of_twice_the_size(self):
        """Both see the same crop, each at its own size; the student must not be saved with its teacher's size."""
        names = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        torch.manual_seed(0)
        vit = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_channels=1, **shape, **names))
        vit.save_pretrained("vit")
        ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4], image_std=[0.3]).save_pretrained("vit")
        student = {"model_type": "hf_distill_mlp", "image_size": 8, "num_channels": 1, "hidden_sizes": [32]}
        recipe = digits_recipe(teacher={"model": "vit"}, student={"config": student}, training=ONE, baseline=False)
        recipe["data"] |= {"augment": {"crop_padding": 1}, "max_train_rows": 64}
        found = run(recipe)
        sizes = [AutoImageProcessor.from_pretrained(folder).size["height"] for folder in ("vit", "out/student")]
        assert sizes == [16, 8]
        rows = load_dataset_of_digits()
        labels = torch.tensor(rows["label"])
        of_teacher, of_student = (logits_of_images(folder, rows["image"]) for folder in ("vit", "out/student"))
        assert found.teacher.metrics["accuracy"] == pytest.approx(accuracy(of_teacher, labels))
        assert found.agreement == pytest.approx(accuracy(of_student, of_teacher.argmax(-1)))


def tags_of_words(folder: str, sentences_of_words: list[list[str]]) -> list[int]:
    """Ask a saved model for the tag of each word, by the word's first piece."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tags = []
    for words in sentences_of_words:
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            predicted = model(**encoded).logits[0].argmax(-1)
        pieces = encoded.word_ids(0)
        tags += [int(predicted[pieces.index(word)]) for word in range(len(words))]
    return tags


class TestSchedules:
    def scheduled(self, **changes) -> dict:
        moving = {"schedule": "linear", "alpha": 0.0, "alpha_end": 0.8, "temperature": 8.0, "temperature_end": 2.0}
        recipe = ensemble_recipe(baseline=False, **changes)
        recipe["teacher"] = recipe["teacher"][0]
        recipe["training"] |= {**moving, "logging_steps": 1, "max_steps": 9, "save_steps": 4}
        return recipe

    @pytest.mark.slow
    def test_alpha_and_temperature_move_in_the_student_alone(self):
        """A teacher, a baseline or a stage with its own constants that follows the student's schedule."""
        recipe = self.scheduled()
        constant = {"schedule": "constant", "alpha_end": None, "temperature_end": None, "alpha": 0.5}
        recipe |= {"baseline": True, "stages": [{**recipe["student"], "training": constant}]}
        run(recipe)
        for stage in ("teacher", "stage-1", "baseline", "student"):
            history = json.loads(Path(f"out/stages/{stage}.json").read_text())["log_history"]
            found = [(entry["alpha"], entry["temperature"]) for entry in history if "alpha" in entry]
            expected = [(0.1 * step, 8.0 - 0.75 * step) for step in range(9)] if stage == "student" else []
            assert [value for pair in found for value in pair] == pytest.approx([v for pair in expected for v in pair])
        for entry in (entry for entry in history if "alpha" in entry):  # the student's, which comes last
            blended = entry["alpha"] * entry["label_loss"] + (1 - entry["alpha"]) * entry["soft_loss"]
            assert entry["loss"] == pytest.approx(blended, abs=1e-3)

    @pytest.mark.slow
    def test_a_run_that_was_stopped_goes_on_at_the_right_values(self, monkeypatch):
        """A schedule that begins anew, or that is at its end, where the run goes on."""
        run(self.scheduled(output_dir="whole"))
        step = DistillationTrainer.training_step

        def stop_after_six(trainer, *arguments):
            if trainer.args.schedule == "linear" and trainer.state.global_step == 6:
                raise KeyboardInterrupt
            return step(trainer, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(DistillationTrainer, "training_step", stop_after_six)
            with pytest.raises(KeyboardInterrupt):
                run(self.scheduled())
        assert [path.name for path in Path("out/checkpoints/student").iterdir()] == ["checkpoint-4"]
        run(self.scheduled())
        histories = [json.loads(Path(f"{f}/stages/student.json").read_text())["log_history"] for f in ("whole", "out")]
        moved = [[(e["step"], e["alpha"], e["temperature"]) for e in history if "alpha" in e] for history in histories]
        assert moved[0] == moved[1]
        assert len(moved[0]) == 9
        one, other = (load_file(f"{folder}/student/model.safetensors") for folder in ("whole", "out"))
        assert all(torch.equal(one[name], other[name]) for name in one)


class TestRefused:
    """Before anything is trained or written, in a line that says which teacher and what helps."""

    def recipe(self, **changes) -> dict:
        recipe = text_recipe(student={"model": "base"}, baseline=False, training=dict(ONE))
        tiny.bert(1, **SENTIMENT).save_pretrained("ready")
        tiny.tokenizer().save_pretrained("ready")
        return {**recipe, "teacher": {"model": "ready"}, **changes}

    def test_a_device_that_is_not_there(self, refused):
        """Found out when the teacher is moved, after an hour of training another one."""
        assert refused(self.recipe(), "training.teacher_placement=cuda:7").startswith(
            "teacher_placement is 'cuda:7', and this machine has only cpu"
        )
        assert "teacher_placement must be same, cpu, auto, sharded or a device" in refused(
            self.recipe(), "training.teacher_placement=gpu"
        )
        recipe = self.recipe(teacher={"model": "base", "training": ONE})
        assert "teacher_placement sharded needs several processes" in refused(
            recipe, "training.teacher_placement=sharded"
        )

    def test_quantisation_that_this_machine_cannot_do(self, refused):
        """An import error of bitsandbytes in the middle of a run."""
        line = refused(self.recipe(), "training.teacher_quantization=8bit")
        assert "teacher_quantization 8bit needs " in line
        assert "pip install 'hf_distill[quant]'" in line or "a GPU" in line

    @pytest.mark.slow
    def test_a_spread_teacher_in_two_processes(self):
        """Each process would spread a teacher of its own over all devices."""
        Path("x.yaml").write_text(yaml.safe_dump(self.recipe()))
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hf_distill", "train"]
        ended = subprocess.run(
            [sys.executable, *command, "x.yaml", "training.teacher_placement=auto"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode != 0
        assert "error: teacher_placement auto spreads a teacher over all devices from one process" in ended.stderr
        assert not Path("out/recipe.yaml").exists()

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (("negative", "neutral", "positive"), "teacher 2 of 2: the teacher has 3 labels, the student 2"),
            (("bad", "good"), "teacher 2 of 2: the teacher"),
        ],
    )
    def test_a_member_with_other_labels(self, refused, names, message):
        """The first member is trained for an hour, and then nobody says which one does not fit."""
        tiny.bert(2, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}).save_pretrained(
            "two"
        )
        tiny.tokenizer().save_pretrained("two")
        first = {"model": "base", "training": ONE}
        assert refused(self.recipe(teacher=[first, {"model": "two"}])).startswith(message)

    @pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
    def test_a_member_of_another_kind(self, refused, problem_type):
        """Its logits are read as those of classes that exclude each other."""
        tiny.bert(2, **SENTIMENT, problem_type=problem_type).save_pretrained("two")
        tiny.tokenizer().save_pretrained("two")
        line = refused(self.recipe(teacher=[{"model": "base", "training": ONE}, {"model": "two"}]))
        assert line.startswith(f"teacher 2 of 2: the problem_type of two is {problem_type}")

    def test_a_specialist_that_does_not_fit(self, refused):
        """A class that nobody else knows, or no dustbin."""
        names = ("positive", "mixed", "dustbin")
        tiny.bert(2, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}).save_pretrained(
            "two"
        )
        tiny.tokenizer().save_pretrained("two")
        recipe = self.recipe(teacher=[{"model": "base", "training": ONE}, {"model": "two", "specialist": {}}])
        assert refused(recipe).startswith("teacher 2 of 2: the specialist's 'mixed' is no label of the generalist")
        assert refused(recipe, "teacher.1.specialist.dustbin=rest").startswith(
            "teacher 2 of 2: the specialist has no label named 'rest'"
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"training": {**ONE, "teacher_weights": [1, 2, 3]}},
                "training.teacher_weights: expected a number for each",
            ),
            (
                {"training": {**ONE, "teacher_weights": [0, 0]}},
                "training.teacher_weights: must be numbers of at least 0",
            ),
            ({"training": {**ONE, "schedule": "linear"}}, "training.schedule: linear has no end value to move to"),
            ({"training": {**ONE, "alpha_end": 0.5}}, "training.alpha_end: has no effect with schedule constant"),
            (
                {
                    "teacher": {"column": "teacher_probs"},
                    "student": {"from_teacher": {"layers": [0]}, "processor": "base"},
                },
                "student.from_teacher: the first teacher is no model of all labels",
            ),
            ({"teacher": [{"model": "ready", "specialist": {}}]}, "teacher: specialists teach beside a teacher that"),
            (
                {"teacher": [{"model": "ready"}, {"column": "teacher_probs"}]},
                "teacher.1.column: is a teacher on its own, and cannot be one of several",
            ),
        ],
    )
    def test_settings_that_do_not_go_together(self, refused, changes, message):
        """One of them would be ignored, or stop the run in its middle."""
        two = {"teacher": [{"model": "ready"}, {"model": "base", "training": ONE}]}
        assert refused(self.recipe(**{**two, **changes})).startswith(f"x.yaml: {message}")


@pytest.mark.filterwarnings("ignore:data. .* have inputs that the train split:UserWarning")
@pytest.mark.parametrize(
    "student", [{"model": "teacher"}, {"from_teacher": {"layers": [0, 1]}}], ids=["model", "layers"]
)
@pytest.mark.parametrize("data_order", ["the teacher's", "another"])
def test_a_teacher_of_a_thousand_classes_with_text_keys_agrees_with_itself(student, data_order):
    """Zero soft loss against itself; and where the data number the classes otherwise, a head in the old order."""
    names = [f"class {place * 7 % 1000}" for place in range(1000)]
    teacher = tiny.bert(1, num_labels=1000, id2label=None, label2id=None, initializer_range=0.5)
    teacher.config.id2label = {str(place): name for place, name in enumerate(names)}
    teacher.config.label2id = {name: str(place) for place, name in enumerate(names)}
    teacher.save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")
    of_data = names if data_order == "the teacher's" else sorted(names)
    rows = Dataset.from_list(sentences(16)).remove_columns("label").add_column("label", [60 * i for i in range(16)])
    rows = rows.cast_column("label", ClassLabel(names=of_data))
    DatasetDict({"train": rows, "validation": rows}).save_to_disk("data")
    settings = {**SMALL, "learning_rate": 1e-12, "alpha": 0.0, "num_train_epochs": 1, "eval_strategy": "epoch"}
    found = run(
        {
            "task": "text-classification",
            "data": {"path": "data", "text_column": "text"},
            "teacher": {"model": "teacher"},
            "student": student,
            "baseline": False,
            "training": {**settings, "allow_untrained_teacher": True},
            "output_dir": "out",
        }
    )
    history = json.loads(Path("out/stages/student.json").read_text())["log_history"]
    losses = [entry["eval_soft_loss"] for entry in history if "eval_soft_loss" in entry]
    assert losses == [pytest.approx(0, abs=1e-6)]
    assert found.agreement == 1
    assert found.data["label_names"] == (of_data if "model" in student else names)
