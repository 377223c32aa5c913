"""Packs images into shards: scan, encode in parallel, check, assign splits, write, and publish the index last."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from data_shards.atomic import write_text_atomic
from data_shards.columns import KeptColumn
from data_shards.errors import SourceError
from data_shards.index import Shard, ShardIndex, write_index
from data_shards.pack.archives import is_archive
from data_shards.pack.chunks import (
    ChunkEntry,
    encode_chunk,
    files_without_image,
    flat_images,
    skipped_images,
    split_into_chunks,
)
from data_shards.pack.image_records import records_of, remove_records, write_records
from data_shards.pack.label_checks import refuse_identifying_values, require_known_targets
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import PackOptions
from data_shards.pack.sources import ImageFolder, SourceImage, require_training_images
from data_shards.pack.split_assignment import SplitAssignment, assign_splits, check_assignable
from data_shards.pack.stored_groups import check_group_options, with_stored_groups
from data_shards.pack.work_folder import WorkFolder, check_target, open_work_folder
from data_shards.pack.write import Sample, write_shards
from data_shards.process_pool import map_in_processes, process_count
from data_shards.targets import Label

REPORT_NAME = "pack-report.json"
SHOWN = 3  # names in an error
CHUNKS_PER_PROCESS = 8  # fewer are encoded in this process sooner than a new one starts

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a pack did beside its index; `pack-report.json` says the same.

    Attributes:
        folder: What the scan of the source found and left out.
        skipped: Name and fault of each image that could not be used.
        without_image: Name and kind of each DICOM file that holds no image.
        flat: Names of packed images whose pixels hardly differ, such as an export that is black.
        duplicates: Lines that connect identical or nearly identical images of one split, whose labels agree.
        contradictions: Lines that connect such images whose labels do not agree.
        leakage: Lines that connect such images of two splits, and groups in two splits, if that was allowed.
    """

    index: ShardIndex
    folder: ImageFolder
    skipped: tuple[tuple[str, str], ...]
    without_image: tuple[tuple[str, str], ...]
    flat: tuple[str, ...]
    duplicates: tuple[str, ...]
    contradictions: tuple[str, ...]
    leakage: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "skipped": dict(self.skipped),
            "without_image": dict(self.without_image),
            "flat": self.flat,
            **self.folder.left_out_json(),
            "alike": self.duplicates,
            "contradictions": self.contradictions,
            "leakage": self.leakage,
        }


def pack(source: Path, target: Path, options: PackOptions, on_progress: OnProgress = lambda *_: None) -> PackReport:
    """Pack a folder or archive of images into shards with an index, and continue an interrupted pack.

    Args:
        source: `split/class/image`, or `class/image` with `options.split`; a folder, .zip or .tar.
        target: A new folder.
        options: How to pack.
        on_progress: Called with the images done and the images in all.

    Raises:
        SourceError: The source cannot be used, too many images are bad, or the target is not free.
        LeakageError: The same image or group is in two splits.
    """
    if source.resolve() in target.resolve().parents:
        raise SourceError(f"{target} lies inside {source}; give a folder outside of it")
    check_target(target)
    check_group_options(options)
    scanned = None if is_archive(source) else _scan(source, options)  # refused before anything is written
    with open_work_folder(target) as work:
        image_folder = scanned or _scan(work.unpacked(source), options, source)
        entries = encode_images(image_folder, work, options, on_progress)
        good = [entry for entry in entries if not entry.bad]
        _check_bad(image_folder, entries, options)
        assignment = assign_splits(image_folder.images, good, options, image_folder.label_names)
        index = _write(work, image_folder, good, assignment, options)
        report = PackReport(
            index=index,
            folder=image_folder,
            skipped=skipped_images(entries),
            without_image=files_without_image(entries),
            flat=flat_images(entries),
            duplicates=assignment.duplicates,
            contradictions=assignment.contradictions,
            leakage=assignment.leakage,
        )
        write_text_atomic(target / REPORT_NAME, json.dumps(report.to_json(), indent=1) + "\n")
        write_index(target, index)
    return report


def _scan(folder: Path, options: PackOptions, source: Path | None = None) -> ImageFolder:
    image_folder = with_stored_groups(scan_source(folder, options, source=source), options)
    refuse_identifying_values(image_folder)
    if options.multi_label:
        require_known_targets(image_folder.images, image_folder.classes)
    check_assignable(image_folder.images, options, image_folder.label_names)
    return image_folder


