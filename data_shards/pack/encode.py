"""Encodes one image as its sample stores it. Runs in the packing processes, and in those of `predict`."""

import io
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_shards.errors import BadImage
from data_shards.pack.metadata import without_metadata
from data_shards.pack.options import EncodeOptions
from data_shards.pixels import DECODE_ERRORS, decode_pixels, is_gray, open_image, resize_short_side

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png"}  # formats that a shard can hold unchanged; MPO begins as a JPEG
PLAIN_MODES = ("L", "RGB")  # of Pillow: 8-bit gray and color, which every reader of shards decodes alike


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

    A JPEG or PNG file that needs no change of its pixels keeps its compressed data byte for byte, without metadata.
    Any other image is written anew: one that is too large, lies on its side, or is no 8-bit gray or RGB image without
    transparency. A PNG file that keeps its size stays a PNG, and so keeps every pixel.

    Raises:
        TooManyPixels: It is larger than `options.max_megapixels`.
        BadImage: It cannot be decoded; the text says why.
    """
    opened = open_image(
        raw,
        max_megapixels=options.max_megapixels,
        dicom_frame=options.dicom_frame,
        dicom_window=options.dicom_window,
    )
    image = decode_pixels(opened)
    gray = is_gray(image)
    if gray:
        image = image.convert("L")
    data, suffix = _stored(raw, str(opened.format), image, options)
    return EncodedImage(data, suffix, *image.size, gray, zlib.crc32(data)), image


def encoded_like_packed(raw: bytes, options: EncodeOptions) -> bytes:
    """Return the bytes that a data set packed with `options` stores for a source file.

    Raises:
        TooManyPixels: It is larger than `options.max_megapixels`.
        BadImage: It cannot be decoded; the text says why.
    """
    if options.image_size == 0 and not options.keep_small:  # version 0.1 copied such files with their metadata
        opened = open_image(raw, max_megapixels=options.max_megapixels)
        if opened.format in ("JPEG", "PNG"):
            return raw
    return encode(raw, options)[0].data


def _stored(raw: bytes, form: str, image: Image.Image, options: EncodeOptions) -> tuple[bytes, str]:
    target = options.image_size or min(image.size)
    keeps_size = options.image_size == 0 or (options.keep_small and min(image.size) <= target)
    if keeps_size and form in KEPT:
        data = without_metadata(raw)
        if data is not None and _has_pixels(data, image, options.max_megapixels):
            return data, KEPT[form]
    lossless = options.encoding == "lossless" or (keeps_size and form == "PNG")
    return _written(resize_short_side(image, target), lossless=lossless, quality=options.quality)


def _has_pixels(data: bytes, image: Image.Image, max_megapixels: int) -> bool:
    """Whether a file is a plain image with the same pixels as `image`."""
    try:
        copy = open_image(data, max_megapixels=max_megapixels)
        if copy.mode not in PLAIN_MODES:
            return False
        copy = decode_pixels(copy)
    except BadImage:
        return False
    if copy.size != image.size or (image.mode == "L" and not is_gray(copy)):
        return False
    return np.array_equal(np.asarray(copy.convert(image.mode)), np.asarray(image))


def _written(image: Image.Image, *, lossless: bool, quality: int) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    image.info.clear()  # comments and profiles of the source file, which Pillow would write again
    try:
        if lossless:
            image.save(buffer, format="PNG")
            return buffer.getvalue(), "png"
        image.save(buffer, format="JPEG", quality=quality, subsampling=0)
    except DECODE_ERRORS as error:
        raise BadImage(f"it cannot be stored with {image.width} x {image.height} pixels; reduce it") from error
    return buffer.getvalue(), "jpg"
