"""DICOM files for tests, and dcmtk as the reference of how they are displayed."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from data_shards.errors import BadImage
from data_shards.pixels import decode_pixels, open_image

PREAMBLE = 132

needs_dcmtk = pytest.mark.skipif(not shutil.which("dcm2pnm"), reason="dcmtk is not installed")


def dataset(pixels, **fields):
    """Return a DICOM image of an array (rows, columns) or (rows, columns, 3); a field that is None is left out."""
    bits = pixels.dtype.itemsize * 8
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = Dataset()
    found.file_meta = meta
    given = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "DX",
        "PatientID": "1",
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        "PlanarConfiguration": 0 if pixels.ndim == 3 else None,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": fields.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    for name, value in (given | fields).items():
        if value is not None:
            setattr(found, name, value)
    return found


def saved(found, *, syntax=None, preamble=True, implicit=False):
    """Return a data set as the bytes of a file."""
    if syntax is not None:
        found.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    if preamble:
        found.save_as(buffer, enforce_file_format=True)
    else:
        del found.file_meta
        found.save_as(buffer, implicit_vr=implicit, little_endian=True)
    return buffer.getvalue()


def dicom(pixels, **fields):
    """Return the bytes of a DICOM file of an array."""
    return saved(dataset(pixels, **fields))


def lut(entries, *, first=0, bits=16):
    """Return a sequence with one lookup table."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return Sequence([item])


def of_pydicom(name):
    """Return the bytes of a test file that comes with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), name
    return Path(path).read_bytes()


def displayed_by_dcmtk(data, folder, *options):
    """Return the 8-bit pixels that dcmtk shows, gray or RGB, without overlays."""
    source, target = folder / "reference.dcm", folder / "reference.pnm"
    source.write_bytes(data)
    for program in ("dcm2pnm", "dcmj2pnm", "dcml2pnm"):  # uncompressed, JPEG, JPEG-LS
        done = subprocess.run([program, "-O", *options, source, target], capture_output=True, check=False)
        if done.returncode == 0:
            return np.asarray(Image.open(target)).astype(int)
    raise AssertionError(done.stderr)


def converted(data, folder, *command):
    """Return a file as one of dcmtk's converters writes it."""
    source, target = folder / "before.dcm", folder / "after.dcm"
    source.write_bytes(data)
    subprocess.run([command[0], *command[1:], source, target], check=True, capture_output=True)
    return target.read_bytes()


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # every value of 12 bits


SIGNED = RAMP.astype(np.int16) - 2048


GRAY = (RAMP >> 4).astype(np.uint8)


COLORS = np.stack([GRAY, GRAY.T, 255 - GRAY], axis=-1)


def read(data, **options):
    """Return the pixels of a file as `shards pack` and `predict` see them."""
    return np.asarray(decode_pixels(open_image(data, **options))).astype(int)


def refused(data, text, error=BadImage, **options):
    with pytest.raises(error, match=text) as caught:
        read(data, **options)
    assert "\n" not in str(caught.value)
