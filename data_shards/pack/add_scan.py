"""Scans a source for images to add to a data set: its classes must be those of the data set."""

import shlex
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_shards.errors import OptionError, SourceError
from data_shards.index import ShardIndex
from data_shards.pack.dicom_headers import with_header_facts
from data_shards.pack.file_tree import FileTree
from data_shards.pack.labelled_folder import scan_labelled_folder
from data_shards.pack.layout import Layout, find_layout
from data_shards.pack.names import loose_name, normalized_name
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.sources import ImageFolder, SourceImage, collect_images, read_image_tree
from data_shards.targets import UNKNOWN

SHOWN = 3  # names in an error


def scan_new_images(
    folder: Path, index: ShardIndex, options: PackOptions, given: Mapping[str, Any], *, source: Path | None = None
) -> ImageFolder:
    """Return the images of a source that are to be added to a data set.

    Args:
        folder: The source, unpacked.
        index: Index of the data set.
        options: The options for the new images.
        given: Those of them that were given; the others are the data set's.
        source: The archive that the source was unpacked from.

    Raises:
        SourceError: The source cannot be used, or has a class that the data set does not have.
        OptionError: The options do not fit the source.
    """
    if options.labels is not None:
        return with_header_facts(_from_tables(folder, index, options, options.labels, source), options)
    tree = read_image_tree(folder, source=source)
    layout = find_layout(tree, index.classes)
    if index.multi_label:
        raise OptionError("each image of the data set has several labels; give those of the new images with --labels")
    chosen = _for_layout(options, index, given, tree, layout)
    found = collect_images(folder, tree, layout, chosen, is_addition=True)
    return with_header_facts(found, options)


def _from_tables(
    folder: Path, index: ShardIndex, options: PackOptions, labels: LabelOptions, source: Path | None
) -> ImageFolder:
    found = scan_labelled_folder(folder, options, labels, source=source, adds_to=index.classes)
    left_out = _left_out(index, {*found.classes})
    if new := sorted({*found.classes} - {*index.classes} - left_out):
        raise SourceError(_new_class(new, index, "write it so in the table"))
    absent = {name for name in index.classes if not found.left_out.get(name)}
    found = replace(found, left_out={name: n for name, n in found.left_out.items() if name not in absent})
    if index.multi_label:
        return _with_labels_of(index, found)
    counts = Counter(image.label for image in found.images if image.label in left_out)
    images = tuple(image for image in found.images if image.label not in left_out)
    return replace(found, images=images, left_out=found.left_out | counts)


def _left_out(index: ShardIndex, names: set[str]) -> set[str]:
    """Return the classes that were left out when the data set was packed."""
    if "classes" in index.options:  # all others were
        return names - {*index.classes}
    return {*str(index.options.get("drop_classes", "")).split(",")} & names - {*index.classes}


def _for_layout(
    options: PackOptions, index: ShardIndex, given: Mapping[str, Any], tree: FileTree, layout: Layout
) -> PackOptions:
    """Return the options with the classes that the source has, and with shares only if it has no split folders."""
    names = {normalized_name(name) for _, name, _ in layout.class_folders(tree)}
    dropped = set(given.get("drop_classes", ()))
    known = [name for name in index.classes if name in names and name not in dropped]
    if new := sorted(names - {*index.classes} - dropped - _left_out(index, names)):
        raise SourceError(_new_class(new, index, "rename the folder"))
    if names and not known:
        raise SourceError(f"the source has no image of {', '.join(index.classes)}, the classes of the data set")
    return replace(
        options,
        classes=tuple(known),
        drop_classes=tuple(sorted(dropped)),
        split=given.get("split") if layout.split_folders else options.split,
    )


def _new_class(names: Collection[str], index: ShardIndex, rename: str) -> str:
    spellings = {loose_name(name): name for name in index.classes}
    listed = ", ".join(map(repr, list(names)[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
    for name in names:
        if same := spellings.get(loose_name(name)):
            return f"the class {name!r} is called {same!r} in the data set; {rename}"
    cures = " ".join(f"--drop-class {shlex.quote(name)}" for name in list(names)[:SHOWN])
    return (
        f"the data set has no class {listed}, only {', '.join(index.classes)}; leave it out with {cures}, or pack a "
        "new data set"
    )


def _with_labels_of(index: ShardIndex, found: ImageFolder) -> ImageFolder:
    """Return the images with a target for each label of the data set: unknown where the source has no such label."""
    place = {name: position for position, name in enumerate(found.label_names)}

    def aligned(image: SourceImage) -> SourceImage:
        targets = image.targets or ()
        return replace(
            image, targets=tuple(targets[place[name]] if name in place else UNKNOWN for name in index.classes)
        )

    return replace(found, images=tuple(map(aligned, found.images)), label_names=index.classes)
