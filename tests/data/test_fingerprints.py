"""Rows that are known by what is in them."""

import io
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from PIL import Image
from torch.utils.data import IterableDataset
from transformers import BertweetTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_distill.data.fingerprints import DIGEST_SIZE, augmentation_kind, columns_of, hash_rows
from hf_distill.data.images import ImageRows
from hf_distill.data.processors import processor_settings

TEXT = {"input_ids", "attention_mask", "text", "pixels"}


def texts(count: int = 30) -> Dataset:
    """Rows of many lengths, two of them alike."""
    random = np.random.default_rng(0)
    rows = [
        {
            "input_ids": random.integers(0, 90, 1 + row % 7).tolist(),
            "attention_mask": [1] * (1 + row % 7),
            "text": f"row {row}",
            "labels": row % 3,
        }
        for row in range(count)
    ]
    rows[5] = {**rows[3], "labels": 2}
    return Dataset.from_list(rows)


def digests(rows, columns=None) -> list[bytes]:
    return [digest.tobytes() for digest in hash_rows(rows, columns).digests]


def one(**columns) -> bytes:
    (digest,) = digests([columns])
    return digest


def of_arrow(features, **columns) -> bytes:
    (digest,) = digests(Dataset.from_dict({name: [value] for name, value in columns.items()}, features=features))
    return digest


