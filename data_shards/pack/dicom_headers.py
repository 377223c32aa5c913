"""What the DICOM headers of a source decide: which images are taken (`--where dicom:...`), and their groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.errors import BadImage, OptionError, SourceError
from data_shards.pack.labels.cells import group_spelling
from data_shards.pack.options import DICOM_PREFIX, GROUP_FIELDS, PackOptions
from data_shards.pack.sources import ImageFolder, SourceImage, require_training_images
from data_shards.process_pool import map_in_processes, process_count

WHERE_FIELDS = ("Modality", "ViewPosition")
FILES_PER_TASK = 500
FILES_PER_PROCESS = 4000  # fewer are read in this process sooner than a new one starts
SHOWN = 3  # names in an error
NO_EXTRA = "DICOM headers need pydicom: pip install 'nightshift[dicom]'"

Headers = Sequence[Mapping[str, str]]


def check_dicom_options(options: PackOptions) -> None:
    """Refuse fields that cannot be asked for, before anything is read.

    Raises:
        OptionError: The text names those that can.
    """
    if options.groups_in_headers:
        _check_field("--group-by", str(options.group_by), GROUP_FIELDS)
    for field, value in options.where:
        if field.startswith(DICOM_PREFIX):
            _check_field("--where", field, WHERE_FIELDS)
            if not _values(value):
                raise OptionError(f"--where {field}= has no value; write it like {field}=PA,AP")


def with_header_facts(folder: ImageFolder, options: PackOptions) -> ImageFolder:
    """Return the images of a source that fulfil the conditions on headers, with their groups if headers give them.

    These are the identifiers in the headers: `with_stored_groups` replaces them.

    Raises:
        OptionError: A field cannot be asked for.
        SourceError: No image is left, or one has no group.
    """
    check_dicom_options(options)
    wanted = _conditions(options.where)
    group_field = str(options.group_by)[len(DICOM_PREFIX) :] if options.groups_in_headers else None
    fields = tuple(dict.fromkeys((*wanted, *([group_field] if group_field else ()))))
    if not fields:
        return folder
    headers = _read_headers(folder.images, fields, options.processes)
    taken = [all(header[name].upper() in values for name, values in wanted.items()) for header in headers]
    if not any(taken):
        raise SourceError(_none_left(options.where, headers, wanted))
    found = [(image, header) for image, header, take in zip(folder.images, headers, taken, strict=True) if take]
    images = [image for image, _ in found]
    if group_field:
        images = _grouped(
            [(image, group_spelling(header[group_field])) for image, header in found], group_field, options
        )
    left = [(image, header) for image, header, take in zip(folder.images, headers, taken, strict=True) if not take]
    groups = {group_spelling(header[group_field]) if group_field else image.group or "" for image, header in left}
    return replace(
        folder,
        images=tuple(images),
        filtered=tuple(image.name for image, _ in left),
        other_groups=folder.other_groups | groups - {""},
    )


def require_classes(before: ImageFolder, left: ImageFolder, options: PackOptions) -> None:
    """Refuse conditions on headers that leave a class without images, or without images to learn from.

    Raises:
        SourceError: The text names the class.
    """
    if lost := sorted({*before.classes} - {*left.classes}):
        raise SourceError(
            f"{_asked(options.where)} leaves the class {lost[0]!r} no image; leave it out with --drop-class {lost[0]!r}"
        )
    if left.filtered and not left.label_names:
        require_training_images(left.images, left.classes)


def read_fields(paths: Sequence[str], fields: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the header fields of files; empty ones for a file that is no DICOM file or cannot be read.

    Raises:
        SourceError: pydicom is not installed.
    """
    try:
        from data_shards.dicom.header import read_header  # noqa: PLC0415 -- needs the extra
    except ImportError as error:
        raise SourceError(NO_EXTRA) from error
    found: list[dict[str, str]] = []
    for path in paths:
        try:
            found.append(read_header(Path(path), fields))
        except BadImage:  # which packing reports, if the image is taken
            found.append(dict.fromkeys(fields, ""))
    return found


def _read_headers(images: Sequence[SourceImage], fields: tuple[str, ...], processes: int | None) -> Headers:
    paths = [str(image.path) for image in images]
    tasks = [(paths[start : start + FILES_PER_TASK], fields) for start in range(0, len(paths), FILES_PER_TASK)]
    count = processes or process_count(len(paths), per_process=FILES_PER_PROCESS)
    found = dict(map_in_processes(read_fields, tasks, processes=count))
    return [header for number in range(len(tasks)) for header in found[number]]


def _grouped(found: Iterable[tuple[SourceImage, str]], field: str, options: PackOptions) -> list[SourceImage]:
    images, missing = [], []
    for image, value in found:
        if not value:
            missing.append(image.name)
        else:
            images.append(replace(image, group=value))
    if missing:
        raise SourceError(
            f"--group-by {options.group_by} gives {len(missing)} of {len(missing) + len(images)} images no group, such "
            f"as {', '.join(missing[:SHOWN])}: their headers have no {field}, or they are no DICOM files; give the "
            "groups with --group-by FILE.csv"
        )
    return images


def _conditions(where: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the values that each field may have; several conditions on one field add up."""
    wanted: dict[str, set[str]] = {}
    for field, value in where:
        if field.startswith(DICOM_PREFIX):
            wanted.setdefault(field[len(DICOM_PREFIX) :], set()).update(_values(value))
    return wanted


def _values(text: str) -> set[str]:
    return {value.strip().upper() for value in text.split(",")} - {""}


def _check_field(option: str, field: str, allowed: Sequence[str]) -> None:
    if field[len(DICOM_PREFIX) :] not in allowed:
        known = " or ".join(DICOM_PREFIX + name for name in allowed)
        raise OptionError(f"{option} {field} is not supported; use {known}")


def _none_left(where: Iterable[tuple[str, str]], headers: Headers, wanted: Mapping[str, object]) -> str:
    """Say why no image is taken; the values in the headers are not shown."""
    empty = sum(not all(header[name] for name in wanted) for header in headers)
    return (
        f"{_asked(where)} takes none of {len(headers)} images: {empty} have no such field or are no DICOM files, "
        f"{len(headers) - empty} have another value; check it with dcmdump"
    )


def _asked(where: Iterable[tuple[str, str]]) -> str:
    return " ".join(f"--where {field}={value}" for field, value in where if field.startswith(DICOM_PREFIX))
