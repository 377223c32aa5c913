"""One DICOM image: its size before anything is decoded, and its pixels as 8-bit gray or RGB."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array
from pydicom.uid import UID, MediaStorageDirectoryStorage, RLELossless

from data_shards.dicom import DicomFrame
from data_shards.dicom.frame_size import compressed_size
from data_shards.dicom.grayscale import WHITE, StoredBits, gray_table
from data_shards.dicom.lookup_table import read_table
from data_shards.dicom.parse import library_errors_as, number, parse
from data_shards.errors import BadImage, NoImage

LUT_SEQUENCES = ("ModalityLUTSequence", "VOILUTSequence")
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
DISPLAY_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # inside these, in enhanced objects
COLORS = ("Red", "Green", "Blue")
FIELDS = (
    "SOPClassUID",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "WindowCenter",
    "WindowWidth", "VOILUTFunction", *LUT_SEQUENCES, *FUNCTIONAL_GROUPS,
    *(f"{color}PaletteColorLookupTable{part}" for color in COLORS for part in ("Descriptor", "Data")),
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
)  # fmt: skip
SOP_CLASS = "SOP Class"  # type of a UID in the standard's dictionary
IMAGE = "Image"  # in the names of the SOP classes of images
GRAY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
REFUSED = ("YBR_PARTIAL_422", "YBR_PARTIAL_420", "HSV", "ARGB", "CMYK", "XYB")
WORDS = {1: np.uint8, 8: np.uint8, 16: np.uint16}  # by BitsAllocated; single bits are unpacked
DECODER = "pylibjpeg"  # the same everywhere, whatever else is installed
RLE_DECODER = "pydicom"  # pylibjpeg's panics at damaged data
ROWS = 256  # scaled at a time: indices of a film of 100 megapixels would take a gigabyte
HEADER_BYTES = 64 << 20  # a deflated file may have beside its pixels
PIXEL_BYTES = 6  # of a pixel, at most: three colors of 16 bits


@dataclass(frozen=True, kw_only=True)
class DicomFilm:
    """A DICOM image that is parsed and not decoded.

    Attributes:
        size: Columns and rows, as the header says.
        window: Which of its windows or VOI LUTs displays it, from 1.
    """

    dataset: Any
    size: tuple[int, int]
    frames: int
    photometric: str
    window: int

    @library_errors_as("its pixels cannot be decoded")
    def decode(self) -> Image.Image:
        """Return the image in mode L or RGB. It has no metadata.

        Raises:
            BadImage: The pixels are cut off, damaged or of a kind that is not supported, or the header contradicts
                itself.
        """
        bits = self._bits()
        self._check_length()
        words = self._words()
        if self.photometric in GRAY:
            table = gray_table(self.dataset, bits, window=self.window, used=partial(_used, words, bits.allocated))
            return Image.fromarray(_mapped(words, table))
        if self.photometric == PALETTE:
            return Image.fromarray(_mapped(words, self._palette(bits)))
        if bits.stored == bits.allocated == 8:  # noqa: PLR2004 -- as most are
            return Image.fromarray(words)
        full = (1 << bits.stored) - 1
        return Image.fromarray(_mapped(words, np.rint(bits.values() / full * WHITE).astype(np.uint8)))

    def _check_length(self) -> None:
        """Refuse pixel data that are cut off, and compressed ones of another size than the header says."""
        syntax, samples = self.dataset.file_meta.TransferSyntaxUID, int(number(self.dataset, "SamplesPerPixel", 1))
        if not _decoder(syntax).is_encapsulated:
            with library_errors_as("the length of its pixel data cannot be computed"):
                expected, found = get_expected_length(self.dataset), len(self.dataset.PixelData)
            if found < expected:
                raise BadImage(f"its pixel data are cut off: {found:,} of {expected:,} bytes")
            return
        with library_errors_as("its compressed pixel data are damaged"):
            frame = get_frame(self.dataset.PixelData, 0, number_of_frames=self.frames, extended_offsets=self._offsets())
        claimed = compressed_size(frame)
        if claimed and claimed != (*self.size, samples):
            raise BadImage(
                f"its header says {_shape(*self.size, samples)}, its compressed pixel data {_shape(*claimed)}"
            )

    def _offsets(self) -> tuple[bytes, bytes] | None:
        table, lengths = (self.dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
        return (table, lengths) if table and lengths else None

    def _words(self) -> NDArray[Any]:
        """Return the pixel words (rows, columns) or (rows, columns, 3) of the first frame; colors as RGB."""
        decoder = _decoder(self.dataset.file_meta.TransferSyntaxUID)
        options: dict[str, Any] = {} if self.photometric in COLOR else {"raw": True}
        if decoder.is_encapsulated:
            options["decoding_plugin"] = _plugin(decoder)
        if _has_words(decoder.UID):
            options["correct_unused_bits"] = False  # StoredBits does
        with library_errors_as("its pixels cannot be decoded"):
            found = pixel_array(self.dataset, index=0, **options)
            return np.ascontiguousarray(found, found.dtype.newbyteorder("=")).view(f"u{found.dtype.itemsize}")

    def _bits(self) -> StoredBits:
        allocated = int(number(self.dataset, "BitsAllocated"))
        stored = int(number(self.dataset, "BitsStored", allocated))
        high = int(number(self.dataset, "HighBit", stored - 1))
        word = max(allocated, 8)
        low = high + 1 - stored if _has_words(self.dataset.file_meta.TransferSyntaxUID) else 0
        if not 0 < stored <= word or low < 0 or low + stored > word:
            raise BadImage(f"its header contradicts itself: {stored} of {allocated} bits, the highest is {high}")
        signed = bool(number(self.dataset, "PixelRepresentation", 0))
        return StoredBits(allocated=word, stored=stored, low=low, signed=signed)

    def _palette(self, bits: StoredBits) -> NDArray[np.uint8]:
        """Return the color (words, 3) of every pixel word (PS3.3 C.7.6.3.1.5)."""
        channels = []
        for color in COLORS:
            name = f"{color}PaletteColorLookupTable"
            if f"{name}Data" not in self.dataset:
                raise BadImage("its palette is segmented or missing, which is not supported; convert it to RGB")
            little = self.dataset.file_meta.TransferSyntaxUID.is_little_endian
            table = read_table(
                self.dataset, f"{name}Descriptor", f"{name}Data", signed=bits.signed, little_endian=little
            )
            channels.append(np.rint(table(bits.values()) / table.full * WHITE).astype(np.uint8))
        return np.stack(channels, axis=-1)


@library_errors_as("its DICOM header is damaged")
def open_film(data: bytes, *, max_megapixels: int, frame: DicomFrame = "only", window: int = 1) -> DicomFilm:
    """Parse a DICOM file without decoding its pixels.

    Args:
        data: The file.
        max_megapixels: Limit of a deflated file, in millions of pixels; the caller compares the size with it.
        frame: Whether several frames are refused ("only"), or the first one is taken.
        window: Which of the header's windows or VOI LUTs displays it, from 1.

    Raises:
        BadImage: It is damaged, has no pixels or several frames, or is of a kind that is not supported.
    """
    dataset = parse(data, FIELDS, max_inflated=max_megapixels * 1_000_000 * PIXEL_BYTES + HEADER_BYTES)
    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise NoImage("it is a DICOMDIR, a list of other files")
    if "PixelData" not in dataset:
        _refuse_no_image(dataset)
        raise BadImage("it has no pixel data, or they are cut off")
    _take_functional_groups(dataset)
    size = (int(number(dataset, "Columns")), int(number(dataset, "Rows")))
    frames = int(number(dataset, "NumberOfFrames", 1))
    if min(size) < 1:
        raise BadImage(f"its header says {size[0]} x {size[1]} pixels")
    if frames > 1 and frame != "first":
        raise BadImage(f"it has {frames} frames; split it, or pack with --dicom-frame first")
    return DicomFilm(dataset=dataset, size=size, frames=frames, photometric=_photometric(dataset), window=window)


def _refuse_no_image(dataset: Dataset) -> None:
    """Refuse a file without pixels whose kind, by the standard's name of its SOP class, has none.

    Raises:
        NoImage: The text has that name, and nothing else of the header.
    """
    found = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    is_known = found.type == SOP_CLASS and not found.is_private
    if is_known and "Rows" not in dataset and IMAGE not in found.name:
        raise NoImage(f"it holds no image: its kind is {found.name.removesuffix(' Storage')}")


def _photometric(dataset: Dataset) -> str:
    """Return how the samples are to be understood, and complete what a reader of pixels needs.

    Raises:
        BadImage: This is not supported.
    """
    found = str(dataset.get("PhotometricInterpretation") or "").strip()
    samples, allocated = int(number(dataset, "SamplesPerPixel", 1)), int(number(dataset, "BitsAllocated"))
    if found not in (*GRAY, PALETTE, *COLOR):
        if not found:
            raise BadImage("its header has no PhotometricInterpretation")
        name = found if found in REFUSED else "unknown"
        raise BadImage(f"its photometric interpretation is {name}, which is not supported; convert it to RGB")
    if samples != (3 if found in COLOR else 1):
        raise BadImage(f"its header contradicts itself: {found} with {samples} samples per pixel")
    if allocated not in WORDS:
        raise BadImage(f"its pixels have {allocated} bits; 1, 8 and 16 are supported")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, found
    for keyword, default in (("BitsStored", allocated), ("PixelRepresentation", 0), ("PlanarConfiguration", 0)):
        setattr(dataset, keyword, int(number(dataset, keyword, default)))
    return found


def _take_functional_groups(dataset: Dataset) -> None:
    """Move rescale and window of an enhanced object's first frame to where other objects have them."""
    with library_errors_as("the functional groups in its header are damaged"):
        for groups in FUNCTIONAL_GROUPS:
            for item in (dataset.get(groups) or ())[:1]:
                for name in DISPLAY_GROUPS:
                    for found in (item.get(name) or ())[:1]:
                        dataset.update(found)


