"""The workshop's store of a pack: images already encoded, in chunks, so that an interrupted pack goes on.

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

from data_shards.atomic import write_whole
from data_shards.errors import BadImage
from data_shards.pack.encode import encode
from data_shards.pack.options import EncodeOptions
from data_shards.pack.sources import SourceImage

CHUNK_IMAGES = 32  # small enough to share the work evenly, large enough that its two files do not matter
HASH_SIDE = 16  # the perceptual hash has the square of it in bits
FLAT_LEVELS = 8  # an image with less contrast has no structure to compare; all such would look the same


@dataclass(frozen=True, kw_only=True)
class ChunkEntry:
    """One encoded image in a chunk.

    Attributes:
        name: Of the source image.
        bad: Why it cannot be used, "" for a good one; a bad one has only a name.
        content: Name of the chunk's file that holds its bytes from `start` on.
        sha256: Of the source file.
        phash: Perceptual hash of the image in hexadecimal, "" for a flat one.
        width: Of the image as it came, upright.
    """

    name: str
    bad: str = ""
    content: str = ""
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
class Chunk:
    """A run of the images to pack and its two files, below the folder of the spool."""

    folder: Path
    number: int
    images: tuple[SourceImage, ...]

    @property
    def content(self) -> Path:
        """The encoded images, end to end."""
        return self.folder / f"{self.number:06d}.images"

    @property
    def manifest(self) -> Path:
        """The JSON of what is in the chunk; it exists once the chunk is done."""
        return self.folder / f"{self.number:06d}.json"

    def is_done(self) -> bool:
        """Whether the chunk needs no more work."""
        return self.manifest.exists()

    def read(self) -> list[ChunkEntry]:
        """Return what is in the chunk once it is done."""
        return [ChunkEntry(**entry) for entry in json.loads(self.manifest.read_text(encoding="utf-8"))]


def split_into_chunks(images: Sequence[SourceImage], folder: Path) -> list[Chunk]:
    """Return the images in chunks, in their order."""
    starts = range(0, len(images), CHUNK_IMAGES)
    return [Chunk(folder, number, tuple(images[start : start + CHUNK_IMAGES])) for number, start in enumerate(starts)]


def encode_chunk(chunk: Chunk, options: EncodeOptions) -> int:
    """Encode the images of a chunk into its files and return how many there are. Safe to run twice."""
    entries, start = [], 0
    with chunk.content.open("wb") as file:
        for image in chunk.images:
            facts, data = _encode_image(image, options)
            file.write(data)
            entries.append(asdict(ChunkEntry(name=image.name, content=chunk.content.name, start=start, **facts)))
            start += len(data)
        file.flush()
        os.fsync(file.fileno())
    write_whole(chunk.manifest, json.dumps(entries))
    return len(entries)


def _encode_image(source: SourceImage, options: EncodeOptions) -> tuple[dict[str, Any], bytes]:
    try:
        raw = source.path.read_bytes()
        encoded, image = encode(raw, options)
    except BadImage as error:
        return {"bad": str(error)}, b""
    except OSError as error:
        return {"bad": f"the file cannot be read ({error.strerror})"}, b""
    facts = encoded._asdict()
    data = facts.pop("data")
    sha256 = hashlib.sha256(raw).hexdigest()
    return {**facts, "size": len(data), "sha256": sha256, "phash": _perceptual_hash(image)}, data


def _perceptual_hash(image: Image.Image) -> str:
    darkest, brightest = image.convert("L").getextrema()
    if brightest - darkest < FLAT_LEVELS:  # type: ignore[operator]  # a gray image has one pair
        return ""
    return str(imagehash.phash(image, hash_size=HASH_SIDE))
