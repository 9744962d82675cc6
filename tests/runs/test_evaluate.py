"""A finished run evaluated on new data."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from PIL import Image
from transformers import pipeline

from hf_distill.runs.evaluate import evaluate, write_predictions
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.train import distill

CPU = {"use_cpu": True, "report_to": "none", "max_steps": 2}


def train(**sections) -> None:
    settings = {
        "baseline": False,
        "training": {**CPU, "allow_untrained_teacher": True},
        "output_dir": "run",
        **sections,
    }
    Path("x.yaml").write_text(yaml.safe_dump(settings))
    distill(load_recipe("x.yaml"), "x")


def train_on_texts() -> None:
    tiny.bert(id2label={0: "neg", 1: "pos"}).save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")
    rows = [
        f"{'good' if place % 2 else 'bad'} {'film ' * place};{'pos' if place % 2 else 'neg'}" for place in range(12)
    ]
    Path("x.csv").write_text("\n".join(["text;label", *rows]) + "\n")
    train(
        task="text-classification",
        data={"path": "x.csv", "train_split": "train[:8]", "eval_split": "train[8:]"},
        teacher={"model": "teacher", "training": CPU},
        student={"from_teacher": {"layers": [0]}},
    )


def read(name: str) -> list[dict[str, str]]:
    with Path(name).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_predictions_are_those_of_a_pipeline_and_metrics_of_the_labels():
    """Probabilities of other texts, or of classes in another order, in a file that somebody acts upon."""
    train_on_texts()
    Path("new.csv").write_text('text;label\ngood film;pos\n"bad, plot";neg\ndull;\n')
    found = evaluate(Path("run"), "new.csv")
    write_predictions(found, Path("p.csv"))
    rows = read("p.csv")
    assert [row["text"] for row in rows] == ["good film", "bad, plot", "dull"]
    assert [row["label"] for row in rows] == ["pos", "neg", ""]
    expected = pipeline("text-classification", "run/student", device="cpu")([row["text"] for row in rows], top_k=None)
    for row, scores in zip(rows, expected, strict=True):
        for score in scores:
            assert float(row[f"probability_{score['label']}"]) == pytest.approx(score["score"], abs=2e-6)
        assert row["prediction"] == scores[0]["label"]
    right = np.mean([row["prediction"] == row["label"] for row in rows[:2]])
    assert found.metrics["accuracy"] == pytest.approx(right)
    assert found.num_labels == 2
    with pytest.raises(ValueError, match=r"p\.csv is there: choose another name, or pass --overwrite"):
        write_predictions(found, Path("p.csv"))
    of_teacher = evaluate(Path("run"), "new.csv", model="teacher")
    assert not np.allclose(of_teacher.probabilities, found.probabilities)
    Path("bare.csv").write_text("text\ngood film\n")
    bare = evaluate(Path("run"), "bare.csv")
    assert (bare.metrics, bare.num_labels) == ({}, 0)
    assert np.allclose(bare.probabilities[0], found.probabilities[0])


@pytest.mark.slow
def test_what_does_not_fit_is_refused():
    """A label that the model does not know counted as a mistake of its."""
    train_on_texts()
    Path("odd.csv").write_text("text;label\ngood film;positive\nbad;neg\n")
    with pytest.raises(ValueError, match="label 'positive' in column 'label'"):
        evaluate(Path("run"), "odd.csv")
    with pytest.raises(ValueError, match="run has no finished baseline, only teacher, student"):
        evaluate(Path("run"), "x.csv", model="baseline")
    with pytest.raises(ValueError, match="nowhere is neither a run nor a model"):
        evaluate(Path("nowhere"), "x.csv")
    Path("two").mkdir()
    for split in ("train", "test"):
        Path(f"two/{split}.csv").write_text("text;label\ngood;pos\nbad;neg\n")
    with pytest.raises(ValueError, match="--split: the data have train, test: name one"):
        evaluate(Path("run"), "two")
    assert evaluate(Path("run"), "two", split="test").num_labels == 2


@pytest.mark.filterwarnings("ignore:data. 8 of the 8 rows")
def test_words_have_a_line_each():
    """Probabilities of word pieces, or of another row's words."""
    names = {0: "O", 1: "X"}
    tiny.bert_for_tokens(id2label=names, label2id={"O": 0, "X": 1}).save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")
    rows = [
        {"tokens": ["good", "filmly", "bad"][: 1 + place % 3], "tags": ["O", "X", "O"][: 1 + place % 3]}
        for place in range(8)
    ]
    for split in ("train", "validation"):
        Path("data").mkdir(exist_ok=True)
        Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(
        task="token-classification",
        data={"path": "data"},
        teacher={"model": "teacher", "training": CPU},
        student={"from_teacher": {"layers": [0]}},
    )
    Path("new.jsonl").write_text("\n".join(map(json.dumps, rows[:3])))
    found = evaluate(Path("run"), "new.jsonl")
    write_predictions(found, Path("p.csv"))
    written = read("p.csv")
    assert [row["tokens"] for row in written] == ["good", "good", "filmly", "good", "filmly", "bad"]
    assert [row["label"] for row in written] == ["O", "O", "X", "O", "X", "O"]
    assert found.metrics["accuracy"] == pytest.approx(np.mean([row["prediction"] == row["label"] for row in written]))


def test_images_are_read_as_in_training():
    """A grey image of another size, which a run resizes."""
    for number in range(8):
        for split in ("train", "test"):
            folder = Path("photos", split, "ab"[number % 2])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number + 10 * (split == "test")).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    shape = {"model_type": "hf_distill_mlp", "image_size": 8, "hidden_sizes": [4]}
    train(
        task="image-classification",
        data={"path": "photos"},
        teacher={"config": shape, "training": CPU},
        student={"config": shape},
    )
    found = evaluate(Path("run"), "photos", split="test")
    known = json.loads(Path("run/results.json").read_text())["student"]["metrics"]
    assert found.metrics == pytest.approx(known)
    assert found.label_names == ["a", "b"]
