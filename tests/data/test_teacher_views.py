"""What teachers with their own processors read of a student's rows, and soft targets that come with the data."""

import pickle
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BertTokenizerLegacy,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    default_data_collator,
)
from transformers.utils import logging

from hf_distill.data.images import image_array
from hf_distill.data.processors import channels_of
from hf_distill.data.target_columns import SoftTargetColumnCollator
from hf_distill.data.teacher_views import TeacherInputCollator, guess_columns
from hf_distill.data.text import tokenize_text, tokenize_words
from tests.data.test_processors import byte_level, image_processor


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def teacher_tokenizer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tokenizer"))
        return byte_level()


TEXTS = ["the Film was GOOD", "dull", None, "a very very funny plot"]


def text_rows(texts: list = TEXTS, seconds: list | None = None) -> list[dict[str, Any]]:
    """Rows as the student's tokenizer makes them, with the raw texts kept."""
    columns = {"first": texts, **({} if seconds is None else {"second": seconds})}
    dataset = Dataset.from_dict({**columns, "labels": [0] * len(texts)})
    tokenized = tokenize_text(dataset, tiny.tokenizer(), tuple(columns), None).remove_columns("length")
    return [{**row, **{name: columns[name][i] for name in columns}} for i, row in enumerate(tokenized)]


def text_views(*processors: Any, **changes: Any) -> TeacherInputCollator:
    student = tiny.tokenizer()
    return TeacherInputCollator(
        DataCollatorWithPadding(student), processors, **{"columns": ["first"], "kind": "text", **changes}
    )


class TestText:
    def test_each_teacher_reads_the_text_by_its_own_tokenizer(self, teacher_tokenizer):
        """The student's ids given to a teacher of another vocabulary; a row's text given to another row."""
        batch = text_views(teacher_tokenizer, tiny.tokenizer())(text_rows())
        other, same = batch["teacher_inputs"]
        for row, text in enumerate(TEXTS):
            expected = teacher_tokenizer(text or "")["input_ids"]
            assert other["input_ids"][row][other["attention_mask"][row].bool()].tolist() == expected
        assert torch.equal(same["input_ids"], batch["input_ids"])
        assert torch.equal(same["attention_mask"], batch["attention_mask"])
        assert all(isinstance(value, Tensor) for view in (other, same) for value in view.values())

    def test_the_students_batch_is_what_its_collator_makes(self, teacher_tokenizer):
        """A text column that the collator cannot turn into a tensor; a label lost or moved."""
        rows = text_rows()
        batch = text_views(teacher_tokenizer)(rows)
        bare = [{name: row[name] for name in row if name != "first"} for row in rows]
        expected = DataCollatorWithPadding(tiny.tokenizer())(bare)
        assert set(batch) == {*expected, "teacher_inputs"}
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert "first" in rows[0]

    def test_a_pair_is_read_as_a_pair(self, teacher_tokenizer):
        """The second text dropped, or both joined as one."""
        rows = text_rows(["a film", None], ["not Good", "dull"])
        views = text_views(teacher_tokenizer, tiny.tokenizer(), columns=["first", "second"])
        other, same = views(rows)["teacher_inputs"]
        expected = teacher_tokenizer(["a film", ""], ["not Good", "dull"], padding=True)["input_ids"]
        assert other["input_ids"].tolist() == expected
        assert same["token_type_ids"].tolist()[0] == [0, 0, 0, 0, 1, 1, 1]

    def test_token_types_are_made_only_by_tokenizers_that_make_them_unasked(self, teacher_tokenizer):
        """GPT-2 adds the embedding of token 0 to every token if it is given segments of zeros."""
        (view,) = text_views(teacher_tokenizer)(text_rows())["teacher_inputs"]
        assert set(view) == {"input_ids", "attention_mask"}

    def test_each_teacher_has_its_own_length(self, teacher_tokenizer):
        """A teacher of fewer positions than the student stops the run at the first long row."""
        views = text_views(teacher_tokenizer, teacher_tokenizer, max_lengths=[5, None])
        short, whole = views(text_rows())["teacher_inputs"]
        assert short["input_ids"].shape == (4, 5)
        assert whole["input_ids"].shape[1] > 5
        assert short["input_ids"][0, -1] == teacher_tokenizer.sep_token_id

    def test_the_tokenizers_own_limit_counts_without_another(self):
        """A text longer than the positions of the teacher."""
        (view,) = text_views(tiny.tokenizer())(text_rows(["film " * 100]))["teacher_inputs"]
        assert view["input_ids"].shape == (1, 32)

    def test_a_missing_column_is_named_with_those_that_are_there(self, teacher_tokenizer):
        """A KeyError from inside a worker."""
        rows = [{name: row[name] for name in row if name != "first"} for row in text_rows()]
        with pytest.raises(
            ValueError, match=r"'first', and the rows have only attention_mask, .*teacher_input_columns"
        ):
            text_views(teacher_tokenizer)(rows)

    def test_a_column_of_something_else_is_refused(self, teacher_tokenizer):
        """The column of labels read as text."""
        rows = [{**row, "first": 3} for row in text_rows()]
        with pytest.raises(ValueError, match="'first' holds 3"):
            text_views(teacher_tokenizer)(rows)

    def test_a_tokenizer_without_padding_is_refused_at_once(self):
        """An error at the first batch, after the data were prepared."""
        tokenizer = tiny.tokenizer()
        tokenizer.pad_token = None
        with pytest.raises(ValueError, match=r"no padding token.*set its pad_token"):
            text_views(tokenizer)


