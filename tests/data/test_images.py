"""What a model sees of images, and that the same is seen again."""

import io

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from PIL import ExifTags, Image
from torch.utils.data import DataLoader
from transformers import default_data_collator
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import logging

from hf_distill.data.images import ImageRows, check_images, image_array

SIZE = 8


def encoded(row: int, *, mode: str = "RGB", kind: str = "PNG", size: int = SIZE) -> bytes:
    """Return an image file: no two rows, places or channels alike."""
    pixels = np.random.default_rng(row).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def of_image(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rows_of(files: list, *, labels: bool = True) -> Dataset:
    features = Features({"image": datasets.Image(), **({"labels": Value("int64")} if labels else {})})
    entries = [None if file is None else {"bytes": file, "path": None} for file in files]
    columns = {"image": entries, **({"labels": list(range(len(files)))} if labels else {})}
    return Dataset.from_dict(columns, features=features)


def processor(channels: int = 3) -> ViTImageProcessorPil:
    size = {"height": SIZE, "width": SIZE}
    return ViTImageProcessorPil(size=size, image_mean=[0.0] * channels, image_std=[1.0] * channels)


def images(count: int = 6, **changes) -> ImageRows:
    return ImageRows(rows_of([encoded(row) for row in range(count)]), "image", processor(), **changes)


AUGMENTED = {"crop_padding": 2, "horizontal_flip": True, "seed": 5}


class TestWithoutAugmentation:
    def test_a_row_is_what_the_processor_makes_of_it(self):
        """Pixels scaled twice, channels swapped, or another row's label."""
        rows = images(3)
        for place in range(3):
            image = Image.open(io.BytesIO(encoded(place)))
            expected = processor()(image, return_tensors="pt")["pixel_values"][0]
            assert torch.equal(rows[place]["pixel_values"], expected)
            assert rows[place]["labels"] == place

    @pytest.mark.parametrize("mode", ["L", "RGB", "P"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_kind_of_image_has_the_channels_that_the_model_takes(self, mode, channels):
        """A grey image between colour ones stops the run; a colour table read as brightness is noise."""
        kind = {"num_channels": channels}
        rows = ImageRows(rows_of([encoded(0, mode=mode)]), "image", processor(channels), **kind)
        image = Image.open(io.BytesIO(encoded(0, mode=mode))).convert("L" if channels == 1 else "RGB")
        expected = np.asarray(image, dtype=np.float32).reshape(SIZE, SIZE, channels).transpose(2, 0, 1) / 255
        assert rows[0]["pixel_values"].shape == (channels, SIZE, SIZE)
        assert np.allclose(rows[0]["pixel_values"], expected, atol=1e-6)

    def test_images_are_resized_to_the_size_of_the_processor(self):
        """Rows of several sizes do not fit in one batch."""
        rows = ImageRows(rows_of([encoded(0), encoded(1, size=13)]), "image", processor())
        assert {tuple(row["pixel_values"].shape) for row in rows.__getitems__([0, 1])} == {(3, SIZE, SIZE)}

    def test_the_plain_collator_makes_a_batch(self):
        """Labels under another name, or none, as the Trainer does not expect them."""
        batch = default_data_collator(images(3).__getitems__([2, 0]))
        assert batch["pixel_values"].shape == (2, 3, SIZE, SIZE)
        assert batch["labels"].tolist() == [2, 0]
        unlabelled = ImageRows(rows_of([encoded(0)], labels=False), "image", processor())
        assert set(default_data_collator([unlabelled[0]])) == {"pixel_values"}

    @pytest.mark.parametrize("channels", [1, 3])
    def test_pixels_may_be_written_to(self, channels):
        """Torch warns of PIL's own memory at every image, where torchvision is installed."""
        array = image_array(Image.open(io.BytesIO(encoded(0))), channels)
        assert array.shape == (SIZE, SIZE, channels)
        assert array.flags.writeable

    def test_a_number_of_channels_that_no_image_has(self):
        """Two channels would be read as grey or colour at random."""
        with pytest.raises(ValueError, match=r"num_channels must be 1 \(grey\) or 3 \(colour\), got 2"):
            images(num_channels=2)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_transparent_and_16_bit_images_are_read_as_their_ordinary_likes(self, channels):
        """Glyphs that are all black, and white in place of 256 grey values."""
        ramp = np.arange(64, dtype=np.uint8).reshape(SIZE, SIZE) * 4
        hole = Image.fromarray(ramp).convert("LA")
        hole.putalpha(Image.fromarray(np.where(ramp < 100, 0, 255).astype(np.uint8)))
        files = [
            *(of_image(each) for each in (Image.fromarray(ramp), Image.fromarray(np.where(ramp < 100, 128, ramp)))),
            *(of_image(each) for each in (Image.fromarray(ramp.astype(np.uint16) * 257), hole)),
        ]
        rows = ImageRows(rows_of(files), "image", processor(channels), num_channels=channels, background="#808080")
        plain, on_grey, deep, transparent = (row["pixel_values"] for row in rows.__getitems__(range(4)))
        assert torch.equal(deep, plain)
        assert torch.equal(transparent, on_grey)
        assert not torch.equal(plain, on_grey)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
    def test_a_mode_that_the_data_set_declares_comes_after_scale_and_ground(self, mode):
        """Decoding converts to it: alpha is dropped and 16 bits are clipped before anyone looks."""
        wide = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(SIZE, SIZE) * 1028)
        rows = rows_of([of_image(wide), of_image(Image.new("RGBA", (SIZE, SIZE))), encoded(0)])
        declared = ImageRows(rows.cast_column("image", datasets.Image(mode=mode)), "image", processor())
        plain = ImageRows(rows, "image", processor())
        for place in range(2):
            assert torch.equal(declared[place]["pixel_values"], plain[place]["pixel_values"])
        expected = Image.open(io.BytesIO(encoded(0))).convert(mode).convert("RGB")
        assert torch.equal(declared[2]["pixel_values"], processor()(expected, return_tensors="pt")["pixel_values"][0])


class TestAugmentation:
    def test_a_row_is_the_same_in_any_order_and_batch(self):
        """A resumed run would see other crops than one that was not stopped."""
        rows = images(**AUGMENTED)
        rows.set_epoch(3)
        alone = [rows[place]["pixel_values"] for place in range(6)]
        order = [4, 1, 5, 0, 3, 2]
        for place, row in zip(order, rows.__getitems__(order), strict=True):
            assert torch.equal(row["pixel_values"], alone[place])
        again = images(**AUGMENTED)
        again.set_epoch(3)
        torch.manual_seed(0)
        np.random.seed(0)
        assert torch.equal(again[4]["pixel_values"], alone[4])

    def test_it_differs_between_epochs_rows_and_seeds(self):
        """One crop for all epochs augments nothing."""
        same = [encoded(0)] * 12

        def seen(seed, epoch):
            rows = ImageRows(rows_of(same), "image", processor(), **{**AUGMENTED, "seed": seed})
            rows.set_epoch(epoch)
            return [tuple(row["pixel_values"].flatten().tolist()) for row in rows.__getitems__(range(12))]

        first = seen(5, 0)
        assert len(set(first)) > 6
        assert seen(5, 0) == first
        for other in (seen(5, 1), seen(6, 0)):
            assert sum(a == b for a, b in zip(first, other, strict=True)) < 6

    def test_a_crop_is_a_shift_by_at_most_the_padding_and_takes_every_one(self):
        """Off by one, a crop never reaches the last row; in one direction only, it moves all images."""
        padding = 2
        original = images(1)[0]["pixel_values"]
        padded = torch.nn.functional.pad(original, [padding] * 4)
        shifts = {
            (top, left): padded[:, top : top + SIZE, left : left + SIZE]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        }
        rows = ImageRows(rows_of([encoded(0)] * 300), "image", processor(), crop_padding=padding)
        seen = []
        for row in rows.__getitems__(range(300)):
            (shift,) = [where for where, crop in shifts.items() if torch.equal(crop, row["pixel_values"])]
            seen.append(shift)
        assert set(seen) == set(shifts)

    def test_about_half_of_the_images_are_mirrored_left_to_right(self):
        """All or none mirrored, or upside down."""
        original = images(1)[0]["pixel_values"]
        rows = ImageRows(rows_of([encoded(0)] * 200), "image", processor(), horizontal_flip=True)
        mirrored = 0
        for row in rows.__getitems__(range(200)):
            is_mirrored = torch.equal(row["pixel_values"], original.flip(-1))
            assert is_mirrored or torch.equal(row["pixel_values"], original)
            mirrored += is_mirrored
        assert 75 <= mirrored <= 125

    def test_crop_and_flip_are_independent(self):
        """Flips that come with one crop only."""
        rows = ImageRows(rows_of([encoded(0)] * 200), "image", processor(), crop_padding=1, horizontal_flip=True)
        seen = {tuple(row["pixel_values"].flatten().tolist()) for row in rows.__getitems__(range(200))}
        assert len(seen) == 3 * 3 * 2

    @pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
    def test_living_workers_follow_the_epoch_and_change_nothing(self):
        """Persistent workers keep a copy of the data set: every epoch would look like the first."""
        rows = images(**AUGMENTED)
        loader = DataLoader(
            rows, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=default_data_collator
        )
        alone = images(**AUGMENTED)
        for epoch in range(3):
            rows.set_epoch(epoch)
            alone.set_epoch(epoch)
            seen = torch.cat([batch["pixel_values"] for batch in loader])
            expected = torch.stack([row["pixel_values"] for row in alone.__getitems__(range(6))])
            assert torch.equal(seen, expected), epoch


class TestTeachersWithTheirOwnProcessors:
    def test_each_teacher_sees_the_same_crop_and_flip(self):
        """Teacher and student looking at two crops of an image: the soft target of what the student does not see."""
        double = ViTImageProcessorPil(size={"height": 16, "width": 16}, resample=0, image_mean=[0.0] * 3)
        rows = images(teacher_processors=[double, processor()], **AUGMENTED)
        alone = images(**AUGMENTED)
        for row, expected in zip(rows.__getitems__(range(6)), alone.__getitems__(range(6)), strict=True):
            assert torch.equal(row["pixel_values"], expected["pixel_values"])
            assert row["labels"] == expected["labels"]
            large, same = row["teacher_pixel_values"]
            assert torch.equal(same, row["pixel_values"])
            doubled = row["pixel_values"].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
            assert torch.allclose(large * double.image_std[0], doubled, atol=1e-6)

    @pytest.mark.parametrize("student_channels", [1, 3])
    def test_each_teacher_sees_its_own_channels(self, student_channels):
        """A teacher of colour that is shown the grey image of its student, or an error."""
        options = {"num_channels": student_channels, **AUGMENTED}
        grey, colour = processor(1), processor(3)
        source = rows_of([encoded(row) for row in range(6)])
        rows = ImageRows(source, "image", processor(student_channels), teacher_processors=[grey, colour], **options)
        for number, teacher in enumerate((grey, colour)):
            alone = ImageRows(source, "image", teacher, **{**options, "num_channels": (1, 3)[number]})
            for place in range(6):
                pixels = rows[place]["teacher_pixel_values"][number]
                assert torch.equal(pixels, alone[place]["pixel_values"])

    def test_each_teacher_sees_the_same_ground(self):
        """A student on black beside a teacher on white: two pictures of which one is not the soft target's."""
        transparent = rows_of([of_image(Image.new("RGBA", (SIZE, SIZE)))])
        teachers = [processor(1), processor()]
        (row,) = ImageRows(
            transparent, "image", processor(), teacher_processors=teachers, background="black"
        ).__getitems__([0])
        for view in (row["pixel_values"], *row["teacher_pixel_values"]):
            assert view.max() == 0

    def test_without_teachers_rows_are_as_before(self):
        """An empty list in each row, which no collator can stack."""
        assert set(images()[0]) == {"pixel_values", "labels"}


@pytest.fixture
def told(caplog, monkeypatch):
    """Return a function that gives what was logged so far."""
    monkeypatch.setattr(logging.get_logger("hf_distill.data.images"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


class TestCheckImages:
    def test_whole_images_pass(self):
        """A check that refuses good images of another format."""
        kinds = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]
        check_images(rows_of([encoded(0, kind=kind) for kind in kinds]), "image", "train")

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
    def test_a_truncated_image_is_found_with_its_row(self, kind):
        """Formats other than PNG open without an error and fail when the run reaches them."""
        whole, size = encoded(0), len(encoded(1, kind=kind))
        rows = rows_of([whole, whole, encoded(1, kind=kind)[: size // 2]])
        with pytest.raises(ValueError, match=r"1 of the images cannot be read.*\nrow 2 of the test split: "):
            check_images(rows, "image", "test")

    def test_a_changed_byte_in_a_png_is_found(self):
        """Its checksums are there to be looked at."""
        file = bytearray(encoded(0))
        file[len(file) // 2] ^= 255
        with pytest.raises(ValueError, match=r"row 0 .*: broken PNG file"):
            check_images(rows_of([bytes(file)]), "image", "train")

    def test_a_file_that_is_no_image_is_named(self, tmp_path):
        """A text file with the name of an image."""
        (tmp_path / "cat.png").write_text("I am not a picture")
        rows = Dataset.from_dict({"image": [str(tmp_path / "cat.png")]}, features=Features({"image": datasets.Image()}))
        with pytest.raises(ValueError, match=r"row 0 \(.*cat\.png\) of the train split: it is no image"):
            check_images(rows, "image", "train")

    def test_a_row_without_an_image_is_named(self):
        """None is not an image, nor a traceback."""
        with pytest.raises(ValueError, match="row 1 of the train split: it has no image"):
            check_images(rows_of([encoded(0), None]), "image", "train")

    def test_an_image_that_cannot_be_scaled_is_named(self, tmp_path):
        """Whole numbers of an unknown range are white or black; the run must not start."""
        bad = of_image(Image.new("I", (4, 4), 300), "TIFF")
        message = r"of the train split: an image has pixels from 300 to 300"
        with pytest.raises(ValueError, match=f"row 1 {message}"):
            check_images(rows_of([encoded(0), bad]), "image", "train")
        (tmp_path / "a.tif").write_bytes(bad)
        rows = Dataset.from_dict({"image": [str(tmp_path / "a.tif")]}, features=Features({"image": datasets.Image()}))
        with pytest.raises(ValueError, match=rf"row 0 \(.*a\.tif\) {message}"):
            check_images(rows, "image", "train")

    def test_several_are_named_at_once_or_left_out(self):
        """A folder mended file by file, each found at another start; or a bad row that is trained on."""
        rows = rows_of([b"no", encoded(0), None, b"", b"no", b"no"])
        with pytest.raises(ValueError, match=r"data: 5 of the images .*data\.skip_unreadable=true") as caught:
            check_images(rows, "image", "train")
        assert str(caught.value).splitlines()[1:] == [
            "row 0 of the train split: it is no image",
            "row 2 of the train split: it has no image",
            "row 3 of the train split: it is no image",
            "and 2 more",
        ]
        unreadable = []
        assert check_images(rows, "image", "train", unreadable=unreadable) == {}
        assert unreadable == [0, 2, 3, 4, 5]

    def test_what_is_read_otherwise_than_it_is_stored_is_counted_and_told(self, told):
        """A ground that nobody chose, and a model card whose snippet reads other pixels."""
        opaque, hole = Image.new("RGBA", (4, 4), "red"), Image.new("RGBA", (4, 4))
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 6
        deep, floats = Image.fromarray(np.full((4, 4), 65_535, np.uint16)), Image.new("F", (4, 4), 0.5)
        files = [
            encoded(0),
            *(of_image(each) for each in (opaque, hole, hole, deep)),
            *(of_image(each, "TIFF") for each in (floats, deep)),
            *(of_image(opaque.convert("RGB"), kind, exif=turned) for kind in ("JPEG", "PNG")),
        ]
        found = check_images(rows_of(files), "image", "train", "#808080")
        assert found == {"transparent": 2, "16-bit": 2, "float": 1, "rotated": 2}
        assert told() == [
            "data: of the 9 images of the train split 2 have transparent pixels, composed on #808080 "
            "(data.background); 2 have 16 bits, divided by 257 (the brightest pixel is 65,535 of 65,535); 1 are of "
            "floats from 0 to 1, times 255"
        ]

    def test_16_bit_images_of_fewer_grey_values_are_told(self, told):
        """12 bits of a scanner in a 16-bit file: of 4,096 values 16 are left, and nobody knows why."""
        file = of_image(Image.fromarray(np.full((4, 4), 4095, np.uint16)))
        check_images(rows_of([file]), "image", "test")
        assert told()[1].startswith("data: the 16-bit images of the test split use 16 of 256 grey values")

    def test_nothing_is_told_of_ordinary_images(self, told):
        """A line at every start, of which nobody knows what to do."""
        opaque = of_image(Image.new("RGBA", (4, 4), "red"))
        assert check_images(rows_of([encoded(0), encoded(0, kind="JPEG"), opaque]), "image", "train") == {}
        assert told() == []

    def test_images_that_exif_data_turn_are_turned(self):
        """A photo that lies on its side, in training or in the check alone."""
        turned = Image.Exif()
        turned[ExifTags.Base.Orientation] = 6
        wide = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8))
        rows = ImageRows(rows_of([of_image(wide, exif=turned)]), "image", processor(), num_channels=1)
        image = np.asarray(rows.rows[0]["image"])
        assert np.array_equal(image, np.rot90(np.asarray(wide), -1))
