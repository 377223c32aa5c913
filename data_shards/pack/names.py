"""What the names of folders and files say: splits, parts of a download, masks, files of the operating system. Pure."""

import os
import re
import unicodedata
from collections.abc import Sequence

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "lost+found", "__pycache__", "system volume information", "#recycle"}
)
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tzst", ".zst", ".rar", ".7z",
                   ".tar.lz4", ".gz", ".bz2", ".xz", ".lz4", ".iso", ".z01", ".001")  # fmt: skip

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "validate": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT = re.compile(rf"(?:seg[ _-])?({'|'.join(SPLIT_WORDS)})(?:[ _-]?(?:images?|imgs?|set|data|dir|folder|split))?")

SPLIT_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(SPLIT_WORDS)})(?![a-z])")
SIDES = frozenset({"left", "right", "l", "r", "od", "os"})  # of the body
CONTAINERS = frozenset({"image", "images", "img", "imgs", "jpegimages", "photos", "pictures", "label", "labels"})

PART = re.compile(r"(.*?)[ _-]*([0-9]+)")  # a name that ends in a number, as the parts of a download do
PART_WORDS = frozenset({
    "part", "parts", "p", "chunk", "images", "image", "img", "imgs", "batch", "set", "subset", "split", "fold",
    "folder", "dir", "shard", "vol", "volume", "disc", "disk", "archive", "zip", "download",
    "patient", "subject", "case", "study", "series", "sub", "pat", "s", "id",
})  # fmt: skip
MASK_FOLDERS = frozenset({
    "mask", "masks", "ground_truth", "groundtruth", "gt", "segmentation", "segmentations", "segmentation_masks",
    "lung_masks", "annotations",
})  # fmt: skip
MASK_FILE = re.compile(r"(.+?)[ _-](?:masks?|seg|segmentation|gt|ground_?truth)(?:[ _-]?[0-9]+)?", re.IGNORECASE)
MIN_PARTS = 2


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or one that an operating system or disk station leaves behind."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def is_archive_name(name: str) -> bool:
    """Whether a name ends like an archive, of a kind that can be unpacked or not."""
    return name.lower().endswith(ARCHIVE_ENDINGS)


def split_of(folder: str) -> str | None:
    """Return the split that a folder's name means, such as "valid" for `Validation` or `val_images`; else None."""
    match = SPLIT.fullmatch(folder.strip().lower())
    return SPLIT_WORDS[match[1]] if match else None


def differ_in_splits_alone(names: Sequence[str]) -> bool:
    """Whether the names are one text about different splits: `stage_2_train_images` and `stage_2_test_images`."""
    lower = [name.lower() for name in names]
    rest = {SPLIT_WORD.sub("", name) for name in lower}
    return len(names) > 1 and len(rest) == 1 and all(map(SPLIT_WORD.search, lower))


def is_container(folder: str) -> bool:
    """Whether a folder's name says no more than that it holds images."""
    return folder.strip().lower() in CONTAINERS


def is_side(folder: str) -> bool:
    """Whether a folder's name is a side of the body."""
    return folder.strip().lower() in SIDES


def is_mask_folder(folder: str) -> bool:
    """Whether a folder's name says that it holds segmentation masks."""
    return re.sub(r"[ -]+", "_", folder.strip().lower()) in MASK_FOLDERS


def image_of_mask(stem: str) -> str | None:
    """Return the stem of the image that a mask file belongs to, such as "x" for "x_mask_1"; None for no mask."""
    match = MASK_FILE.fullmatch(stem)
    return match[1] if match else None


def are_numbers(names: Sequence[str]) -> bool:
    """Whether every name is a bare number."""
    return all(name.isdecimal() for name in names)


def are_numbered_parts(names: Sequence[str]) -> bool:
    """Whether the names are one stem with numbers, and the stem says part, images, patient or the like."""
    matches = [PART.fullmatch(name) for name in names]
    stems = {match[1].lower() for match in matches if match}
    if len(names) < MIN_PARTS or len(stems) != 1 or None in matches:
        return False
    words = re.split(r"[^a-z]+", stems.pop())
    return bool(PART_WORDS & set(words[-1:]))


def have_common_stem(names: Sequence[str]) -> bool:
    """Whether the names differ in their last number alone, such as `p10000001` and `p10000002`."""
    matches = [PART.fullmatch(name) for name in names]
    return (
        len(names) >= MIN_PARTS and None not in matches and len({match[1].lower() for match in matches if match}) == 1
    )


def loose_name(name: str) -> str:
    """Return what two spellings of one class have in common: no upper case, blanks, or decomposed characters."""
    return "".join(unicodedata.normalize("NFKC", normalized_name(name)).casefold().replace("_", " ").split())


def normalized_name(name: str) -> str:
    """Return a name in composed Unicode (NFC), with bytes that are no UTF-8 escaped: text that can be stored.

    macOS decomposes accents, and disks hold names in any encoding.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
