"""What a data set holds, in figures that a person asks for first."""

from typing import Any

from data_shards.index import ShardIndex


def overview(index: ShardIndex) -> dict[str, Any]:
    """Return the counts of a data set as plain JSON values."""
    return {
        "classes": list(index.classes),
        "color": index.color,
        "image_size": index.image_size,
        "grouped": index.grouped,
        "widths": dict(zip(("least", "median", "greatest"), index.widths, strict=True)),
        "heights": dict(zip(("least", "median", "greatest"), index.heights, strict=True)),
        "digest": index.digest,
        "options": index.options,
        "splits": {split: _of_split(index, split) for split in index.splits},
    }


def _of_split(index: ShardIndex, split: str) -> dict[str, Any]:
    shards = index.of_split(split)
    return {
        "samples": index.samples_in(split),
        "per_class": dict(zip(index.classes, index.per_class_in(split), strict=True)),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
    }
