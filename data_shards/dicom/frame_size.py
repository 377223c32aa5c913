"""The size that a compressed frame claims in its own header: decoders believe it, not the fields of DICOM."""

import struct

from data_shards.errors import BadImage

JPEG_START, STREAM_END = b"\xff\xd8", b"\xff\xd9"  # JPEG 2000 ends with the same marker
PADDING = b"\0\xff"
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # of JPEG, and of JPEG-LS
HIERARCHICAL, START_OF_SCAN = 0xDE, 0xDA
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
J2K_START = b"\xff\x4f\xff\x51"  # a codestream and its SIZ segment
JP2_START, CODESTREAM_BOX = b"\0\0\0\x0cjP  ", b"jp2c"
MAX_TILES = 16_384  # a decoder keeps kilobytes for each


def compressed_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return width, height and components of a JPEG, JPEG-LS or JPEG 2000 stream; None for another, such as RLE.

    Raises:
        BadImage: The stream is damaged or cut off, or of a kind with several frames in one.
    """
    if not frame.startswith((JPEG_START, J2K_START, JP2_START)):
        return None
    if not frame.rstrip(PADDING).endswith(STREAM_END):
        raise BadImage("its compressed pixel data are cut off")
    try:
        return _jpeg_size(frame) if frame.startswith(JPEG_START) else _j2k_size(frame)
    except (struct.error, IndexError):
        raise BadImage("its compressed pixel data have no valid header") from None


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Return the size in the first start-of-frame segment (ITU-T T.81, B.2.2)."""
    position = len(JPEG_START)
    while True:
        if frame[position] != 0xFF:  # noqa: PLR2004 -- every marker starts with it
            raise IndexError
        marker = frame[position + 1]
        if marker == 0xFF or marker in WITHOUT_LENGTH:  # noqa: PLR2004 -- a fill byte
            position += 1 if marker == 0xFF else 2  # noqa: PLR2004
        elif marker in START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", frame, position + 5)
            return width, height, components
        elif marker in (HIERARCHICAL, START_OF_SCAN):
            raise IndexError
        else:
            position += 2 + struct.unpack_from(">H", frame, position + 2)[0]


def _j2k_size(frame: bytes) -> tuple[int, int, int]:
    """Return the size in the SIZ segment (ITU-T T.800, A.5.1)."""
    start = _codestream_start(frame)
    if not frame.startswith(J2K_START, start):
        raise IndexError
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    width, height = right - left, bottom - top
    if not tile_width or not tile_height or -(-right // tile_width) * -(-bottom // tile_height) > MAX_TILES:
        raise BadImage(f"its JPEG 2000 stream has more than {MAX_TILES:,} tiles")
    return width, height, components


def _codestream_start(frame: bytes) -> int:
    """Return where the codestream starts: at once, or in a box of a JP2 file (ITU-T T.800, I.4)."""
    position = 0
    while not frame.startswith(J2K_START, position):
        length, kind = struct.unpack_from(">I4s", frame, position)
        if kind == CODESTREAM_BOX:
            return position + 8
        if length < 8:  # noqa: PLR2004 -- the size of a box's header
            raise IndexError
        position += length
    return position
