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
from data_shards.pack.chunks import ChunkEntry, encode_chunk, split_into_chunks
from data_shards.pack.options import PackOptions
from data_shards.pack.sources import ImageFolder, has_splits, require_training_images, scan_image_folder
from data_shards.pack.split_assignment import SplitAssignment, assign_splits
from data_shards.pack.work_folder import WorkFolder, open_work_folder
from data_shards.pack.write import Sample, write_shards
from data_shards.process_pool import map_in_processes, process_count

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
        duplicates: Lines that join the images that are the same or nearly so, in one split.
        leakage: Likewise over two splits, where that was allowed.
    """

    index: ShardIndex
    skipped: tuple[tuple[str, str], ...]
    other_files: dict[str, int]
    duplicates: tuple[str, ...]
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
    with open_work_folder(target) as work:
        image_folder = _scan(work.folder_of(source), options)
        entries = _encode(image_folder, work, options, on_progress)
        good = [entry for entry in entries if not entry.bad]
        _check_bad(image_folder, entries, options.max_bad)
        assignment = assign_splits(image_folder.images, good, options)
        index = _write(work, image_folder, good, assignment, options)
        report = _report(index, image_folder, entries, assignment)
        _write_report(target, report)
        write_index(target, index)
    return report


def _scan(folder: Path, options: PackOptions) -> ImageFolder:
    given = folder.is_dir() and has_splits(folder)
    if given and options.split:
        raise SourceError("the source is laid out split/class/image already; leave out --split, or rename its folders")
    if folder.is_dir() and not given and not options.split:
        raise SourceError("the source has no folders train, valid and test; add --split 70/15/15")
    return scan_image_folder(folder, split_given=given)


def _encode(
    image_folder: ImageFolder, work: WorkFolder, options: PackOptions, on_progress: OnProgress
) -> list[ChunkEntry]:
    """Encode what is not encoded yet and return every image in the listing's order."""
    work.reuse_chunks_of(image_folder.images, asdict(options.encode))
    chunks = split_into_chunks(image_folder.images, work.encoded)
    todo = [chunk for chunk in chunks if not chunk.is_done()]
    done = len(image_folder.images) - sum(len(chunk.images) for chunk in todo)
    on_progress(done, len(image_folder.images))
    processes = options.processes or process_count(len(todo), per_process=CHUNKS_PER_PROCESS)
    for _, count in map_in_processes(encode_chunk, [(chunk, options.encode) for chunk in todo], processes=processes):
        done += count
        on_progress(done, len(image_folder.images))
    return [entry for chunk in chunks for entry in chunk.read()]


def _check_bad(image_folder: ImageFolder, entries: Sequence[ChunkEntry], max_bad: float) -> None:
    bad = [entry for entry in entries if entry.bad]
    if len(bad) > max_bad * len(entries):
        named = "; ".join(f"{entry.name}: {entry.bad}" for entry in bad[:SHOWN])
        raise SourceError(
            f"{len(bad)} of {len(entries)} images cannot be used, more than --max-bad {max_bad:.3g} allows: {named}"
        )
    usable = [image for image, entry in zip(image_folder.images, entries, strict=True) if not entry.bad]
    if lost := set(image_folder.classes) - {image.label for image in usable}:
        raise SourceError(f"class {min(lost)!r} has no usable image; mend its files or remove the class")
    require_training_images(usable, image_folder.classes)


def _write(
    work: WorkFolder,
    image_folder: ImageFolder,
    good: Sequence[ChunkEntry],
    assignment: SplitAssignment,
    options: PackOptions,
) -> ShardIndex:
    classes = image_folder.classes
    samples: dict[str, list[Sample]] = {}
    labels = {image.name: classes.index(image.label) for image in image_folder.images}
    for entry in sorted(good, key=lambda entry: _draw(entry.name)):
        sample = _sample(entry, work.encoded, labels[entry.name], assignment.groups.get(entry.name))
        samples.setdefault(assignment.splits[entry.name], []).append(sample)
    shards: list[Shard] = []
    for split in sorted(samples):
        shards += write_shards(
            work.target,
            work.shards,
            split,
            samples[split],
            shard_bytes=options.shard_bytes,
            classes=len(classes),
        )
    _remove_unlisted(work.target, shards)
    return _index(classes, shards, good, options)


def _index(
    classes: tuple[str, ...], shards: Sequence[Shard], good: Sequence[ChunkEntry], options: PackOptions
) -> ShardIndex:
    return ShardIndex(
        classes=classes,
        shards=tuple(shards),
        color="L" if all(entry.gray for entry in good) else "RGB",
        image_size=options.encode.image_size,
        grouped=options.group_by is not None,
        widths=_span([entry.width for entry in good]),
        heights=_span([entry.height for entry in good]),
        options=options.to_index(),
    ).sealed()


def _sample(entry: ChunkEntry, encoded: Path, label: int, group: str | None) -> Sample:
    info = {"source": entry.name, "width": entry.width, "height": entry.height, "crc32": entry.crc32}
    return Sample(
        content=encoded / entry.content,
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


def _report(
    index: ShardIndex, image_folder: ImageFolder, entries: Sequence[ChunkEntry], assignment: SplitAssignment
) -> PackReport:
    return PackReport(
        index=index,
        skipped=tuple((entry.name, entry.bad) for entry in entries if entry.bad),
        other_files=image_folder.other_files,
        duplicates=assignment.duplicates,
        leakage=assignment.leakage,
    )


def _write_report(target: Path, report: PackReport) -> None:
    content = {
        "skipped": dict(report.skipped),
        "other_files": report.other_files,
        "alike": report.duplicates,
        "leakage": report.leakage,
    }
    write_whole(target / REPORT_NAME, json.dumps(content, indent=1) + "\n")


def _draw(name: str) -> str:
    """Return what to sort by so that classes and patients stand mixed: the same in every pack of the same names."""
    return hashlib.sha256(name.encode()).hexdigest()


def _span(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), median_low(values), max(values)
