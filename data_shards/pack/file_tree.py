"""The folders and files of a source, read once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_shards.errors import SourceError
from data_shards.pack.names import is_ignored
from data_shards.pixels import IMAGE_SUFFIXES, is_image_file

ENDINGS = tuple(IMAGE_SUFFIXES)
# What macOS, a disk station and the recycle bin of Windows keep of an image: its attributes, thumbnails, its old path.
NO_IMAGES = ("._", "SYNOPHOTO_", "SYNOFILE_", "$I")


@dataclass(frozen=True)
class FileTree:
    """A source's folders, by their path below it; "" is the source itself.

    Names are strings as the disk has them: a Path for each of a million files would take a gigabyte.

    Attributes:
        subfolders: Names of the folders in each folder, in order.
        images: Names of the image files in each folder, in order.
        others: Names of the other files in each folder, in order.
        hidden: Number of images that are hidden, or in a hidden folder or one of the operating system, by their names.
    """

    root: Path
    subfolders: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, list[str]] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    hidden: int = 0

    def below(self, folder: str) -> Iterator[str]:
        """Yield the paths of a folder and of all folders below it."""
        yield folder
        for name in self.subfolders[folder]:
            yield from self.below(join(folder, name))

    def images_below(self, folder: str) -> list[str]:
        """Return the paths of all image files below a folder."""
        return [join(path, name) for path in self.below(folder) for name in self.images[path]]

    def others_below(self, folder: str) -> list[str]:
        """Return the paths of all other files below a folder."""
        return [join(path, name) for path in self.below(folder) for name in self.others[path]]

    def has_images(self, folder: str) -> bool:
        """Whether there is an image file anywhere below a folder."""
        return any(self.images[path] for path in self.below(folder))

    def file_count(self, folder: str) -> int:
        """Return the number of files below a folder."""
        return sum(len(self.images[path]) + len(self.others[path]) for path in self.below(folder))


def read_tree(root: Path) -> FileTree:
    """Return the folders and files of a source without hidden ones and those of operating systems; count their images.

    Raises:
        SourceError: A folder cannot be read, or a link leads back to a folder that contains it.
    """
    tree, hidden = FileTree(root), 0
    for folder, subfolders, names, hidden_names in _walk(root):
        path = Path(folder).relative_to(root).as_posix() if Path(folder) != root else ""
        tree.subfolders[path] = sorted(subfolders, key=os.fsencode)
        tree.images[path], tree.others[path] = [], []
        for name in sorted(names, key=os.fsencode):
            kind = tree.images if is_image_file(os.path.join(folder, name)) else tree.others  # noqa: PTH118
            kind[path].append(name)
        hidden += sum(_count_images(folder, name) for name in hidden_names)
    return replace(tree, hidden=hidden)


def join(folder: str, name: str) -> str:
    """Return the path of an entry of a folder."""
    return f"{folder}/{name}" if folder else name


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """Walk like os.walk, through links to folders too, without ignored names, which come last."""
    for folder, subfolders, names in os.walk(root, onerror=_refuse_unreadable, followlinks=True):
        ignored = [name for name in (*subfolders, *names) if is_ignored(name)]
        subfolders[:] = [name for name in subfolders if not is_ignored(name)]
        for name in subfolders:
            _refuse_circle(root, Path(folder) / name)
        yield folder, subfolders, [name for name in names if not is_ignored(name)], ignored


def _count_images(folder: str, name: str) -> int:
    """Return how many files are named like an image: 0 or 1, or those below a folder."""
    path = os.path.join(folder, name)  # noqa: PTH118
    files = [file for _, _, names in os.walk(path) for file in names] if os.path.isdir(path) else [name]  # noqa: PTH112
    return sum(file.lower().endswith(ENDINGS) and not file.startswith(NO_IMAGES) for file in files)


def _refuse_unreadable(error: OSError) -> None:
    raise SourceError(
        f"{error.filename} cannot be read: {error.strerror}; check the disk and its permissions"
    ) from error


def _refuse_circle(root: Path, folder: Path) -> None:
    if not folder.is_symlink():
        return
    above = [parent for parent in folder.parents if parent == root or root in parent.parents]
    if folder.resolve() in (parent.resolve() for parent in above):
        raise SourceError(f"{folder} is a link back to a folder that contains it; remove it")
