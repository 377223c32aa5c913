"""`index.json`: the truth about a data set. Imports neither torch nor webdataset."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

INDEX_VERSION = 1
SPLITS = ("train", "valid", "test")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Shard(BaseModel):
    """One tar file of samples, all of one split.

    Attributes:
        name: File name beside `index.json`, with no folder in it.
        samples: Images in the shard.
        per_class: Images of each class, in the order of the index's classes.
        bytes: Size of the file.
        sha256: Of the file's bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.tar$")]
    split: str
    samples: Annotated[int, Field(ge=1)]
    per_class: tuple[int, ...]
    bytes: Annotated[int, Field(ge=1)]
    sha256: Sha256


class ShardIndex(BaseModel):
    """Classes, splits and shards of one data set.

    Attributes:
        classes: Class names; a label is a position in this tuple.
        color: "L" when every image is gray, else "RGB".
        image_size: Short side of the stored images in pixels; 0 when they were left as they came.
        grouped: Whether each sample carries the group (patient, case) it belongs to.
        options: The options of `shards pack` that made it.
        digest: sha256 over everything above and the shards' sha256: one name for the whole data set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = INDEX_VERSION
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    color: str = "RGB"
    image_size: int = 0
    grouped: bool = False
    options: dict[str, str | int | float | bool | None] = {}
    digest: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have shards, in the order train, valid, test, then others by name."""
        found = {shard.split for shard in self.shards}
        return tuple(s for s in SPLITS if s in found) + tuple(sorted(found - set(SPLITS)))

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split, in their order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def samples_in(self, split: str) -> int:
        """How many images a split has."""
        return sum(shard.samples for shard in self.of_split(split))

    def per_class_in(self, split: str) -> tuple[int, ...]:
        """How many images of each class a split has, in the order of `classes`."""
        shards = self.of_split(split)
        return tuple(sum(shard.per_class[c] for shard in shards) for c in range(len(self.classes)))
