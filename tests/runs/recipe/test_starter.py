"""A recipe made by looking at somebody's data."""

from pathlib import Path

import numpy as np
import pytest
import tiny
from datasets import Dataset
from PIL import Image

from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.recipe.schema import Recipe
from hf_distill.runs.recipe.starter import starter


def recipe_for(data: str, teacher: str | None = None) -> Recipe:
    Path("x.yaml").write_text(starter(Path(data), teacher, "x").text)
    return load_recipe("x.yaml")


def write_reviews(name: str = "reviews.csv", label: str = "sentiment", number: int = 60) -> None:
    rows = [
        f"{place},{'good' if place % 3 else 'bad'} film {place},{'pos' if place % 3 else 'neg'}"
        for place in range(number)
    ]
    Path(name).write_text("\n".join([f"id,review,{label}", *rows]) + "\n")


def test_columns_split_and_size_are_found():
    """A recipe of twelve keys to write, before one knows whether any of it works."""
    write_reviews()
    tiny.bert(num_layers=6).save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")
    recipe = recipe_for("reviews.csv", "teacher")
    assert (recipe.task, recipe.data.text_column, recipe.data.label_column) == (
        "text-classification",
        "review",
        "sentiment",
    )
    assert (recipe.data.eval_split, recipe.data.max_length) == (0.2, 16)
    assert recipe.teachers[0].training is not None
    assert recipe.student.from_teacher.layers == [0, 2, 5]
    assert recipe.output_dir == "runs/x"


def test_a_teacher_that_knows_the_classes_is_ready():
    """Somebody's classifier of months, trained again on sixty rows."""
    write_reviews()
    tiny.bert(id2label={0: "NEG", 1: "pos"}, label2id={"NEG": 0, "pos": 1}).save_pretrained("teacher")
    tiny.tokenizer().save_pretrained("teacher")
    assert recipe_for("reviews.csv", "teacher").teachers[0].training is None


def test_without_a_teacher_it_names_one_and_asks_nobody():
    """No network, no recipe."""
    write_reviews(number=2_000)
    recipe = recipe_for("reviews.csv")
    assert recipe.teachers[0].model is not None
    assert recipe.data.eval_split == 0.1


def test_splits_that_are_there_are_taken():
    """A tenth of the training rows held out beside a validation split."""
    Path("data").mkdir()
    for split in ("train", "validation"):
        write_reviews(f"data/{split}.csv", "label")
    assert recipe_for("data").data.eval_split == "validation"


def test_images_by_class_need_no_download():
    """Grey, transparent and broken images among them, as in every folder of the world."""
    for number in range(12):
        folder = Path("photos", "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40, 3), number, np.uint8)).save(folder / f"{number}.png")
    Path("photos/a/broken.png").write_bytes(b"no")
    recipe = recipe_for("photos")
    assert (recipe.task, recipe.data.processor) == ("image-classification", {"size": {"height": 32, "width": 32}})
    assert recipe.teachers[0].config["model_type"] == "resnet"
    tiny.vit(num_layers=4).save_pretrained("teacher")
    assert recipe_for("photos", "teacher").student.from_teacher.layers == [0, 1, 2, 3]


def test_words_with_tags_are_found():
    """Lists of words taken for images, or for nothing."""
    rows = {"tokens": [["good", "film"], ["bad"]] * 10, "ner_tags": [["O", "B"], ["O"]] * 10}
    Dataset.from_dict(rows).to_parquet("x.parquet")
    recipe = recipe_for("x.parquet")
    assert (recipe.task, recipe.data.text_column, recipe.data.label_column) == (
        "token-classification",
        "tokens",
        "ner_tags",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,4\n", "no column holds images or text, only a, b"),
        (
            "text,other\n" + "".join(f"film {i},w{i}\n" for i in range(30)),
            "looks like classes .*call it label",
        ),
        ("label\nx\ny\n", "only 'label' holds text"),
    ],
)
def test_what_cannot_be_guessed_is_said(text, message):
    """A recipe that classifies row numbers."""
    Path("x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        starter(Path("x.csv"), None, "x")


def test_a_teacher_that_is_not_there_is_named():
    """A traceback of the client."""
    write_reviews()
    with pytest.raises(ValueError, match=r"--teacher: cannot load '\./nowhere'"):
        starter(Path("reviews.csv"), "./nowhere", "x")
