"""Recognizes how a source is laid out: `split/class/image` or `class/image`, whatever wraps it or lies beside it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from data_shards.errors import SourceError
from data_shards.index import SPLITS
from data_shards.pack.file_tree import FileTree, join
from data_shards.pack.names import is_mask_folder, normalized_name, split_of


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
    root, mask_folders = "", list[str]()
    while True:
        split_folders = _split_folders(tree, root, classes)
        if split_folders:
            beside = [
                join(root, name) for name in tree.subfolders[root] if join(root, name) not in _tops(split_folders)
            ]
            return Layout(
                root=root,
                split_folders={split: _inner(tree, folder) for split, folder in split_folders.items()},
                passed_over=tuple(folder for folder in beside if not _is_mask(folder)),
                mask_folders=(*mask_folders, *(folder for folder in beside if _is_mask(folder))),
            )
        inner, masks = _single_folder(tree, root, classes)
        if inner is None:
            return Layout(root=root, split_folders={}, mask_folders=tuple(mask_folders))
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


def _single_folder(tree: FileTree, root: str, classes: Collection[str]) -> tuple[str | None, list[str]]:
    """Return the one folder that only wraps the data, as archives often have one, and the mask folders beside it."""
    names = [name for name in tree.subfolders[root] if not (is_mask_folder(name) and name not in classes)]
    masks = [join(root, name) for name in tree.subfolders[root] if name not in names]
    if len(names) != 1 or tree.images[root] or normalized_name(names[0]) in classes or split_of(names[0]):
        return None, []
    folder = join(root, names[0])
    return (folder, masks) if tree.subfolders[folder] else (None, [])


def _tops(split_folders: Mapping[str, str]) -> set[str]:
    return set(split_folders.values())


def _is_mask(folder: str) -> bool:
    return is_mask_folder(folder.rpartition("/")[2])
