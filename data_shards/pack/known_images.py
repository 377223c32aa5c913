"""The images that a data set has already: from their records, or else from the shards themselves."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_shards.errors import BadImage, DamagedShard
from data_shards.index import Shard, ShardIndex
from data_shards.locations import shard_path
from data_shards.pack.image_records import ImageRecord, read_records, shards_without, write_records
from data_shards.pack.near_duplicates import perceptual_hash
from data_shards.pixels import MAX_PACKED_MEGAPIXELS, decode_pixels, open_image
from data_shards.process_pool import map_in_processes, process_count
from data_shards.samples import Extent, StoredSample, read_sample
from data_shards.tar_index import find_byte_fault, read_table

IMAGES_PER_PROCESS = 500  # fewer are hashed in this process sooner than a new one starts

OnProgress = Callable[[int, int], None]
ShowProgress = Callable[[str], AbstractContextManager[OnProgress]]  # opens a progress bar with a title


def no_progress(_: str) -> AbstractContextManager[OnProgress]:
    """Show nothing."""
    return nullcontext(lambda *_: None)


@dataclass(frozen=True, kw_only=True)
class KnownImages:
    """The images of a data set.

    Attributes:
        records: Records of the images of each shard, in the order of the index.
        hashed: Number of images whose records were made from the shards.
    """

    records: tuple[tuple[Shard, list[ImageRecord]], ...]
    hashed: int

    def __iter__(self) -> Iterator[tuple[str, ImageRecord]]:
        """Yield the split and the record of each image."""
        return ((shard.split, record) for shard, records in self.records for record in records)


def known_images(
    folder: Path, index: ShardIndex, *, processes: int | None = None, progress: ShowProgress = no_progress
) -> KnownImages:
    """Return the images of a data set. Records that are missing are made from the shards once, and written.

    Making them reads and decodes every stored image of the shard; reading them takes about 1 % of that.

    Raises:
        DamagedShard: A shard without records is missing or damaged.
    """
    records, damaged = read_records(folder, index)
    missing = shards_without(records, index)
    if missing:
        with progress("reading old images") as on_progress:
            made = _records_from(folder, index, missing, processes, on_progress)
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
        write_records(folder, made)
        records |= {shard.sha256: of_shard for shard, of_shard in made}
    return KnownImages(
        records=tuple((shard, records[shard.sha256]) for shard in index.shards),
        hashed=sum(shard.samples for shard in missing),
    )


def _records_from(
    folder: Path, index: ShardIndex, shards: list[Shard], processes: int | None, on_progress: OnProgress
) -> list[tuple[Shard, list[ImageRecord]]]:
    total, done = sum(shard.samples for shard in shards), 0
    on_progress(0, total)
    processes = processes or process_count(total, per_process=IMAGES_PER_PROCESS)
    found: dict[int, list[ImageRecord]] = {}
    first, described = index.first_ids, index.model_copy(update={"shards": (), "history": ()})  # every task has a copy
    tasks = [(str(folder), shard, first[shard.name], described) for shard in shards]
    for number, records in map_in_processes(records_of_shard, tasks, processes=processes):
        found[number] = records
        done += len(records)
        on_progress(done, total)
    return [(shard, found[number]) for number, shard in enumerate(shards)]


def records_of_shard(location: str, shard: Shard, first: int, index: ShardIndex) -> list[ImageRecord]:
    """Return the records of a shard's images, made from the shard.

    Args:
        location: Folder of the data set.
        shard: The shard as the index describes it.
        first: Id of its first sample in its split.
        index: The index of the data set; its shards are not used.

    Raises:
        DamagedShard: The shard differs from the index, or one of its samples cannot be read or decoded.
    """
    path = shard_path(location, shard.name)
    if fault := find_byte_fault(path, shard):
        raise DamagedShard(f"{fault}; copy it again, or pack the data set again")
    table = read_table(path, shard, first=first)
    extents = [
        Extent(shard.name, path, number, tuple(edges)) for number, edges in enumerate(table.extents.tolist(), first)
    ]
    return [_record(read_sample(extent, index=index), extent.where) for extent in extents]


def _record(sample: StoredSample, where: str) -> ImageRecord:
    try:
        width, height = int(sample.info.get("width", 0)), int(sample.info.get("height", 0))
    except (TypeError, ValueError) as error:
        raise DamagedShard(f"{where}: the width or height in its json is no number; pack again") from error
    return ImageRecord(
        source=str(sample.info.get("source", "")),
        group=str(sample.info.get("group", "")),
        label=sample.label,
        width=width,
        height=height,
        sha256="",
        stored_sha256=hashlib.sha256(sample.image).hexdigest(),
        phash=perceptual_hash(_decoded(sample.image, where)),
    )


def _decoded(data: bytes, where: str) -> Image.Image:
    try:
        return decode_pixels(open_image(data, max_megapixels=MAX_PACKED_MEGAPIXELS))
    except BadImage as error:
        raise DamagedShard(f"{where}: {error}; `nightshift shards verify` lists all faults") from error