class TestArguments:
    @pytest.mark.parametrize("columns", [[], ["a", "b", "c"], "text"])
    def test_columns_that_make_no_text_are_refused(self, columns):
        """The letters of one name read as names."""
        with pytest.raises(ValueError, match="one or two columns"):
            text_views(columns=columns)

    def test_an_unknown_kind_is_refused(self):
        """Treated as images for want of a better idea."""
        with pytest.raises(ValueError, match="kind must be one of text, words, image, got 'audio'"):
            text_views(kind="audio")

    def test_as_many_lengths_as_teachers(self, teacher_tokenizer):
        """The second teacher would take the length of the first."""
        with pytest.raises(ValueError, match="one entry for each of 2 processors"):
            text_views(teacher_tokenizer, teacher_tokenizer, max_lengths=[5])

    def test_words_need_the_students_tokenizer_and_fast_ones(self, tmp_path, teacher_tokenizer):
        """A slow tokenizer does not know which word a piece belongs to."""
        with pytest.raises(ValueError, match="by the student's tokenizer"):
            text_views(teacher_tokenizer, kind="words")
        (tmp_path / "vocab.txt").write_text("\n".join(tiny.VOCABULARY))
        slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
        for student, teacher in [(slow, teacher_tokenizer), (tiny.tokenizer(), slow)]:
            with pytest.raises(ValueError, match="fast tokenizers, BertTokenizerLegacy cannot"):
                text_views(teacher, kind="words", student_processor=student)


# "\u200b" is a piece for bytes and [UNK] for words; "" and " " are no piece for one of them or for both.
WORDS = [
    ["the", "Film", "duller", "Funny", "good"],
    ["dull"],
    ["a", "", "film", " ", "duller", "plot", "\u200b", "is", "GOOD"],
    [],
]


def word_rows(words: list = WORDS, *, max_length: int | None = None, tokenizer: Any = None) -> list[dict[str, Any]]:
    dataset = Dataset.from_dict(
        {"words": words, "labels": [[0] * len(row) for row in words]},
        features=Features({"words": List(Value("string")), "labels": List(Value("int64"))}),
    )
    tokenized = tokenize_words(dataset, tokenizer or tiny.tokenizer(), "words", max_length).remove_columns("length")
    return [{**row, "words": words[i]} for i, row in enumerate(tokenized)]


def word_views(teacher: Any, *, student: Any = None, collator: Any = None, **changes: Any) -> TeacherInputCollator:
    student = student or tiny.tokenizer()
    collator = collator or DataCollatorForTokenClassification(student)
    return TeacherInputCollator(
        collator, [teacher], columns=["words"], kind="words", student_processor=student, **changes
    )


