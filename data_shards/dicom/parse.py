"""Parses a DICOM file that is held in memory: chosen fields alone, and no more work than its size justifies."""

import io
import logging
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from data_shards.errors import BadImage

MAX_FIELDS = 125_000  # a sequence of empty items would otherwise become objects of a hundred times its size
READS = 2  # of a field: what it is, and its value
META_GROUP = 0x0002
_UNREADABLE = f"its DICOM header cannot be read, or has more than {MAX_FIELDS:,} fields"
BIG_ENDIAN_START = b"\0"  # of group 0008, the first of a file without a meta group

config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its messages quote the header


@contextmanager
def library_errors_as(fault: str) -> Iterator[None]:
    """Turn what pydicom and its decoders raise into a BadImage, and hide their warnings: both quote the header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BadImage:
            raise
        except Exception:
            raise BadImage(fault) from None


def parse(data: bytes, keywords: Sequence[str], *, max_inflated: int) -> Dataset:
    """Return the fields of a DICOM file with these keywords, as far as it has them, and its meta group.

    Args:
        data: The file, with or without preamble and meta group.
        keywords: Names of the fields.
        max_inflated: Maximum size in bytes of a deflated data set after inflation.

    Raises:
        BadImage: It cannot be parsed, or is larger or more nested than allowed.
    """
    with library_errors_as(_UNREADABLE):
        file, meta = _opened(data, max_inflated, whole=True)
        dataset = _read(file, meta, _tags(keywords), stop_when=None)
        meta.TransferSyntaxUID = meta.get("TransferSyntaxUID") or _syntax_of(dataset)
        dataset.file_meta = meta
    return dataset


def parse_start(data: bytes, keywords: Sequence[str], *, max_inflated: int) -> Dataset | None:
    """Return the fields with these keywords from the start of a DICOM file; None if it ends before the last of them.

    Raises:
        BadImage: It cannot be parsed, or is more nested than allowed.
    """
    tags, is_complete = _tags(keywords), False

    def is_beyond(tag: int, *_: Any) -> bool:
        nonlocal is_complete
        is_complete = is_complete or tag > max(tags)
        return is_complete

    with library_errors_as(_UNREADABLE):
        file, meta = _opened(data, max_inflated, whole=False)
        dataset = _read(file, meta, tags, stop_when=is_beyond)
    return dataset if is_complete else None


def number(dataset: Dataset, keyword: str, default: float | None = None) -> float:
    """Return a field's number, the first of several.

    Raises:
        BadImage: It is missing and has no default, or it is no number.
    """
    found = numbers(dataset, keyword)
    if not found and default is None:
        raise BadImage(f"its header has no {keyword}")
    return found[0] if found or default is None else default


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the numbers of a field; none if it is missing or empty.

    Raises:
        BadImage: One of them is no finite number.
    """
    with library_errors_as(f"the {keyword} in its header is no number"):
        value: Any = dataset.get(keyword)
        if value is None or value == "":
            return []
        found = [float(item) for item in ([value] if isinstance(value, str | float | int) else value)]
        if not all(map(math.isfinite, found)):
            raise ValueError
    return found


class _CountedReads(io.BytesIO):
    """The bytes of a file, with a limit on the number of reads."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > READS * MAX_FIELDS:
            raise OSError
        return super().read(size)


def _tags(keywords: Sequence[str]) -> list[Any]:
    return [tag for tag in map(tag_for_keyword, keywords) if tag is not None]


def _opened(data: bytes, max_inflated: int, *, whole: bool) -> tuple[_CountedReads, FileMetaDataset]:
    """Return the file, positioned at its data set, which is inflated if it was deflated; and its meta group."""
    file = _CountedReads(data)
    read_preamble(file, force=True)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != META_GROUP))
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        file = _CountedReads(_inflated(data[file.tell() :], max_inflated, whole=whole))
    return file, meta


def _read(file: _CountedReads, meta: FileMetaDataset, tags: list[Any], *, stop_when: Any) -> Dataset:
    syntax = UID(meta.get("TransferSyntaxUID") or "")
    little = syntax.is_little_endian if syntax else not _starts_big_endian(file)
    implicit = syntax == ImplicitVRLittleEndian  # a wrong claim is noticed by read_dataset
    return read_dataset(file, implicit, little, specific_tags=tags, stop_when=stop_when)


def _inflated(data: bytes, limit: int, *, whole: bool) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    found = inflater.decompress(data, limit)
    if whole and inflater.unconsumed_tail:
        raise BadImage(f"its deflated content has more than {limit:,} bytes")
    if whole and not inflater.eof:
        raise BadImage("its deflated content is cut off")
    return found


def _starts_big_endian(file: io.BytesIO) -> bool:
    first = file.read(1)
    file.seek(-len(first), io.SEEK_CUR)
    return first == BIG_ENDIAN_START


def _syntax_of(dataset: Dataset) -> UID:
    """Return the transfer syntax of a data set without a meta group, as it was read."""
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian
