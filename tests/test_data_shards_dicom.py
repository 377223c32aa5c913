import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from data_shards.pixels import decode_pixels, is_gray, is_image_file, open_image, sniff_format
from tests.dicoms import (
    COLORS,
    GRAY,
    PREAMBLE,
    RAMP,
    SIGNED,
    converted,
    dataset,
    dicom,
    displayed_by_dcmtk,
    lut,
    needs_dcmtk,
    of_pydicom,
    read,
    refused,
    saved,
)


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
