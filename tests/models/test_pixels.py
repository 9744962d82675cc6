"""Images of every mode as the 8 bits that models read."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Image as ImageFeature
from PIL import Image

from hf_distill.models.pixels import image_array, is_plain, kind_of, plain_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
HOLE = np.where(np.arange(256).reshape(16, 16) % 3 == 0, 0, 255).astype(np.uint8)
GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#204060": (0x20, 0x40, 0x60)}


def reopened(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def png(colour_type: int, *channels: np.ndarray, transparent: tuple[int, ...] = ()) -> Image.Image:
    """Return a PNG of 16 bits a channel, which Pillow does not write."""
    pixels = np.stack(channels, -1).astype(">u2")
    height, width = pixels.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    hole = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + hole + chunk(b"IDAT", zlib.compress(lines))
    return Image.open(io.BytesIO(data + chunk(b"IEND", b"")))


def tiff(values: np.ndarray, bits: int, sample_format: int) -> Image.Image:
    """Return a grey TIFF whose tags tell the type of its pixels."""
    data = values.tobytes()
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (339, sample_format)])
    start = b"II*\0" + struct.pack("<I", 8 + len(data))
    return Image.open(io.BytesIO(start + data + struct.pack("<H", 10) + entries + struct.pack("<I", 0)))


def pgm(values: np.ndarray, maximum: int) -> Image.Image:
    return Image.open(io.BytesIO(b"P5 16 16 %d\n" % maximum + values.astype(">u2").tobytes()))


def stored(values: np.ndarray) -> Image.Image:
    """Return what `datasets` makes of an array."""
    feature = ImageFeature()
    return feature.decode_example(feature.encode_example(values))


def twelve_bits() -> Image.Image:
    pairs = (RAMP.astype(int) * 16).reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    return tiff(packed.astype(np.uint8), 12, 1)


WIDE = RAMP.astype(np.uint16) * 257

# Each is the same grey ramp as in 8 bits.
SCALED: dict[str, Callable[[], Image.Image]] = {
    "PNG of 16 bits": lambda: reopened(Image.fromarray(WIDE), "PNG"),
    "TIFF of 16 bits": lambda: reopened(Image.fromarray(WIDE), "TIFF"),
    "TIFF of 16 bits, big-endian": lambda: stored(WIDE.astype(">u2")),
    "JPEG 2000 of 16 bits": lambda: reopened(Image.fromarray(WIDE), "JPEG2000", irreversible=False),
    "PGM of 16 bits": lambda: pgm(WIDE, 65_535),
    "array of 16 bits": lambda: stored(WIDE),
    "mode I;16": lambda: Image.fromarray(WIDE),
    "mode I;16B": lambda: Image.fromarray(WIDE.astype(">u2")),
    "mode I;16L": lambda: Image.frombytes("I;16L", (16, 16), WIDE.astype("<u2").tobytes()),
    "mode I;16N": lambda: Image.frombytes("I;16N", (16, 16), WIDE.tobytes()),
    "colour PNG of 16 bits": lambda: png(2, WIDE, WIDE, WIDE),
    "PNG of 16 bits and opaque alpha": lambda: png(4, WIDE, np.full_like(WIDE, 65_535)),
    "floats": lambda: Image.fromarray(RAMP.astype(np.float32) / 255),
    "TIFF of floats": lambda: tiff(RAMP.astype("<f4") / np.float32(255), 32, 3),
    "array of doubles": lambda: stored(RAMP / 255),
    "whole numbers": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "array of 64-bit whole numbers": lambda: stored(RAMP.astype(np.int32)),
    "TIFF of signed 16 bits": lambda: tiff(RAMP.astype("<i2"), 16, 2),
    "8 bits": lambda: Image.fromarray(RAMP),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SCALED)
def test_a_ramp_of_any_type_is_the_ramp_of_8_bits(name: str, channels: int) -> None:
    """PIL clips at 255: almost every pixel of a 16-bit image is white, and of floats every one is black."""
    array = image_array(SCALED[name](), channels)
    assert array.dtype == np.uint8
    assert np.array_equal(array, np.repeat(RAMP[..., None], channels, axis=2))


def test_the_scale_is_that_of_the_type_and_not_of_one_image() -> None:
    """A dark picture stretched to white: brightness that tells the classes apart is gone."""
    dark = image_array(Image.fromarray(WIDE // 4), 1)
    assert np.abs(dark[..., 0] - RAMP / 4).max() <= 0.5
    assert image_array(Image.fromarray(np.full((2, 2), 0.1, np.float32)), 1).max() == 26  # of 25.5


REFUSED: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "floats to 255": (lambda: Image.fromarray(RAMP.astype(np.float32)), r"pixels from 0 to 255 \(mode F\)"),
    "negative floats": (
        lambda: Image.fromarray(RAMP.astype(np.float32) / 255 - 0.5),
        r"pixels from -0\.5 to 0\.5 \(mode F\)",
    ),
    "missing pixels": (lambda: Image.fromarray(np.array([[0.5, -3.4e38]], np.float32)), r"pixels from -3\.4e\+38 to "),
    "no number": (lambda: Image.fromarray(np.full((2, 2), np.nan, np.float32)), r"pixels from nan to nan \(mode F\)"),
    "signed 16 bits": (lambda: tiff(RAMP.astype("<i2") - np.int16(99), 16, 2), r"pixels from -99 to 156 \(mode I\)"),
    "32 bits": (lambda: tiff(RAMP.astype("<u4") << 22, 32, 1), r"pixels from 0 to 1\.06955e\+09 \(mode I\)"),
    "16 bits in 32": (lambda: Image.fromarray(WIDE.astype(np.int32)), r"pixels from 0 to 65535 \(mode I\)"),
    "12 bits": (twelve_bits, "12 bits a pixel"),
    "16 bits with a hole": (lambda: png(0, WIDE, transparent=(257,)), "16 bits a pixel and a transparent value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_range_that_is_known_is_refused(name: str) -> None:
    """Clipped, wrapped or black pictures that are trained on."""
    make, problem = REFUSED[name]
    with pytest.raises(ValueError, match=f"an image has {problem}.*, whose scale .* Expected 8 bits, .*: convert all"):
        image_array(make(), 3)


# ---- Transparency ----


def with_hole(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(HOLE))
    return image


def palette(transparency: int | bytes) -> Image.Image:
    """Return an image whose colours 0 and up are red, green, blue and so on; the first or second may be a hole."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 3, "L").convert("L")
    image = Image.frombytes("P", (16, 16), image.tobytes())
    image.putpalette([9, 9, 9, 0, 255, 0, 0, 0, 255])
    return reopened(image, "PNG", transparency=transparency)


