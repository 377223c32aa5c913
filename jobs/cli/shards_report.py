"""What `nightshift shards pack` and `add` print about the images that they packed or left out."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_shards.counted import counted, counted_by
from data_shards.index import cure_without_valid
from data_shards.pack.other_files import by_kind
from jobs.cli.shards_groups import print_groups
from jobs.cli.terminal import echo

if TYPE_CHECKING:
    from data_shards.pack.add import AddReport
    from data_shards.pack.labels.labelled import LabelReport
    from data_shards.pack.packing import PackReport
    from data_shards.pack.sources import ImageFolder

CONTRADICTIONS = "the same or nearly the same image with different labels"
SHOWN = 20  # lines of a list on the terminal; the pack report has all of them


def print_report(report: "PackReport", shards: Path) -> None:
    """Print what `pack` did: counts, then lists of what was skipped, ignored or found."""
    index = report.index
    images = counted_by({split: index.samples_in(split) for split in index.splits}, "image")
    classes = "1 class" if len(index.classes) == 1 else f"{len(index.classes)} classes"
    click.echo(f"packed {images} of {classes} into {counted(len(index.shards), 'shard')}", err=True)
    _print_lists(report)
    if "train" in index.splits and "valid" not in index.splits:
        echo(
            "note: there is no split valid, on which training chooses the best epoch; "
            f"{cure_without_valid(index)}, or train with --folds",
            err=True,
        )
    click.echo(f"next: nightshift shards show {shlex.quote(str(shards))}", err=True)


def print_added(report: "AddReport", shards: str) -> None:
    """Print what `add` did, as `print_report` does."""
    before, index, added = report.before, report.index, report.added
    shard_count = len(index.shards) - len(before.shards)
    done = f"added {counted_by(added, 'image')} in {counted(shard_count, 'shard')}" if added else "no image was added"
    click.echo(done, err=True)
    print_list("in the data set already", [str(image) for image in report.known])
    _print_lists(report)
    print_list("color images, read as gray like all others of the data set", report.color)
    if before.grouped and "group_key" not in before.options:
        click.echo("note: groups are stored as they are, like the others of the data set", err=True)
    if added and before.columns and not any(image.columns for image in report.folder.images):
        echo(
            f"note: the new images have no value in the kept columns {', '.join(map(str, before.columns))}; "
            "values come from --labels TABLE",
            err=True,
        )
    if report.hashed:
        click.echo(
            f"note: {report.hashed:,} old images had no record; they were read from the shards, and have one now",
            err=True,
        )
    if added:
        total = sum(index.samples_in(split) for split in index.splits)
        click.echo(f"the data set has {total:,} images; digest {before.digest[:16]} -> {index.digest[:16]}", err=True)
    click.echo(f"next: nightshift shards show {shlex.quote(shards)}", err=True)


def _print_lists(report: "PackReport | AddReport") -> None:
    print_list("skipped", [f"{name}: {fault}" for name, fault in report.skipped])
    print_list("ignored, DICOM files without an image", [f"{name}: {kind}" for name, kind in report.without_image])
    _print_left_out(report.folder)
    print_list("packed, although their pixels hardly differ", report.flat)
    print_list("near-duplicates within a split", report.duplicates)
    print_list(CONTRADICTIONS, report.contradictions)
    print_list("leaks, allowed", report.leakage)


def _print_left_out(folder: "ImageFolder") -> None:
    print_groups(folder)
    for name, count in folder.passed_over.items():
        echo(f"passed over: {name} ({counted(count, 'file')})", err=True)
    if folder.masks:
        click.echo(f"passed over: {counted(folder.masks, 'segmentation mask')}", err=True)
    if folder.hidden:
        images = counted(folder.hidden, "image")
        click.echo(f"passed over: {images} in hidden files or folders (.NAME), or those of the system", err=True)
    for label, count in folder.left_out.items():
        echo(f"left out: class {label} ({counted(count, 'image')})", err=True)
    print_list("left out by --where, from DICOM headers", folder.filtered)
    for title, names in by_kind(folder.other_names).items():
        print_list(title, names)
    _print_labels(folder.labels)
    if folder.table:
        echo(
            f"note: {folder.table}; the labels packed here are the names of the folders; "
            f"did you mean --labels {shlex.quote(folder.table.name)}?",
            err=True,
        )


def _print_labels(labels: "LabelReport | None") -> None:
    if labels is None:
        return
    for note in labels.notes:
        echo(f"note: {note}", err=True)
    if labels.filtered_rows:
        rows, images = counted(labels.filtered_rows, "row"), counted(labels.filtered_images, "image")
        click.echo(f"left out by --where: {rows}, {images}", err=True)
    if labels.images_without_group:
        images = counted(labels.images_without_group, "image")
        click.echo(f"note: {images} without a group; each is a group of its own", err=True)
    print_list("left out, rows that name no image", labels.rows_without_image)
    print_list("left out, images without a row", labels.images_without_row)
    print_list("left out, images without a label", labels.images_without_label)


def _printable(line: str) -> str:
    """Escape line ends and control characters, which a file name may have."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def print_list(title: str, lines: Sequence[str]) -> None:
    """Print a title and the first lines of a list, on stderr; nothing of an empty one."""
    if not lines:
        return
    click.echo(f"{title} ({len(lines)}):", err=True)
    for line in lines[:SHOWN]:
        click.echo(f"  {_printable(line)}", err=True)
    if len(lines) > SHOWN:
        click.echo(f"  and {len(lines) - SHOWN} more", err=True)
