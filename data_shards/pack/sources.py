"""Scans a folder for what to pack: its images, each with its class and, if the folder gives it, its split."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_shards.errors import SourceError
from data_shards.index import INDEX_NAME
from data_shards.pack.file_tree import FileTree, join, read_tree
from data_shards.pack.folder_notes import folder_notes
from data_shards.pack.groups import is_table
from data_shards.pack.label_tables import LabelTable, best_table
from data_shards.pack.labels.labelled import LabelReport
from data_shards.pack.labels.matching import ImageMatcher
from data_shards.pack.labels.splits import decide_splits, divided_train, read_split_lists
from data_shards.pack.labels.tables import find_table
from data_shards.pack.layout import Layout, find_layout
from data_shards.pack.layout_checks import check_class_names, check_layout
from data_shards.pack.names import (
    differ_in_splits_alone,
    image_of_mask,
    is_archive_name,
    is_mask_folder,
    normalized_name,
)
from data_shards.pack.options import PackOptions
from data_shards.pack.other_files import ARCHIVES, by_kind, cure_without_images
from data_shards.pixels import FORMAT_NAMES
from data_shards.targets import Targets

SHOWN = 3  # names in an error
MAX_LISTED = 10_000  # names of files in a report
TABLE_DEPTH = 1  # levels below the root at which a table of labels is searched


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image file to pack.

    Attributes:
        name: Path below the root of the layout, with "/" between its parts, in composed Unicode: the same on every
            system.
        split: The split that the source gives it, None if the source has no split folders.
        label: Its class; "" in a multi-label data set.
        group: Its group (patient or case), if the labels come from tables with a column of groups; else None.
        targets: In a multi-label data set a value for each of the folder's classes, in their order: `PRESENT`,
            `ABSENT` or `UNKNOWN` of `data_shards.targets`; else None.
        columns: Its value in each column that is kept, "" where the table has none.
    """

    name: str
    path: Path
    split: str | None
    label: str = ""
    targets: Targets | None = None
    group: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_or_targets(self) -> str | Targets:
        """Its class, or its targets in a multi-label data set."""
        return self.label if self.targets is None else self.targets


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of a source and what was left out.

    Attributes:
        other_names: Names of the files that are not images.
        passed_over: Number of files in each folder that is no part of the data set.
        left_out: Number of images of each class that `--classes` or `--drop-class` leaves out.
        masks: Number of segmentation masks.
        hidden: Number of files named like an image that are hidden, or in a hidden folder or one of the system.
        table: A table that names most of the images, if there is one.
        labels: How the tables of labels were read and what they left out, if the labels come from tables.
        filtered: Names of the images that a condition on DICOM headers leaves out.
        other_groups: Groups of what is left out: of such images, and of rows that name no image.
        group_column: Name of the column of the tables that gives the groups; None without one.
        renamed: Number of images whose stored name has a hash in place of an identifier.
        group_key: Fingerprint of the key that the groups are named with; None if they are stored as they are.
        label_names: In a multi-label data set the names of its labels, in the order of the images' targets.
    """

    images: tuple[SourceImage, ...]
    other_names: tuple[str, ...] = ()
    passed_over: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    masks: int = 0
    hidden: int = 0
    table: LabelTable | None = None
    label_names: tuple[str, ...] = ()
    labels: LabelReport | None = None
    filtered: tuple[str, ...] = ()
    other_groups: frozenset[str] = frozenset()
    group_column: str | None = None
    renamed: int = 0
    group_key: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of a multi-label data set's labels; else the classes in order of name."""
        if self.label_names:
            return self.label_names
        return tuple(sorted({image.label for image in self.images}))

    @property
    def other_files(self) -> dict[str, int]:
        """Number of files that are not images, by the ending of their names."""
        return _by_ending(self.other_names)

    def left_out_json(self) -> dict[str, Any]:
        """Return what was left out, as the reports of packing and adding have it."""
        return {
            "other_files": self.other_files,
            "other_names": self.other_names[:MAX_LISTED],
            "passed_over": self.passed_over,
            "left_out": self.left_out,
            "masks": self.masks,
            "hidden": self.hidden,
            "filtered": self.filtered[:MAX_LISTED],
            **({"labels": self.labels.to_json(MAX_LISTED)} if self.labels else {}),
        }


def scan_image_folder(folder: Path, options: PackOptions, *, source: Path | None = None) -> ImageFolder:
    """Return the images below a folder in order of name. Errors name `source`, the archive that it was unpacked from.

    Raises:
        SourceError: The folder is missing, holds no images, has no layout that can be recognized, or its class folders
            cannot be used as they are.
    """
    tree = read_image_tree(folder, source=source)
    image_folder = collect_images(folder, tree, find_layout(tree, options.classes), options)
    _check(image_folder, source or folder)
    return image_folder