def valued(mode: str, hole: Any) -> Image.Image:
    """Return an image in which the pixels of one value are a hole."""
    values = np.where(HOLE == 0, 7, RAMP | 8).astype(np.uint8)
    return reopened(Image.fromarray(values).convert(mode), "PNG", transparency=hole)


# Each is transparent where HOLE is 0, and opaque elsewhere.
TRANSPARENT: dict[str, Callable[[], Image.Image]] = {
    "RGBA": lambda: reopened(with_hole(Image.fromarray(COLOURS)), "PNG"),
    "RGBa": lambda: with_hole(Image.fromarray(COLOURS)).convert("RGBa"),
    "LA": lambda: reopened(with_hole(Image.fromarray(RAMP)), "PNG"),
    "La": lambda: with_hole(Image.fromarray(RAMP)).convert("La"),
    "PA": lambda: with_hole(Image.fromarray(RAMP).convert("P")),
    "P and one colour": lambda: palette(0),
    "P and an alpha of each colour": lambda: palette(bytes([0, 255, 255])),
    "L and a value": lambda: valued("L", 7),
    "RGB and a colour": lambda: valued("RGB", (7, 7, 7)),
    "GIF": lambda: reopened(palette(0), "GIF", transparency=0),
    "WebP": lambda: reopened(with_hole(Image.fromarray(COLOURS)), "WEBP", lossless=True),
    "TIFF": lambda: reopened(with_hole(Image.fromarray(COLOURS)), "TIFF"),
    "PNG of 16 bits": lambda: png(6, WIDE, WIDE, WIDE, HOLE.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("name", TRANSPARENT)
def test_the_ground_shows_through_and_the_rest_stays(name: str, ground: str) -> None:
    """PIL drops alpha: glyphs on a transparent ground are black pictures that are all alike."""
    make = TRANSPARENT[name]
    assert kind_of(make()) == "transparent"
    assert kind_of(plain_image(make())) is None
    array = image_array(make(), 3, ground)
    assert np.array_equal(array[HOLE == 0], np.tile(GROUNDS[ground], ((HOLE == 0).sum(), 1)))
    others = image_array(make(), 3, "red")
    assert np.array_equal(array[HOLE == 255], others[HOLE == 255])
    assert len(np.unique(array[HOLE == 255])) > 1
    grey = image_array(make(), 1, ground)[..., 0]
    assert np.array_equal(grey, np.asarray(Image.fromarray(array).convert("L")))


def test_half_transparent_pixels_are_mixed_with_the_ground() -> None:
    """The soft edge of a glyph that is a hard one, or is black."""
    image = Image.new("RGBA", (1, 1), (200, 100, 0, 51))
    assert image_array(image, 3).tolist() == [[[244, 224, 204]]]
    assert image_array(image, 3, "black").tolist() == [[[40, 20, 0]]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_changes_nothing(mode: str) -> None:
    """A screenshot whose every pixel is one value off, and a card that tells of holes that are none."""
    image = Image.fromarray(COLOURS).convert(mode)
    assert kind_of(image) is None
    assert np.array_equal(image_array(image, 3, "red"), np.asarray(image.convert("RGB")))
    assert np.array_equal(image_array(image, 1, "red")[..., 0], np.asarray(image.convert("L")))


# ---- All else ----


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_ordinary_images_are_as_pil_converts_them(mode: str) -> None:
    """Students that were trained before see other pixels."""
    image = Image.fromarray(COLOURS).convert(mode)
    assert is_plain(image)
    assert plain_image(image) is image
    assert kind_of(image) is None
    assert np.array_equal(image_array(image, 3), np.asarray(image.convert("RGB")))
    assert np.array_equal(image_array(image, 1)[..., 0], np.asarray(image.convert("L")))


def test_a_lab_image_has_a_grey_one() -> None:
    """PIL converts LAB to RGB alone, and a model of grey images ends in its error."""
    image = Image.fromarray(COLOURS).convert("LAB")
    assert kind_of(image) is None
    colour = image_array(image, 3)
    assert np.array_equal(colour, np.asarray(image.convert("RGB")))
    assert np.array_equal(image_array(image, 1)[..., 0], np.asarray(Image.fromarray(colour).convert("L")))


def test_every_mode_of_pil_is_in_a_table() -> None:
    """A mode that nobody has looked at."""
    plain = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
    seen = {make().mode for make in [*SCALED.values(), *TRANSPARENT.values()]}
    assert set(Image.MODES) | {"La", "RGBa", "PA", "I;16L", "I;16N"} <= plain | seen


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    """Another frame each time that the file is read."""
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    image = reopened(frames[0], kind, save_all=True, append_images=frames[1:])
    assert getattr(image, "n_frames", 1) == 2
    assert np.unique(image_array(image, 1)).tolist() == [10]
