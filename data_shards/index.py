"""`index.json`, which describes a data set. Imports neither torch nor webdataset."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_shards.about import About
from data_shards.atomic import write_text_atomic
from data_shards.columns import KeptColumn
from data_shards.errors import BadIndex
from data_shards.locations import read_bytes
from data_shards.targets import TargetCounts

INDEX_NAME = "index.json"
INDEX_VERSION = 1
SPLITS = ("train", "valid", "test")
BOTH = "+"  # joins names of splits, such as train+valid; no name of a split contains it

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]

LATER_FIELDS = ("history", "columns", "about", "group_column")  # only an index that uses them has them
NOT_IN_DIGEST = ("about", "group_column")  # they change no image
MULTI_LABEL_FIELDS = ("multi_label", "unknown")  # only the index of a multi-label data set has them


class Shard(BaseModel):
    """One tar file of samples, all of one split.

    Attributes:
        name: File name beside `index.json`, without a folder.
        samples: Number of images in the shard.
        per_class: Number of images of each class, in the order of the index's classes; in a multi-label data set of
            the images that have each label.
        unknown: In a multi-label data set the number of images of which each label is unknown; else empty.
        bytes: Size of the file.
        sha256: sha256 of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.tar$")]
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    samples: Annotated[int, Field(ge=1)]
    per_class: tuple[Count, ...]
    unknown: tuple[Count, ...] = ()
    bytes: Annotated[int, Field(ge=1)]
    sha256: Sha256

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.unknown:
            _check_target_counts(self)
        elif sum(self.per_class) != self.samples:
            raise ValueError(f"{self.name} counts {self.samples} samples, but {sum(self.per_class)} over its classes")
        return self


