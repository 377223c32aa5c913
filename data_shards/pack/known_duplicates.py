"""Finds the new images that a data set has already."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import SourceError
from data_shards.pack.chunks import ChunkEntry
from data_shards.pack.image_records import ImageRecord
from data_shards.pack.known_images import KnownImages
from data_shards.pack.near_duplicates import HEX_DIGITS, NEAR_BITS
from data_shards.targets import UNKNOWN, Label

SHOWN = 3  # names in an error


@dataclass(frozen=True, kw_only=True)
class KnownImage:
    """A new image that the data set has already, as an image of one of its splits."""

    name: str
    split: str
    record: ImageRecord

    def __str__(self) -> str:
        return f"{self.name} is {self.record.source} in {self.split}"


def find_known_images(
    entries: Sequence[ChunkEntry], labels: Mapping[str, Label], known: KnownImages, encoded: Path
) -> tuple[KnownImage, ...]:
    """Return the new images that the data set has already.

    An image is the same if its file has the same bytes. Of an old image whose file's sha256 is not recorded: if it is
    stored with the same bytes, or has the same name, size and look.

    Args:
        entries: The new images.
        labels: Label of each new image by its name.
        known: The images of the data set.
        encoded: Folder of the new images' encoded content.

    Raises:
        SourceError: An image has another label than the same image in the data set.
    """
    finder = _Finder.of(known)
    found = tuple(image for entry in entries if (image := finder.find(entry, encoded)) is not None)
    relabeled = [image for image in found if _differ(image.record.label, labels[image.name])]
    if relabeled:
        raise SourceError(
            f"{len(relabeled)} images are in the data set with another label, such as "
            f"{'; '.join(map(str, relabeled[:SHOWN]))}; remove them from the source, or pack a new data set"
        )
    return found


def _differ(first: Label, second: Label) -> bool:
    """Whether two labels of one image contradict each other; what one of them does not know is no contradiction."""
    if isinstance(first, int) or isinstance(second, int):
        return first != second
    return any(a != b and UNKNOWN not in (a, b) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class _Finder:
    by_sha256: dict[str, tuple[str, ImageRecord]]
    by_stored: dict[str, tuple[str, ImageRecord]]
    by_name: dict[tuple[str, int, int], tuple[str, ImageRecord]]

    @classmethod
    def of(cls, known: KnownImages) -> "_Finder":
        finder = cls({}, {}, {})
        for split, record in known:
            if record.sha256:
                finder.by_sha256[record.sha256] = split, record
            else:
                finder.by_stored[record.stored_sha256] = split, record
                finder.by_name[record.source, record.width, record.height] = split, record
        return finder

    def find(self, entry: ChunkEntry, encoded: Path) -> KnownImage | None:
        found = next(self._candidates(entry, encoded), None)
        return None if found is None else KnownImage(name=entry.name, split=found[0], record=found[1])

    def _candidates(self, entry: ChunkEntry, encoded: Path) -> Iterator[tuple[str, ImageRecord]]:
        if entry.sha256 in self.by_sha256:
            yield self.by_sha256[entry.sha256]
        if self.by_stored:
            stored = hashlib.sha256(_content(entry, encoded)).hexdigest()
            if stored in self.by_stored:
                yield self.by_stored[stored]
        found = self.by_name.get((entry.name, entry.width, entry.height))
        if found and _look_alike(found[1].phash, entry.phash):
            yield found


def _content(entry: ChunkEntry, encoded: Path) -> bytes:
    with (encoded / entry.content).open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.size)


def _look_alike(first: str, second: str) -> bool:
    return bool(first and second) and (_bits(first) ^ _bits(second)).bit_count() <= NEAR_BITS


def _bits(phash: str) -> int:
    return int(phash[:HEX_DIGITS], 16)