def read_image_tree(folder: Path, *, source: Path | None = None) -> FileTree:
    """Return the files of a folder with images. Errors name `source`, the archive that it was unpacked from.

    Raises:
        SourceError: The folder is missing or holds no images.
    """
    if not folder.is_dir():
        raise SourceError(_no_folder(folder))
    tree = read_tree(folder)
    if not tree.has_images(""):
        raise SourceError(_no_image(source or folder, tree))
    return tree


def collect_images(
    folder: Path, tree: FileTree, layout: Layout, options: PackOptions, *, is_addition: bool = False
) -> ImageFolder:
    """Return the images of a layout in order of name.

    `is_addition` says that they are added to a data set: then lists may give every image its split.

    Raises:
        SourceError: The class folders cannot be used as they are.
    """
    read = read_files(folder, options)
    near = [name for name in _near_files(tree, layout.root) if not _is_one_of(read, folder / name)]
    table = best_table(folder, near, _image_groups(tree, layout))
    check_layout(tree, layout, table, options, is_addition=is_addition)
    found = _by_lists(folder, _collect(folder, tree, layout, table, options), options, is_addition=is_addition)
    if layout.split_folders and options.split and not is_addition:
        splits = divided_train({image.name: image.split for image in found.images}, options.split)
        found = replace(found, images=tuple(replace(image, split=splits[image.name]) for image in found.images))
    depth = 2 if layout.split_folders else 1
    notes = [] if options.group_by or is_addition else folder_notes(found.images, depth=depth)
    return replace(found, labels=(found.labels or LabelReport()).with_notes(notes)) if notes else found


def _no_folder(path: Path) -> str:
    if path.is_file() and is_archive_name(path.name):
        return f"{path} is an archive of a kind that Nightshift does not unpack; unpack it first, and pack the folder"
    return f"{path} is no folder; give a folder, .zip or .tar of images"


def _no_image(folder: Path, tree: FileTree) -> str:
    others = tree.others_below("")
    if (folder / INDEX_NAME).is_file() or INDEX_NAME in tree.others[""]:
        return f"{folder} is a data set of shards; give the images that it was packed from"
    archives = by_kind(others).get(ARCHIVES)
    if archives:
        archive = normalized_name(archives[0])
        return f"{folder} holds no image, but the archive {archive}; unpack it first, and pack the folder"
    endings = ", ".join(f"{count} {ending}" for ending, count in _by_ending(others).items()) or "no file"
    return f"{folder} holds no {FORMAT_NAMES} image, but {endings}; {cure_without_images(others)}"


def _image_groups(tree: FileTree, layout: Layout) -> dict[str, list[str]]:
    """Return the images that a table may be about: all of them, or those of one split."""
    groups = {"": without_masks(tree.images_below(layout.root), layout.root)}
    named = [(name, folder) for _, name, folder in layout.class_folders(tree)]
    like_splits = [folder for _, folder in named] if differ_in_splits_alone([name for name, _ in named]) else ()
    for folder in layout.split_folders.values() or like_splits:
        groups[f" in {normalized_name(folder)}/"] = tree.images_below(folder)
    return groups


def _near_files(tree: FileTree, root: str) -> list[str]:
    """Return the files that are not images and lie above the class folders, or beside the images of a split folder."""
    depth = root.count("/") + bool(root) + TABLE_DEPTH
    folders = [path for path in tree.others if path.count("/") + bool(path) <= depth]
    return [join(path, name) for path in folders for name in tree.others[path]]


def _collect(
    folder: Path, tree: FileTree, layout: Layout, table: LabelTable | None, options: PackOptions
) -> ImageFolder:
    images: list[SourceImage] = []
    left_out: Counter[str] = Counter()
    masks = sum(tree.file_count(path) for path in layout.mask_folders)
    check_class_names(tree, layout, options)
    for split, class_name, class_folder in layout.class_folders(tree):
        label = normalized_name(class_name)
        found = tree.images_below(class_folder)
        kept = without_masks(found, class_folder)
        if not options.takes(label):
            left_out[label] += len(kept)
            continue
        if not kept:
            raise SourceError(_empty_class(tree, class_folder, label))
        masks += len(found) - len(kept)
        images += [_image(folder, layout.root, path, split, label) for path in kept]
    images.sort(key=lambda image: os.fsencode(image.path))
    refuse_same_names(images)
    return ImageFolder(
        images=tuple(images),
        other_names=tuple(other_names(folder, tree, layout, read_files(folder, options))),
        passed_over={f"{normalized_name(path)}/": tree.file_count(path) for path in layout.passed_over},
        left_out=dict(left_out),
        masks=masks,
        hidden=tree.hidden,
        table=table,
    )


