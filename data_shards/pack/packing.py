"""From messy images to shards: list, encode in parallel, check, divide, write, and last of all publish the index."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low

from data_shards.atomic import write_whole
from data_shards.errors import SourceError
from data_shards.index import Shard, ShardIndex, write_index
from data_shards.pack.options import PackOptions
from data_shards.pack.partition import Partition, partition
from data_shards.pack.sources import Listing, has_splits, list_folder, require_all_trained
from data_shards.pack.spool import Spooled, chunks_of, encode_chunk
from data_shards.pack.workshop import Workshop, opened
from data_shards.pack.write import Sample, write_shards
from data_shards.processes import fitting, in_processes

REPORT_NAME = "pack-report.json"
SHOWN = 3  # names in an error
CHUNKS_PER_PROCESS = 8  # fewer are encoded here before a new process has started

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack did beside its index; the same stands in `pack-report.json`.

    Attributes:
        skipped: Name and fault of each image that could not be used.
        other_files: Files passed over because they are no images, by ending.
        alike: Lines that join the images that are the same or nearly so, in one split.
        leakage: Likewise over two splits, where that was allowed.
    """

    index: ShardIndex
    skipped: tuple[tuple[str, str], ...]
    other_files: dict[str, int]
    alike: tuple[str, ...]
    leakage: tuple[str, ...]


def pack(source: Path, target: Path, options: PackOptions, on_progress: OnProgress = lambda *_: None) -> PackReport:
    """Pack a folder or archive of images into shards with an index, going on where an interrupted pack was.

    Args:
        source: `split/class/image`, or `class/image` with `options.split`; as a folder, .zip or .tar.
        target: A new folder.
        options: How to pack.
        on_progress: Called with the images done and the images in all.

    Raises:
        SourceError: The source cannot be used, too many images are bad, or the target is not free.
        LeakageError: The same image or group stands in two splits.
    """
    if source.resolve() in target.resolve().parents:
        raise SourceError(f"{target} lies inside {source}; give a folder outside of it")
    with opened(target) as workshop:
        listing = _listing(workshop.folder_of(source), options)
        spooled = _encode(listing, workshop, options, on_progress)
        good = [entry for entry in spooled if not entry.bad]
        _check_bad(listing, spooled, options.max_bad)
        divided = partition(listing.images, good, options)
        index = _write(workshop, listing, good, divided, options)
        report = _report(index, listing, spooled, divided)
        _write_report(target, report)
        write_index(target, index)
    return report


def _listing(folder: Path, options: PackOptions) -> Listing:
    given = folder.is_dir() and has_splits(folder)
    if given and options.split:
        raise SourceError("the source is laid out split/class/image already; leave out --split, or rename its folders")
    if folder.is_dir() and not given and not options.split:
        raise SourceError("the source has no folders train, valid and test; add --split 70/15/15")
    return list_folder(folder, split_given=given)


def _encode(listing: Listing, workshop: Workshop, options: PackOptions, on_progress: OnProgress) -> list[Spooled]:
    """Encode what is not encoded yet and return every image in the listing's order."""
    workshop.keep_spool_for(listing.images, asdict(options.encode))
    chunks = chunks_of(listing.images, workshop.spool)
    todo = [chunk for chunk in chunks if not chunk.is_done()]
    done = len(listing.images) - sum(len(chunk.images) for chunk in todo)
    on_progress(done, len(listing.images))
    processes = options.processes or fitting(len(todo), per_process=CHUNKS_PER_PROCESS)
    for _, count in in_processes(encode_chunk, [(chunk, options.encode) for chunk in todo], processes=processes):
        done += count
        on_progress(done, len(listing.images))
    return [entry for chunk in chunks for entry in chunk.read()]


def _check_bad(listing: Listing, spooled: Sequence[Spooled], max_bad: float) -> None:
    bad = [entry for entry in spooled if entry.bad]
    if len(bad) > max_bad * len(spooled):
        named = "; ".join(f"{entry.name}: {entry.bad}" for entry in bad[:SHOWN])
        raise SourceError(
            f"{len(bad)} of {len(spooled)} images cannot be used, more than --max-bad {max_bad:.3g} allows: {named}"
        )
    usable = [image for image, entry in zip(listing.images, spooled, strict=True) if not entry.bad]
    if lost := set(listing.classes) - {image.label for image in usable}:
        raise SourceError(f"class {min(lost)!r} has no usable image; mend its files or remove the class")
    require_all_trained(usable, listing.classes)


def _write(
    workshop: Workshop, listing: Listing, good: Sequence[Spooled], divided: Partition, options: PackOptions
) -> ShardIndex:
    classes = listing.classes
    samples: dict[str, list[Sample]] = {}
    labels = {image.name: classes.index(image.label) for image in listing.images}
    for entry in sorted(good, key=lambda entry: _draw(entry.name)):
        sample = _sample(entry, workshop.spool, labels[entry.name], divided.groups.get(entry.name))
        samples.setdefault(divided.splits[entry.name], []).append(sample)
    shards: list[Shard] = []
    for split in sorted(samples):
        shards += write_shards(
            workshop.target,
            workshop.shards,
            split,
            samples[split],
            shard_bytes=options.shard_bytes,
            classes=len(classes),
        )
    _remove_unlisted(workshop.target, shards)
    return _index(classes, shards, good, options)


def _index(
    classes: tuple[str, ...], shards: Sequence[Shard], good: Sequence[Spooled], options: PackOptions
) -> ShardIndex:
    return ShardIndex(
        classes=classes,
        shards=tuple(shards),
        color="L" if all(entry.gray for entry in good) else "RGB",
        image_size=options.encode.image_size,
        grouped=options.group_by is not None,
        widths=_span([entry.width for entry in good]),
        heights=_span([entry.height for entry in good]),
        options=options.kept(),
    ).sealed()


def _sample(entry: Spooled, spool: Path, label: int, group: str | None) -> Sample:
    info = {"source": entry.name, "width": entry.width, "height": entry.height, "crc32": entry.crc32}
    return Sample(
        content=spool / entry.content,
        start=entry.start,
        size=entry.size,
        suffix=entry.suffix,
        label=label,
        info=info if group is None else {**info, "group": group},
    )


def _remove_unlisted(target: Path, shards: Sequence[Shard]) -> None:
    """Remove what an earlier, interrupted try with other options wrote."""
    listed = {shard.name for shard in shards}
    for file in (*target.glob("*.tar"), *target.glob(".*.tar.*")):  # the latter were cut short
        if file.name not in listed:
            file.unlink()


def _report(index: ShardIndex, listing: Listing, spooled: Sequence[Spooled], divided: Partition) -> PackReport:
    return PackReport(
        index=index,
        skipped=tuple((entry.name, entry.bad) for entry in spooled if entry.bad),
        other_files=listing.other_files,
        alike=divided.alike,
        leakage=divided.leakage,
    )


def _write_report(target: Path, report: PackReport) -> None:
    content = {
        "skipped": dict(report.skipped),
        "other_files": report.other_files,
        "alike": report.alike,
        "leakage": report.leakage,
    }
    write_whole(target / REPORT_NAME, json.dumps(content, indent=1) + "\n")


def _draw(name: str) -> str:
    """Return what to sort by so that classes and patients stand mixed: the same in every pack of the same names."""
    return hashlib.sha256(name.encode()).hexdigest()


def _span(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), median_low(values), max(values)
