"""DICOM files in `shards pack`."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import BasicTextSRStorage

from data_shards.errors import SourceError
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import REPORT_NAME, pack
from data_shards.pixels import decode_square
from tests.datasets import encoded, noise
from tests.dicoms import dicom
from trainer.data.images import input_pixels
from trainer.model.head import HeadConfig

LOSSLESS = EncodeOptions(encoding="lossless", image_size=0)
REPORT = {"SOPClassUID": BasicTextSRStorage, "Rows": None, "Columns": None, "PixelData": None}


def films(folder, make, ending, counts=(("covid", 4), ("normal", 4))):
    """Write images to class folders; `make` gives the bytes of one from its 8-bit pixels."""
    seed = 0
    for name, count in counts:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}{ending}").write_bytes(make(np.asarray(noise(seed))))
            seed += 1
    return folder


def as_detected(pixels):
    """Return the film as a detector delivers it: 12 bits, inverted, to be shown with a window."""
    return dicom(
        4095 - pixels.astype(np.uint16) * 8,
        BitsStored=12,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=4095 - 255 * 4 + 0.5,
        WindowWidth=255 * 8 + 1,
    )


def packed(source, target, **chosen):
    return pack(source, target, PackOptions(**{"processes": 1, "split": "50/25/25", "encode": LOSSLESS, **chosen}))


def stored(target):
    """Return the stored image of every sample by the name of its source without ending."""
    found = {}
    for shard in target.glob("*.tar"):
        with tarfile.open(shard) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        for name, image in content.items():
            if name.endswith((".png", ".jpg")):
                source = json.loads(content[name[:-3] + "json"])["source"]
                found[source.rpartition(".")[0]] = image
    return found


def test_a_dicom_is_packed_like_the_8_bit_image_that_it_shows(tmp_path):
    plain = films(tmp_path / "png", lambda pixels: encoded(Image.fromarray(pixels)), ".png")
    dicoms = films(tmp_path / "dcm", as_detected, ".dcm")

    reports = [packed(source, tmp_path / f"{source.name}-shards") for source in (plain, dicoms)]

    of_png, of_dicom = stored(tmp_path / "png-shards"), stored(tmp_path / "dcm-shards")
    assert len(of_png) == 8
    assert {name: pixels_of(image) for name, image in of_png.items()} == {
        name: pixels_of(image) for name, image in of_dicom.items()
    }
    assert reports[1].index.color == "L"


def pixels_of(image):
    return decode_square(image, size=36, color="L").tobytes()


@pytest.mark.parametrize("image_size", [0, 24, 256])
def test_predict_gives_a_model_the_pixels_of_the_shards(tmp_path, image_size):
    source, pack_step = films(tmp_path / "images", as_detected, ".dcm"), EncodeOptions(image_size=image_size)
    config = HeadConfig(classes=("covid", "normal"), width=8, dropout=0.0, image_size=32, pack=pack_step)

    packed(source, tmp_path / "shards", encode=pack_step)

    for name, image in stored(tmp_path / "shards").items():
        as_file = input_pixels((source / f"{name}.dcm").read_bytes(), config)
        assert (as_file == decode_square(image, size=32, color="RGB")).all()


def test_dicom_files_beside_others_are_packed_and_what_is_none_is_named(tmp_path):
    source = films(tmp_path / "images", lambda pixels: encoded(Image.fromarray(pixels)), ".png")
    (source / "covid/film.dcm").write_bytes(as_detected(np.asarray(noise(50))))
    (source / "covid/film").write_bytes(dicom(np.asarray(noise(51))))
    (source / "covid/text.dcm").write_text("no image")
    (source / "normal/plan.dcm").write_bytes(dicom(np.asarray(noise(52)), PixelData=None))
    (source / "DICOMDIR").write_bytes(b"")
    (source / "normal/text.dcm").write_bytes(dicom(np.asarray(noise(53)), **REPORT))

    report = packed(source, tmp_path / "shards", max_bad=0.5)

    assert sum(report.index.samples_in(split) for split in report.index.splits) == 10
    assert dict(report.skipped) == {
        "covid/text.dcm": "no readable JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or DICOM",
        "normal/plan.dcm": "it has no pixel data, or they are cut off",
    }
    assert report.folder.other_names == ("DICOMDIR",)
    assert report.without_image == (("normal/text.dcm", "it holds no image: its kind is Basic Text SR"),)


def test_a_report_among_the_films_is_not_counted_as_a_bad_image(tmp_path):
    source = films(tmp_path / "images", as_detected, ".dcm")
    (source / "covid/report.dcm").write_bytes(dicom(np.asarray(noise(53)), **REPORT))

    report = packed(source, tmp_path / "shards", max_bad=0)

    assert report.skipped == ()
    assert json.loads((tmp_path / "shards" / REPORT_NAME).read_text())["without_image"] == {
        "covid/report.dcm": "it holds no image: its kind is Basic Text SR"
    }


def test_options_of_dicom_are_kept_in_the_index_only_if_they_are_given(tmp_path):
    assert not {"dicom_frame", "dicom_window"} & PackOptions().to_index().keys()

    given = PackOptions(encode=EncodeOptions(dicom_frame="first", dicom_window=2)).to_index()

    assert (given["dicom_frame"], given["dicom_window"]) == ("first", 2)
    assert EncodeOptions.of_index(given).dicom_frame == "first"


def twice(pixels):
    return dicom(pixels, NumberOfFrames=2, PixelData=pixels.tobytes() * 2)


def test_films_that_cannot_be_used_are_refused_with_the_reason(tmp_path):
    source = films(tmp_path / "images", twice, ".dcm")

    with pytest.raises(SourceError, match=r"8 of 8 images cannot be used.*it has 2 frames; split it, or pack with"):
        packed(source, tmp_path / "shards")

    first = EncodeOptions(encoding="lossless", dicom_frame="first")
    assert packed(source, tmp_path / "shards", encode=first).index.classes == ("covid", "normal")