def first_pieces_by_hand(tokenizer: Any, words: list[str]) -> dict[int, tuple[int, int]]:
    """Return place and id of the first piece of each word, each word having been read by itself."""
    found, place = {}, 1
    for number, word in enumerate(words):
        ids = tokenizer([[word]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
        if ids:
            found[number] = (place, ids[0])
        place += len(ids)
    return found


def check_alignment(batch: dict[str, Any], words: list, student: Any, teacher: Any, most: int = 10**6) -> int:
    """Compare all positions with those by hand; return how many there were."""
    (view,) = batch["teacher_inputs"]
    positions, count = view["token_positions"], 0
    assert positions.dtype == torch.long
    assert positions.shape == batch["input_ids"].shape
    for row, row_words in enumerate(words):
        of_student, of_teacher = (first_pieces_by_hand(t, row_words) for t in (student, teacher))
        start, teacher_start = (
            int(mask[row].nonzero()[0]) for mask in (batch["attention_mask"], view["attention_mask"])
        )
        num_tokens = int(batch["attention_mask"][row].sum())
        expected = [-1] * positions.shape[1]
        for word, (place, index) in of_student.items():
            if place >= num_tokens - 1:  # cut off with the rest of the row
                continue
            assert batch["input_ids"][row, start + place] == index
            if word in of_teacher and of_teacher[word][0] < most - 1:
                place_of_teacher, index_of_teacher = of_teacher[word]
                expected[start + place] = teacher_start + place_of_teacher
                assert view["input_ids"][row, teacher_start + place_of_teacher] == index_of_teacher
                count += 1
        assert positions[row].tolist() == expected
    return count


class TestWords:
    @pytest.mark.parametrize("student_side", ["right", "left"])
    @pytest.mark.parametrize("teacher_side", ["right", "left"])
    def test_a_words_first_piece_points_to_its_first_piece(self, teacher_tokenizer, student_side, teacher_side):
        """Off by the padding, by a word without pieces, or by the pieces of a longer word: labels of neighbours."""
        student = tiny.tokenizer()
        student.padding_side = student_side
        rows = word_rows()
        teacher = pickle.loads(pickle.dumps(teacher_tokenizer))
        teacher.padding_side = teacher_side
        batch = word_views(teacher, student=student)(rows)
        assert check_alignment(batch, WORDS, student, teacher) >= 11
        assert (batch["attention_mask"][1, 0] == 0) == (student_side == "left")

    def test_roles_may_be_exchanged(self, teacher_tokenizer):
        """A student of bytes and a teacher of words: pieces that only one of them has."""
        rows = word_rows(tokenizer=teacher_tokenizer)
        batch = word_views(tiny.tokenizer(), student=teacher_tokenizer)(rows)
        assert check_alignment(batch, WORDS, teacher_tokenizer, tiny.tokenizer()) >= 11

    def test_a_word_without_pieces_does_not_shift_the_others(self, teacher_tokenizer):
        """An empty cell in the middle of a sentence, and every later word learns from its neighbour."""
        (view,) = word_views(teacher_tokenizer)(word_rows([["a", "", "film"]]))["teacher_inputs"]
        places = [place for place in view["token_positions"][0].tolist() if place != -1]
        read = [teacher_tokenizer.convert_ids_to_tokens(int(view["input_ids"][0, place])) for place in places]
        assert len(places) == 2
        assert read[1].removeprefix("Ġ") in "film"

    def test_words_that_the_teacher_has_lost_have_no_position(self, teacher_tokenizer):
        """The end of a long row taught by whatever the last token of the teacher says."""
        batch = word_views(teacher_tokenizer, max_lengths=[8])(word_rows())
        whole = word_views(teacher_tokenizer)(word_rows())["teacher_inputs"][0]["token_positions"]
        assert 0 < check_alignment(batch, WORDS, tiny.tokenizer(), teacher_tokenizer, 8) < int((whole >= 0).sum())

    @pytest.mark.parametrize("max_length", [2, 3, 4, 6])
    def test_rows_that_the_student_has_cut_are_found(self, teacher_tokenizer, max_length):
        """Every long row refused, because the words give more tokens than the row has."""
        batch = word_views(teacher_tokenizer)(word_rows(max_length=max_length))
        count = check_alignment(batch, WORDS, tiny.tokenizer(), teacher_tokenizer)
        assert (count > 0) == (max_length > 2)

    def test_rows_that_are_padded_already_are_found(self, teacher_tokenizer):
        """Data prepared with padding="max_length": the padding taken for tokens of the row."""
        rows = [
            {
                **row,
                "input_ids": torch.tensor([*row["input_ids"], 0, 0]),
                "attention_mask": [*row["attention_mask"], 0, 0],
                "labels": [*row["labels"], -100, -100],
                "token_type_ids": [*row["token_type_ids"], 0, 0],
            }
            for row in word_rows()
        ]
        batch = word_views(teacher_tokenizer)(rows)
        assert check_alignment(batch, WORDS, tiny.tokenizer(), teacher_tokenizer) >= 11

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_a_collator_without_a_mask_pads_where_its_tokenizer_does(self, teacher_tokenizer, side):
        """Positions of a row that was padded on the left, counted from the left."""
        student = tiny.tokenizer()
        student.padding_side = side
        collator = DataCollatorForTokenClassification(student)
        views = word_views(teacher_tokenizer, student=student, collator=WithoutMask(collator))
        (view,) = views(word_rows())["teacher_inputs"]
        (expected,) = word_views(teacher_tokenizer, student=student)(word_rows())["teacher_inputs"]
        assert torch.equal(view["token_positions"], expected["token_positions"])

    @pytest.mark.parametrize("change", [lambda ids: ids[1:-1], lambda ids: [7, *ids[1:]], lambda ids: [*ids, 7]])
    def test_rows_that_were_tokenized_in_another_way_are_refused(self, teacher_tokenizer, change):
        """Without special tokens, or by another tokenizer: positions that look right and are not."""
        rows = word_rows([["the", "film"]])
        ids = change(rows[0]["input_ids"])
        rows[0] |= {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [0] * len(ids)}
        rows[0]["token_type_ids"] = [0] * len(ids)
        with pytest.raises(
            ValueError, match=r"tokenized in another way .* the row has \[.*Tokenize with that tokenizer"
        ):
            word_views(teacher_tokenizer)(rows)

    def test_a_collator_that_changes_the_tokens_is_refused(self, teacher_tokenizer):
        """Masked tokens, or rows packed together: the words are where nobody looks."""
        collator = Shifted(DataCollatorForTokenClassification(tiny.tokenizer()))
        with pytest.raises(ValueError, match="collator has changed the tokens"):
            word_views(teacher_tokenizer, collator=collator)(word_rows())

    def test_a_column_of_texts_is_no_column_of_words(self, teacher_tokenizer):
        """A text read as a list of its letters."""
        rows = [{**row, "words": "the film"} for row in word_rows()]
        with pytest.raises(ValueError, match="'words' holds 'the film'"):
            word_views(teacher_tokenizer)(rows)


class WithoutMask:
    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list) -> dict[str, Any]:
        batch = dict(self.collator(rows))
        del batch["attention_mask"]
        return batch


class Shifted(WithoutMask):
    def __call__(self, rows: list) -> dict[str, Any]:
        batch = dict(self.collator(rows))
        return {**batch, "input_ids": batch["input_ids"].roll(1, dims=1)}


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (9, 7)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


class TestImages:
    def views(self, *processors: Any, columns: tuple[str, ...] = ("image",)) -> TeacherInputCollator:
        return TeacherInputCollator(default_data_collator, processors, columns=columns, kind="image")

    def rows(self, *modes: str) -> list[dict[str, Any]]:
        return [
            {"pixel_values": torch.full((3, 4, 4), float(i)), "labels": i, "image": picture(i, mode)}
            for i, mode in enumerate(modes)
        ]

    def test_each_teacher_sees_the_image_by_its_own_processor(self):
        """The student's small image enlarged, another normalisation, or another row's image."""
        grey = image_processor(6, image_mean=[0.1], image_std=[0.7])
        colour = image_processor((12, 10), image_mean=[0.1, 0.2, 0.3])
        rows = self.rows("RGB", "L", "CMYK", "P")
        batch = self.views(grey, colour)(rows)
        assert batch["pixel_values"].shape == (4, 3, 4, 4)
        assert batch["labels"].tolist() == [0, 1, 2, 3]
        for view, processor, shape in zip(
            batch["teacher_inputs"], (grey, colour), ((1, 6, 6), (3, 12, 10)), strict=True
        ):
            assert view["pixel_values"].shape == (4, *shape)
            for row, pixels in zip(rows, view["pixel_values"], strict=True):
                array = image_array(row["image"], channels_of(processor))
                expected = processor(array, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
                assert torch.equal(pixels, expected)

    def test_raw_images_are_read_as_in_a_recipe(self, caplog, monkeypatch):
        """A teacher that sees white in place of 16 bits, and black in place of a glyph; and nobody is told."""
        monkeypatch.setattr(logging.get_logger("hf_distill.data.teacher_views"), "propagate", True)
        ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
        glyph = np.zeros((8, 8, 4), np.uint8)
        glyph[2:4, :, 3] = 255
        ordinary = [Image.fromarray(ramp), Image.fromarray(255 - glyph[..., 3])]
        unusual = [Image.fromarray(ramp.astype(np.uint16) * 257), Image.fromarray(glyph)]
        batches = [
            self.views(image_processor(8))([{"pixel_values": torch.zeros(3, 8, 8), "image": image} for image in each])
            for each in (ordinary, unusual)
        ]
        first, second = (batch["teacher_inputs"][0]["pixel_values"] for batch in batches)
        assert torch.equal(first, second)
        (message,) = caplog.messages
        assert message.startswith("The column 'image' has images with transparency: the teacher sees them composed on")

    def test_an_image_that_cannot_be_scaled_is_refused(self):
        """Floats to 255 that are clipped to white."""
        rows = [{**row, "image": Image.new("F", (8, 8), 200)} for row in self.rows("RGB")]
        with pytest.raises(ValueError, match="the teacher reads the column 'image', and an image has pixels from 200"):
            self.views(image_processor())(rows)

    def test_images_that_are_ready_are_stacked(self):
        """Two teachers' images exchanged; an augmented image replaced by the raw one."""
        rows = [
            {**row, "teacher_pixel_values": [torch.full((3, 5, 5), i), torch.full((1, 2, 2), -i)]}
            for i, row in enumerate(self.rows("RGB", "RGB"))
        ]
        for row in rows:
            del row["image"]
        first, second = self.views(image_processor(), image_processor(), columns=())(rows)["teacher_inputs"]
        assert first["pixel_values"].shape == (2, 3, 5, 5)
        assert second["pixel_values"].flatten(1).tolist() == [[0] * 4, [-1] * 4]

    @pytest.mark.parametrize(
        "kind", [torch.as_tensor, np.asarray, lambda pixels: pixels.tolist(), lambda pixels: [pixels]]
    )
    def test_one_teachers_image_may_be_given_in_any_form(self, kind):
        """Three channels taken for the images of three teachers."""
        pixels = torch.arange(48.0).reshape(3, 4, 4)
        rows = [{"pixel_values": pixels, "teacher_pixel_values": kind(pixels)}]
        (view,) = self.views(image_processor(), columns=())(rows)["teacher_inputs"]
        assert torch.equal(view["pixel_values"], pixels[None])

    def test_too_few_images_are_refused(self):
        """The last teacher without an input."""
        rows = [{"pixel_values": torch.zeros(3, 4, 4), "teacher_pixel_values": [torch.zeros(3, 4, 4)]}]
        with pytest.raises(ValueError, match=r"for each of 2 teachers' processors, got \(3, 4, 4\)"):
            self.views(image_processor(), image_processor(), columns=())(rows)

    def test_what_is_no_image_is_refused(self):
        """A file's name, or undecoded bytes."""
        rows = [{**row, "image": "a.png"} for row in self.rows("RGB")]
        with pytest.raises(ValueError, match="'image' holds str, not a PIL image"):
            self.views(image_processor())(rows)
        with pytest.raises(ValueError, match="the rows have pixel_values, labels, image: set teacher_input_columns"):
            self.views(image_processor(), columns=())(rows)


class TestGuessing:
    def test_the_one_column_of_its_kind_is_found(self):
        """A label's name read as a text; token ids as words."""
        features = Features(
            {
                "input_ids": List(Value("int64")),
                "labels": ClassLabel(names=["a", "b"]),
                "text": Value("string"),
                "tokens": List(Value("string")),
                "image": datasets.Image(),
            }
        )
        dataset = Dataset.from_dict({name: [] for name in features}, features=features)
        assert guess_columns(dataset, "text") == ("text",)
        assert guess_columns(dataset, "words") == ("tokens",)
        assert guess_columns(dataset, "image") == ("image",)

    def test_rows_of_plain_python_are_looked_into(self):
        """A list of dicts has no features to ask."""
        rows = [{"labels": 1, "t": "the film", "w": ["the", "film"], "i": picture(0), "input_ids": [1, 2]}]
        assert [guess_columns(rows, kind) for kind in ("text", "words", "image")] == [("t",), ("w",), ("i",)]

    def test_images_that_are_ready_need_no_column(self):
        """Rows that are augmented before they are collated have no raw image."""
        assert guess_columns([{"pixel_values": 1, "teacher_pixel_values": [1]}], "image") == ()

    @pytest.mark.parametrize(
        ("dataset", "kind", "message"),
        [
            (
                Dataset.from_dict({"a": ["x"], "b": ["y"], "n": [1]}),
                "text",
                r"several string columns: a, b\. .*\['a'\]",
            ),
            (Dataset.from_dict({"a": ["x"], "n": [1]}), "image", r"no image column among a, n\. .*keep the raw column"),
            ([{"a": "x"}], "words", "no list-of-strings column among a"),
            ([], "text", "in a list no string column can be guessed: set teacher_input_columns"),
            (iter([]), "text", "can be guessed: set teacher_input_columns"),
        ],
    )
    def test_none_or_several_are_refused_with_the_remedy(self, dataset, kind, message):
        """The first of two columns taken in silence: the hypothesis without its premise."""
        with pytest.raises(ValueError, match=message):
            guess_columns(dataset, kind)


class TestSoftTargetColumns:
    def test_soft_targets_come_back_as_they_were(self):
        """Moved to other rows, in double precision, or left among the rows for a collator that chokes on them."""
        rows = text_rows()
        targets = [[0.5, 1.5, -2.0], None, np.array([1.0, 2.0, 3.0]), torch.tensor([0.0, -torch.inf, 1.0])]
        for row, target in zip(rows, targets, strict=True):
            row["teacher_logits"] = target
            del row["first"]
        batch = SoftTargetColumnCollator(DataCollatorWithPadding(tiny.tokenizer()), "teacher_logits", 3)(rows)
        assert batch["teacher_logits"].dtype == torch.float32
        assert batch["teacher_logits"].shape == (4, 3)
        assert batch["teacher_logits"][0].tolist() == [0.5, 1.5, -2.0]
        assert batch["teacher_logits"][1].isnan().all()
        assert batch["teacher_logits"][2:].tolist() == [[1.0, 2.0, 3.0], [0.0, -torch.inf, 1.0]]
        assert batch["labels"].shape == (4,)
        assert batch["input_ids"].shape[0] == 4
        assert "teacher_logits" in rows[0]

    def test_a_row_that_lacks_the_column_has_no_soft_target(self):
        """Zeros in the place of nothing are a target: the uniform one."""
        batch = SoftTargetColumnCollator(default_data_collator, "teacher_probs", 2)([{"labels": 0}, {"labels": 1}])
        assert batch["teacher_probs"].shape == (2, 2)
        assert batch["teacher_probs"].isnan().all()
        token_level = SoftTargetColumnCollator(plain_tokens, "teacher_probs", 2, token_level=True)
        assert token_level([{"input_ids": [1, 2, 3]}])["teacher_probs"].shape == (1, 3, 2)

    @pytest.mark.parametrize(("side", "with_mask"), [("right", True), ("left", True), ("right", False)])
    def test_token_targets_are_padded_as_the_tokens_are(self, side, with_mask):
        """A student that is padded on the left learns each token's target at another token."""
        student = tiny.tokenizer()
        student.padding_side = side
        rows = [{name: row[name] for name in row if name != "words"} for row in word_rows()]
        for row in rows:
            row["teacher_logits"] = [[float(index), -1.0] for index in row["input_ids"]]
        rows[1]["teacher_logits"] = None
        collator = DataCollatorForTokenClassification(student)
        batch = SoftTargetColumnCollator(collator if with_mask else WithoutMask(collator), "teacher_logits", 2)(rows)
        targets, ids = batch["teacher_logits"], batch["input_ids"]
        assert targets.shape == (*ids.shape, 2)
        for number, row in enumerate(rows):
            width, count = ids.shape[1], len(row["input_ids"])
            real = slice(width - count, width) if side == "left" else slice(0, count)
            there = torch.zeros(width, dtype=torch.bool)
            there[real] = number != 1
            assert torch.equal(targets[number, there, 0], ids[number, there].float())
            assert targets[number, ~there].isnan().all()

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ([[1.0, 2.0], [1.0, 2.0, 3.0]], r"num_labels 2, and in one batch there are \(3,\)"),
            ([[1.0], None], r"in one batch there are \(1,\)"),
            ([[1.0, 2.0], [[1.0, 2.0]]], r"in one batch there are \(1, 2\), \(2,\)"),
            ([1.0, None], r"in one batch there are \(\)"),
            ([["a", "b"], None], r"must be numbers in a list or an array, got \['a', 'b'\]"),
            ([[[1.0, 2.0], [3.0]], None], "must be numbers in a list or an array"),
            ([[[1.0, 2.0]] * 2, None], "has 2 lines in a row of 3 tokens"),
            ([[[1.0, 2.0]] * 4, None], "has 4 lines in a row of 3 tokens"),
        ],
    )
    def test_targets_of_another_shape_are_refused(self, entries, message):
        """Logits of a teacher with more labels cut to fit; targets of another tokenizer's tokens."""
        rows = [{"input_ids": [1, 2, 3], "teacher_probs": entry} for entry in entries]
        with pytest.raises(ValueError, match=message):
            SoftTargetColumnCollator(plain_tokens, "teacher_probs", 2)(rows)

    def test_rows_of_the_wrong_level_are_refused(self):
        """One target for a text, spread over its tokens."""
        rows = [{"input_ids": [1, 2, 3], "teacher_probs": [1.0, 2.0]}]
        with pytest.raises(ValueError, match=r"must have the shape \(tokens, num_labels\)"):
            SoftTargetColumnCollator(plain_tokens, "teacher_probs", 2, token_level=True)(rows)


