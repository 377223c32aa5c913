"""Recognizes how a source is laid out: `split/class/image` or `class/image`, whatever wraps it or lies beside it."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from data_shards.errors import SourceError
from data_shards.index import SPLITS
from data_shards.pack.file_tree import FileTree, join
from data_shards.pack.names import is_container, is_mask_folder, loose_name, normalized_name, split_of


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the class folders of a source are.

    Attributes:
        root: Folder that the names of the images start from.
        split_folders: Folder of each split; empty for a source without split folders.
        passed_over: Folders beside these that are no part of the data set, without mask folders.
        mask_folders: Folders beside these that hold segmentation masks.
    """

    root: str
    split_folders: Mapping[str, str]
    passed_over: tuple[str, ...] = ()
    mask_folders: tuple[str, ...] = ()

    def class_folders(self, tree: FileTree) -> list[tuple[str | None, str, str]]:
        """Return split, class name and path of each class folder."""
        if self.split_folders:
            return [
                (split, name, join(folder, name))
                for split, folder in self.split_folders.items()
                for name in tree.subfolders[folder]
            ]
        skipped = {*self.passed_over, *self.mask_folders}
        folders = [(name, join(self.root, name)) for name in tree.subfolders[self.root]]
        return [(None, name, folder) for name, folder in folders if folder not in skipped]

    @property
    def layout(self) -> str:
        """The layout in words."""
        return "split/class/image" if self.split_folders else "class/image"


def find_layout(tree: FileTree, classes: Collection[str]) -> Layout:
    """Return the layout of a source.

    Args:
        tree: The source's folders and files.
        classes: Names that are known to be classes, though they may look like splits or masks.

    Raises:
        SourceError: Two folders look like the same split.
    """
    root, mask_folders, copies = "", list[str](), list[str]()
    while True:
        split_folders = _split_folders(tree, root, classes)
        if split_folders:
            beside = [
                join(root, name) for name in tree.subfolders[root] if join(root, name) not in _tops(split_folders)
            ]
            return Layout(
                root=root,
                split_folders={split: _inner(tree, folder) for split, folder in split_folders.items()},
                passed_over=(*copies, *(folder for folder in beside if not _is_mask(folder))),
                mask_folders=(*mask_folders, *(folder for folder in beside if _is_mask(folder))),
            )
        copies += _second_copies(tree, root, classes)
        inner, masks = _single_folder(tree, root, classes, copies)
        if inner is None:
            return Layout(root=root, split_folders={}, passed_over=tuple(copies), mask_folders=tuple(mask_folders))
        root, mask_folders = inner, [*mask_folders, *masks]


def _split_folders(tree: FileTree, root: str, classes: Collection[str]) -> dict[str, str]:
    """Return the folder of each split, none unless there is one for train or every folder is a split."""
    names = tree.subfolders[root]
    if any(normalized_name(name) in classes for name in names):
        return {}
    found: dict[str, str] = {}
    for name in names:
        split, folder = split_of(name), join(root, name)
        if split is None or not tree.has_images(folder):
            continue
        if split in found:
            raise SourceError(f"{found[split]}/ and {folder}/ both look like the split {split}; keep or rename one")
        found[split] = folder
    in_order = {split: found[split] for split in SPLITS if split in found}
    return in_order if "train" in found or len(found) == len(names) else {}


def _inner(tree: FileTree, folder: str) -> str:
    """Return the folder of a split's classes, below single folders that are named like the split again."""
    split = split_of(folder.rpartition("/")[2])
    while True:
        names = tree.subfolders[folder]
        if len(names) != 1 or split_of(names[0]) != split or tree.images[folder]:
            return folder
        folder = join(folder, names[0])


def _second_copies(tree: FileTree, root: str, classes: Collection[str]) -> list[str]:
    """Return the folders that hold what lies beside them once more, as some archives do.

    Such a folder has as subfolders the names of all folders beside it, or it has the same files as a folder that is
    spelt alike: `part_1/` and `PART_1/`.
    """
    names = [name for name in tree.subfolders[root] if normalized_name(name) not in classes]
    copies = list[str]()
    first: dict[str, str] = {}
    for name in names:
        folder = join(root, name)
        inner = {normalized_name(one) for one in tree.subfolders[folder]}
        beside = {normalized_name(other) for other in tree.subfolders[root] if other != name}
        alike = first.setdefault(loose_name(name), folder)
        is_outer_again = len(inner) > 1 and inner == beside and not tree.images[folder]
        if is_outer_again or (alike != folder and _have_same_files(tree, alike, folder)):
            copies.append(folder)
    return copies


def _have_same_files(tree: FileTree, first: str, second: str) -> bool:
    """Whether two folders have images of the same names and sizes, however many folders wrap them."""
    inner = [_unwrapped(tree, folder) for folder in (first, second)]
    names = [sorted(path.removeprefix(folder) for path in tree.images_below(folder)) for folder in inner]
    if not names[0] or names[0] != names[1]:
        return False
    root = tree.root.as_posix()
    return all(os.path.getsize(f"{root}/{inner[0]}{n}") == os.path.getsize(f"{root}/{inner[1]}{n}") for n in names[0])  # noqa: PTH202


def _unwrapped(tree: FileTree, folder: str) -> str:
    while not tree.images[folder] and len(tree.subfolders[folder]) == 1:
        folder = join(folder, tree.subfolders[folder][0])
    return folder


def _single_folder(
    tree: FileTree, root: str, classes: Collection[str], copies: Collection[str]
) -> tuple[str | None, list[str]]:
    """Return the one folder that only wraps the data, as archives often have one, and the mask folders beside it.

    Beside a folder such as `images/`, or one with split folders, may lie others that hold no image.
    """
    found = [name for name in tree.subfolders[root] if join(root, name) not in copies]
    names = [name for name in found if not (is_mask_folder(name) and name not in classes)]
    masks = [join(root, name) for name in found if name not in names]
    filled = [name for name in names if tree.has_images(join(root, name))]
    if len(filled) == 1 and not classes and (is_container(filled[0]) or _has_splits(tree, join(root, filled[0]))):
        names = filled
    if len(names) != 1 or tree.images[root] or normalized_name(names[0]) in classes or split_of(names[0]):
        return None, []
    folder = join(root, names[0])
    return (folder, masks) if tree.subfolders[folder] else (None, [])


def _has_splits(tree: FileTree, folder: str) -> bool:
    return any(split_of(name) for name in tree.subfolders[_unwrapped(tree, folder)])


def _tops(split_folders: Mapping[str, str]) -> set[str]:
    return set(split_folders.values())


def _is_mask(folder: str) -> bool:
    return is_mask_folder(folder.rpartition("/")[2])
