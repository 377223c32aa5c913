"""Finds the new images that a data set has already."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from data_shards.counted import counted
from data_shards.errors import SourceError
from data_shards.pack.chunks import ChunkEntry
from data_shards.pack.image_records import ImageRecord
from data_shards.pack.known_images import KnownImages
from data_shards.pack.near_duplicates import HEX_DIGITS, NEAR_BITS
from data_shards.targets import Label, contradiction

SHOWN = 3  # names in an error

_Known: TypeAlias = tuple[str, ImageRecord]  # the split of an old image, and its record


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
    stored with the same bytes, or has the same name, size and look. Of several, one with the same label is meant.

    Args:
        entries: The new images.
        labels: Label of each new image by its name.
        known: The images of the data set.
        encoded: Folder of the new images' encoded content.

    Raises:
        SourceError: An image has another label than the same image in the data set.
    """
    finder = _Finder.of(known)
    found = tuple(image for entry in entries if (image := finder.find(entry, labels[entry.name], encoded)) is not None)
    relabeled = [image for image in found if contradiction(image.record.label, labels[image.name])]
    if relabeled:
        found_again = f"{counted(len(relabeled), 'image')} {'is' if len(relabeled) == 1 else 'are'}"
        raise SourceError(
            f"{found_again} in the data set with another label, such as "
            f"{'; '.join(map(str, relabeled[:SHOWN]))}; remove them from the source, or pack a new data set"
        )
    return found


@dataclass(frozen=True)
class _Finder:
    by_sha256: dict[str, list[_Known]]
    by_stored: dict[str, list[_Known]]
    by_name: dict[tuple[str, int, int], list[_Known]]

    @classmethod
    def of(cls, known: KnownImages) -> "_Finder":
        finder = cls({}, {}, {})
        for split, record in known:
            if record.sha256:
                finder.by_sha256.setdefault(record.sha256, []).append((split, record))
            else:
                name = record.source, record.width, record.height
                finder.by_stored.setdefault(record.stored_sha256, []).append((split, record))
                finder.by_name.setdefault(name, []).append((split, record))
        return finder

    def find(self, entry: ChunkEntry, label: Label, encoded: Path) -> KnownImage | None:
        """Return the old image that a new one is: one whose label is no contradiction, if there is one."""
        same = next(filter(None, self._candidates(entry, encoded)), None)
        if same is None:
            return None
        agreeing = [one for one in same if not contradiction(one[1].label, label)]
        split, record = (agreeing or same)[-1]
        return KnownImage(name=entry.name, split=split, record=record)

    def _candidates(self, entry: ChunkEntry, encoded: Path) -> Iterator[Sequence[_Known]]:
        """Yield the old images that a new one may be, the surest first."""
        yield self.by_sha256.get(entry.sha256, ())
        if self.by_stored:
            yield self.by_stored.get(hashlib.sha256(_content(entry, encoded)).hexdigest(), ())
        named = self.by_name.get((entry.name, entry.width, entry.height), ())
        yield [one for one in named if _look_alike(one[1].phash, entry.phash)]


def _content(entry: ChunkEntry, encoded: Path) -> bytes:
    with (encoded / entry.content).open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.size)


def _look_alike(first: str, second: str) -> bool:
    return bool(first and second) and (_bits(first) ^ _bits(second)).bit_count() <= NEAR_BITS


def _bits(phash: str) -> int:
    return int(phash[:HEX_DIGITS], 16)
