"""DICOM files that cannot be displayed or that lie about themselves: one line each, and nothing is decoded in vain."""

import contextlib
import logging
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from data_shards.dicom import film, parse
from data_shards.dicom.frame_size import compressed_size
from data_shards.errors import BadImage, TooManyPixels
from tests.dicoms import (
    COLORS,
    GRAY,
    PREAMBLE,
    dataset,
    dicom,
    lut,
    of_pydicom,
    read,
    refused,
    saved,
)

CANARY = "CANARY"


def with_video():
    found = dataset(GRAY)
    found.compress(RLELossless, generate_instance_uid=False)
    return saved(found, syntax=MPEG2MPML)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (dicom(GRAY)[:-100], "its pixel data are cut off: 3,996 of 4,096 bytes"),
        (dicom(GRAY)[:400], "it has no pixel data, or they are cut off"),
        (dicom(GRAY)[:PREAMBLE], "it has no pixel data, or they are cut off"),
        (dicom(GRAY, PixelData=None), "it has no pixel data"),
        (dicom(GRAY, Rows=None), "its header has no Rows"),
        (dicom(GRAY, Rows=0), "its header says 64 x 0 pixels"),
        (dicom(GRAY, BitsStored=9), "contradicts itself: 9 of 8 bits"),
        (dicom(GRAY, HighBit=3), "contradicts itself: 8 of 8 bits, the highest is 3"),
        (dicom(COLORS, SamplesPerPixel=1), "contradicts itself: RGB with 1 samples per pixel"),
        (dicom(GRAY, PhotometricInterpretation=None), "its header has no PhotometricInterpretation"),
        (dicom(GRAY, PhotometricInterpretation=CANARY), "its photometric interpretation is unknown, which is not"),
        (dicom(COLORS, PhotometricInterpretation="YBR_PARTIAL_422"), "is YBR_PARTIAL_422, which is not supported"),
        (dicom(GRAY, PhotometricInterpretation="PALETTE COLOR"), "its palette is segmented or missing"),
        (dicom(GRAY.astype(np.uint32)), "its pixels have 32 bits; 1, 8 and 16 are supported"),
        (dicom(GRAY, RescaleSlope=0, RescaleIntercept=0), "its RescaleSlope is 0, which leaves no contrast"),
        (dicom(GRAY, WindowCenter=5, WindowWidth=0), "its window has the width 0, which shows nothing"),
        (dicom(GRAY, WindowCenter=5, WindowWidth=9, VOILUTFunction=CANARY), "its VOI LUT function is none of LINEAR"),
        (
            dicom(GRAY, VOILUTSequence=lut([1, 2])).replace(b"US\x06\0\x02\0", b"US\x06\0\x09\0"),
            "LUTData in its header is",
        ),
        (with_video(), "its transfer syntax is MPEG2 Main Profile / Main Level, which is not supported"),
        (of_pydicom("rtplan.dcm"), "it holds no image: its kind is RT Plan$"),
        (of_pydicom("MR_truncated.dcm"), "its pixel data are cut off: 8,130 of 8,192 bytes"),
    ],
)
def test_a_bad_dicom_says_what_is_wrong(data, text):
    refused(data, text)


def lying(width, height):
    """A file whose header has the true size of 64 x 64, and whose JPEG 2000 stream claims another one."""
    found = dataset(GRAY)
    found.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    sizes = struct.pack(">2I", 64, 64)
    found.PixelData = found.PixelData.replace(sizes, struct.pack(">2I", width, height))
    return saved(found)


def test_a_compressed_frame_of_another_size_is_refused_before_it_is_decoded():
    refused(
        lying(60_000, 60_000), "its header says 64 x 64 pixels of 1 sample, its compressed pixel data 60000 x 60000"
    )


def test_the_size_in_the_header_is_limited_before_the_pixels_are_read():
    refused(dicom(GRAY, Rows=60_000, Columns=60_000), "60000 x 60000 are 3600 megapixels", TooManyPixels)
    refused(dicom(GRAY, Rows=1100, Columns=1000), "above the limit of 1", TooManyPixels, max_megapixels=1)


def test_a_deflated_bomb_is_not_inflated(monkeypatch):
    data = saved(dataset(GRAY), syntax=DeflatedExplicitVRLittleEndian)
    meta_end = 144 + struct.unpack_from("<I", data, 140)[0]
    bomb = zlib.compress(bytes(7_000_000), wbits=-zlib.MAX_WBITS)
    monkeypatch.setattr(film, "HEADER_BYTES", 0)

    refused(data[:meta_end] + bomb, "its deflated content has more than 6,000,000 bytes", max_megapixels=1)


def test_a_header_of_countless_items_is_refused(monkeypatch):
    items = b"\x18\0\x01\0SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 3000
    monkeypatch.setattr(parse, "MAX_FIELDS", 1000)

    refused(dicom(GRAY)[:PREAMBLE] + items, "its DICOM header cannot be read, or has more than 125,000 fields")


def test_a_deeply_nested_header_is_refused():
    nested = b"\x18\0\x01\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000

    refused(dicom(GRAY)[:PREAMBLE] + nested, "its DICOM header cannot be read")


@pytest.mark.parametrize(
    "stream",
    [
        b"\xff\xd8\xff\xda\xff\xd9",
        b"\xff\xd8\xff\xde\xff\xd9",
        b"\xff\xd8\xff\xc0\0\xff\xd9",
        b"\xff\x4f\xff\x51\xff\xd9",
    ],
)
def test_a_stream_without_a_size_is_refused(stream):
    with pytest.raises(BadImage, match="its compressed pixel data have no valid header"):
        compressed_size(stream)


def test_a_stream_that_is_cut_off_is_refused():
    found = dataset(GRAY)
    found.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    end = found.PixelData.rindex(b"\xff\xd9")
    found.PixelData = found.PixelData[:end] + bytes(len(found.PixelData) - end)

    refused(saved(found), "its compressed pixel data are cut off")


def test_without_pydicom_the_cure_is_named(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("data_shards.dicom."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)

    refused(dicom(GRAY), r"a DICOM file; to read it, pip install 'nightshift\[dicom\]'")


SAMPLES = (
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "image_dfl.dcm",
    "JPEGLSNearLossless_08.dcm",
)


@given(st.sampled_from(SAMPLES), st.data())
@settings(max_examples=60)
def test_damaged_bytes_give_pixels_or_a_bad_image_and_no_other_word(name, draws):
    data = bytearray(of_pydicom(name))
    for _ in range(draws.draw(st.integers(1, 8))):
        data[draws.draw(st.integers(PREAMBLE, len(data) - 1))] = draws.draw(st.integers(0, 255))
    cut = bytes(data[: draws.draw(st.integers(PREAMBLE, len(data)))])

    with warnings.catch_warnings(record=True) as warned, contextlib.suppress(BadImage):
        warnings.simplefilter("always")
        read(cut)

    assert not warned


def test_the_warnings_of_pydicom_reach_no_log(caplog):
    caplog.set_level(logging.DEBUG)

    with contextlib.suppress(BadImage):
        read(dicom(GRAY, Rows=None).replace(b"DX", b"\xff\xff"))
    logging.getLogger("pydicom").warning("the PatientName is CANARY")

    assert not caplog.records
