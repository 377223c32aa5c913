"""From the bytes of an image file to upright 8-bit pixels, gray or RGB. Needs only Pillow and NumPy."""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_shards.errors import BadImage

Color: TypeAlias = Literal["L", "RGB"]
Pixels: TypeAlias = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors deliver in 16-bit files
ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF tag
DEEP_COLOR = ";16"  # in the name of what Pillow decodes, of which it keeps the upper 8 bits
DARK = 16  # of 255, all that the lower 12 of 16 bits can reach

# Pillow raises all of these at damaged files, by format and place of the damage.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    ArithmeticError,
    struct.error,
)


def open_image(data: bytes) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        BadImage: It is no JPEG, PNG, BMP or TIFF, has several pages, or so many pixels that it must be an attack.
    """
    if not data:
        raise BadImage("the file is empty")
    with _decode_errors_as("no readable JPEG, PNG, BMP or TIFF"):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pages, _ = getattr(image, "n_frames", 1), image.size  # which a TIFF looks up only when asked
    if image.format == "TIFF" and pages > 1:
        raise BadImage("a TIFF of several pages; split it into single images")
    return image


def decode_pixels(image: Image.Image) -> Image.Image:
    """Return the image upright, in mode L or RGB.

    16-bit pixels are divided so that the least of 8, 10, 12, 14 or 16 bits that holds the brightest becomes 255;
    transparent ones are laid on black.

    Raises:
        BadImage: The pixels are damaged, or of a kind without a defined brightness: floating point, or 16-bit colors of
            which only the low bits are used.
    """
    with _decode_errors_as("its pixels cannot be decoded"):
        has_tiles = image.format in ("PNG", "TIFF") and len(image.getbands()) > 1
        deep = has_tiles and DEEP_COLOR in str(getattr(image, "tile", ""))
        inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode.startswith("I")
        image.load()
        if ORIENTATION in image.getexif():
            image = ImageOps.exif_transpose(image)
        if deep and _brightest_color(image) < DARK:
            raise BadImage("its 16-bit colors use the low 12 bits alone; save it as gray, or with 8 bits")
        image = _eight_bit(image)
        return ImageOps.invert(image) if inverted else image  # Pillow inverts such pixels itself where they have 8 bits


def is_gray(image: Image.Image) -> bool:
    """Whether an image of mode L or RGB has no color: all three channels equal in every pixel."""
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., :1] == pixels[..., 1:]).all())


def decode_square(data: bytes, *, size: int, color: Color) -> Pixels:
    """Decode an image to the square (C, size, size) that a network sees, C = 1 for gray.

    Short side to `size` with antialiasing, then the centre: what torchvision's Resize and CenterCrop give, but only
    the part that is kept is computed, and a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        BadImage: The image cannot be decoded.
    """
    image = open_image(data)
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        image.draft(color, _draft_size(image.size, size))
    image = decode_pixels(image)
    if image.mode != color:
        image = image.convert(color)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=_centre(image.size, size))
    pixels = np.asarray(image)
    return pixels[None] if color == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Return the image with its short side at most `short_side` pixels, antialiased; smaller ones stay as they are."""
    short = min(image.size)
    if short <= short_side:
        return image
    width, height = (max(1, round(edge * short_side / short)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@contextmanager
def _decode_errors_as(fault: str) -> Iterator[None]:
    """Turn what Pillow raises at a damaged file, or warns of a bomb, into a BadImage.

    Its other warnings, of odd metadata, change no pixel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadImage(f"a decompression bomb: {error}") from error
        except UnidentifiedImageError as error:  # whose own text is the address of a buffer
            raise BadImage(fault) from error
        except DECODE_ERRORS as error:
            raise BadImage(f"{fault} ({error})") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return _from_deep(np.asarray(image).astype(np.int64))
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F":
        raise BadImage("its pixels are floating point; save it with 8 or 16 bits")
    if image.mode in ("LA", "PA", "La") or image.mode.startswith("RGBA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "black")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")


def _brightest_color(image: Image.Image) -> int:
    extrema = cast(list[tuple[int, int]], image.getextrema())
    return max(high for band, (_, high) in zip(image.getbands(), extrema, strict=True) if band != "A")


def _from_deep(pixels: NDArray[np.int64]) -> Image.Image:
    brightest = int(pixels.max())
    if pixels.min() < 0 or brightest >= 1 << DEPTHS[-1]:
        raise BadImage(f"its pixels reach from {pixels.min()} to {brightest}, beyond 16 bits")
    depth = next(bits for bits in DEPTHS if brightest < 1 << bits)
    full = (1 << depth) - 1
    return Image.fromarray(((pixels * 255 + full // 2) // full).astype(np.uint8))


def _draft_size(source: tuple[int, int], size: int) -> tuple[int, int]:
    """Return what to ask of libjpeg: at least `size` on the short side, in the proportions of the source."""
    short = min(source)
    return (source[0] * size // short, source[1] * size // short)


def _centre(source: tuple[int, int], size: int) -> tuple[float, float, float, float]:
    """Return the part of the source that Resize(size) and CenterCrop(size) would keep, in source pixels."""
    short = min(source)
    edges = []
    for length in source:
        resized = int(size * length / short)  # as torchvision truncates
        first = round((resized - size) / 2)
        edges.append((first * length / resized, (first + size) * length / resized))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
