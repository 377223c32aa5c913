"""What there is to pack: the images of a folder, each with its class and, where the folder gives it, its split."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import SourceError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
CLASS_DEPTH = 2  # parts of class/image; split/class/image has one more


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image file to pack.

    Attributes:
        name: Path below the source with "/" between its parts, in Unicode's composed form: the same on each system.
        split: The split that the source gives it, None where the source has none.
        label: Its class.
    """

    name: str
    path: Path
    split: str | None
    label: str


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of a source.

    Attributes:
        other_files: How many files were passed over, by their ending: none of them is an image of a known kind.
    """

    images: tuple[SourceImage, ...]
    other_files: dict[str, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in order of name; the labels of the data set."""
        return tuple(sorted({image.label for image in self.images}))


def scan_image_folder(folder: Path, *, split_given: bool) -> ImageFolder:
    """Return the images below a folder in order of name; `split_given`: it is laid out split/class/image.

    Raises:
        SourceError: The folder is absent, empty, laid out otherwise, or has fewer than two classes.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; give a folder, .zip or .tar of images")
    root = _below_single_folders(folder)
    found = sorted((Path(file).relative_to(root).as_posix() for file in files_below(root)), key=os.fsencode)
    others: Counter[str] = Counter()
    images = []
    for name in found:
        if Path(name).suffix.lower() in SUFFIXES:
            images.append(_image(root, name, split_given=split_given))
        else:
            others[Path(name).suffix.lower() or "no ending"] += 1
    image_folder = ImageFolder(images=tuple(images), other_files=dict(others))
    _check(image_folder, folder)
    return image_folder


def has_splits(folder: Path) -> bool:
    """Whether the folders at the top of a source are all named like splits."""
    tops = [entry.name for entry in _below_single_folders(folder).iterdir() if _is_folder(entry)]
    return bool(tops) and all(name.lower() in SPLIT_NAMES for name in tops)


def _below_single_folders(folder: Path) -> Path:
    """Step over folders that only wrap the data, as archives often have them: chest/train/..., not train/covid/..."""
    while True:
        entries = [entry for entry in folder.iterdir() if not _is_hidden(entry.name)]
        if len(entries) != 1 or not _is_folder(entries[0]) or entries[0].name.lower() in SPLIT_NAMES:
            return folder
        if not any(_is_folder(entry) for entry in entries[0].iterdir()):
            return folder
        folder = entries[0]


def files_below(root: Path) -> Iterator[str]:
    """Yield the path of every file below a folder that is not hidden; links to folders are followed.

    Strings, as a Path for each of a million files takes a gigabyte.

    Raises:
        SourceError: A folder cannot be read, or a link leads back to a folder that it lies in.
    """
    for folder, subfolders, names in os.walk(root, onerror=_refuse_unreadable, followlinks=True):
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        for name in subfolders:
            _refuse_circle(root, Path(folder) / name)
        yield from (os.path.join(folder, name) for name in names if not _is_hidden(name))  # noqa: PTH118


def _refuse_unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be read: {error.strerror}; check the disk and its rights") from error


def _refuse_circle(root: Path, folder: Path) -> None:
    if not folder.is_symlink():
        return
    above = [parent for parent in folder.parents if parent == root or root in parent.parents]
    if folder.resolve() in (parent.resolve() for parent in above):
        raise SourceError(f"{folder} is a link back to a folder that it lies in; remove it")


def _image(root: Path, name: str, *, split_given: bool) -> SourceImage:
    parts = name.split("/")
    if len(parts) < CLASS_DEPTH + split_given:
        layout = "split/class/image" if split_given else "class/image"
        raise SourceError(f"{name} in {root} lies outside the layout {layout}; move it into a class folder")
    split = SPLIT_NAMES[parts[0].lower()] if split_given else None
    return SourceImage(
        name=_normalized_name(name), path=root / name, split=split, label=_normalized_name(parts[split_given])
    )


def require_training_images(images: Sequence[SourceImage], classes: Sequence[str]) -> None:
    """Refuse classes that have no image where there is a train split to learn from.

    Raises:
        SourceError: A class is absent from train.
    """
    trained = {image.label for image in images if image.split == "train"}
    missing = [label for label in classes if trained and label not in trained]
    if missing:
        raise SourceError(f"class {missing[0]!r} has no usable image in train; add some or remove the class")


def _check(image_folder: ImageFolder, folder: Path) -> None:
    if not image_folder.images:
        raise SourceError(f"{folder} holds no JPEG, PNG, BMP or TIFF image")
    if len(image_folder.classes) == 1:
        raise SourceError(f"{folder} has one class, {image_folder.classes[0]!r}; a classifier needs two or more")
    require_training_images(image_folder.images, image_folder.classes)


def _normalized_name(name: str) -> str:
    """Return a name as text that can be stored: macOS decomposes accents, and disks hold bytes that are no UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not _is_hidden(path.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db")
