"""Removes the metadata of JPEG and PNG files without touching their compressed pixels.

Metadata may name a patient: EXIF, comments, text chunks, color profiles, thumbnails and whatever lies behind the image.
"""

import re
import struct
from collections.abc import Iterator

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
APP0, APP14, START_OF_SCAN, END_OF_IMAGE = 0xE0, 0xEE, 0xDA, 0xD9
# ITU-T T.81, table B.1: what the decoder needs. All frames but the hierarchical ones, Huffman and arithmetic tables,
# scans, quantization tables, number of lines, restart interval.
JPEG_SEGMENTS = frozenset({*range(0xC0, 0xD0), START_OF_SCAN, 0xDB, 0xDC, 0xDD}) - {0xC8}
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)  # a marker that is neither a stuffed byte nor a restart
# APP0 and APP14 decide about the color space, so they stay, without density, thumbnail and version.
JFIF = b"\xff\xe0" + struct.pack(">H5sHBHHBB", 16, b"JFIF\0", 0x0101, 0, 1, 1, 0, 0)
ADOBE, ADOBE_BYTES = b"Adobe", 14  # with the two bytes of the length

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"IDAT", b"IEND")  # the pixels of gray and RGB images
PNG_FRAME = 12  # bytes of length, name and checksum around the content of a chunk


def without_metadata(raw: bytes) -> bytes | None:
    """Return a JPEG or PNG file without metadata, its compressed pixels byte for byte the same.

    Returns None for another format, and where the structure of the file is unusual. Transparency and palette of a PNG
    and the orientation are metadata here: compare the pixels of the result with those of the file.
    """
    try:
        if raw.startswith(SOI):
            return b"".join(_jpeg_parts(raw))
        if raw.startswith(PNG_SIGNATURE):
            return b"".join(_png_parts(raw))
    except _Unusual:
        return None
    return None


class _Unusual(Exception):
    """The file does not have the structure that its format prescribes."""


def _jpeg_parts(raw: bytes) -> Iterator[bytes]:
    yield SOI
    at = len(SOI)
    while True:
        code, at = _marker(raw, at)
        if code == END_OF_IMAGE:
            yield EOI
            return
        segment, at = _segment(raw, at)
        yield from _kept_segment(code, segment)
        if code == START_OF_SCAN:
            found = SCAN_END.search(raw, at)
            if not found:
                raise _Unusual
            yield raw[at : found.start()]
            at = found.start()


def _marker(raw: bytes, at: int) -> tuple[int, int]:
    """Return the code of the marker at an offset, and the offset behind it. Any number of 0xFF may stand before it."""
    start = at
    while raw[at : at + 1] == b"\xff":
        at += 1
    if at == start or at == len(raw):
        raise _Unusual
    return raw[at], at + 1


def _segment(raw: bytes, at: int) -> tuple[bytes, int]:
    """Return a segment with the two bytes of its length, and the offset behind it."""
    length = int.from_bytes(raw[at : at + 2], "big")
    if length < 2 or at + length > len(raw):  # noqa: PLR2004 -- the length counts its own two bytes
        raise _Unusual
    return raw[at : at + length], at + length


def _kept_segment(code: int, segment: bytes) -> Iterator[bytes]:
    if code in JPEG_SEGMENTS:
        yield b"\xff" + bytes([code]) + segment
    elif code == APP0 and segment[2:7] == b"JFIF\0":
        yield JFIF
    elif code == APP14 and segment[2:7] == ADOBE and len(segment) >= ADOBE_BYTES:
        transform = segment[ADOBE_BYTES - 1]
        yield b"\xff\xee" + struct.pack(">H5sHHHB", ADOBE_BYTES, ADOBE, 100, 0, 0, transform)


def _png_parts(raw: bytes) -> Iterator[bytes]:
    yield PNG_SIGNATURE
    at = len(PNG_SIGNATURE)
    while at + PNG_FRAME <= len(raw):
        size = PNG_FRAME + int.from_bytes(raw[at : at + 4], "big")
        name = raw[at + 4 : at + 8]
        if name in PNG_CHUNKS:
            yield raw[at : at + size]
        if name == b"IEND":
            return
        at += size
    raise _Unusual
