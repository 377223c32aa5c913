"""Recognizes how a source is laid out: `split/class/image` or `class/image`, whatever wraps it or lies beside it."""

import filecmp
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from data_shards.errors import SourceError
from data_shards.index import SPLITS
from data_shards.pack.file_tree import FileTree, join
from data_shards.pack.names import are_numbers, is_container, is_mask_folder, loose_name, normalized_name, split_of


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


def find_layout(tree: FileTree, classes: Collection[str], *, folders_are_labels: bool = True) -> Layout:
    """Return the layout of a source.

    Args:
        tree: The source's folders and files.
        classes: Names that are known to be classes, though they may look like splits or masks.
        folders_are_labels: Whether the labels are names of folders, not cells of tables. Only then `images/` beside
            folders without images just wraps the data: it is a part of the images' names, from which groups come.

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
        beside = [name for name in tree.subfolders[root] if join(root, name) not in copies]
        inner, masks = _single_folder(tree, root, classes, beside, may_lie_beside_others=folders_are_labels)
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

    Such a folder has all folders beside it once more, or is one of them that is spelt alike, such as `part_1/` and
    `PART_1/`; and its images have the same bytes.
    """
    names = [name for name in tree.subfolders[root] if normalized_name(name) not in classes]
    copies = list[str]()
    first: dict[str, str] = {}
    for name in names:
        folder = join(root, name)
        alike = first.setdefault(loose_name(name), folder)
        if _has_all_beside(tree, root, name) or (alike != folder and _have_same_files(tree, alike, folder)):
            copies.append(folder)
    return copies


def _has_all_beside(tree: FileTree, root: str, name: str) -> bool:
    folder = join(root, name)
    inner = {normalized_name(one): join(folder, one) for one in tree.subfolders[folder]}
    beside = {normalized_name(other): join(root, other) for other in tree.subfolders[root] if other != name}
    if len(inner) <= 1 or inner.keys() != beside.keys() or tree.images[folder]:
        return False
    return all(_have_same_files(tree, beside[one], inner[one]) for one in inner)


def _have_same_files(tree: FileTree, first: str, second: str) -> bool:
    """Whether two folders have images of the same names and bytes, however many folders wrap them."""
    inner = [_unwrapped(tree, folder) for folder in (first, second)]
    names = [sorted(path.removeprefix(folder) for path in tree.images_below(folder)) for folder in inner]
    if not names[0] or names[0] != names[1]:
        return False
    root = tree.root.as_posix()
    try:
        return all(filecmp.cmp(f"{root}/{inner[0]}{n}", f"{root}/{inner[1]}{n}", shallow=False) for n in names[0])
    except OSError:  # whoever decodes the image names it
        return False


def _unwrapped(tree: FileTree, folder: str) -> str:
    while not tree.images[folder] and len(tree.subfolders[folder]) == 1:
        folder = join(folder, tree.subfolders[folder][0])
    return folder


def _single_folder(
    tree: FileTree, root: str, classes: Collection[str], found: Collection[str], *, may_lie_beside_others: bool
) -> tuple[str | None, list[str]]:
    """Return the one folder that only wraps the data, as archives often have one, and the mask folders beside it.

    `found` are the folders in `root`. Beside a folder such as `images/`, or one with split folders, others that hold no
    image may lie.
    """
    names = [name for name in found if not (is_mask_folder(name) and name not in classes)]
    masks = [join(root, name) for name in found if name not in names]
    filled = [name for name in names if tree.has_images(join(root, name))]
    if may_lie_beside_others and len(filled) == 1 and not classes:
        names = filled if is_container(filled[0]) or _has_splits(tree, join(root, filled[0])) else names
    if len(names) != 1 or tree.images[root] or normalized_name(names[0]) in classes or split_of(names[0]):
        return None, []
    folder = join(root, names[0])
    return (folder, masks) if tree.subfolders[folder] else (None, [])


def _has_splits(tree: FileTree, folder: str) -> bool:
    """Whether a folder has splits that all have the same named classes; those of one class have their own patients."""
    folder = _unwrapped(tree, folder)
    splits = [join(folder, name) for name in tree.subfolders[folder] if split_of(name)]
    classes = [tree.subfolders[split] for split in splits]
    return len(splits) > 1 and all(len(one) > 1 and one == classes[0] and not are_numbers(one) for one in classes)


def _tops(split_folders: Mapping[str, str]) -> set[str]:
    return set(split_folders.values())


def _is_mask(folder: str) -> bool:
    return is_mask_folder(folder.rpartition("/")[2])