def encode_images(
    image_folder: ImageFolder, work: WorkFolder, options: PackOptions, on_progress: OnProgress
) -> list[ChunkEntry]:
    """Encode what is not encoded yet and return the entries of all images in their order."""
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


def refuse_too_many_bad(entries: Sequence[ChunkEntry], max_bad: float) -> None:
    """Refuse a source of which more than a share of the images cannot be used.

    Raises:
        SourceError: The text names some of them.
    """
    bad, images = skipped_images(entries), sum(entry.is_image for entry in entries)
    if len(bad) > max_bad * images:
        named = "; ".join(f"{name}: {fault}" for name, fault in bad[:SHOWN])
        raise SourceError(
            f"{len(bad)} of {images} images cannot be used, more than --max-bad {max_bad:.3g} allows: {named}"
        )


def _check_bad(image_folder: ImageFolder, entries: Sequence[ChunkEntry], options: PackOptions) -> None:
    refuse_too_many_bad(entries, options.max_bad)
    usable = [image for image, entry in zip(image_folder.images, entries, strict=True) if not entry.bad]
    if options.multi_label:
        require_known_targets(usable, image_folder.classes)
        return
    if lost := set(image_folder.classes) - {image.label for image in usable}:
        raise SourceError(
            f"class {min(lost)!r} has no usable image; repair its files, or use --drop-class {min(lost)!r}"
        )
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
    images = {image.name: image for image in image_folder.images}
    for entry in sorted(good, key=lambda entry: sort_key(entry.name)):
        image = images[entry.name]
        label, group = label_of(image, classes), assignment.groups.get(entry.name)
        sample = sample_of(entry, work.encoded, label, group, image.columns)
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
    write_records(work.target, records_of(shards, samples))
    key = {"group_key": image_folder.group_key} if image_folder.group_key else {}
    columns = options.labels.keep_columns if options.labels else ()
    index = _index(classes, shards, good, options.to_index() | key, grouped=bool(assignment.groups), columns=columns)
    column = (image_folder.group_column or "") if index.grouped else ""
    return index.model_copy(update={"about": options.about, "group_column": column})


def label_of(image: SourceImage, classes: tuple[str, ...]) -> Label:
    """Return the label of an image as its sample stores it."""
    return classes.index(image.label) if image.targets is None else image.targets


def _index(
    classes: tuple[str, ...],
    shards: Sequence[Shard],
    good: Sequence[ChunkEntry],
    options: Mapping[str, Any],
    *,
    grouped: bool,
    columns: tuple[KeptColumn, ...],
) -> ShardIndex:
    return ShardIndex(
        classes=classes,
        shards=tuple(shards),
        color="L" if all(entry.gray for entry in good) else "RGB",
        image_size=options["image_size"],
        grouped=grouped,
        widths=span_of([entry.width for entry in good]),
        heights=span_of([entry.height for entry in good]),
        options=dict(options),
        multi_label=options.get("multi_label", False),
        columns=columns,
    ).sealed()


def sample_of(entry: ChunkEntry, encoded: Path, label: Label, group: str | None, columns: Mapping[str, str]) -> Sample:
    """Return the sample to write of an encoded image; `encoded` is the folder of the chunks."""
    info = {"source": entry.name, "width": entry.width, "height": entry.height, "crc32": entry.crc32}
    stated = {name: value for name, value in columns.items() if value}
    return Sample(
        content=encoded / entry.content,
        start=entry.start,
        size=entry.size,
        suffix=entry.suffix,
        label=label,
        info=info | ({} if group is None else {"group": group}) | ({"columns": stated} if stated else {}),
        sha256=entry.sha256,
        phash=entry.phash,
    )


def _remove_unlisted(target: Path, shards: Sequence[Shard]) -> None:
    """Remove what an interrupted pack with other options wrote."""
    listed = {shard.name for shard in shards}
    for file in (*target.glob("*.tar"), *target.glob(".*.tar.*")):  # the latter are incomplete
        if file.name not in listed:
            file.unlink()
    remove_records(target)


def sort_key(name: str) -> str:
    """Return a sort key that mixes classes and patients, and is the same in every pack of the same names."""
    return hashlib.sha256(name.encode()).hexdigest()


def span_of(values: Sequence[int]) -> tuple[int, int, int]:
    """Return the minimum, median and maximum."""
    return min(values), median_low(values), max(values)
