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
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from data_shards.dicom import film, parse
from data_shards.dicom.frame_size import compressed_size
from data_shards.errors import BadImage, TooManyPixels
from data_shards.pixels import decode_pixels, is_gray, is_image_file, open_image, sniff_format
from tests.dicoms import PREAMBLE, converted, dataset, dicom, displayed_by_dcmtk, lut, needs_dcmtk, of_pydicom, saved

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


def difference(ours, reference):
    assert ours.shape == reference.shape
    return np.abs(ours - reference).max()


@needs_dcmtk
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CT_small.dcm", ["+Wm"]),
        ("MR_small.dcm", ["+Wi", "1"]),
        ("MR_small_bigendian.dcm", ["+Wi", "1"]),
        ("MR_small_implicit.dcm", ["+Wi", "1"]),
        ("MR_small_padded.dcm", ["+Wi", "1"]),
        ("MR_small_RLE.dcm", ["+Wi", "1"]),
        ("MR_small_jpeg_ls_lossless.dcm", ["+Wi", "1"]),
        ("examples_overlay.dcm", ["+Wi", "1"]),
        ("JPGExtended.dcm", []),
        ("image_dfl.dcm", []),
        ("liver_1frame.dcm", ["+Wm"]),
        ("ExplVR_BigEnd.dcm", []),
        ("examples_palette.dcm", []),
        ("examples_rgb_color.dcm", []),
        ("SC_rgb_small_odd.dcm", []),
        ("SC_rgb_small_odd_big_endian.dcm", []),
        ("SC_rgb_rle.dcm", []),
        ("SC_rgb_rle_16bit.dcm", []),
        ("SC_rgb_jpeg_gdcm.dcm", []),
        ("SC_rgb_jpeg_dcmd.dcm", []),
        ("SC_rgb_jpeg_app14_dcmd.dcm", []),
        ("SC_jpeg_no_color_transform.dcm", []),
        ("SC_jpeg_no_color_transform_2.dcm", []),
        ("SC_ybr_full_422_uncompressed.dcm", []),
        ("SC_rgb_dcmtk_+eb+cr.dcm", []),
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", []),
        ("dicomdirtests/77654033/CR1/6154", []),
        ("dicomdirtests/77654033/CR2/6247", []),
        ("dicomdirtests/98892003/MR1/15820", ["+Wi", "1"]),
        ("dicomdirtests/77654033/CT2/17106", ["+Wi", "1"]),
    ],
)
def test_the_files_of_pydicom_are_displayed_as_by_dcmtk(tmp_path, name, options):
    data = of_pydicom(name)

    reference = displayed_by_dcmtk(data, tmp_path, *options)

    assert difference(read(data), reference) <= 1


