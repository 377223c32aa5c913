"""How to pack: what a person may choose, with its defaults. Light: the command line imports it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

MEGABYTE = 1_000_000

Encoding: TypeAlias = Literal["jpeg", "lossless"]


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How images are stored.

    Attributes:
        image_size: Short side in pixels, never enlarged; 0 keeps the size, and JPEG and PNG files byte for byte.
        encoding: "jpeg", or "lossless" (PNG).
        quality: Of the JPEG, 1 to 100.
    """

    image_size: int = 256
    encoding: Encoding = "jpeg"
    quality: int = 95


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        split: Shares of train, valid and test, such as "70/15/15"; None where the source gives the splits.
        group_by: CSV of file and group, or a regular expression on the name; None for images without groups.
        seed: Of the division into splits.
        shard_bytes: Greatest size of a shard; a single larger sample still gets one of its own. A small split
            makes smaller shards, eight or so, that several workers can share.
        max_bad: Share of the images that may be unusable.
        allow_leakage: Pack although the same image or group stands in two splits.
        processes: Of the decoding; None takes one per core. The shards do not depend on it.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    split: str | None = None
    group_by: str | None = None
    seed: int = 0
    shard_bytes: int = 64 * MEGABYTE
    max_bad: float = 0.01
    allow_leakage: bool = False
    processes: int | None = None

    def to_index(self) -> dict[str, Any]:
        """Return the options that the shards depend on; of a path only its name, which holds on every machine."""
        stored = asdict(self)
        stored |= stored.pop("encode")
        del stored["processes"]
        if self.group_by and self.group_by.lower().endswith(".csv"):
            stored["group_by"] = Path(self.group_by).name
        return stored
