"""The data of a run as each of its models reads them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil

from hf_distill.data.loading import load_rows, prepare_splits
from hf_distill.runs.opening import readable_images
from hf_distill.runs.preprocessing import Inputs, distinct
from hf_distill.runs.recipe.reading import load_recipe
from hf_distill.runs.recipe.schema import Recipe


def save(folder: str, places: int = 0, **config: Any) -> str:
    """Save a text model with a tokenizer whose words' ids are moved on by some places."""
    tiny.bert(0, **config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    file = Path(folder) / "tokenizer.json"
    backend = json.loads(file.read_text())
    numbers = [backend["model"]["vocab"][word] for word in tiny.WORDS]
    backend["model"]["vocab"].update(zip(tiny.WORDS, numbers[places:] + numbers[:places], strict=True))
    file.write_text(json.dumps(backend))
    return folder


def text_inputs(**changes: Any) -> tuple[Recipe, Inputs]:
    rows = [{"text": "the film " * 3, "label": "ab"[i % 2], "teacher_probs": [0.5, 0.5]} for i in range(4)]
    for split in ("train", "validation"):
        Path("data").mkdir(exist_ok=True)
        Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return inputs_of({"task": "text-classification", "data": {"path": "data"}, **changes})


def image_inputs(**changes: Any) -> tuple[Recipe, Inputs]:
    for split in ("train", "validation"):
        for label in "ab":
            Path(f"data/{split}/{label}").mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(ord(label)).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(f"data/{split}/{label}/0.png")
    return inputs_of({"task": "image-classification", "data": {"path": "data"}, **changes})


def inputs_of(values: dict[str, Any]) -> tuple[Recipe, Inputs]:
    training = {"training": {}} if "config" in values["teacher"] else {}
    values["teacher"] = {**values["teacher"], **training}
    Path("x.yaml").write_text(yaml.safe_dump({**values, "output_dir": "out"}))
    recipe = load_recipe("x.yaml")
    return recipe, Inputs(recipe, prepare_splits(load_rows(path="data"), recipe.task))


def mlp(size: int, channels: int = 1) -> dict[str, Any]:
    return {"model_type": "hf_distill_mlp", "image_size": size, "num_channels": channels, "hidden_sizes": [4]}


class TestReaders:
    def test_models_that_read_alike_share_one(self):
        """Each split tokenized twice to the same ids."""
        recipe, inputs = text_inputs(teacher={"model": save("one")}, student={"model": save("two")})
        assert inputs.reader(recipe.teachers[0]) is inputs.reader(recipe.student)

    def test_models_that_read_differently_do_not(self):
        """A student fed with its teacher's ids."""
        recipe, inputs = text_inputs(teacher={"model": save("one")}, student={"model": save("two", 1)})
        teacher, student = inputs.reader(recipe.teachers[0]), inputs.reader(recipe.student)
        ids = [reader.processor("the plot")["input_ids"] for reader in (teacher, student)]
        assert ids[0] != ids[1]
        assert inputs.rows(student, "train")["input_ids"][0][1] == student.processor.get_vocab()["the"]

    @pytest.mark.parametrize("more", ["teacher", "student"])
    def test_a_tokenizer_with_more_tokens_is_another_one(self, more):
        """The student's own tokens would never be used, and be gone from the saved tokenizer."""
        for folder in ("teacher", "student"):
            save(folder)
        tokenizer = tiny.tokenizer()
        tokenizer.add_tokens(["cinematography"])
        tokenizer.save_pretrained(more)
        recipe, inputs = text_inputs(teacher={"model": "teacher"}, student={"model": "student"})
        for section, folder in ((recipe.teachers[0], "teacher"), (recipe.student, "student")):
            assert ("cinematography" in inputs.reader(section).processor.get_vocab()) == (folder == more)

    def test_one_processor_for_all_if_the_data_name_it(self):
        """`data.processor` passed over where a model comes with one."""
        save("words", 2)
        recipe, inputs = text_inputs(
            data={"path": "data", "processor": "words"},
            teacher={"model": save("one")},
            student={"model": save("two", 1)},
        )
        ids = [inputs.reader(each).processor("the")["input_ids"] for each in (recipe.teachers[0], recipe.student)]
        assert ids[0] == ids[1]
        assert ids[0][1] == inputs.reader(recipe.student).processor.get_vocab()["the"] == 7

    def test_a_sections_own_processor_goes_before_all(self):
        """`student.processor` passed over for the one of the data."""
        save("words", 2)
        recipe, inputs = text_inputs(
            data={"path": "data", "processor": save("all")},
            teacher={"model": save("one", 1)},
            student={"model": save("two", 1), "processor": "words"},
        )
        ids = [inputs.reader(each).processor("the")["input_ids"][1] for each in (recipe.teachers[0], recipe.student)]
        assert ids == [5, 7]

    def test_a_student_made_of_a_stage_reads_as_the_stage_does(self):
        """It has the stage's embeddings, and was fed with the first teacher's ids."""
        recipe, inputs = text_inputs(
            teacher={"model": save("one")},
            stages=[{"model": save("two", 1)}, {"from_teacher": {"layers": [0]}}],
            student={"from_teacher": {"layers": [0]}},
        )
        teacher, first, second, student = [inputs.reader(each) for each in (*recipe.teachers, *recipe.students)]
        assert first is second is student
        assert teacher is not first

    def test_a_new_student_reads_as_the_first_model_that_says_how(self):
        """A config says nothing of words."""
        config = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1}
        recipe, inputs = text_inputs(teacher={"model": save("one", 1)}, student={"config": config})
        assert inputs.reader(recipe.student) is inputs.reader(recipe.teachers[0])

    def test_a_processor_that_is_not_there_is_refused(self):
        """A tokenizer that knows no word, which Transformers makes where there is no file."""
        with pytest.raises(ValueError, match="cannot load a tokenizer for the student nowhere"):
            text_inputs(teacher={"model": save("one")}, student={"model": save("two"), "processor": "nowhere"})


