"""A lookup table of DICOM (PS3.3 C.11.1.1, C.11.2.1.1 and C.7.6.3.1.5): modality, VOI or one color of a palette."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.dicom.parse import library_errors_as, numbers
from data_shards.errors import BadImage

MAX_ENTRIES = 1 << 16
BYTE = 8
DESCRIPTOR = 3  # numbers: entries, first value that is mapped, bits of an entry


@dataclass(frozen=True, kw_only=True)
class LookupTable:
    """Maps whole numbers to whole numbers; values beyond either end are mapped like the end.

    Attributes:
        first: The value that the first entry is for.
        full: The largest number that an entry can have.
    """

    entries: NDArray[np.int64]
    first: int
    full: int

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the entry of each value."""
        position = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        found: NDArray[np.float64] = self.entries[position].astype(np.float64)
        return found


def read_table(dataset: Any, descriptor: str, content: str, *, signed: bool, little_endian: bool) -> LookupTable:
    """Return the table in two fields of a data set or of a sequence's item.

    Args:
        dataset: What has the fields.
        descriptor: Keyword of the field with entries, first value and bits.
        content: Keyword of the field with the entries.
        signed: Whether the values to map can be negative.
        little_endian: Byte order of the file.

    Raises:
        BadImage: A field is missing or they contradict each other.
    """
    fault = f"the lookup table {content} in its header is damaged"
    found = numbers(dataset, descriptor)
    if len(found) != DESCRIPTOR:
        raise BadImage(fault)
    count, first, bits = (int(value) for value in found)
    count = count % MAX_ENTRIES or MAX_ENTRIES  # 0 means 65536; a signed field shows more than 32767 as negative
    if signed and first >= MAX_ENTRIES // 2:
        first -= MAX_ENTRIES
    with library_errors_as(fault):
        entries = _entries(dataset.get(content), count, little_endian=little_endian)
    if len(entries) < count or not 0 < bits <= 2 * BYTE:
        raise BadImage(fault)
    return LookupTable(entries=entries[:count], first=first, full=max((1 << bits) - 1, int(entries[:count].max())))


def _entries(content: Any, count: int, *, little_endian: bool) -> NDArray[np.int64]:
    """Return the entries: numbers, or bytes with one or two for each."""
    if not isinstance(content, bytes):
        return np.asarray(content, dtype=np.int64).reshape(-1) % MAX_ENTRIES
    if len(content) >= 2 * count:
        return np.frombuffer(content[: 2 * count], dtype="<u2" if little_endian else ">u2").astype(np.int64)
    return np.frombuffer(content, dtype=np.uint8).astype(np.int64)
