"""What the files of a source are that are not packed, by the endings of their names. Pure."""

from collections.abc import Iterable, Sequence

from data_shards.pack.names import is_archive_name
from data_shards.pack.options import TABLE_ENDINGS

NOT_IMAGES = "ignored, not images"
ARCHIVES = "not unpacked, archives inside SOURCE: unpack them if they hold images"
UNREAD_IMAGES = "left out, images or volumes of a format that is not read: convert them to PNG or DICOM"

UNREAD_ENDINGS = (
    ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".svg", ".psd", ".tga", ".ico", ".exr", ".hdr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".mnc", ".svs",
    ".mrxs", ".ndpi", ".scn", ".czi", ".vsi",
)  # fmt: skip
CONTAINER_ENDINGS = (
    ".parquet", ".arrow", ".npz", ".npy", ".h5", ".hdf5", ".mat", ".tfrecord", ".tfrecords", ".lmdb", ".mdb", ".pkl",
    ".pickle", ".pt", ".rec", ".db", ".sqlite",
)  # fmt: skip


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names of files that are not packed under what is said of them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_kind(name), []).append(name)
    return found


def cure_without_images(names: Sequence[str]) -> str:
    """Return what to do with a source that holds these files and no image."""
    lower = [name.lower() for name in names]
    if any(name.endswith(UNREAD_ENDINGS) for name in lower):
        return "convert its images to PNG or DICOM files"
    if any(name.endswith(CONTAINER_ENDINGS) for name in lower):
        return "save each image in it as a file, such as CLASS/1.png, and pack the folder of these"
    return "give a folder of image files"


def _kind(name: str) -> str:
    lower = name.lower()
    if lower.endswith(UNREAD_ENDINGS):
        return UNREAD_IMAGES
    if is_archive_name(lower) and not lower.endswith(TABLE_ENDINGS):
        return ARCHIVES
    return NOT_IMAGES
