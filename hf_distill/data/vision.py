"""Turn images into what a model sees, with random crops and flips that a resumed run repeats."""

import copy
import io
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from hf_distill.data.identity import LABEL_COLUMNS, digests_with, file_bytes, identify, processor_settings

TEACHER_PIXELS = "teacher_pixel_values"


class ImageRows(Dataset):
    """Images and labels of a data set, processed and, for training, augmented when they are asked for.

    The augmentation of a row is a function of the seed, the epoch and the row's number alone: it is the same whichever
    worker makes it, whatever was drawn before, and in a run that was stopped and resumed. It is done on the image
    itself, before the processor, and needs no torchvision.

    Args:
        rows: a data set with an image column and, where there are any, `labels`.
        image_column: its name.
        processor: the model's image processor.
        num_channels: 3 for colour, 1 for grey.
        crop_padding: pixels that are added on each side, in black, before a random crop to the former size.
        horizontal_flip: mirror half of the images.
        seed: decides the crops and flips.
        teacher_processors: image processors of teachers with other inputs than the student's. Each row then also has
            `teacher_pixel_values`, one tensor for each of them, made from the same crop and flip of the image.
        kept: further columns that the rows keep as they are.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_column: str,
        processor: BaseImageProcessor,
        *,
        num_channels: int = 3,
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
        self.image_column = image_column
        self.processor = processor
        self.num_channels = num_channels
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
        """Digest what the rows of this epoch are made from: the images' files, the processors, the augmentation.

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
        settings: dict[str, Any] = {}
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
        others = identify(self.rows, kept).digests if kept else None
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
        channels = [self.num_channels, *map(channels_of, self.teacher_processors)]
        # An augmentation moves pixels and leaves their colours, so it can be repeated for a teacher's channels.
        images = {
            number: [
                self._augmented(image_array(image, number), row)
                for image, row in zip(batch[self.image_column], indices, strict=True)
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


def channels_of(processor: Any) -> int:
    """Return how many channels an image processor's images have: 1 (grey) if it has one mean, otherwise 3 (colour)."""
    mean = getattr(processor, "image_mean", None)
    return 1 if isinstance(mean, Sequence | np.ndarray) and len(mean) == 1 else 3


def image_array(image: Image.Image, num_channels: int) -> np.ndarray:
    """Return an image's pixels `(height, width, num_channels)` as grey (1 channel) or colour (3)."""
    # A copy: torch warns of arrays that it could write to and must not, and PIL's own are such.
    array = np.array(image.convert("L" if num_channels == 1 else "RGB"))
    return array[..., None] if num_channels == 1 else array


def check_images(rows: datasets.Dataset, image_column: str, split: str) -> None:
    """Open every image to its end, so that a damaged file is found before training.

    Raises:
        ValueError: an image cannot be read; the message names the row.
    """
    undecoded = rows.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    for row, entry in enumerate(undecoded):
        stored = entry[image_column]
        if stored is None:
            raise ValueError(f"data: row {row} of the {split} split has no image: take the row out")
        try:
            source = io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else stored["path"]
            with Image.open(source) as image:
                if image.format == "PNG":
                    image.verify()  # its checksums; other formats have none and must be decoded
                else:
                    image.load()
        except Exception as error:  # PIL raises errors of many kinds for damaged files
            reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
            name = f" ({stored['path']})" if stored["path"] else ""
            raise ValueError(
                f"data: the image in row {row}{name} of the {split} split cannot be read: {reason}. Mend it or take "
                "the row out."
            ) from error
