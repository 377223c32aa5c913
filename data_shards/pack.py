"""From messy images to shards: list, encode in parallel, check, divide, write, and last of all publish the index."""

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median_low

from data_shards.encode import EncodeOptions
from data_shards.errors import SourceError
from data_shards.index import INDEX_NAME, Shard, ShardIndex, write_index
from data_shards.sources import Listing, SourceImage, list_folder
from data_shards.spool import CHUNK_IMAGES, Spool, Spooled, spool_chunk
from data_shards.write import Sample, write_shards

WORKSHOP = ".packing"  # below the target; gone when the index stands
MEGABYTE = 1_000_000

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How to pack.

    Attributes:
        shard_bytes: Greatest size of a shard; a single larger sample still gets one of its own.
        processes: Of the decoding; None takes one per core. The shards do not depend on it.
    """

    encode: EncodeOptions = field(default_factory=EncodeOptions)
    shard_bytes: int = 64 * MEGABYTE
    processes: int | None = None


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack did.

    Attributes:
        skipped: Name and fault of each image that could not be used.
        other_files: Files passed over because they are no images, by ending.
    """

    index: ShardIndex
    skipped: tuple[tuple[str, str], ...]
    other_files: dict[str, int]


def pack(source: Path, target: Path, options: PackOptions, on_progress: OnProgress = lambda *_: None) -> PackReport:
    """Pack a folder `split/class/image` into shards with an index.

    Raises:
        SourceError: The source cannot be used, or the target holds a data set already.
    """
    if (target / INDEX_NAME).exists():
        raise SourceError(f"{target} holds a data set already; give another folder or remove it")
    listing = list_folder(source, split_given=True)
    workshop = target / WORKSHOP
    workshop.mkdir(parents=True, exist_ok=True)
    spooled = _encode(listing.images, workshop, options, on_progress)
    index = _write(target, listing, spooled, options)
    write_index(target, index)
    shutil.rmtree(workshop)
    skipped = tuple((entry.name, entry.bad) for entry, _ in spooled if entry.bad)
    return PackReport(index=index, skipped=skipped, other_files=listing.other_files)


def _encode(
    images: Sequence[SourceImage], workshop: Path, options: PackOptions, on_progress: OnProgress
) -> list[tuple[Spooled, Path]]:
    """Encode what is not encoded yet and return every image with the file that holds it, in the listing's order."""
    spool = Spool(workshop)
    chunks = [images[start : start + CHUNK_IMAGES] for start in range(0, len(images), CHUNK_IMAGES)]
    todo = [number for number in range(len(chunks)) if not spool.is_done(number)]
    done = len(images) - sum(len(chunks[number]) for number in todo)
    on_progress(done, len(images))
    for count in _spool_all(workshop, [(number, chunks[number]) for number in todo], options):
        done += count
        on_progress(done, len(images))
    return [(entry, spool.content_of(n)) for n in range(len(chunks)) for entry in spool.read(n)]


def _spool_all(
    workshop: Path, chunks: Sequence[tuple[int, Sequence[SourceImage]]], options: PackOptions
) -> Iterator[int]:
    processes = min(options.processes or len(os.sched_getaffinity(0)), len(chunks))
    if processes <= 1:
        for number, images in chunks:
            yield spool_chunk(workshop, number, images, options.encode)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of this process's threads
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(spool_chunk, workshop, n, images, options.encode) for n, images in chunks]
        for future in as_completed(futures):
            yield future.result()


def _write(target: Path, listing: Listing, spooled: Sequence[tuple[Spooled, Path]], options: PackOptions) -> ShardIndex:
    by_name = {image.name: image for image in listing.images}
    good = [(entry, content) for entry, content in spooled if not entry.bad]
    splits: dict[str, list[Sample]] = {}
    for entry, content in sorted(good, key=lambda pair: _draw(pair[0].name)):
        image = by_name[entry.name]
        sample = _sample(entry, content, listing.classes.index(image.label))
        splits.setdefault(str(image.split), []).append(sample)
    shards: list[Shard] = []
    for split in sorted(splits):
        shards += write_shards(
            target, split, splits[split], shard_bytes=options.shard_bytes, classes=len(listing.classes)
        )
    return ShardIndex(
        classes=listing.classes,
        shards=tuple(shards),
        color="L" if all(entry.gray for entry, _ in good) else "RGB",
        image_size=options.encode.image_size,
        widths=_span([entry.width for entry, _ in good]),
        heights=_span([entry.height for entry, _ in good]),
        options={**asdict(options.encode), "shard_bytes": options.shard_bytes},
    ).sealed()


def _sample(entry: Spooled, content: Path, label: int) -> Sample:
    info = {"source": entry.name, "width": entry.width, "height": entry.height, "crc32": entry.crc32}
    return Sample(content=content, start=entry.start, size=entry.size, suffix=entry.suffix, label=label, info=info)


def _draw(name: str) -> str:
    """Return what to sort by so that classes and patients stand mixed: the same in every pack of the same names."""
    return hashlib.sha256(name.encode()).hexdigest()


def _span(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), median_low(values), max(values)