def _by_lists(folder: Path, image_folder: ImageFolder, options: PackOptions, *, is_addition: bool) -> ImageFolder:
    """Return the images with the splits that the lists of `--split-file` give them."""
    if not options.split_files:
        return image_folder
    paths = {image.path.relative_to(folder).as_posix(): image for image in image_folder.images}
    lists = read_split_lists(folder, ImageMatcher(paths), options.split_files)
    splits = decide_splits(list(paths), lists=lists, shares=options.split, is_addition=is_addition)
    return replace(
        image_folder,
        images=tuple(replace(image, split=splits[path]) for path, image in paths.items()),
        labels=LabelReport(notes=lists.notes),
    )


def read_files(folder: Path, options: PackOptions) -> frozenset[Path]:
    """Return the files that options name beside the tables of labels: lists of splits, and a table of groups."""
    lists = {find_table(name, folder).resolve() for _, name in options.split_files}
    groups = {Path(options.group_by).resolve()} if options.group_by and is_table(options.group_by) else set[Path]()
    return frozenset(lists | groups)


def other_names(folder: Path, tree: FileTree, layout: Layout, read: frozenset[Path]) -> Iterable[str]:
    """Yield the names of files that are neither images nor were read."""
    skipped = tuple(f"{path}/" for path in (*layout.passed_over, *layout.mask_folders))
    for name in tree.others_below(""):
        if not name.startswith(skipped) and not _is_one_of(read, folder / name):
            yield normalized_name(name)


def _is_one_of(files: frozenset[Path], path: Path) -> bool:
    """Whether a path is that of one of these files, through links; nothing is looked up if there are none."""
    return bool(files) and path.resolve() in files


def without_masks(paths: Sequence[str], folder: str) -> list[str]:
    """Return the images below a folder without masks: those in a mask folder, and `x_mask.png` beside `x.png`."""
    start = len(folder) + 1 if folder else 0
    unmasked = [path for path in paths if not any(map(is_mask_folder, path[start:].split("/")[:-1]))]
    stems: dict[str, set[str]] = defaultdict(set)
    for path in unmasked:
        stems[path.rpartition("/")[0]].add(PurePosixPath(path).stem)
    kept = [path for path in unmasked if image_of_mask(PurePosixPath(path).stem) not in stems[path.rpartition("/")[0]]]
    return kept or list(paths)


def _empty_class(tree: FileTree, class_folder: str, label: str) -> str:
    endings = ", ".join(f"{count} {ending}" for ending, count in _by_ending(tree.others_below(class_folder)).items())
    return (
        f"the class folder {normalized_name(class_folder)}/ holds no image ({endings or 'it is empty'}); "
        f"add images, remove the folder, or use --drop-class {label!r}"
    )


def _image(folder: Path, root: str, path: str, split: str | None, label: str) -> SourceImage:
    return SourceImage(name=name_below(root, path), path=folder / path, split=split, label=label)


def name_below(root: str, path: str) -> str:
    """Return the name of an image: its path below the root of the layout, in composed Unicode."""
    return normalized_name(path[len(root) + 1 :] if root else path)


def refuse_same_names(images: Sequence[SourceImage]) -> None:
    """Refuse two files whose names differ in their Unicode form alone.

    Raises:
        SourceError: There are such files.
    """
    name, count = max(Counter(image.name for image in images).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise SourceError(f"{count} files have the name {name}, in composed and decomposed Unicode; rename one")


def require_training_images(images: Sequence[SourceImage], classes: Sequence[str]) -> None:
    """Refuse classes that have no image in the train split, nor one to be divided, if there are such images.

    Raises:
        SourceError: A class is missing from train.
    """
    trained = {image.label for image in images if image.split in ("train", None)}
    missing = [label for label in classes if trained and label not in trained]
    if missing:
        raise SourceError(
            f"class {missing[0]!r} has no usable image in train; add some, or leave it out with "
            f"--drop-class {missing[0]!r}"
        )


def _check(image_folder: ImageFolder, folder: Path) -> None:
    if len(image_folder.classes) == 1:
        raise SourceError(
            f"{folder} has one class, {image_folder.classes[0]!r}; a classifier needs two or more: give a folder for "
            "each class, or a table of labels with --labels"
        )
    require_training_images(image_folder.images, image_folder.classes)


def _by_ending(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in names))
