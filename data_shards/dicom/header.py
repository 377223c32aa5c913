"""Reads the few header fields that packing needs, without the rest of a file."""

from collections.abc import Sequence
from pathlib import Path

from data_shards.dicom.parse import library_errors_as, parse_start
from data_shards.errors import BadImage
from data_shards.pixels import DICOM, SNIFFED_BYTES, regular_file, sniff_format

START_BYTES = (1 << 16, 1 << 24)  # read of a file; the second only if a field lies behind the first
BLANKS = " \0"  # that fill a value up to an even length


def read_header(path: Path, keywords: Sequence[str]) -> dict[str, str]:
    """Return the text of header fields by keyword, "" for one that is missing.

    Raises:
        BadImage: It is no DICOM file, its header cannot be read, or the file cannot.
    """
    for limit in START_BYTES:
        try:
            with regular_file(path) as (file, size):
                data = file.read(limit)
        except OSError as error:
            raise BadImage(f"the file cannot be read ({error.strerror})") from error
        if sniff_format(data[:SNIFFED_BYTES]) != DICOM:
            raise BadImage("it is no DICOM file")
        try:
            dataset = parse_start(data, keywords, max_inflated=limit)
        except BadImage:  # which a part of a file may give although the whole is sound
            if size <= limit:
                raise
            continue
        if dataset is not None:
            with library_errors_as("its DICOM header cannot be read"):
                return {keyword: str(dataset.get(keyword) or "").strip(BLANKS) for keyword in keywords}
    raise BadImage("its DICOM header is cut off, or too large")
