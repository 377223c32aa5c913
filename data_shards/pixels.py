"""From an image file to upright 8-bit pixels, gray or RGB. Needs only Pillow and NumPy, and pydicom for DICOM files.

`shards pack` and `predict` share this module, so that both accept the same files. The content of a file decides its
format, not the ending of its name.
"""

import errno
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data_shards.dicom import DicomFrame
from data_shards.errors import BadImage, TooManyPixels

Color: TypeAlias = Literal["L", "RGB"]
Pixels: TypeAlias = NDArray[np.uint8]

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs of a bad file goes to the terminal

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # as Pillow names them
DICOM = "DICOM"
DICOMDIR = "dicomdir"  # a list of other files on a medium
FORMAT_NAMES = "JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or DICOM"
IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", ".pbm", ".pnm",
    ".dcm", ".dicom",
})  # fmt: skip
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "Git LFS pointer",
    b"<!DOCTYPE html": "HTML",
    b"<html": "HTML",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}  # first bytes of a file
BMP_PIXELS_OFFSET = slice(6, 10)  # reserved, zero in every BMP: two letters alone are no signature
PNM = re.compile(rb"P[1-6]\s+[#0-9]")
SNIFFED_BYTES = 132  # a DICOM file has its signature behind a preamble of 128 bytes
BARE_DICOM = re.compile(  # without a preamble: its first field, explicit or implicit, or of a big-endian file
    rb"\x02\0\0\0UL\x04\0|\x08\0[\0\x01\x05\x08\x12-\x18]\0([A-Z]{2}|.\0\0\0)|\0\x08\0[\0\x01\x05\x08\x12-\x18][A-Z]{2}",
    re.DOTALL,
)
MAX_FILE_BYTES = 1 << 30
MAX_MEGAPIXELS = 150  # a chest film of 43 x 35 cm at 0.043 mm has 81, one at 0.04 mm has 94
MAX_PACKED_MEGAPIXELS = 2000  # of an image in a shard: `LARGEST_MEGAPIXELS` of the options of packing
MEGA = 1_000_000
PILLOW_LIMIT = 2 * 89_478_485  # pixels above which Pillow refuses to open an image, unless told otherwise
_LIMIT_LOCK = threading.Lock()
ROWS = 256  # of a deep image scaled at a time
DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors deliver in 16-bit files
ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # TIFF tag
DEEP_COLOR = ";16"  # in the name of what Pillow decodes, of which it keeps the upper 8 bits
DARK = 16  # of 255, all that the lower 12 of 16 bits can reach

CUT_OFF = "truncated"  # in what Pillow says of a file that ends too soon
# Pillow raises all of these at damaged files, by format and place of the damage.
DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, EOFError, ArithmeticError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip


def sniff_format(head: bytes) -> str | None:
    """Return the format that a file's first `SNIFFED_BYTES` bytes show, such as "JPEG" or "DICOM"; None if unknown."""
    if head[128:132] == b"DICM" or BARE_DICOM.match(head):
        return DICOM
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "HEIC or AVIF"
    if PNM.match(head):
        return "PPM"
    found = next((name for signature, name in SIGNATURES.items() if head.startswith(signature)), None)
    return None if found == "BMP" and any(head[BMP_PIXELS_OFFSET]) else found


def is_image_file(path: str | Path) -> bool:
    """Whether a file is an image to read: its name ends like one, or its content is of a format in `FORMATS` or DICOM.

    A file that only its name calls an image counts, so that its fault is reported. Only a file with another name is
    opened. A DICOMDIR is no image.
    """
    if is_dicomdir(Path(path).name):
        return False
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with regular_file(path) as (file, _):
            return sniff_format(file.read(SNIFFED_BYTES)) in (*FORMATS, DICOM)
    except (BadImage, OSError):
        return False


def is_dicomdir(name: str) -> bool:
    """Whether a file's name is that of the list of DICOM files on a medium."""
    return name.lower() == DICOMDIR


