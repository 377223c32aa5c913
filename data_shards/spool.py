"""The workshop of a pack: images already decoded and encoded, in chunks, so that an interrupted pack goes on.

A chunk is a file of images end to end and, written after it, a JSON of what is in it. It is the same whichever process
makes it, and a chunk whose JSON exists is done.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imagehash
from PIL import Image

from data_shards.encode import Encoded, EncodeOptions, encode_file
from data_shards.errors import BadImage
from data_shards.sources import SourceImage

CHUNK_IMAGES = 32  # small enough to share the work evenly, large enough that its two files do not matter
HASH_SIDE = 16  # the perceptual hash has the square of it in bits


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """One encoded image in a chunk.

    Attributes:
        name: Of the source image.
        bad: Why it cannot be used, "" for a good one; a bad one has only a name.
        start: Where its bytes begin in the chunk's file.
        sha256: Of the source file.
        phash: Perceptual hash of the image in hexadecimal.
        width: Of the image as it came, upright.
    """

    name: str
    bad: str = ""
    start: int = 0
    size: int = 0
    suffix: str = ""
    width: int = 0
    height: int = 0
    gray: bool = True
    crc32: int = 0
    sha256: str = ""
    phash: str = ""


@dataclass(frozen=True)
class Spool:
    """The chunks of one pack, below a folder."""

    folder: Path

    def content_of(self, number: int) -> Path:
        """The images of a chunk, end to end."""
        return self.folder / f"{number:06d}.images"

    def list_of(self, number: int) -> Path:
        """The JSON of a chunk; it exists once the chunk is done."""
        return self.folder / f"{number:06d}.json"

    def is_done(self, number: int) -> bool:
        """Whether a chunk needs no more work."""
        return self.list_of(number).exists()

    def read(self, number: int) -> tuple[Spooled, ...]:
        """Return what is in a chunk that is done."""
        return tuple(Spooled(**entry) for entry in json.loads(self.list_of(number).read_text(encoding="utf-8")))


def spool_chunk(folder: Path, number: int, images: Sequence[SourceImage], options: EncodeOptions) -> int:
    """Encode a chunk of images into the spool and return how many there were. Safe to run twice."""
    spool = Spool(folder)
    entries, start = [], 0
    with spool.content_of(number).open("wb") as file:
        for image in images:
            entry, data = _spooled(image, start, options)
            file.write(data)
            start += len(data)
            entries.append(asdict(entry))
        file.flush()
        os.fsync(file.fileno())
    draft = spool.list_of(number).with_suffix(".draft")
    draft.write_text(json.dumps(entries), encoding="utf-8")
    draft.replace(spool.list_of(number))
    return len(images)


def _spooled(source: SourceImage, start: int, options: EncodeOptions) -> tuple[Spooled, bytes]:
    try:
        encoded, image = encode_file(source.path, options)
    except BadImage as error:
        return Spooled(name=source.name, bad=str(error)), b""
    return Spooled(
        name=source.name, start=start, size=len(encoded.data), **_facts(source, encoded, image)
    ), encoded.data


def _facts(source: SourceImage, encoded: Encoded, image: Image.Image) -> dict[str, Any]:
    facts = encoded._asdict()
    del facts["data"]
    sha256 = hashlib.sha256(source.path.read_bytes()).hexdigest()
    return {**facts, "sha256": sha256, "phash": str(imagehash.phash(image, hash_size=HASH_SIDE))}
