"""Scans a source whose labels come from tables: which images to pack, each with its label, split and group."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

from data_shards.errors import SourceError
from data_shards.pack.dicom_headers import check_dicom_options, require_classes, with_header_facts
from data_shards.pack.file_tree import FileTree, join
from data_shards.pack.folder_notes import folder_notes
from data_shards.pack.labels.classes import make_classes
from data_shards.pack.labels.column_matching import SourceImages
from data_shards.pack.labels.labelled import label_images
from data_shards.pack.labels.splits import decide_splits, read_split_lists
from data_shards.pack.labels.tables import find_table
from data_shards.pack.layout import Layout, find_layout
from data_shards.pack.layout_checks import check_label_names
from data_shards.pack.names import normalized_name
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.pseudonyms import own_group
from data_shards.pack.sources import (
    ImageFolder,
    SourceImage,
    name_below,
    other_names,
    read_files,
    read_image_tree,
    refuse_same_names,
    require_training_images,
    scan_image_folder,
    without_masks,
)


def scan_source(folder: Path, options: PackOptions, *, source: Path | None = None) -> ImageFolder:
    """Return the images below a folder in order of name. Errors name `source`, the archive that it was unpacked from.

    Raises:
        OptionError: A field of DICOM headers cannot be asked for.
        SourceError: The folder holds no images, or its class folders, the tables or DICOM headers cannot be used as
            they are.
    """
    check_dicom_options(options)
    if options.labels is None:
        found = scan_image_folder(folder, options, source=source)
    else:
        found = scan_labelled_folder(folder, options, options.labels, source=source)
    left = with_header_facts(found, options)
    require_classes(found, left, options)
    return left


def scan_labelled_folder(
    folder: Path,
    options: PackOptions,
    labels: LabelOptions,
    *,
    source: Path | None = None,
    adds_to: Sequence[str] | None = None,
) -> ImageFolder:
    """Return the images below a folder that tables label. Class folders are folders like any other.

    `adds_to` are the classes of the data set that the images are added to, if there is one.

    Raises:
        SourceError: The folder holds no images, or the tables cannot be used as they are.
    """
    tree = read_image_tree(folder, source=source)
    layout = _layout(tree)
    paths, masks = _paths(tree, layout)
    source_images = SourceImages(paths)
    labelled = label_images(folder, source_images, layout.split_folders, options, adds_to or ())
    classes = make_classes(labelled, options, adds_to)
    taken = [image for image in labelled.images if image.path in classes.label_of or image.path in classes.targets_of]
    lists = read_split_lists(folder, source_images.matcher, options.split_files)
    splits = decide_splits(
        [image.path for image in taken],
        lists=lists if options.split_files else None,
        by_column={image.path: image.split for image in taken},
        column=labelled.split_column,
        is_column_told=labels.split_column is not None,
        split_folders=layout.split_folders,
        shares=options.split,
        is_addition=adds_to is not None,
    )
    images = [
        SourceImage(
            name=name_below(layout.root, image.path),
            path=folder / image.path,
            split=splits[image.path],
            label=classes.label_of.get(image.path, ""),
            targets=classes.targets_of.get(image.path),
            columns=image.columns,
            group=(image.group or own_group(name_below(layout.root, image.path))) if labelled.group_column else None,
        )
        for image in sorted(taken, key=lambda image: os.fsencode(image.path))
    ]
    notes = list(lists.notes)
    is_found = labels.split_column is None
    by_column = all(splits[image.path] in (image.split, None) for image in taken)
    if is_found and by_column and any(splits.values()):
        notes.append(f"splits: column {labelled.split_column!r}; --split-column none leaves it out")
    if adds_to is None and not options.group_by and all(image.group is None for image in images):
        notes += folder_notes(images, depth=0)
    read = read_files(folder, options) | {find_table(name, folder).resolve() for name in labels.tables}
    image_folder = ImageFolder(
        images=tuple(images),
        other_names=tuple(other_names(folder, tree, layout, read)),
        passed_over=_passed_over(tree, layout, [image.path for image in labelled.images]),
        left_out=classes.left_out,
        masks=masks,
        hidden=tree.hidden,
        label_names=classes.label_names,
        other_groups=labelled.groups,
        group_column=labelled.group_column,
        labels=labelled.report.with_notes(notes),
    )
    _check(image_folder, source or folder, is_addition=adds_to is not None)
    return image_folder


def _layout(tree: FileTree) -> Layout:
    """Return where the split folders are, if there are any: the tables may give the splits as well."""
    try:
        layout = find_layout(tree, (), folders_are_labels=False)
    except SourceError:  # two folders look like the same split
        layout = Layout(root="", split_folders={})
    root = layout.root
    while not layout.split_folders and not tree.images[root] and len(tree.subfolders[root]) == 1:
        root = join(root, tree.subfolders[root][0])  # a folder that only wraps the images is no part of their names
    return replace(layout, root=root)


def _paths(tree: FileTree, layout: Layout) -> tuple[list[list[str]], int]:
    """Return the images of the data set, then those beside the split folders, and the number of masks."""
    found = tree.images_below("")
    kept = [path for path in without_masks(found, "") if not path.startswith(_folders(layout.mask_folders))]
    inside, copies = _folders(layout.split_folders.values()), _folders(layout.passed_over)
    is_first = [path.startswith(inside) if inside else not path.startswith(copies) for path in kept]
    first, second = (
        list(compress(kept, is_first)),
        [path for path, is_one in zip(kept, is_first, strict=True) if not is_one],
    )
    return [first, second] if second else [first], len(found) - len(kept)


def _folders(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{path}/" for path in paths)


def _passed_over(tree: FileTree, layout: Layout, used: Sequence[str]) -> dict[str, int]:
    """Return the number of files in each folder beside the split folders from which no image was taken."""
    taken: dict[str, int] = defaultdict(int)
    for path in used:
        for folder in layout.passed_over:
            taken[folder] += path.startswith(f"{folder}/")
    unused = [folder for folder in layout.passed_over if not taken[folder]]
    return {f"{normalized_name(folder)}/": tree.file_count(folder) for folder in unused}


def _check(image_folder: ImageFolder, folder: Path, *, is_addition: bool) -> None:
    check_label_names(image_folder.classes)
    refuse_same_names(image_folder.images)
    if not image_folder.images:
        raise SourceError(f"no image of {folder} has a label; check --where, --classes and the columns of the tables")
    if image_folder.label_names or is_addition:
        return
    if len(image_folder.classes) == 1:
        raise SourceError(
            f"all images have one label, {image_folder.classes[0]!r}; a classifier needs two or more, choose another "
            "column with --label-column"
        )
    require_training_images(image_folder.images, image_folder.classes)