def read_image_file(path: str | Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        BadImage: It is a pipe, device or folder, it is larger than `MAX_FILE_BYTES`, or it cannot be read.
    """
    try:
        with regular_file(path) as (file, size):
            if size > MAX_FILE_BYTES:
                raise BadImage(f"the file has {size} bytes, above the limit of {MAX_FILE_BYTES} for one image")
            return file.read()
    except OSError as error:
        raise BadImage(f"the file cannot be read ({error.strerror})") from error


def open_image(
    data: bytes, *, max_megapixels: int = MAX_MEGAPIXELS, dicom_frame: DicomFrame = "only", dicom_window: int = 1
) -> Image.Image:
    """Open an image without decoding it. A DICOM file is decoded, after its size was checked.

    Args:
        data: The file.
        max_megapixels: Largest image to open, in millions of pixels.
        dicom_frame: Refuse a DICOM file of several frames ("only"), or take its first one.
        dicom_window: Which of the windows or VOI LUTs of a DICOM file displays it, from 1.

    Raises:
        TooManyPixels: It has more than `max_megapixels`.
        BadImage: It is of no format in `FORMATS` and no DICOM, it is a DICOM file that cannot be decoded, or it has
            several pages or frames.
    """
    if not data:
        raise BadImage("the file is empty")
    limit = max_megapixels * MEGA
    if sniff_format(data[:SNIFFED_BYTES]) == DICOM:
        return _dicom(data, max_megapixels, dicom_frame, dicom_window)
    with _decode_errors_as(_unreadable(data)), _pillow_limit(limit) if limit > PILLOW_LIMIT else nullcontext():
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            found = f"more than {PILLOW_LIMIT // MEGA} megapixels"
            raise TooManyPixels(f"{found}, above the limit of {max_megapixels}") from error
        # Not `n_frames`: to count the pages of a TIFF takes time with the square of their number.
        has_pages, size = getattr(image, "is_animated", False), image.size
    if size[0] * size[1] > limit:
        raise TooManyPixels(_pixels_above(size, max_megapixels))
    if has_pages and image.format != "MPO":  # a camera's MPO is a JPEG with previews behind it
        what = "a TIFF of several pages" if image.format == "TIFF" else f"an animated {image.format}"
        raise BadImage(f"{what}; split it into single images")
    return image


def decode_pixels(image: Image.Image) -> Image.Image:
    """Return the image upright, in mode L or RGB.

    16-bit pixels are scaled by the smallest bit depth of 8, 10, 12, 14 or 16 that holds the brightest one;
    transparent ones are composited on black.

    Raises:
        BadImage: The pixels are damaged, or of a kind without a defined brightness: floating point, or 16-bit colors
            that use only the low bits.
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


def decode_square(data: bytes, *, size: int, color: Color, max_megapixels: int = MAX_MEGAPIXELS) -> Pixels:
    """Decode an image to the network's input, uint8 (C, size, size), C = 1 for gray.

    Resizes the short side to `size` with antialiasing, then crops the center, like torchvision's Resize and CenterCrop.
    Only the part that is kept is computed, and a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        BadImage: The image cannot be decoded, or has more than `max_megapixels`.
    """
    image = open_image(data, max_megapixels=max_megapixels)
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
    """Return the image with its short side reduced to `short_side` pixels, antialiased; never enlarged."""
    short = min(image.size)
    if short <= short_side:
        return image
    width, height = (max(1, round(edge * short_side / short)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _dicom(data: bytes, max_megapixels: int, frame: DicomFrame, window: int) -> Image.Image:
    try:
        from data_shards.dicom.film import open_film  # noqa: PLC0415 -- needs the extra, and takes time
    except ImportError as error:
        raise BadImage("a DICOM file; to read it, pip install 'nightshift[dicom]'") from error
    film = open_film(data, max_megapixels=max_megapixels, frame=frame, window=window)
    if film.size[0] * film.size[1] > max_megapixels * MEGA:
        raise TooManyPixels(_pixels_above(film.size, max_megapixels))
    image = film.decode()
    image.format = DICOM
    return image


@contextmanager
def regular_file(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file and give its size. A pipe, whose writer may never come, and a device without end are refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise BadImage("it is a socket, not a regular file") from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise BadImage("it is a pipe, device or folder, not a regular file")
        yield file, facts.st_size


def _unreadable(data: bytes) -> str:
    found = sniff_format(data[:SNIFFED_BYTES])
    if found == "TIFF":
        return (
            "a TIFF that is damaged, or of a kind that is not read, such as one of many bands; save it as gray or RGB"
        )
    if found is None or found in FORMATS:
        return f"no readable {FORMAT_NAMES}"
    return f"no readable {FORMAT_NAMES}, but {found}"


def _pixels_above(size: tuple[int, int], max_megapixels: int) -> str:
    width, height = size
    return f"{width} x {height} are {width * height / MEGA:.0f} megapixels, above the limit of {max_megapixels}"


@contextmanager
def _pillow_limit(pixels: int) -> Iterator[None]:
    """Raise Pillow's limit, which is one number for the whole process, while an image is opened."""
    with _LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _decode_errors_as(fault: str) -> Iterator[None]:
    """Turn what Pillow raises at a damaged file into a BadImage. Its warnings, of odd metadata, change no pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError as error:  # whose own text is the address of a buffer
            raise BadImage(fault) from error
        except DECODE_ERRORS as error:
            raise BadImage(f"{fault}: the file is {'cut off' if CUT_OFF in str(error) else 'damaged'}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return _from_deep(np.asarray(image))
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


def _from_deep(pixels: NDArray[Any]) -> Image.Image:
    darkest, brightest = int(pixels.min()), int(pixels.max())
    if darkest < 0 or brightest >= 1 << DEPTHS[-1]:
        raise BadImage(f"its pixels reach from {darkest} to {brightest}, beyond 16 bits")
    full = next((1 << bits) - 1 for bits in DEPTHS if brightest < 1 << bits)
    scaled = np.empty(pixels.shape, dtype=np.uint8)
    for top in range(0, len(pixels), ROWS):  # a film of 100 megapixels would take gigabytes at once
        rows = pixels[top : top + ROWS].astype(np.int64)
        scaled[top : top + ROWS] = (rows * 255 + full // 2) // full
    return Image.fromarray(scaled)


def _draft_size(source: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the size to request from libjpeg: at least `size` on the short side, same aspect ratio."""
    short = min(source)
    return (source[0] * size // short, source[1] * size // short)


def _centre(source: tuple[int, int], size: int) -> tuple[float, float, float, float]:
    """Return the box that Resize(size) and CenterCrop(size) would keep, in source pixels."""
    short = min(source)
    edges = []
    for length in source:
        resized = int(size * length / short)  # as torchvision truncates
        first = round((resized - size) / 2)
        edges.append((first * length / resized, (first + size) * length / resized))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
