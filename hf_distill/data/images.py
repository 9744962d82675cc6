"""Turn images into what a model sees, with random crops and flips that a resumed run repeats."""

import copy
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.utils.data import Dataset
from transformers import BaseImageProcessor
from transformers.utils import logging

from hf_distill.data.fingerprints import LABEL_COLUMNS, digests_with, file_bytes, hash_rows
from hf_distill.data.processors import channels_of, processor_settings
from hf_distill.models.pixels import WHITE, image_array, is_plain, kind_of, plain_image

TEACHER_PIXELS = "teacher_pixel_values"

logger = logging.get_logger(__name__)

_SHOWN = 3  # unreadable images that a message names
_DARK = 2**14  # 16-bit images whose brightest pixel is below have 64 grey values at most in 8 bits


class ImageRows(Dataset):
    """Images and labels of a data set, processed and, for training, augmented when they are asked for.

    The augmentation of a row is a function of the seed, the epoch and the row's number alone: it is the same whichever
    worker makes it, whatever was drawn before, and in a run that was stopped and resumed. It is done on the image
    itself, before the processor, and needs no torchvision. Images of more than 8 bits are scaled and transparent ones
    composed on a ground first; see `pixels.plain_image`.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_column: str,
        processor: BaseImageProcessor,
        *,
        num_channels: int = 3,
        background: str = WHITE,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        seed: int = 42,
        teacher_processors: Sequence[Any] = (),
        kept: Sequence[str] = (),
    ) -> None:
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (grey) or 3 (colour), got {num_channels}")
        self.kept = [name for name in ("labels", *kept) if name in rows.column_names]
        self.rows = rows.select_columns([image_column, *self.kept])
        self.mode = getattr(rows.features[image_column], "mode", None)
        if self.mode is not None:  # datasets would convert to it before the image is scaled and composed
            self.rows = self.rows.cast_column(image_column, datasets.Image())
        self.image_column = image_column
        self.processor = processor
        self.num_channels = num_channels
        self.background = background
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        self.teacher_processors = tuple(teacher_processors)
        # Shared with worker processes, which live on from epoch to epoch where dataloader_persistent_workers is set.
        self._epoch = torch.zeros((), dtype=torch.long)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation the next rows get."""
        self._epoch.fill_(epoch)

    @property
    def is_augmented(self) -> bool:
        """Tell whether the rows change from epoch to epoch."""
        return bool(self.crop_padding or self.horizontal_flip)

    def row_digests(self, columns: Collection[str] | None) -> np.ndarray:
        """Digest what the rows of this epoch are made from: the images' files, how they are read and augmented.

        Args:
            columns: of `pixel_values`, `teacher_pixel_values` and the columns kept those that count; None is all but
                the labels.

        Returns:
            uint8 `(rows, 16)`; images that are augmented are other rows at another place and in another epoch.

        Raises:
            ValueError: the images have a transform, or a file cannot be read.
        """
        if self.rows.format["type"] == "custom":
            raise ValueError(
                "the images have a transform (set_transform), which may make others of them each time: take it off "
                "with reset_format(), or leave precompute_teacher_logits out"
            )
        settings: dict[str, Any] = {"image": [self.background, self.mode]}
        if columns is None or "pixel_values" in columns:
            settings["pixel_values"] = [self.num_channels, processor_settings(self.processor)]
        if self.teacher_processors and (columns is None or TEACHER_PIXELS in columns):
            settings[TEACHER_PIXELS] = [processor_settings(each) for each in self.teacher_processors]
        if self.is_augmented:
            settings["augmentation"] = [self.crop_padding, self.horizontal_flip, self.seed, int(self._epoch)]
        kept = [name for name in self.kept if name not in LABEL_COLUMNS and (columns is None or name in columns)]
        return digests_with(settings, self._row_contents(kept))

    def without_teacher_views(self) -> "ImageRows":
        """Return the same rows, in the same epochs, without `teacher_pixel_values`."""
        rows = copy.copy(self)
        rows.teacher_processors = ()
        return rows

    def _row_contents(self, kept: list[str]) -> Iterator[bytes]:
        others = hash_rows(self.rows, kept).digests if kept else None
        tables = self.rows.select_columns(self.image_column).with_format("arrow").iter(256)
        for row, image in enumerate(image for table in tables for image in table[self.image_column].to_pylist()):
            place = row.to_bytes(8, "little") if self.is_augmented else b""
            yield place + (b"" if others is None else others[row].tobytes()) + file_bytes(image)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows; a data loader asks for a batch at once."""
        batch = self.rows[list(indices)]
        plain = [self._plain(image) for image in batch[self.image_column]]
        channels = [self.num_channels, *map(channels_of, self.teacher_processors)]
        # An augmentation moves pixels and leaves their colours, so it can be repeated for a teacher's channels.
        images = {
            number: [
                self._augmented(image_array(image, number), row) for image, row in zip(plain, indices, strict=True)
            ]
            for number in set(channels)
        }
        views = [
            processor(images[number], input_data_format="channels_last", return_tensors="pt")["pixel_values"]
            for processor, number in zip((self.processor, *self.teacher_processors), channels, strict=True)
        ]
        rows: list[dict[str, Any]] = [{"pixel_values": pixels} for pixels in views[0]]
        for place, row in enumerate(rows):
            row |= {name: batch[name][place] for name in self.kept}
            if self.teacher_processors:
                row[TEACHER_PIXELS] = [view[place] for view in views[1:]]
        return rows

    def _plain(self, image: Image.Image) -> Image.Image:
        plain = plain_image(image, self.background)
        return plain if self.mode is None else plain.convert(self.mode)

    def _augmented(self, image: np.ndarray, row: int) -> np.ndarray:
        if not self.crop_padding and not self.horizontal_flip:
            return image
        random = np.random.default_rng((self.seed, int(self._epoch), row))
        top, left = random.integers(0, 2 * self.crop_padding + 1, size=2)
        if self.crop_padding:
            height, width = image.shape[:2]
            sides = (self.crop_padding, self.crop_padding)
            image = np.pad(image, (sides, sides, (0, 0)))[top : top + height, left : left + width]
        if self.horizontal_flip and random.random() < 0.5:
            image = np.ascontiguousarray(image[:, ::-1])
        return image


def check_images(
    rows: datasets.Dataset,
    image_column: str,
    split: str,
    background: str = WHITE,
    *,
    unreadable: list[int] | None = None,
) -> Counter[str]:
    """Open every image to its end, so that a damaged file, or one that cannot be scaled, is found before training.

    It is logged how many images are scaled to 8 bits, and how many are composed on the background.

    Args:
        rows: a split.
        image_column: of its images.
        split: its name, for messages.
        background: what transparent images are composed on.
        unreadable: takes the numbers of the rows without a readable image, in the place of the error.

    Returns:
        how many images there are of each kind that is turned into another one.

    Raises:
        ValueError: images cannot be read, or not be scaled to 8 bits; the message names the rows.
    """
    undecoded = rows.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    found: Counter[str] = Counter()
    brightest, problems = 0, {}
    for row, entry in enumerate(undecoded):
        stored = entry[image_column]
        path = f" ({stored['path']})" if stored and stored["path"] else ""
        try:
            image, is_rotated = _opened(stored)
            kind = None if image is None else kind_of(image)
            if image is not None:
                plain_image(image, background)
        except Exception as error:  # PIL raises errors of many kinds for damaged files
            problems[row] = f"row {row}{path} of the {split} split: {_reason(error)}"
            continue
        found["rotated"] += is_rotated
        if kind is not None:
            found[kind] += 1
        if image is not None and kind == "16-bit":
            brightest = max(brightest, int(np.asarray(image).max()))
    if problems and unreadable is None:
        shown = list(problems.values())[:_SHOWN]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise ValueError(
            f"data: {len(problems)} of the images cannot be read, mend them or take the rows out "
            "(data.skip_unreadable=true leaves them out):\n" + "\n".join([*shown, *more])
        )
    if unreadable is not None:
        unreadable += problems
    _log(found, len(rows), split, background, brightest)
    return +found


def _reason(error: Exception) -> str:
    return "it is no image" if isinstance(error, UnidentifiedImageError) else (str(error) or type(error).__name__)


def _opened(stored: Mapping[str, Any] | None) -> tuple[Image.Image | None, bool]:
    """Return an image as the rows have it, or None if it is plain; and whether its Exif data turn it."""
    if stored is None:
        raise ValueError("it has no image")
    with Image.open(io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]) as image:
        is_rotated = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if image.format == "PNG":
            is_known_plain = is_plain(image)
            image.verify()  # its checksums; other formats have none and must be decoded
        else:
            image.load()
            is_known_plain = is_plain(image)
    return None if is_known_plain else datasets.Image().decode_example(dict(stored)), is_rotated


def _log(found: Counter[str], num_rows: int, split: str, background: str, brightest: int) -> None:
    told = []
    if found["transparent"]:
        told.append(f"{found['transparent']} have transparent pixels, composed on {background} (data.background)")
    if found["16-bit"]:
        told.append(f"{found['16-bit']} have 16 bits, divided by 257 (the brightest pixel is {brightest:,} of 65,535)")
    if found["float"]:
        told.append(f"{found['float']} are of floats from 0 to 1, times 255")
    if told:
        logger.warning(f"data: of the {num_rows:,} images of the {split} split {'; '.join(told)}")
    if found["16-bit"] and brightest < _DARK:
        logger.warning(
            f"data: the 16-bit images of the {split} split use {brightest // 257 + 1} of 256 grey values: if theirs go "
            "up to less than 65,535, stretch them in the data first"
        )
