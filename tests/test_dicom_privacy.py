"""No text of a DICOM header is found in anything that Nightshift writes or says."""

import logging
import re
from functools import cache

import numpy as np
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from data_shards.dicom import parse  # noqa: F401 -- pydicom then accepts the canary in dates
from data_shards.index import read_index
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from tests.datasets import noise
from tests.dicoms import dataset, saved
from tests.trained import done, evaluated, train_spec
from trainer.specs import ExportSpec, PredictSpec, build

CANARY, NUMBER = "CANARY", "86753090"  # in texts, and in dates, numbers and identifiers
TEXTS = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE", "UR"}
FORMS = {
    "UI": f"1.2.{NUMBER}", "IS": NUMBER, "DS": NUMBER, "DA": NUMBER, "TM": "075309", "AS": "086Y", "DT": NUMBER,
}  # fmt: skip
KEPT = {  # what displays the image, or chooses it
    "PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "ViewPosition", "SpecificCharacterSet", "SOPClassUID",
}  # fmt: skip
GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040, 0x4008)


def filled():
    """Return a data set with the canary in every text and number field of the usual groups."""
    found = Dataset()
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if tag >> 16 in GROUPS and vr in {*TEXTS, *FORMS} and keyword not in KEPT:
            found.add_new(tag, vr, CANARY if vr in TEXTS else FORMS[vr])
    return found


@cache
def header():
    """Return the fields with the canary: all of them, and the same in private fields and inside sequences."""
    found = filled()
    found.ReferencedPatientSequence = Sequence([filled()])
    found.RequestAttributesSequence = Sequence([filled()])
    private = found.private_block(0x0009, CANARY, create=True)
    private.add_new(1, "LO", CANARY)
    private.add_new(2, "OB", CANARY.encode() * 2)
    found.add_new(0x60004000, "LT", CANARY)  # the comments of an overlay
    return found


def film(seed, **fields):
    """Return a film with the canary in every field and in the preamble."""
    found = dataset(np.asarray(noise(seed, (48, 40))))
    found.update(header())
    for name, value in {"ViewPosition": "PA", "PatientID": f"{CANARY}{seed // 2}", **fields}.items():
        setattr(found, name, value)
    found.file_meta.SourceApplicationEntityTitle = CANARY
    return CANARY.encode().ljust(128) + saved(found)[128:]


def written(*places):
    return {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


def canaries(content):
    """Return what in a text or file is a canary: in any Unicode form that is written."""
    plain = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    wide = (CANARY.encode("utf-16-le"), NUMBER.encode("utf-16-le"))
    return re.findall(CANARY.encode() + b"|" + NUMBER.encode(), plain, re.IGNORECASE) + [w for w in wide if w in plain]


def assert_without_canary(texts):
    assert texts
    assert {name: found for name, text in texts.items() if (found := canaries(text) + canaries(str(name)))} == {}


@pytest.fixture
def source(tmp_path):
    """Class folders of films, with some that cannot be used for every reason."""
    for seed in range(24):
        folder = tmp_path / "images" / ("covid", "normal")[seed // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}.dcm").write_bytes(film(seed))
    bad = {
        "mode": {"PhotometricInterpretation": CANARY},
        "lut": {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": CANARY},
        "frames": {"NumberOfFrames": 3},
        "wide": {"Rows": 60_000, "Columns": 60_000},
        "other": {"ViewPosition": CANARY},
    }
    for name, fields in bad.items():
        (tmp_path / "images/covid" / f"{name}.dcm").write_bytes(film(100, **fields))
    cut = film(101)
    (tmp_path / "images/covid/cut.dcm").write_bytes(cut[: len(cut) - 100])
    return tmp_path / "images"


def test_no_text_of_a_header_leaves_packing_and_submitting(tmp_path, source, settings, redis, say):
    shards = tmp_path / "shards"
    pack = ["shards", "pack", str(source), str(shards), "--split", "50/25/25", "--processes", "1", "--json"]
    chosen = ["--group-by", "dicom:PatientID", "--where", "dicom:ViewPosition=PA", "--max-bad", "0.5"]

    packed = say(*pack, *chosen)
    refused = [
        say(*pack[:3], str(tmp_path / "other"), *pack[4:], *options)
        for options in (["--max-bad", "0"], ["--where", "dicom:ViewPosition=LL"], ["--where", "dicom:Modality=MR"])
    ]
    queued = say("train", str(shards), "--weights", "none")

    assert [code for code, *_ in (packed, *refused, queued)] == [0, 1, 1, 1, 0]
    assert len(set(re.findall(r"covid/(mode|lut|frames|wide|other|cut)\.dcm", packed[2]))) == 6  # each is named
    assert read_index(str(shards)).grouped
    assert all(canaries(content) for content in written(source).values())
    assert_without_canary(written(shards, settings.storage))
    assert_without_canary({key: redis.dump(key) or b"" for key in redis.keys()})  # noqa: SIM118
    assert_without_canary({command: text for command in (packed, *refused, queued) for text in command[1:]})


@pytest.mark.slow
def test_no_text_of_a_header_leaves_training_evaluation_prediction_and_export(tmp_path, source, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    storage, shards = tmp_path / "storage", tmp_path / "shards"
    options = PackOptions(
        split="50/25/25", group_by="dicom:PatientID", group_key=lambda: "ab" * 32, max_bad=0.5, processes=1
    )
    pack(source, shards, options)

    run, _ = done(storage, train_spec(shards, epochs=1))
    evaluated(storage, run.best, shards)
    done(storage, build(PredictSpec, model=str(run.best), images=(str(source),)), "predicted")
    done(storage, build(ExportSpec, model=str(run.best), samples=str(source), format="torchscript"), "exported")

    files = written(storage)
    assert {"report.html", "predictions.csv", "result.json", "model.safetensors"} <= {path.name for path in files}
    assert_without_canary(files)
    assert_without_canary({"log": caplog.text, **dict(enumerate(capfd.readouterr()))})