def image_file(seed: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def with_hole(mode: str, transparency: Any) -> Image.Image:
    image = Image.new(mode, (2, 2))
    image.info["transparency"] = transparency
    return image


def images(count: int = 5, **options) -> ImageRows:
    entries = [{"bytes": image_file(row), "path": None} for row in range(count)]
    features = Features({"image": datasets.Image(), "labels": Value("int64")})
    rows = Dataset.from_dict({"image": entries, "labels": list(range(count))}, features=features)
    return ImageRows(rows, "image", image_processor(), **options)


def image_processor(**options) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(**{"size": {"height": 8, "width": 8}, **options})


class Rows:
    """A data set of one's own."""

    def __init__(self, count=40, change="never"):
        self.count, self.change, self.epoch, self.reads = count, change, 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        moved = {"never": 0, "each epoch": self.epoch, "each time": self.reads}[self.change]
        return {"pixels": torch.full((2, 2), float(index * 1000 + moved)), "labels": index}

    def set_epoch(self, epoch):
        self.epoch = epoch


class TestWhereARowStands:
    def test_a_row_keeps_its_digest_wherever_it_stands(self):
        """Soft targets of another row, after a shuffle, a filter, a selection or a concatenation."""
        rows = texts()
        known = digests(rows)
        order = np.random.default_rng(1).permutation(30).tolist()
        assert digests(rows.select(order)) == [known[row] for row in order]
        assert digests(rows.select([4, 4, 17])) == [known[4], known[4], known[17]]
        assert digests(rows.select(range(7, 20))) == known[7:20]  # a slice of the table, without indices
        even = rows.filter(lambda row: row["labels"] == 0)
        assert digests(even) == [digest for digest, label in zip(known, rows["labels"], strict=True) if label == 0]
        assert digests(concatenate_datasets([even, rows])) == digests(even) + known
        assert digests(rows.shuffle(seed=3)) != known
        assert sorted(digests(rows.shuffle(seed=3))) == sorted(known)

    def test_rows_that_are_alike_share_a_digest_and_no_others_do(self):
        """One soft target for two different rows."""
        known = digests(texts())
        assert known[3] == known[5]
        assert len(set(known)) == 29
        assert hash_rows(texts(), None).digests.shape == (30, DIGEST_SIZE)

    def test_a_list_of_rows_and_a_table_of_them_agree(self):
        """A cache that is made anew because the data were read in another way."""
        rows = texts()
        assert digests([rows[row] for row in range(30)]) == digests(rows)
        as_tensors = [
            {name: torch.tensor(v) if isinstance(v, list) else v for name, v in row.items()} for row in rows.to_list()
        ]
        assert digests(as_tensors) == digests(rows)
        assert digests(rows.with_format("torch")) == digests(rows)
        assert digests(rows.cast_column("input_ids", List(Value("int32")))) == digests(rows)

    def test_labels_do_not_count_and_only_the_columns_asked_for_do(self):
        """A cache that is thrown away because a label was mended; or one that does not see a second text."""
        rows = texts()
        relabelled = rows.remove_columns("labels").add_column("labels", [9] * 30)
        assert digests(relabelled) == digests(rows)
        renamed = rows.remove_columns("text").add_column("text", ["other"] * 30)
        assert digests(renamed, {"input_ids", "attention_mask"}) == digests(rows, {"input_ids", "attention_mask"})
        assert not set(digests(renamed)) & set(digests(rows))
        assert columns_of(rows, {"text", "input_ids", "absent"}) == ["input_ids", "text"]
        shown = rows.with_format("numpy", columns=["input_ids"])
        assert digests(shown) == digests(rows, {"input_ids"})

    def test_sizes_are_those_of_the_rows(self):
        """Batches of all lengths in the place of sorted ones."""
        rows = texts()
        expected = [len(row["input_ids"]) for row in rows]
        assert hash_rows(rows, {"input_ids"}).sizes.tolist() == expected
        assert hash_rows(rows.to_list(), {"input_ids"}).sizes.tolist() == expected


class TestWhatARowSays:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({"a": [1, 2], "b": [3]}, {"a": [1], "b": [2, 3]}),
            ({"a": "ab", "b": "c"}, {"a": "a", "b": "bc"}),
            ({"a": [1, 2, 0]}, {"a": [1, 2]}),
            ({"a": [1, 2]}, {"a": [2, 1]}),
            ({"a": [1, 2]}, {"b": [1, 2]}),
            ({"a": [1]}, {"a": [1], "b": None}),
            ({"a": None}, {"a": ""}),
            ({"a": ["x", "y"]}, {"a": ["xy"]}),
            ({"a": [[1], [2, 3]]}, {"a": [[1, 2], [3]]}),
            ({"a": 1}, {"a": 1.0}),
            ({"a": "1"}, {"a": 1}),
            ({"a": b"x"}, {"a": "x"}),
            ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}),
            ({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.float16)}),
            ({"a": torch.ones(2, dtype=torch.bfloat16)}, {"a": torch.ones(2, dtype=torch.float16)}),
            ({"a": {"x": 1}}, {"a": {"x": 2}}),
            ({"a": Image.new("L", (2, 3))}, {"a": Image.new("L", (3, 2))}),
            ({"a": Image.new("L", (2, 2))}, {"a": Image.new("L", (2, 2), 1)}),
            ({"a": Image.new("L", (2, 2))}, {"a": with_hole("L", 0)}),
            ({"a": with_hole("L", 1)}, {"a": with_hole("L", 0)}),
            ({"a": with_hole("P", b"\0")}, {"a": with_hole("P", b"\1")}),
            ({"a": with_hole("RGB", (0, 0, 0))}, {"a": with_hole("RGB", (0, 0, 1))}),
        ],
    )
    def test_different_rows_have_different_digests(self, first, second):
        """Bytes of two columns that run into each other, and two rows that share a soft target."""
        assert one(**first) != one(**second)
        assert one(**first) == one(**first)

    @pytest.mark.parametrize(
        ("feature", "first", "second"),
        [
            (List(Value("int64")), [1, 2], [1, 2, 0]),
            (List(Value("int64")), [], None),
            (List(Value("int64")), [1, None], [1, 0]),
            (List(Value("bool")), [True, False], [False, True]),
            (List(Value("float32")), [0.5], [0.25]),
            (List(List(Value("float32"))), [[0.5], [1.0, 2.0]], [[0.5, 1.0], [2.0]]),
            (List(List(List(Value("int8")))), [[[1], [2]]], [[[1, 2]]]),
            (List(List(Value("int64"))), [[1], None], [[1], []]),
            (List(Value("string")), ["a", "b"], ["ab"]),
            (Value("string"), "a", "b"),
            (Value("string"), None, ""),
            (Value("float64"), 0.5, 0.25),
            (datasets.Array2D((2, 2), "float32"), [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [4.0, 3.0]]),
            ({"x": Value("int64"), "y": Value("string")}, {"x": 1, "y": "a"}, {"x": 1, "y": "b"}),
        ],
    )
    def test_rows_of_a_table_that_differ_have_different_digests(self, feature, first, second):
        """The same for columns that are read in Arrow's memory."""
        features = Features({"a": feature})
        assert of_arrow(features, a=first) != of_arrow(features, a=second)
        assert of_arrow(features, a=first) == of_arrow(features, a=first)

    def test_lists_of_lists_are_found_at_their_place_in_a_table(self):
        """Offsets of a part of a table that count from the beginning of the whole."""
        nested = [[[row, 1], [2]] if row % 2 else [[row]] for row in range(9)]
        rows = Dataset.from_dict({"a": nested})
        known = digests(rows)
        assert len(set(known)) == 9
        assert digests(rows.select(range(4, 9))) == known[4:]
        assert digests(Dataset.from_dict({"a": nested[6:8]})) == known[6:8]

    def test_images_are_known_by_their_files(self, tmp_path: Path):
        """Paths that are the same on two machines, with other images behind them."""
        for name, seed in (("one.png", 1), ("other.png", 2)):
            (tmp_path / name).write_bytes(image_file(seed))
        feature = Features({"image": datasets.Image()})

        def of(path, content=None):
            return of_arrow(feature, image={"bytes": content, "path": path})

        path = str(tmp_path / "one.png")
        assert of(path) == of(None, image_file(1)) != of(str(tmp_path / "other.png"))
        before = of(path)
        (tmp_path / "one.png").write_bytes(image_file(3))
        assert of(path) != before
        with pytest.raises(ValueError, match=r"image's file cannot be read.*none\.png"):
            of(str(tmp_path / "none.png"))

    def test_what_cannot_be_known_is_refused(self):
        """An object's address as its digest: never the same twice, and the cache never hit."""
        with pytest.raises(ValueError, match=r"the column 'a' holds object, .* leave precompute_teacher_logits out"):
            one(a=object())
        with pytest.raises(ValueError, match=r"no column that the teacher reads \(input_ids, labels\), only text"):
            digests([{"text": "a", "labels": 1}], {"input_ids", "labels"})
        with pytest.raises(ValueError, match="no column other than labels, only labels"):
            digests([{"labels": 1}])
        with pytest.raises(ValueError, match="a row must be a mapping from column to value, got tuple"):
            digests([(1, 2)])

    @pytest.mark.slow
    def test_a_large_data_set_takes_less_time_than_python_lists_of_it(self):
        """Minutes before each training, spent on Python lists."""
        count = 67_349
        lengths = np.random.default_rng(0).integers(3, 60, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        column = pa.ListArray.from_arrays(offsets, np.arange(offsets[-1]) % 30_000)
        rows = Dataset(pa.table({"input_ids": column, "attention_mask": column}))
        objects = rows.to_list()

        def seconds(dataset):
            start = time.process_time()
            hash_rows(dataset, None)
            return time.process_time() - start

        assert seconds(rows) < seconds(objects)  # a third of it is usual


class TestImageRows:
    def test_digests_follow_the_images_and_not_the_labels(self):
        """A cached image under a relabelled row; an image that is mended and keeps its old soft targets."""
        rows = images()
        known = digests(rows)
        assert len(set(known)) == 5
        assert digests(ImageRows(rows.rows.select([3, 1]), "image", image_processor())) == [known[3], known[1]]
        relabelled = rows.rows.remove_columns("labels").add_column("labels", [0] * 5)
        assert digests(ImageRows(relabelled, "image", image_processor())) == known

    @pytest.mark.parametrize(
        ("columns", "student", "teacher"),
        [({"pixel_values"}, True, False), ({"teacher_pixel_values"}, False, True), (None, True, True)],
    )
    def test_digests_follow_the_processors_that_are_read(self, columns, student, teacher):
        """Another mean or size, and the soft targets of the former."""
        rows = images().rows
        options = {"processor": image_processor(), "teacher_processors": [image_processor(size={"shortest_edge": 9})]}
        known = digests(ImageRows(rows, "image", **options), columns)

        def differs(**changed):
            return digests(ImageRows(rows, "image", **{**options, **changed}), columns) != known

        assert differs(processor=image_processor(image_mean=[0.1] * 3)) == student
        assert differs(num_channels=1) == student
        assert differs(teacher_processors=[image_processor()]) == teacher

    def test_digests_follow_the_ground_and_the_mode(self):
        """The soft targets of glyphs on white for the same on black."""
        rows = images().rows
        known = digests(ImageRows(rows, "image", image_processor()))
        assert digests(ImageRows(rows, "image", image_processor(), background="white")) == known
        others = [
            *digests(ImageRows(rows, "image", image_processor(), background="black")),
            *digests(ImageRows(rows.cast_column("image", datasets.Image(mode="L")), "image", image_processor())),
        ]
        assert not set(known) & set(others)
        assert len(set(others)) == 10

    def test_an_augmented_image_is_another_row_in_each_epoch_and_place(self):
        """The soft targets of one crop for another one."""
        rows = images(crop_padding=2, seed=5)
        seen = set(digests(rows))
        rows.set_epoch(1)
        assert not seen & set(digests(rows))
        rows.set_epoch(0)
        assert set(digests(rows)) == seen
        assert not seen & set(digests(images(crop_padding=1, seed=5)))
        assert not seen & set(digests(images(crop_padding=2, seed=6)))
        assert not seen & set(digests(images(crop_padding=2, horizontal_flip=True, seed=5)))
        assert not seen & set(digests(images()))
        moved = ImageRows(rows.rows.select([1, 0]), "image", image_processor(), crop_padding=2, seed=5)
        assert not seen & set(digests(moved))

    def test_a_column_that_is_kept_counts_if_it_is_read(self):
        """A second input of the teacher that is not looked at."""
        rows = images().rows
        known = [
            ImageRows(rows.add_column("caption", [text] * 5), "image", image_processor(), kept=["caption"])
            for text in ("a", "b")
        ]
        assert digests(known[0], {"pixel_values"}) == digests(known[1], {"pixel_values"})
        assert digests(known[0]) != digests(known[1])

    def test_a_transform_is_refused(self):
        """Random changes below those that are known."""
        rows = images()
        rows.rows.set_transform(lambda batch: batch)
        with pytest.raises(ValueError, match=r"the images have a transform \(set_transform\)"):
            digests(rows)

    def test_a_copy_for_the_student_has_the_same_epochs_and_no_teachers_views(self):
        """A teacher's images that are still made when the teacher is gone; or crops of another epoch."""
        rows = images(crop_padding=2, teacher_processors=[image_processor(size={"height": 4, "width": 4})])
        student = rows.without_teacher_views()
        assert set(student[0]) == {"pixel_values", "labels"}
        assert set(rows[0]) == {"pixel_values", "labels", "teacher_pixel_values"}
        rows.set_epoch(3)
        assert torch.equal(student[2]["pixel_values"], rows[2]["pixel_values"])


class TestRowsThatChange:
    @pytest.mark.parametrize("change", ["never", "each epoch", "each time"])
    def test_change_is_found_by_reading_twice(self, change):
        """Soft targets of one augmentation for all others."""
        rows = Rows(change=change)
        assert augmentation_kind(rows, None) == change
        assert rows.epoch == 0

    def test_a_random_transform_is_found_and_another_is_not(self):
        """A random crop that is set by `set_transform`; or one that always does the same, and is refused."""
        random = texts().with_transform(lambda batch: {"a": [np.random.rand() for _ in batch["text"]]})
        assert augmentation_kind(random, None) == "each time"
        fixed = texts().with_transform(lambda batch: {"a": [text.upper() for text in batch["text"]]})
        assert augmentation_kind(fixed, None) == "never"
        assert digests(fixed) == digests([{"a": f"ROW {3 if row == 5 else row}"} for row in range(30)])

    def test_tables_and_images_say_it_without_being_read(self):
        """Thousands of images decoded to find out what is known."""
        assert augmentation_kind(texts(), None) == "never"
        assert augmentation_kind(images(), None) == "never"
        assert augmentation_kind(images(horizontal_flip=True), None) == "each epoch"
        assert augmentation_kind([], None) == "never"

    def test_worker_processes_read_the_same(self):
        """Rows in another order, because several processes read them."""
        expected = digests(Rows())
        found = hash_rows(Rows(), None, num_workers=1)
        assert [digest.tobytes() for digest in found.digests] == expected

    @pytest.mark.parametrize("kind", ["torch", "datasets", "iterator"])
    def test_a_stream_is_refused_with_a_remedy(self, kind):
        """A TypeError about a missing length, deep in a data loader."""

        class Stream(IterableDataset):
            def __iter__(self):
                yield {}

        streams = {"torch": Stream(), "datasets": texts().to_iterable_dataset(), "iterator": iter([{}])}
        with pytest.raises(ValueError, match="come as a stream and cannot be found again: load the data whole"):
            hash_rows(streams[kind], None)


class TestProcessors:
    def test_a_tokenizer_that_was_used_is_the_same_tokenizer(self):
        """Padding and truncation of the last call, which are kept in it, make another key of it."""
        tokenizer = tiny.tokenizer()
        before = processor_settings(tokenizer)
        tokenizer(["the film", "a"], padding=True, truncation=True, max_length=3)
        assert processor_settings(tokenizer) == before == processor_settings(tiny.tokenizer())

    def test_what_changes_its_reading_changes_the_settings(self):
        """Another vocabulary, or a special token, and the soft targets of the former."""
        known = processor_settings(tiny.tokenizer())
        others = [tiny.tokenizer() for _ in range(3)]
        others[0].add_tokens(["new"])
        others[1].padding_side = "left"
        others[2].pad_token = "[MASK]"
        assert all(processor_settings(other) != known for other in others)

    def test_a_tokenizer_written_in_python_is_known_by_its_settings_and_merges(self, tmp_path: Path):
        """Texts whose case, or whose words, another one of the same vocabulary takes apart in another way."""
        (tmp_path / "vocab.txt").write_text("a 1\nb@@ 1\nb 1\n")

        def made(merges: str = "a b 1\nb b 1\n", **settings: bool) -> BertweetTokenizer:
            (tmp_path / "bpe.codes").write_text(merges)
            return BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"), **settings)

        known = processor_settings(made())
        assert processor_settings(made()) == processor_settings(made(normalization=False)) == known
        for other in (made(normalization=True), made("b b 1\na b 1\n")):
            assert processor_settings(other) != known

    def test_image_processors_are_known_by_their_settings(self, tmp_path: Path):
        """The folder that one was loaded from as a part of what it does."""
        image_processor().save_pretrained(tmp_path)
        assert processor_settings(ViTImageProcessorPil.from_pretrained(tmp_path)) == processor_settings(
            image_processor()
        )
        assert processor_settings(image_processor(image_std=[0.2] * 3)) != processor_settings(image_processor())
        assert processor_settings(None) is None
