"""What a person is told of the data before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from PIL import Image

from hf_distill.runs.data_summary import DataSummary, summarize
from hf_distill.runs.opening import open_run
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.recipe.settings import StageSettings

CPU = {"use_cpu": True, "report_to": "none"}


def looked_at(**changes) -> DataSummary:
    teacher = {"config": {"model_type": "hf_distill_mlp", "image_size": 8, "hidden_sizes": [4]}, "training": CPU}
    recipe = {"task": "image-classification", "teacher": teacher, "student": {"config": teacher["config"]}, **changes}
    Path("x.yaml").write_text(yaml.safe_dump({"training": CPU, "output_dir": "out", **recipe}))
    loaded = load_recipe("x.yaml")
    with open_run(loaded, "x", StageSettings(loaded)) as run:
        return summarize(loaded, run.splits, run.inputs)


def of_texts(rows: list[str], **data) -> DataSummary:
    tiny.bert(id2label={0: "a", 1: "b"}).save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")
    Path("x.csv").write_text("\n".join(["text;label", *rows]) + "\n")
    return looked_at(
        task="text-classification",
        data={"path": "x.csv", "train_split": "train[:-4]", "eval_split": "train[-4:]", **data},
        teacher={"model": "teacher", "training": CPU},
        student={"from_teacher": {"layers": [0]}},
    )


CLEAN = [f"{word} {'film ' * place};{name}" for word, name in (("good", "a"), ("bad", "b")) for place in range(1, 7)]
EVALUATED = ["the end;a", "a plot;b", "the plot is long;a", "the film is long;b"]


@pytest.mark.filterwarnings("ignore:data. ")
def test_rows_classes_lengths_and_columns_are_told():
    """A file read with another separator, or cut at other tokens, than its owner thinks."""
    texts = [f"{'very ' * place}good;{'ab'[place % 2]}" for place in range(1, 21)]
    lines = dict(of_texts([*texts, *EVALUATED], max_length=8).lines)
    assert lines["files"].startswith("x.csv: values separated by ;, text in utf-8 (found by looking")
    assert lines["columns"] == "text in 'text' (the only one that fits); labels in 'label' (by its name)"
    assert lines["rows"] == "train 20, evaluation 4"
    assert lines["classes"] == "2 in train: a (10), b (10)"
    # 1 to 20 times very, good, and two special tokens
    assert lines["lengths"] == "tokens p50 8, p95 8, max 8; 15 of 20 texts (75.0%) are cut at 8"


@pytest.mark.filterwarnings("ignore:data. ")
def test_what_is_odd_is_told():
    """Dirty data go through without a word, and the student is blamed."""
    rows = [f"good {'film ' * place};a" for place in range(1, 7)] + [
        f"bad {'plot ' * place};b" for place in range(1, 7)
    ]
    rows += ["   ;a", ";b", "good film ;b", "good film ;a", "is it;", "funny; A", "sad;B_"]
    odd = of_texts([*rows, *EVALUATED]).odd
    assert odd == [
        "1 of 19 train labels (5.3%) are missing: such rows learn from the teacher alone",
        "classes with fewer than 5 train rows:  A (1), B_ (1)",
        "classes with nearly the same name: ' A' and 'a'; if they are one, write them alike",
        "classes with nearly the same name: 'B_' and 'b'; if they are one, write them alike",
        "2 train texts in 'text' are empty or blank (row 12, 13)",
        "2 train rows repeat another one, 1 of them with different labels",
    ]


def test_nothing_is_odd_about_clean_data():
    """A warning at every start, which nobody reads any more."""
    rows = [f"good {'film ' * place};a" for place in range(1, 7)] + [
        f"bad {'plot ' * place};b" for place in range(1, 7)
    ]
    assert of_texts([*rows, *EVALUATED]).odd == []


def test_sizes_of_images_are_told():
    """Photos of 4,000 pixels read as 8 x 8."""
    for number in range(12):
        folder = Path("photos", "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((10, 8 + 2 * (number == 0), 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    data = {"path": "photos", "eval_split": 0.3, "processor": {"size": {"height": 8, "width": 8}}}
    found = looked_at(data=data)
    assert dict(found.lines)["sizes"] in (
        "all 8 x 10 pixels",
        "pixels wide p50 8, p95 10, max 10; high p50 10, p95 10, max 10",
    )
    assert not Path("out").exists()