def _decoder(syntax: Any) -> Any:
    """Return pydicom's decoder for a transfer syntax.

    Raises:
        BadImage: It is unknown, a video, or needs a package that is not installed.
    """
    known = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "unknown"
    with library_errors_as(f"its transfer syntax is {known}, which is not supported; convert it with dcmconv"):
        decoder = get_decoder(syntax)
    if decoder.is_encapsulated and _plugin(decoder) not in decoder.available_plugins:
        raise BadImage(f"its transfer syntax is {known}; install its decoder: pip install 'nightshift[dicom]'")
    return decoder


def _has_words(syntax: Any) -> bool:
    """Return whether the pixels are words, with the value where HighBit says. An image codec delivers values."""
    return RLELossless == syntax or not syntax.is_encapsulated


def _plugin(decoder: Any) -> str:
    return RLE_DECODER if RLELossless == decoder.UID else DECODER


def _used(words: NDArray[Any], bits: int) -> NDArray[np.bool_]:
    found = np.zeros(1 << bits, dtype=np.bool_)
    for top in range(0, len(words), ROWS):
        found[words[top : top + ROWS].reshape(-1)] = True
    return found


def _mapped(words: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the table's entry for each word; of a table (words, 3), three."""
    mapped = np.empty((*words.shape, *table.shape[1:]), dtype=np.uint8)
    for top in range(0, len(words), ROWS):
        mapped[top : top + ROWS] = table[words[top : top + ROWS]]
    return mapped


def _shape(width: int, height: int, samples: int) -> str:
    return f"{width} x {height} pixels of {samples} {'sample' if samples == 1 else 'samples'}"
