"""Encodes one image as its sample stores it. Runs in the packing processes."""

import io
import zlib
from typing import NamedTuple

from PIL import Image

from data_shards.errors import BadImage, TooManyPixels
from data_shards.pack.options import EncodeOptions
from data_shards.pixels import DECODE_ERRORS, decode_pixels, is_gray, open_image, resize_short_side

COPIED = {"JPEG": "jpg", "PNG": "png"}  # formats that a shard can hold unchanged


class EncodedImage(NamedTuple):
    """An image as its sample stores it.

    Attributes:
        suffix: "jpg" or "png".
        width: Width of the source image in pixels, upright.
        height: Height of the same.
        gray: Whether no pixel has a color.
    """

    data: bytes
    suffix: str
    width: int
    height: int
    gray: bool
    crc32: int


def encode(raw: bytes, options: EncodeOptions) -> tuple[EncodedImage, Image.Image]:
    """Return a source file's image as its sample stores it, and its decoded pixels.

    Raises:
        BadImage: It cannot be decoded; the text says why.
    """
    try:
        opened = open_image(raw, max_megapixels=options.max_megapixels)
    except TooManyPixels as error:
        raise BadImage(f"{error}; raise --max-megapixels") from error
    image = decode_pixels(opened)
    gray = is_gray(image)
    if gray:
        image = image.convert("L")
    if options.image_size == 0 and opened.format in COPIED:
        data, suffix = raw, COPIED[opened.format]
    else:
        data, suffix = _written(resize_short_side(image, options.image_size or min(image.size)), options)
    return EncodedImage(data, suffix, *image.size, gray, zlib.crc32(data)), image


def _written(image: Image.Image, options: EncodeOptions) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.info.clear()  # comments and profiles of the source file, which Pillow would write again
    try:
        if options.encoding == "lossless":
            image.save(buffer, format="PNG")
            return buffer.getvalue(), "png"
        image.save(buffer, format="JPEG", quality=options.quality, subsampling=0)
    except DECODE_ERRORS as error:
        raise BadImage(f"cannot be stored ({error})") from error
    return buffer.getvalue(), "jpg"
