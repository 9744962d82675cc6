"""An image's pixels in 8 bits and opaque, which is what models read, whatever its file holds."""

from typing import Literal

import numpy as np
from PIL import Image

WHITE = "white"
"""What transparent images are composed on, unless another colour is asked for."""

Kind = Literal["16-bit", "float", "transparent"]

_FULL_16_BITS = 65_535
_BITS_PER_SAMPLE = 258  # a tag of TIFF


def is_plain(image: Image.Image) -> bool:
    """Tell whether an image has 8 bits and no transparency, so that PIL alone converts it rightly."""
    return not (image.has_transparency_data or image.mode.startswith(("I", "F")) or image.mode == "LAB")


def plain_image(image: Image.Image, background: str = WHITE) -> Image.Image:
    """Return an image in 8 bits and opaque, itself if it is so already.

    The scale is that of the pixels' type, the same for every image: 16 bits without a sign are divided by 257, floats
    are from 0 to 1. Whole numbers of 32 bits have no such range; from 0 to 255 they are what they would be in 8 bits.
    Of 16 bits in colour PIL itself keeps the upper 8.

    Raises:
        ValueError: its pixels cannot be scaled, since they are outside the range of their type.
    """
    if is_plain(image):
        return image
    if image.mode.startswith(("I", "F")):
        return _scaled(image)
    if image.mode == "LAB":
        return image.convert("RGB")  # it goes to L by this way alone
    return Image.alpha_composite(Image.new("RGBA", image.size, background), _rgba(image)).convert("RGB")


def image_array(image: Image.Image, num_channels: int, background: str = WHITE) -> np.ndarray:
    """Return an image's pixels `(height, width, num_channels)` as grey (1 channel) or colour (3).

    Args:
        image: of any mode.
        num_channels: 1 or 3.
        background: see `plain_image`.

    Raises:
        ValueError: see `plain_image`.
    """
    # A copy: torch warns of arrays that it could write to and must not, and PIL's own are such.
    array = np.array(plain_image(image, background).convert("L" if num_channels == 1 else "RGB"))
    return array[..., None] if num_channels == 1 else array


def kind_of(image: Image.Image) -> Kind | None:
    """Tell what `plain_image` does to an image; None if nothing that PIL's own conversion would not do."""
    if image.mode == "F":
        return "float"
    if image.mode.startswith("I"):
        return "16-bit" if _top(image) == _FULL_16_BITS else None
    if is_plain(image) or image.mode == "LAB":
        return None
    return "transparent" if _rgba(image).getchannel("A").getextrema() != (255, 255) else None


def _rgba(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # La goes to no other mode


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    with np.errstate(over="ignore"):  # of the -3.4e38 by which some say that a pixel is missing
        scaled = (values * (255 / _top(image))).round()
    problem = None
    if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0] == 12:
        problem = "12 bits a pixel"
    elif "transparency" in image.info:
        problem = "16 bits a pixel and a transparent value"
    elif not (scaled.min() >= 0 and scaled.max() <= 255):  # nor where one is NaN
        problem = f"pixels from {values.min():g} to {values.max():g} (mode {image.mode})"
    if problem is not None:
        raise ValueError(
            f"an image has {problem}, whose scale to 8 bits is not known. Expected 8 bits, 16 bits from 0 to 65,535, "
            "whole numbers from 0 to 255 or floats from 0 to 1: convert all images of the data in the same way"
        )
    return Image.fromarray(scaled.astype(np.uint8))


def _top(image: Image.Image) -> int:
    """Return the largest value of the type of an image's pixels, where it has a mode of more than 8 bits."""
    if image.mode == "F":
        return 1
    # Files of these formats hold no more than 16 bits, in mode I by the plugin or its version.
    return _FULL_16_BITS if image.mode != "I" or image.format in ("PNG", "PPM") else 255
