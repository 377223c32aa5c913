"""Adds images to a data set: encodes and writes only the new ones; the shards that are there stay as they are."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_shards.atomic import write_text_atomic
from data_shards.errors import OptionError, SourceError
from data_shards.index import Addition, Shard, ShardIndex, read_index
from data_shards.locations import local_folder
from data_shards.pack.add_folder import AddFolder, open_add_folder
from data_shards.pack.add_options import add_options
from data_shards.pack.add_scan import scan_new_images
from data_shards.pack.add_splits import AddedSplits, NewImage, Shares, assign_new_images, check_groups
from data_shards.pack.archives import is_archive
from data_shards.pack.chunks import ChunkEntry, files_without_image, flat_images, skipped_images
from data_shards.pack.image_records import records_of, write_records
from data_shards.pack.known_duplicates import KnownImage, find_known_images
from data_shards.pack.known_images import KnownImages, ShowProgress, known_images, no_progress
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import (
    encode_images,
    label_of,
    refuse_too_many_bad,
    sample_of,
    sort_key,
    span_of,
)
from data_shards.pack.sources import ImageFolder, SourceImage
from data_shards.pack.split import ANY_IMAGE, LabeledImage, Stratum
from data_shards.pack.split_assignment import groups_of_images, known_targets
from data_shards.pack.stored_groups import named_groups, refuse_other_spellings, with_stored_groups
from data_shards.pack.write import AfterShards, Sample, write_shards
from data_shards.targets import ABSENT, PRESENT, Label


@dataclass(frozen=True, kw_only=True)
class AddReport:
    """What was added and what was not; `add-report-N.json` says the same.

    Attributes:
        before: Index of the data set before.
        index: Index of the data set now; the same if nothing was added.
        folder: What the scan of the source found and left out.
        skipped: Name and fault of each image that could not be used.
        without_image: Name and kind of each DICOM file that holds no image.
        known: The images that the data set had already.
        duplicates: Lines that connect new images with identical or nearly identical ones of their split,
            whose labels agree.
        contradictions: Lines that connect such images whose labels do not agree.
        leakage: Lines that connect such images of two splits, and groups in two splits, if that was allowed.
        flat: Names of added images whose pixels hardly differ, such as an export that is black.
        color: Names of color images in a gray data set; they are read as gray.
        hashed: Number of old images that were read from their shards, as they had no record.
    """

    before: ShardIndex
    index: ShardIndex
    folder: ImageFolder
    skipped: tuple[tuple[str, str], ...]
    without_image: tuple[tuple[str, str], ...]
    known: tuple[KnownImage, ...]
    duplicates: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()
    leakage: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    color: tuple[str, ...] = ()
    hashed: int = 0

    @property
    def added(self) -> dict[str, int]:
        """Number of images that were added to each split."""
        counts = {split: self.index.samples_in(split) - self.before.samples_in(split) for split in self.index.splits}
        return {split: count for split, count in counts.items() if count}

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "added": self.added,
            "digest_before": self.before.digest,
            "digest_after": self.index.digest,
            "skipped": dict(self.skipped),
            "without_image": dict(self.without_image),
            "flat": self.flat,
            "known": [str(image) for image in self.known],
            "alike": self.duplicates,
            "contradictions": self.contradictions,
            "leakage": self.leakage,
            "read_as_gray": self.color,
            **self.folder.left_out_json(),
        }


def add(
    location: str,
    source: Path,
    given: Mapping[str, Any],
    *,
    progress: ShowProgress = no_progress,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AddReport:
    """Add the images of a folder or archive to a data set.

    New images of a known group, and near-duplicates of known images, go to the split that has them. Others are divided
    so that the shares of the data set are kept, unless the source has split folders.

    Args:
        location: Folder of the data set.
        source: `split/class/image` or `class/image`; a folder, .zip or .tar.
        given: The options that were given, by the names of the fields of `PackOptions` and `EncodeOptions`.
        progress: Opens a progress bar with a title; what it gives is called with the images done and those in all.
        clock: Returns the time, in UTC.

    Raises:
        OptionError: An option contradicts the data set.
        SourceError: The source cannot be used, too many images are bad, or the data set cannot be written.
        LeakageError: The same image or group would be in two splits.
        BadIndex, DamagedShard: The data set is damaged.
    """
    target = local_folder(location)
    if target is None:
        raise SourceError(f"{location} is not on this machine; add to a local copy, and upload its new files")
    add_options(read_index(location), given)  # refused before anything is written
    with open_add_folder(target) as work:
        before = read_index(location)
        adding = _Adding(work=work, before=before, options=add_options(before, given), given=given, now=clock())
        return adding.run(source, progress)


@dataclass(frozen=True, kw_only=True)
class _Adding:
    """One add, which has the data set to itself."""

    work: AddFolder
    before: ShardIndex
    options: PackOptions
    given: Mapping[str, Any]
    now: datetime

    def run(self, source: Path, progress: ShowProgress) -> AddReport:
        unpacked = self.work.unpacked(source) if is_archive(source) else source
        scanned = scan_new_images(unpacked, self.before, self.options, self.given, source=source)
        named = named_groups(scanned, self.options, self.before.group_column) if self.before.grouped else None
        folder = scanned if named is None else with_stored_groups(scanned, self.options, named)
        groups = self._groups(folder.images)
        images = known_images(self.work.target, self.before, processes=self.options.processes, progress=progress)
        if named is not None:
            refuse_other_spellings(scanned, self.options, named, {record.group for _, record in images})
        splits = {image.name: image.split for image in folder.images}
        check_groups(groups, splits, images, allow_leakage=self._allows_leakage)
        with progress("adding") as on_progress:
            entries = encode_images(folder, self.work, self.options, on_progress)
        refuse_too_many_bad(entries, self.options.max_bad)
        labels = {image.name: label_of(image, self.before.classes) for image in folder.images}
        good = [entry for entry in entries if not entry.bad]
        known = find_known_images(good, labels, images, self.work.encoded)
        new = _without(good, known)
        assigned = self._assign(folder, new, groups, images)
        columns = {image.name: image.columns for image in folder.images}
        samples = self._samples(new, assigned.splits, labels, groups, columns)
        shards = self._write(samples)
        report = AddReport(
            before=self.before,
            index=self._index(shards, images, new) if shards else self.before,
            folder=folder,
            skipped=skipped_images(entries),
            without_image=files_without_image(entries),
            known=known,
            flat=flat_images(new),
            duplicates=assigned.duplicates,
            contradictions=assigned.contradictions,
            leakage=assigned.leakage,
            color=tuple(entry.name for entry in new if not entry.gray) if self.before.color == "L" else (),
            hashed=images.hashed,
        )
        if shards:
            self._publish(report, shards, samples)
        return report

    def _groups(self, images: Sequence[SourceImage]) -> dict[str, str]:
        groups = groups_of_images(images) if self.before.grouped else {}
        if self.before.grouped and not groups:
            raise OptionError(
                "the images of the data set have groups; give those of the new images with --group-column or --group-by"
            )
        return groups

    def _assign(
        self, folder: ImageFolder, new: Sequence[ChunkEntry], groups: Mapping[str, str], images: KnownImages
    ) -> AddedSplits:
        sources = {image.name: image for image in folder.images}
        to_assign = [
            NewImage(
                labeled=LabeledImage(
                    name=entry.name,
                    label=sources[entry.name].label,
                    group=groups.get(entry.name, entry.name),
                    targets=known_targets(sources[entry.name], folder.label_names),
                ),
                grouped=entry.name in groups,
                split=sources[entry.name].split,
                class_or_targets=sources[entry.name].class_or_targets,
                sha256=entry.sha256,
                phash=entry.phash,
            )
            for entry in new
        ]
        return assign_new_images(
            to_assign, images, self.before.classes, self._shares(), allow_leakage=self._allows_leakage
        )

    @property
    def _allows_leakage(self) -> bool:
        return bool(self.before.options.get("allow_leakage"))

    def _shares(self) -> Shares:
        """Return how new groups are divided: the data set as a whole keeps the shares that it was packed with."""
        kept = self.before.options.get("split")
        before = {split: _strata_in(self.before, split) for split in self.before.splits} if kept else {}
        return Shares(text=str(self.options.split), before=before, seed=self.options.seed)

    def _samples(
        self,
        new: Sequence[ChunkEntry],
        splits: Mapping[str, str],
        labels: Mapping[str, Label],
        groups: Mapping[str, str],
        columns: Mapping[str, Mapping[str, str]],
    ) -> dict[str, list[Sample]]:
        """Return the samples of each split in the order in which they are stored."""
        samples: dict[str, list[Sample]] = {}
        for entry in sorted(new, key=lambda entry: sort_key(entry.name)):
            name = entry.name
            sample = sample_of(entry, self.work.encoded, labels[name], groups.get(name), columns[name])
            samples.setdefault(splits[entry.name], []).append(sample)
        return samples

    def _write(self, samples: Mapping[str, Sequence[Sample]]) -> list[Shard]:
        shards: list[Shard] = []
        for split in sorted(samples):
            shards += write_shards(
                self.work.new,
                self.work.shards,
                split,
                samples[split],
                shard_bytes=self.options.shard_bytes,
                classes=len(self.before.classes),
                after=AfterShards(
                    number=_next_number(self.before, split), samples=self.before.samples_in(split), least_shards=1
                ),
            )
        return shards

    def _index(self, shards: Sequence[Shard], images: KnownImages, new: Sequence[ChunkEntry]) -> ShardIndex:
        records = [record for _, record in images]
        addition = Addition(
            digest=self.before.digest,
            shards=len(self.before.shards),
            widths=self.before.widths,
            heights=self.before.heights,
            time=self.now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        return self.before.model_copy(
            update={
                "shards": (*self.before.shards, *shards),
                "widths": span_of([*(record.width for record in records), *(entry.width for entry in new)]),
                "heights": span_of([*(record.height for record in records), *(entry.height for entry in new)]),
                "history": (*self.before.history, addition),
            }
        ).sealed()

    def _publish(self, report: AddReport, shards: Sequence[Shard], samples: Mapping[str, Sequence[Sample]]) -> None:
        path = self.work.new / f"add-report-{len(report.index.history)}.json"
        write_text_atomic(path, json.dumps(report.to_json(), indent=1) + "\n")
        records = write_records(self.work.new, records_of(shards, samples))
        files = [*(self.work.new / shard.name for shard in shards), records, path]
        self.work.publish(self.before, report.index, files)


def _without(entries: Sequence[ChunkEntry], known: Sequence[KnownImage]) -> list[ChunkEntry]:
    names = {image.name for image in known}
    return [entry for entry in entries if entry.name not in names]


def _strata_in(index: ShardIndex, split: str) -> dict[Stratum, int]:
    """Return the number of images of each class in a split, as new images are counted."""
    if not index.multi_label:
        return {(name, PRESENT): n for name, n in zip(index.classes, index.per_class_in(split), strict=True)}
    counts = {ANY_IMAGE: index.samples_in(split)}
    for name, found in zip(index.classes, index.targets_in(split), strict=True):
        counts |= {(name, PRESENT): found.present, (name, ABSENT): found.absent}
    return counts


def _next_number(index: ShardIndex, split: str) -> int:
    """Return the number in the name of the next shard of a split."""
    names = [re.fullmatch(rf"{re.escape(split)}-([0-9]+)\.tar", shard.name) for shard in index.shards]
    return max((int(name[1]) + 1 for name in names if name), default=0)