@needs_dcmtk
@pytest.mark.parametrize("name", ["SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "examples_ybr_color.dcm"])
def test_lossy_colors_differ_from_those_of_dcmtk_by_rounding_alone(tmp_path, name):
    data = of_pydicom(name)

    reference = displayed_by_dcmtk(data, tmp_path)

    assert difference(read(data, dicom_frame="first"), reference) <= 3  # three roundings: DCT, and color both ways


WINDOW = {"BitsStored": 12, "WindowCenter": 1000, "WindowWidth": 1500}
RESCALED = {"BitsStored": 12, "RescaleSlope": "0.684", "RescaleIntercept": "-1000"}


@needs_dcmtk
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"BitsStored": 12}, []),
        (WINDOW, ["+Wi", "1"]),
        (WINDOW | {"WindowCenter": [1000, 2000], "WindowWidth": [1500, 300]}, ["+Wi", "1"]),
        (WINDOW | {"PhotometricInterpretation": "MONOCHROME1"}, ["+Wi", "1"]),
        (WINDOW | {"WindowWidth": 1}, ["+Wi", "1"]),
        (WINDOW | {"VOILUTFunction": "SIGMOID"}, ["+Wi", "1"]),
        (RESCALED, ["+Wm"]),
        ({"BitsStored": 12, "ModalityLUTSequence": lut(np.arange(4096)[::-1] * 3)}, ["+Wm"]),
        (WINDOW | {"ModalityLUTSequence": lut(np.arange(4096) ** 2 >> 8)}, ["+Wi", "1"]),
        (WINDOW | {"VOILUTSequence": lut(np.arange(4096) ** 2 >> 8)}, ["+Wl", "1"]),
        ({"BitsStored": 12, "VOILUTSequence": lut(np.arange(1000) // 4, first=1500, bits=8)}, ["+Wl", "1"]),
        (RESCALED | {"VOILUTSequence": lut(np.arange(2000), first=-600, bits=12)}, ["+Wl", "1"]),
    ],
)
def test_modality_and_voi_are_applied_as_by_dcmtk(tmp_path, fields, options):
    data = dicom(RAMP, **fields)

    reference = displayed_by_dcmtk(data, tmp_path, *options)

    assert difference(read(data), reference) <= 1


@needs_dcmtk
def test_a_rescaled_window_differs_from_that_of_dcmtk_by_rounding_alone(tmp_path):
    data = dicom(RAMP, WindowCenter=40, WindowWidth=400, **RESCALED)

    reference = displayed_by_dcmtk(data, tmp_path, "+Wi", "1")

    assert difference(read(data), reference) <= 2  # dcmtk truncates Hounsfield units before the window, and after it


@needs_dcmtk
def test_signed_pixels_are_displayed_as_by_dcmtk(tmp_path):
    data = dicom(SIGNED, BitsStored=12, WindowCenter=-300, WindowWidth=1200)

    reference = displayed_by_dcmtk(data, tmp_path, "+Wi", "1")

    assert difference(read(data), reference) <= 1


@needs_dcmtk
@pytest.mark.parametrize(
    "command",
    [
        ["dcmcjpeg", "+e1"],
        ["dcmcjpeg", "+el"],
        ["dcmcjpls", "+el"],
        ["dcmcrle"],
        ["dcmconv", "+td"],
        ["dcmconv", "+tb"],
        ["dcmconv", "+ti"],
        ["dcmconv", "-F", "+te"],
        ["dcmconv", "-F", "+ti"],
    ],
)
@pytest.mark.parametrize("pixels", [RAMP, SIGNED], ids=["unsigned", "signed"])
def test_a_lossless_encoding_of_dcmtk_keeps_the_pixels(tmp_path, command, pixels):
    plain = dicom(pixels, BitsStored=12, WindowCenter=int(pixels.mean()), WindowWidth=2000)

    encoded = converted(plain, tmp_path, *command)

    assert difference(read(encoded), read(plain)) == 0


@needs_dcmtk
@pytest.mark.parametrize(("command", "tolerance"), [(["dcmcjpeg", "+ee", "+q", "100"], 2), (["dcmcjpls", "+en"], 1)])
def test_a_lossy_encoding_of_dcmtk_changes_the_pixels_by_rounding_alone(tmp_path, command, tolerance):
    plain = dicom(RAMP, BitsStored=12, WindowCenter=1000, WindowWidth=2000)

    encoded = converted(plain, tmp_path, *command)

    assert difference(read(encoded), read(plain)) <= tolerance


@needs_dcmtk
@pytest.mark.parametrize(
    ("command", "tolerance"),
    [
        (["dcmcjpeg", "+e1"], 0),
        (["dcmcjpeg", "+eb", "+q", "100", "+cy"], 8),
        (["dcmcjpls", "+el"], 0),
        (["dcmcrle"], 0),
    ],
)
def test_an_encoding_of_dcmtk_keeps_the_colors(tmp_path, command, tolerance):
    smooth = np.stack([np.add.outer(np.arange(64), np.arange(64))] * 3, axis=-1).astype(np.uint8)
    plain = dicom(smooth)

    encoded = converted(plain, tmp_path, *command)

    assert difference(read(encoded), smooth.astype(int)) <= tolerance


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize("pixels", [RAMP, SIGNED, GRAY, COLORS], ids=["12", "signed", "8", "RGB"])
def test_jpeg_2000_and_rle_keep_the_pixels(syntax, pixels):
    bits = {"BitsStored": 12} if pixels.itemsize == 2 else {}
    found = dataset(pixels, **bits)
    plain = saved(found)

    found.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)

    assert difference(read(saved(found)), read(plain)) == 0


def test_a_window_decides_how_16_bit_pixels_become_8_bits():
    pixels = read(dicom(RAMP, WindowCenter=2048, WindowWidth=1024))

    shown = RAMP[(pixels > 0) & (pixels < 255)]
    assert (shown.min(), shown.max()) == (1539, 2556)  # of 1536 to 2559; what rounds to black or white is outside


