"""From one source file to the bytes and facts that its sample stores. Runs in the packing processes."""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from PIL import Image

from data_shards.errors import BadImage
from data_shards.pixels import DAMAGE, decoded, is_gray, open_image, shrunk

Encoding: TypeAlias = Literal["jpeg", "lossless"]

COPIED = {"JPEG": "jpg", "PNG": "png"}  # formats that a shard may hold as they came


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored.

    Attributes:
        image_size: Short side in pixels, never enlarged; 0 keeps the size, and JPEG and PNG files byte for byte.
        encoding: "jpeg", or "lossless" (PNG).
        quality: Of the JPEG, 1 to 100.
    """

    image_size: int = 256
    encoding: Encoding = "jpeg"
    quality: int = 95


class Encoded(NamedTuple):
    """An image as it will be stored.

    Attributes:
        suffix: "jpg" or "png".
        width: Of the image as it came, upright.
        gray: Whether no pixel has a color.
    """

    data: bytes
    suffix: str
    width: int
    height: int
    gray: bool
    crc32: int


def encode_file(path: Path, options: EncodeOptions) -> tuple[Encoded, Image.Image]:
    """Return a source image as it will be stored, and its decoded pixels.

    Raises:
        BadImage: The file cannot be read or decoded; the text says why.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    opened = open_image(raw)
    image = decoded(opened)
    gray = is_gray(image)
    if gray:
        image = image.convert("L")
    if options.image_size == 0 and opened.format in COPIED:
        data, suffix = raw, COPIED[opened.format]
    else:
        data, suffix = _written(shrunk(image, options.image_size or min(image.size)), options)
    return Encoded(data, suffix, *image.size, gray, zlib.crc32(data)), image


def _written(image: Image.Image, options: EncodeOptions) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    try:
        if options.encoding == "lossless":
            image.save(buffer, format="PNG")
            return buffer.getvalue(), "png"
        image.save(buffer, format="JPEG", quality=options.quality, subsampling=0)
    except DAMAGE as error:
        raise BadImage(f"cannot be stored ({error})") from error
    return buffer.getvalue(), "jpg"