class TestText:
    def test_the_column_of_soft_targets_is_kept_for_those_that_learn_from_it(self):
        """A student of a stage would have two teachers."""
        recipe, inputs = text_inputs(teacher={"column": "teacher_probs"}, student={"model": save("one")})
        reader = inputs.reader(recipe.student)
        kept = inputs.rows(reader, "train", soft_targets="teacher_probs")
        assert kept["teacher_probs"][:] == [[0.5, 0.5]] * 4
        for rows in (inputs.rows(reader, "train"), inputs.rows(reader, "evaluation")):
            assert "teacher_probs" not in rows.column_names
            assert len(rows) == 4
        assert inputs.rows(reader, "train", soft_targets="teacher_probs") is kept

    def test_texts_are_cut_to_what_all_the_models_take(self):
        """An index error in the smallest one."""
        recipe, inputs = text_inputs(
            teacher={"model": save("one")}, student={"model": save("two", max_position_embeddings=4)}
        )
        assert inputs.rows(inputs.reader(recipe.student), "train")["length"][:] == [4] * 4
        with pytest.raises(ValueError, match=r"data\.max_length: must be at most 4, .* got 5"):
            text_inputs(data={"path": "data", "max_length": 5}, teacher={"model": "one"}, student={"model": "two"})


class TestImages:
    def test_each_model_has_images_of_its_size_normalised_alike(self):
        """A student of 8 pixels fed with its teacher's 16, or whose grey values have another mean."""
        tiny.resnet(num_channels=1).save_pretrained("ready")
        ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4], image_std=[0.3]).save_pretrained(
            "ready"
        )
        recipe, inputs = image_inputs(teacher={"model": "ready"}, student={"config": mlp(8)})
        teacher, student = inputs.reader(recipe.teachers[0]), inputs.reader(recipe.student)
        assert (teacher.processor.size["height"], student.processor.size["height"]) == (16, 8)
        assert list(student.processor.image_mean) == [0.4]
        row = inputs.rows(student, "train", teachers=[teacher])[0]
        assert row["pixel_values"].shape == (1, 8, 8)
        assert [view.shape for view in row["teacher_pixel_values"]] == [(1, 16, 16)]
        assert "teacher_pixel_values" not in inputs.rows(student, "train", teachers=[student])[0]

    def test_a_size_that_no_config_states_is_that_of_the_images(self):
        """Images of 224 pixels, as `ViTImageProcessor` makes by default, for a network of any size."""
        shape = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
        recipe, inputs = image_inputs(teacher={"config": shape}, student={"config": shape})
        assert inputs.reader(recipe.teachers[0]) is inputs.reader(recipe.student)
        assert inputs.rows(inputs.reader(recipe.student), "train")[0]["pixel_values"].shape == (1, 8, 8)

    def test_fields_of_a_processor_go_for_all(self):
        """`data.processor` as a mapping reaches the first model alone."""
        recipe, inputs = image_inputs(
            data={"path": "data", "processor": {"image_mean": [0.0], "image_std": [1.0]}},
            teacher={"config": mlp(8)},
            student={"config": mlp(4)},
        )
        for section in (recipe.teachers[0], recipe.student):
            assert list(inputs.reader(section).processor.image_mean) == [0.0]

    def test_images_that_cannot_be_read_are_left_out_and_counted(self):
        """A folder with one broken download is of no use; or its rows are gone and nobody knows."""
        recipe, _ = image_inputs(teacher={"config": mlp(16)}, student={"config": mlp(8)})
        Image.new("RGBA", (8, 8)).save("data/train/a/0.png")
        Path("data/train/a/1.png").write_bytes(b"")
        splits = prepare_splits(load_rows(path="data"), "image-classification")
        skipping = Recipe.model_validate({**recipe.model_dump(), "data": {"path": "data", "skip_unreadable": True}})
        with pytest.warns(UserWarning, match="left out, since they cannot be read: images 1 of the train split"):
            kept, info = readable_images(skipping, splits)
        assert len(kept.train) == len(splits.train) - 1
        assert info == {"unusual_images": {"transparent": 1}, "skipped_images": {"train": 1}}
        with pytest.raises(ValueError, match=r"row \d+ \(.*1\.png\) of the train split"):
            readable_images(recipe, splits)

    def test_all_models_see_the_recipes_ground_and_so_does_the_saved_processor(self):
        """A student on white beside a teacher on black; a published processor that reads other pixels than training."""
        processor = {"image_mean": [0.0], "image_std": [1.0]}
        sections = {"teacher": {"config": mlp(16)}, "student": {"config": mlp(8)}}
        image_inputs(**sections)
        Image.new("RGBA", (8, 8)).save("data/train/a/0.png")
        Image.new("RGBA", (8, 8)).save("data/validation/a/0.png")
        for ground, value in (("black", 0.0), ("#333333", 0.2)):
            recipe, inputs = inputs_of(
                {
                    "task": "image-classification",
                    "data": {"path": "data", "background": ground, "processor": processor},
                    **sections,
                }
            )
            teacher, student = inputs.reader(recipe.teachers[0]), inputs.reader(recipe.student)
            for role in ("train", "evaluation"):
                row = inputs.rows(student, role, teachers=[teacher])[0]
                assert torch.allclose(torch.tensor(value), row["pixel_values"])
                assert torch.allclose(torch.tensor(value), row["teacher_pixel_values"][0])
            student.processor.save_pretrained("saved")
            saved = AutoImageProcessor.from_pretrained("saved")
            pixels = saved(Image.new("RGBA", (8, 8)), return_tensors="pt")["pixel_values"]
            assert torch.allclose(torch.tensor(value), pixels)

    def test_colour_and_grey_models_are_refused(self):
        """A student that sees another picture."""
        with pytest.raises(ValueError, match=r"images of \[1, 3\] channels"):
            image_inputs(teacher={"config": mlp(8, 3)}, student={"config": mlp(8)})