def test_monochrome1_is_the_negative_of_monochrome2():
    one, two = (read(dicom(RAMP, PhotometricInterpretation=f"MONOCHROME{number}", **WINDOW)) for number in (1, 2))

    assert (one == 255 - two).all()


def test_8_bit_pixels_without_a_window_stay_as_they_are():
    assert (read(dicom(GRAY)) == GRAY).all()


@pytest.mark.parametrize(("brightest", "depth"), [(255, 8), (1000, 10), (4095, 12), (5000, 14), (65535, 16)])
def test_16_bits_without_a_window_are_scaled_by_the_depth_that_holds_the_brightest(brightest, depth):
    pixels = read(dicom(np.array([[0, brightest]], dtype=np.uint16)))

    assert pixels.tolist() == [[0, round(brightest * 255 / (2**depth - 1))]]


def test_hounsfield_units_without_a_window_use_the_whole_range():
    pixels = read(dicom(np.array([[-1000, 0, 1000]], dtype=np.int16)))

    assert pixels.tolist() == [[0, 128, 255]]


def test_pixels_of_one_value_are_black():
    assert not read(dicom(np.full((4, 4), -7, dtype=np.int16))).any()


def test_the_bits_of_an_overlay_in_the_pixels_are_ignored():
    with_overlay = RAMP | 0xA000

    assert (read(dicom(with_overlay, BitsStored=12)) == read(dicom(RAMP, BitsStored=12))).all()


def test_pixels_in_the_upper_bits_are_read():
    upper = dicom(RAMP << 4, BitsStored=12, HighBit=15)

    assert (read(upper) == read(dicom(RAMP, BitsStored=12))).all()


def test_pixels_in_the_upper_bits_are_read_from_rle_too():
    found = dataset(RAMP << 4, BitsStored=12, HighBit=15)

    found.compress(RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)

    assert (read(saved(found)) == read(dicom(RAMP, BitsStored=12))).all()


def test_a_window_is_chosen_by_number():
    fields = WINDOW | {"WindowCenter": [1000, 3000], "WindowWidth": [1500, 200]}

    second = read(dicom(RAMP, **fields), dicom_window=2)

    assert (second == read(dicom(RAMP, **WINDOW | {"WindowCenter": 3000, "WindowWidth": 200}))).all()
    refused(dicom(RAMP, **fields), "it has 2 windows, not 3; pack with another --dicom-window", dicom_window=3)


def test_an_enhanced_object_is_displayed_by_the_functional_groups_of_its_first_frame():
    window, shared = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 1500
    shared.FrameVOILUTSequence = Sequence([window])

    enhanced = dicom(RAMP, BitsStored=12, SharedFunctionalGroupsSequence=Sequence([shared]))

    assert (read(enhanced) == read(dicom(RAMP, **WINDOW))).all()


def frames(count):
    return dataset(GRAY, NumberOfFrames=count, PixelData=GRAY.tobytes() + (255 - GRAY).tobytes() * (count - 1))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_several_frames_are_refused_or_the_first_one_is_taken(syntax):
    found = frames(3)
    if syntax == RLELossless:
        found.compress(syntax, generate_instance_uid=False)
    data = saved(found)

    refused(data, "it has 3 frames; split it, or pack with --dicom-frame first")

    assert (read(data, dicom_frame="first") == GRAY).all()


def test_a_gray_dicom_is_gray_and_a_colored_one_is_not():
    assert is_gray(decode_pixels(open_image(dicom(GRAY))))
    assert not is_gray(decode_pixels(open_image(dicom(COLORS))))


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_is_recognised_by_its_content(tmp_path, implicit):
    data = saved(dataset(GRAY), preamble=False, implicit=implicit)
    (tmp_path / "scan").write_bytes(data)

    assert sniff_format(data[:PREAMBLE]) == "DICOM"
    assert is_image_file(tmp_path / "scan")
    assert (read(data) == GRAY).all()


@pytest.mark.parametrize("name", ["scan.dcm", "scan.DICOM", "scan"])
def test_a_dicom_file_is_an_image_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(dicom(GRAY))

    assert is_image_file(tmp_path / name)


def test_a_dicomdir_is_no_image(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(of_pydicom("dicomdirtests/DICOMDIR"))

    assert not is_image_file(tmp_path / "DICOMDIR")
    refused((tmp_path / "DICOMDIR").read_bytes(), "it is a DICOMDIR, a list of other files")


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