def plain_tokens(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}


class TestTogether:
    def collator(self, teacher: Any) -> SoftTargetColumnCollator:
        return SoftTargetColumnCollator(text_views(teacher), "teacher_logits", 2)

    def rows(self) -> list[dict[str, Any]]:
        return [{**row, "teacher_logits": [float(i), 0.0]} for i, row in enumerate(text_rows())]

    def check(self, batch: dict[str, Any], expected: dict[str, Any]) -> None:
        assert torch.equal(batch["teacher_logits"], expected["teacher_logits"])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        (view,), (expected_view,) = batch["teacher_inputs"], expected["teacher_inputs"]
        assert all(torch.equal(view[name], expected_view[name]) for name in expected_view)

    def test_one_may_wrap_the_other(self, teacher_tokenizer):
        """The columns of one left for the collator inside the other."""
        other = TeacherInputCollator(
            SoftTargetColumnCollator(DataCollatorWithPadding(tiny.tokenizer()), "teacher_logits", 2),
            [teacher_tokenizer],
            columns=["first"],
            kind="text",
        )
        self.check(other(self.rows()), self.collator(teacher_tokenizer)(self.rows()))

    def test_a_pickled_copy_does_the_same(self, teacher_tokenizer):
        """Workers that are spawned get a pickled copy."""
        collator = self.collator(teacher_tokenizer)
        self.check(pickle.loads(pickle.dumps(collator))(self.rows()), collator(self.rows()))

    @pytest.mark.slow
    def test_a_spawned_worker_does_the_same(self, teacher_tokenizer):
        """The start method of macOS and Windows: nothing is inherited."""
        collator = self.collator(teacher_tokenizer)
        loader = DataLoader(
            self.rows(), batch_size=4, num_workers=1, multiprocessing_context="spawn", collate_fn=collator
        )
        (batch,) = loader
        self.check(batch, collator(self.rows()))