def test_readers_of_teachers_are_counted_once_each_in_their_order():
    """The second teacher given the first one's view."""
    recipe, inputs = text_inputs(teacher={"model": save("one")}, student={"model": save("two", 1)})
    one, student = inputs.reader(recipe.teachers[0]), inputs.reader(recipe.student)
    assert distinct([student, one, one], student) == [one]
    assert distinct([student], student) == []


def test_soft_targets_of_images_are_kept_beside_the_pixels():
    """The rows of images are made anew, and bring only what they are told to."""
    recipe, _ = image_inputs(teacher={"config": mlp(8)}, student={"config": mlp(8)})
    splits = prepare_splits(load_rows(path="data"), recipe.task)
    train = splits.train.add_column("teacher_logits", [[1.0, 2.0], [3.0, 4.0]])
    inputs = Inputs(recipe, replace(splits, train=train))
    reader = inputs.reader(recipe.student)
    rows = inputs.rows(reader, "train", soft_targets="teacher_logits")
    assert [row["teacher_logits"] for row in (rows[0], rows[1])] == [[1.0, 2.0], [3.0, 4.0]]
    assert "teacher_logits" not in inputs.rows(reader, "train")[0]
    assert torch.equal(rows[0]["pixel_values"], inputs.rows(reader, "train")[0]["pixel_values"])