class Addition(BaseModel):
    """One `shards add`: what the data set was before it. Its shards are those behind the first `shards` of the index.

    Attributes:
        digest: Digest of the data set before.
        shards: Number of shards before.
        widths: Minimum, median and maximum width of the source images before, in pixels.
        heights: Minimum, median and maximum height before.
        time: When the images were added, RFC 3339 in UTC. It is no part of the digest, so that the same images added to
            the same data set give the same digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Sha256
    shards: Annotated[int, Field(ge=1)]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    time: Annotated[str, Field(pattern=r"^[0-9T:Z-]{20}$")]


def _check_target_counts(shard: Shard) -> None:
    if len(shard.unknown) != len(shard.per_class):
        raise ValueError(f"{shard.name} counts {len(shard.per_class)} labels, but {len(shard.unknown)} unknown ones")
    for present, unknown in zip(shard.per_class, shard.unknown, strict=True):
        if present + unknown > shard.samples:
            raise ValueError(f"{shard.name} has {shard.samples} samples, but counts {present} + {unknown} of a label")


class ShardIndex(BaseModel):
    """Classes, splits and shards of one data set.

    Attributes:
        classes: Class names; a label is a position in this tuple. In a multi-label data set the names of the labels.
        multi_label: Whether each image has a target for each class instead of one class.
        columns: Columns of the label table whose values are stored with the images.
        color: "L" when every image is gray, else "RGB".
        image_size: Short side of the stored images in pixels, or less for smaller source images; 0: unchanged.
        grouped: Whether each sample carries the group (patient, case) it belongs to.
        group_column: Column of the tables that gave the groups, no part of the digest; "" where groups are
            from elsewhere, and in data sets of earlier versions.
        widths: Minimum, median and maximum width of the source images in pixels.
        heights: Minimum, median and maximum height.
        options: The options of `shards pack`.
        history: The additions to the data set in their order; empty for one that is as it was packed.
        digest: sha256 over everything above, the shards' sha256 included: it identifies the data set.
        about: What people state about the data set; no part of the digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = INDEX_VERSION
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    color: Literal["L", "RGB"] = "RGB"
    image_size: Count = 0
    grouped: bool = False
    group_column: str = ""
    widths: tuple[int, int, int] = (0, 0, 0)
    heights: tuple[int, int, int] = (0, 0, 0)
    options: dict[str, str | int | float | bool | None] = {}
    history: tuple[Addition, ...] = ()
    multi_label: bool = False
    columns: tuple[KeptColumn, ...] = ()
    digest: str = ""
    about: About | None = None

    @model_validator(mode="after")
    def _shards_fit(self) -> Self:
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise ValueError("there is no class, or one is listed twice")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        for shard in self.shards:
            if len(shard.per_class) != len(self.classes):
                raise ValueError(f"{shard.name} counts {len(shard.per_class)} classes of {len(self.classes)}")
            if bool(shard.unknown) != self.multi_label:
                raise ValueError(f"{shard.name} and the index differ in whether an image has several labels")
        ends = [*(addition.shards for addition in self.history), len(self.shards)]
        if any(first >= second for first, second in pairwise(ends)):
            raise ValueError("the history has an addition without shards")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with shards, in the order train, valid, test, then others by name."""
        found = {shard.split for shard in self.shards}
        return tuple(s for s in SPLITS if s in found) + tuple(sorted(found - set(SPLITS)))

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split in their order; `train+valid` gives those of train, then those of valid."""
        return tuple(shard for name in split.split(BOTH) for shard in self.shards if shard.split == name)

    @property
    def first_ids(self) -> dict[str, int]:
        """Id in its split of the first sample of each shard, by the shard's name."""
        seen: Counter[str] = Counter()
        first = {}
        for shard in self.shards:
            first[shard.name] = seen[shard.split]
            seen[shard.split] += shard.samples
        return first

    @property
    def longest_shard(self) -> int:
        """Number of images of the largest shard."""
        return max(shard.samples for shard in self.shards)

    def samples_in(self, split: str) -> int:
        """Number of images of a split."""
        return sum(shard.samples for shard in self.of_split(split))

    def per_class_in(self, split: str) -> tuple[int, ...]:
        """Number of images of each class in a split, in the order of `classes`."""
        shards = self.of_split(split)
        return tuple(sum(shard.per_class[c] for shard in shards) for c in range(len(self.classes)))

    def before(self, addition: int) -> "ShardIndex":
        """Return the index as it was before the addition with this position in `history`."""
        earlier = self.history[addition]
        return self.model_copy(
            update={
                "shards": self.shards[: earlier.shards],
                "widths": earlier.widths,
                "heights": earlier.heights,
                "history": self.history[:addition],
                "digest": earlier.digest,
            }
        )

    def version_with(self, digest: str) -> "ShardIndex | None":
        """Return this data set as it was when it had a digest; None if it never had it."""
        if digest == self.digest:
            return self
        found = next((n for n, addition in enumerate(self.history) if addition.digest == digest), None)
        return None if found is None else self.before(found)

    def targets_in(self, split: str) -> tuple[TargetCounts, ...]:
        """How many images of a split have each label, lack it, or leave it unknown; of a multi-label data set."""
        shards = self.of_split(split)
        images, present = self.samples_in(split), self.per_class_in(split)
        unknown = [sum(shard.unknown[c] for shard in shards) for c in range(len(self.classes))]
        return tuple(
            TargetCounts(present=p, absent=images - p - u, unknown=u) for p, u in zip(present, unknown, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of `index.json`.

        A field that came later than the first data sets is there only if it is used, so that their digests stay.
        """
        content = self.model_dump(mode="json", exclude={name for name in LATER_FIELDS if not getattr(self, name)})
        if not self.multi_label:
            for fields in (content, *content["shards"]):
                for name in MULTI_LABEL_FIELDS:
                    fields.pop(name, None)
        return content

    def sealed(self) -> "ShardIndex":
        """Return the same index with its `digest`."""
        return self.model_copy(update={"digest": self._digest()})

    def _digest(self) -> str:
        content = self.to_json()
        del content["digest"]
        for name in NOT_IN_DIGEST:
            content.pop(name, None)
        for addition in content.get("history", ()):
            del addition["time"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def is_intact(self) -> bool:
        """Whether the digest agrees with the content."""
        return self.digest == self._digest()


def read_index(location: str) -> ShardIndex:
    """Return the checked index of the data set at a folder or URL.

    Raises:
        BadIndex: It is missing, not JSON, of another version, or was changed after packing.
        SourceError: The location's scheme is not allowed.
    """
    raw = read_bytes(location, INDEX_NAME)
    where = f"{location.rstrip('/')}/{INDEX_NAME}"
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise BadIndex(f"{where} is not JSON ({error}); pack the data set again") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != INDEX_VERSION:
        raise BadIndex(f"{where} has version {version!r}, this program reads {INDEX_VERSION}; pack the data set again")
    try:
        index = ShardIndex.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise BadIndex(f"{where} is damaged: {field}: {first['msg']}; pack the data set again") from error
    if not index.is_intact():
        raise BadIndex(f"{where} was changed after packing (its digest differs); pack the data set again")
    return index


def find_size_fault(path: Path, shard: Shard) -> str | None:
    """Return how a shard's size differs from the index, None if they agree; nothing is read.

    Raises:
        OSError: There is no such file.
    """
    size = path.stat().st_size
    return f"{shard.name} has {size} bytes, the index says {shard.bytes}" if size != shard.bytes else None


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the index atomically; from then on the folder is a data set."""
    write_text_atomic(folder / INDEX_NAME, json.dumps(index.to_json(), indent=1) + "\n")


def overview(index: ShardIndex, groups: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Return the counts of a data set as JSON values.

    Args:
        index: Of the data set.
        groups: Number of groups (patients or cases) of each split, as far as it is known.
    """
    return {
        "classes": list(index.classes),
        **({"multi_label": True} if index.multi_label else {}),
        **({"columns": {column.name: list(column.bands) for column in index.columns}} if index.columns else {}),
        "color": index.color,
        "image_size": index.image_size,
        "grouped": index.grouped,
        "widths": dict(zip(("least", "median", "greatest"), index.widths, strict=True)),
        "heights": dict(zip(("least", "median", "greatest"), index.heights, strict=True)),
        "digest": index.digest,
        "about": index.about.model_dump() if index.about else None,
        "options": index.options,
        "splits": {split: _of_split(index, split, (groups or {}).get(split)) for split in index.splits},
        "history": [_of_addition(index, number) for number in range(len(index.history))],
    }


def _of_addition(index: ShardIndex, number: int) -> dict[str, Any]:
    """Return when images were added, how many, and the digest of the data set before and after."""
    before = index.before(number)
    after = index.before(number + 1) if number + 1 < len(index.history) else index
    added = {split: after.samples_in(split) - before.samples_in(split) for split in after.splits}
    return {
        "time": index.history[number].time,
        "samples": {split: count for split, count in added.items() if count},
        "digest_before": before.digest,
        "digest_after": after.digest,
    }


def _of_split(index: ShardIndex, split: str, groups: int | None) -> dict[str, Any]:
    shards = index.of_split(split)
    targets = index.targets_in(split) if index.multi_label else ()
    return {
        "samples": index.samples_in(split),
        **({} if groups is None else {"groups": groups}),
        "per_class": dict(zip(index.classes, index.per_class_in(split), strict=True)),
        **({"unknown": {name: n.unknown for name, n in zip(index.classes, targets, strict=True)}} if targets else {}),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
    }


def cure_without_valid(index: ShardIndex) -> str:
    """Return what gives valid images to a data set that has a split train, but none valid."""
    if index.options.get("split"):
        return "pack again with a share for valid in --split, such as 70/15/15"
    return "pack again with --split 85/15/0, which divides train"
