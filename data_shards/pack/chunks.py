"""The encoded images of a pack in chunks, so that an interrupted pack continues.

A chunk is two files: the images end to end, and a JSON manifest that is written after them. A chunk with a manifest is
done. Its content does not depend on the process that writes it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_shards.atomic import atomic_path, write_text_atomic
from data_shards.errors import BadImage, NoImage, TooManyPixels
from data_shards.pack.encode import encode
from data_shards.pack.near_duplicates import perceptual_hash
from data_shards.pack.options import EncodeOptions
from data_shards.pack.sources import SourceImage
from data_shards.pixels import read_image_file

CHUNK_IMAGES = 32  # few enough to share the work evenly, enough that the overhead of two files is small


@dataclass(frozen=True, kw_only=True)
class ChunkEntry:
    """One image in a chunk's manifest.

    Attributes:
        name: Name of the source image.
        bad: Why the image cannot be used, "" for a good one. A bad one has only its name and `is_image`.
        is_image: Whether the file is an image; a DICOM file that holds none is not counted as a bad image.
        content: Name of the chunk's file that holds the image's bytes.
        start: Offset of the first byte in that file.
        width: Width of the source image in pixels, upright.
        height: Height of the same.
        sha256: sha256 of the source file.
        phash: Perceptual hashes of the image and the mirrored image in hexadecimal, "" for a flat one.
    """

    name: str
    bad: str = ""
    is_image: bool = True
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
    """Consecutive images to pack, and the two files that hold them."""

    folder: Path
    number: int
    images: tuple[SourceImage, ...]

    @property
    def content(self) -> Path:
        """The encoded images, end to end."""
        return self.folder / f"{self.number:06d}.images"

    @property
    def manifest(self) -> Path:
        """The JSON list of the chunk's images; it exists once the chunk is done."""
        return self.folder / f"{self.number:06d}.json"

    def is_done(self) -> bool:
        """Whether all images of the chunk are encoded."""
        return self.manifest.exists()

    def read(self) -> list[ChunkEntry]:
        """Return the images of a chunk that is done."""
        return [ChunkEntry(**entry) for entry in json.loads(self.manifest.read_text(encoding="utf-8"))]


def split_into_chunks(images: Sequence[SourceImage], folder: Path) -> list[Chunk]:
    """Return chunks of the images, in their order."""
    starts = range(0, len(images), CHUNK_IMAGES)
    return [Chunk(folder, number, tuple(images[start : start + CHUNK_IMAGES])) for number, start in enumerate(starts)]


def encode_chunk(chunk: Chunk, options: EncodeOptions) -> int:
    """Encode the images of a chunk into its two files and return their number. Safe to run twice."""
    entries, start = [], 0
    with atomic_path(chunk.content) as temporary, temporary.open("wb") as file:
        for image in chunk.images:
            facts, data = _encode_image(image, options)
            file.write(data)
            entries.append(asdict(ChunkEntry(name=image.name, content=chunk.content.name, start=start, **facts)))
            start += len(data)
    write_text_atomic(chunk.manifest, json.dumps(entries))
    return len(entries)


def skipped_images(entries: Sequence[ChunkEntry]) -> tuple[tuple[str, str], ...]:
    """Return name and fault of each image that cannot be used."""
    return tuple((entry.name, entry.bad) for entry in entries if entry.bad and entry.is_image)


def flat_images(entries: Sequence[ChunkEntry]) -> tuple[str, ...]:
    """Return the names of usable images whose pixels hardly differ, such as an export that is black."""
    return tuple(entry.name for entry in entries if not entry.bad and not entry.phash)


def files_without_image(entries: Sequence[ChunkEntry]) -> tuple[tuple[str, str], ...]:
    """Return name and kind of each DICOM file that holds no image."""
    return tuple((entry.name, entry.bad) for entry in entries if not entry.is_image)


def _encode_image(source: SourceImage, options: EncodeOptions) -> tuple[dict[str, Any], bytes]:
    try:
        raw = read_image_file(source.path)
        encoded, image = encode(raw, options)
    except TooManyPixels as error:
        return {"bad": f"{error}; raise --max-megapixels"}, b""
    except NoImage as error:
        return {"bad": str(error), "is_image": False}, b""
    except BadImage as error:
        return {"bad": str(error)}, b""
    facts = encoded._asdict()
    data = facts.pop("data")
    sha256 = hashlib.sha256(raw).hexdigest()
    return {**facts, "size": len(data), "sha256": sha256, "phash": perceptual_hash(image)}, data
