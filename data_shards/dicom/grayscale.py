"""How stored pixels are displayed: a table of 8-bit gray for every pixel word (PS3.4 N.2).

Modality LUT or rescale, then VOI LUT or window, then MONOCHROME1 inverted. A table of at most 65,536 entries replaces
arithmetic on every pixel of a film.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_shards.dicom.lookup_table import read_table
from data_shards.dicom.parse import number, numbers
from data_shards.errors import BadImage
from data_shards.pixels import DEPTHS

Floats: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]

WHITE = 255
WHOLE = 1  # smallest width of a LINEAR window
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, kw_only=True)
class StoredBits:
    """Where a value is in a pixel's word (PS3.5 8.1.1). The other bits, such as those of an overlay, are ignored.

    Attributes:
        allocated: Bits of the word, 8 or 16.
        stored: Bits of the value.
        low: Position of its lowest bit.
        signed: Whether it is a two's complement.
    """

    allocated: int
    stored: int
    low: int
    signed: bool

    def values(self) -> NDArray[np.int64]:
        """Return the value of every word."""
        words = np.arange(1 << self.allocated) >> self.low & ((1 << self.stored) - 1)
        return words - ((words >> (self.stored - 1)) << self.stored) if self.signed else words


def gray_table(dataset: Any, bits: StoredBits, *, window: int, used: Callable[[], NDArray[np.bool_]]) -> Bytes:
    """Return the 8-bit gray of every pixel word.

    Args:
        dataset: The header.
        bits: Where the value is in a word.
        window: Which of the header's windows or VOI LUTs to use, from 1.
        used: Returns for every word whether a pixel has it; called if the header says nothing about brightness.

    Raises:
        BadImage: The header contradicts itself, or has no such window.
    """
    little_endian = dataset.file_meta.TransferSyntaxUID.is_little_endian
    values, is_rescaled = _modality(dataset, bits, little_endian=little_endian)
    if luts := dataset.get("VOILUTSequence"):
        item = _chosen(list(luts), window, "VOI LUTs")
        signed = bits.signed or bool((values < 0).any())
        lut = read_table(item, "LUTDescriptor", "LUTData", signed=signed, little_endian=little_endian)
        shares = lut(values) / lut.full
    elif numbers(dataset, "WindowCenter") and numbers(dataset, "WindowWidth"):
        center = _chosen(numbers(dataset, "WindowCenter"), window, "windows")
        width = _chosen(numbers(dataset, "WindowWidth"), window, "windows")
        shares = windowed(values, center, width, function=str(dataset.get("VOILUTFunction") or FUNCTIONS[0]))
    else:
        shares = _full_range(values, bits, used(), is_rescaled=is_rescaled)
    gray: Bytes = np.rint(shares.clip(0, 1) * WHITE).astype(np.uint8)
    return np.subtract(WHITE, gray, dtype=np.uint8) if dataset.PhotometricInterpretation == "MONOCHROME1" else gray


def windowed(values: Floats, center: float, width: float, *, function: str) -> Floats:
    """Return the share of full brightness of each value under a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Raises:
        BadImage: The window is too narrow, or its function is unknown.
    """
    name = function.strip().upper()
    if name not in FUNCTIONS:
        raise BadImage(f"its VOI LUT function is none of {', '.join(FUNCTIONS)}")
    if width <= 0 or (name == "LINEAR" and width < WHOLE):
        raise BadImage(f"its window has the width {width:g}, which shows nothing; pack with another --dicom-window")
    with np.errstate(over="ignore"):
        if name == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
        if name == "LINEAR_EXACT":
            return (values - center) / width + 0.5
        if width == WHOLE:
            return (values > center - 0.5).astype(np.float64)
        return (values - (center - 0.5)) / (width - 1) + 0.5


def _modality(dataset: Any, bits: StoredBits, *, little_endian: bool) -> tuple[Floats, bool]:
    """Return the modality's value of every word, and whether that differs from the stored value."""
    stored = bits.values().astype(np.float64)
    if luts := dataset.get("ModalityLUTSequence"):
        table = read_table(luts[0], "LUTDescriptor", "LUTData", signed=bits.signed, little_endian=little_endian)
        return table(stored), True
    slope, intercept = number(dataset, "RescaleSlope", 1), number(dataset, "RescaleIntercept", 0)
    if slope == 0:
        raise BadImage("its RescaleSlope is 0, which leaves no contrast")
    return stored * slope + intercept, (slope, intercept) != (1, 0)


def _full_range(values: Floats, bits: StoredBits, used: NDArray[np.bool_], *, is_rescaled: bool) -> Floats:
    """Return the share of full brightness where the header has no window.

    Unsigned values as the detector delivered them: 0 is black and the largest number of `stored` bits is white; of 16
    bits, which files often claim for less, the smallest usual depth that holds the brightest pixel. Others, such as
    Hounsfield units, have no full range of their own: the darkest pixel is black and the brightest is white.
    """
    present = values[used]
    darkest, brightest = float(present.min()), float(present.max())
    if not bits.signed and not is_rescaled:
        depth = bits.stored
        if depth == DEPTHS[-1]:
            depth = next(bits for bits in DEPTHS if brightest < 1 << bits)
        return values / ((1 << depth) - 1)
    return (values - darkest) / max(brightest - darkest, np.finfo(np.float64).tiny)


def _chosen(found: list[Any], window: int, what: str) -> Any:
    if window > len(found):
        raise BadImage(f"it has {len(found)} {what}, not {window}; pack with another --dicom-window")
    return found[window - 1]
