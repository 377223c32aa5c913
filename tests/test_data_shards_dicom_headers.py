"""Groups and conditions from DICOM headers."""

import json
import tarfile
import unicodedata

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cluster.errors import StorageError
from cluster.group_key import KEY_FILE, ensure_group_key
from data_shards.dicom import header
from data_shards.dicom.header import read_header
from data_shards.errors import BadImage, LeakageError, OptionError, SourceError
from data_shards.index import read_index
from data_shards.pack.add import add
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import REPORT_NAME, pack
from data_shards.pack.pseudonyms import key_fingerprint, pseudonym
from tests.datasets import encoded, noise
from tests.dicoms import dataset, dicom, saved

KEY = "ab" * 32
PATIENTS = "dicom:PatientID"


def key():
    return KEY


def film(seed, **fields):
    return dicom(np.asarray(noise(seed)), **{"ViewPosition": "PA", **fields})


def patients(folder, counts=(("covid", 6), ("normal", 6)), *, first=0):
    """Write two films of each patient to class folders; a patient's second film is a lateral one."""
    seed = first
    for name, count in counts:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            for view in ("PA", "LL"):
                content = film(seed, PatientID=f"{name}-{first + number}", ViewPosition=view)
                (folder / name / f"{first + number}-{view}.dcm").write_bytes(content)
                seed += 1
    return folder


def packed(source, **chosen):
    given = {"processes": 1, "split": "50/25/25", "group_by": PATIENTS, "group_key": key, **chosen}
    return pack(source, source.parent / "shards", PackOptions(**given))


def samples(target):
    """Return split, source and group of every sample."""
    found = []
    for shard in sorted(target.glob("*.tar")):
        with tarfile.open(shard) as tar:
            infos = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
        found += [(shard.name.partition("-")[0], info["source"], info.get("group")) for info in infos]
    return found


def test_the_films_of_a_patient_stay_in_one_split_under_a_name_that_does_not_tell(tmp_path):
    packed(patients(tmp_path / "images"))

    found = samples(tmp_path / "shards")
    splits = {}
    for split, source, group in found:
        splits.setdefault(source.rpartition("-")[0], set()).add((split, group))
    assert len(found) == 24
    assert all(len(of_patient) == 1 for of_patient in splits.values())
    assert {group for _, _, group in found} == {
        pseudonym(f"{name}-{n}", "PatientID", KEY) for name in ("covid", "normal") for n in range(6)
    }


def test_a_patient_in_composed_and_decomposed_unicode_is_one_group(tmp_path):
    utf8 = {"SpecificCharacterSet": "ISO_IR 192"}
    for seed, (name, form) in enumerate((c, f) for c in "ab" for f in ("NFC", "NFD")):
        (tmp_path / name).mkdir(exist_ok=True)
        patient = unicodedata.normalize(form, "José")
        (tmp_path / name / f"{form}.dcm").write_bytes(film(seed, PatientID=patient, **utf8))

    found = scan_source(tmp_path, PackOptions(split="50/50/0", processes=1, group_by=PATIENTS))

    assert {image.group for image in found.images} == {unicodedata.normalize("NFC", "José")}


def test_the_index_has_a_fingerprint_of_the_key_and_not_the_key(tmp_path):
    index = packed(patients(tmp_path / "images")).index

    assert index.options["group_key"] == key_fingerprint(KEY)
    assert index.grouped
    written = b"".join(path.read_bytes() for path in (tmp_path / "shards").rglob("*") if path.is_file())
    assert KEY.encode() not in written


def test_a_pseudonym_needs_the_key_and_tells_fields_apart():
    names = {pseudonym("1234", field, key) for field in ("PatientID", "StudyInstanceUID") for key in (KEY, "cd" * 32)}

    assert len(names) == 4
    assert pseudonym("1234", "PatientID", KEY) in names


def test_groups_of_split_folders_that_share_a_patient_are_leakage(tmp_path):
    for split, name, seed in [(s, c, 10 * i + j) for i, s in enumerate(("train", "test")) for j, c in enumerate("ab")]:
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        (folder / "film.dcm").write_bytes(film(seed, PatientID="same" if name == "a" else f"{split}-{seed}"))

    with pytest.raises(
        LeakageError, match=f"group {pseudonym('same', 'PatientID', KEY)} is in test \\(test/a/film.dcm\\) and train"
    ):
        packed(tmp_path / "images", split=None)


def test_images_without_the_field_are_refused_by_name(tmp_path):
    source = patients(tmp_path / "images")
    (source / "covid/0-PA.dcm").write_bytes(film(90, PatientID=""))
    (source / "covid/photo.png").write_bytes(encoded(noise(91)))

    with pytest.raises(
        SourceError, match=r"gives 2 of 25 images no group, such as covid/0-PA.dcm, covid/photo.png: thei"
    ):
        packed(source)


def test_a_condition_on_headers_takes_some_films_and_names_the_others(tmp_path):
    report = packed(patients(tmp_path / "images"), where=(("dicom:ViewPosition", "pa, ap"),))

    assert sum(report.index.samples_in(split) for split in report.index.splits) == 12
    assert len(report.folder.filtered) == 12
    assert all(name.endswith("-LL.dcm") for name in report.folder.filtered)
    written = json.loads((tmp_path / "shards" / REPORT_NAME).read_text())
    assert written["filtered"] == list(report.folder.filtered)
    assert report.index.options["where"] == "dicom:ViewPosition=pa, ap"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"where": (("dicom:PatientName", "x"),)}, "--where dicom:PatientName is not supported; use dicom:Modality or"),
        ({"where": (("dicom:Modality", " , "),)}, "--where dicom:Modality= has no value; write it like"),
        ({"group_by": "dicom:Rows"}, "--group-by dicom:Rows is not supported; use dicom:PatientID or dicom:StudyInst"),
        ({"group_key": None}, "--group-by dicom:PatientID needs a key"),
    ],
)
def test_a_field_that_cannot_be_asked_for_is_wrong_usage(tmp_path, options, text):
    source = patients(tmp_path / "images")

    with pytest.raises(OptionError, match=text):
        packed(source, **options)
    assert not (tmp_path / "shards").exists()


def test_a_condition_that_no_film_fulfils_is_refused_with_counts_and_no_value(tmp_path):
    source = patients(tmp_path / "images")
    (source / "covid/0-PA.dcm").write_bytes(film(90, ViewPosition=None))

    with pytest.raises(SourceError, match=r"takes none of 24 images: 1 have no such field .* 23 have another value"):
        packed(source, where=(("dicom:ViewPosition", "AP"),))


def test_a_condition_that_empties_a_class_is_refused(tmp_path):
    source = patients(tmp_path / "images")
    for path in (source / "normal").glob("*-LL.dcm"):
        path.unlink()

    with pytest.raises(SourceError, match="--where dicom:ViewPosition=LL leaves the class 'normal' no image"):
        packed(source, where=(("dicom:ViewPosition", "LL"),))


def test_added_films_of_a_known_patient_go_to_the_split_of_the_patient(tmp_path):
    packed(patients(tmp_path / "images"), where=(("dicom:ViewPosition", "PA"),))
    new = patients(tmp_path / "new", first=200, counts=(("covid", 1), ("normal", 1)))
    (new / "covid/known.dcm").write_bytes(film(300, PatientID="covid-3"))
    before = {group: split for split, _, group in samples(tmp_path / "shards")}

    report = add(str(tmp_path / "shards"), new, {"processes": 1, "group_key": key})

    after = {source: (split, group) for split, source, group in samples(tmp_path / "shards")}
    known = pseudonym("covid-3", "PatientID", KEY)
    assert after["covid/known.dcm"] == (before[known], known)
    assert sum(report.added.values()) == 3
    assert set(report.folder.filtered) == {"covid/200-LL.dcm", "normal/200-LL.dcm"}  # as when it was packed


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"group_key": lambda: "cd" * 32}, "named with the key of another storage; set NIGHTSHIFT_STORAGE to the one"),
        ({}, "are keyed hashes, and this storage has no group.key; set NIGHTSHIFT_STORAGE to the one that it was"),
        (
            {"group_key": key, "group_by": "dicom:StudyInstanceUID"},
            "the groups of the data set are from dicom:PatientID",
        ),
        ({"group_key": key, "group_by": "(.*)-"}, "the groups of the data set are from dicom:PatientID"),
    ],
)
def test_groups_that_would_not_be_recognised_are_refused_by_add(tmp_path, given, text):
    packed(patients(tmp_path / "images"))
    digest = read_index(str(tmp_path / "shards")).digest

    with pytest.raises(OptionError, match=text):
        add(str(tmp_path / "shards"), patients(tmp_path / "new", first=200), {"processes": 1, **given})

    assert read_index(str(tmp_path / "shards")).digest == digest


def with_a_large_private_field(size):
    found = dataset(np.asarray(noise(1)), PatientID="behind")
    found.add_new(0x00090010, "LO", "MAKER")
    found.add_new(0x00091001, "OB", bytes(size))
    return found


@pytest.mark.parametrize("size", [0, 1 << 16, (1 << 16) - 900, 1 << 20])
def test_a_field_behind_a_large_one_is_found_whole(tmp_path, size):
    (tmp_path / "film.dcm").write_bytes(saved(with_a_large_private_field(size)))

    assert read_header(tmp_path / "film.dcm", ["PatientID", "Modality"]) == {"PatientID": "behind", "Modality": "DX"}


def test_a_field_at_every_place_around_the_end_of_the_first_read_is_found_whole(tmp_path, monkeypatch):
    data = film(1, PatientID="a long identifier of a patient")
    (tmp_path / "film.dcm").write_bytes(data)

    for limit in range(140, len(data), 7):
        monkeypatch.setattr(header, "START_BYTES", (limit, 1 << 20))
        assert read_header(tmp_path / "film.dcm", ["PatientID"]) == {"PatientID": "a long identifier of a patient"}


def test_a_header_is_read_however_the_file_is_encoded(tmp_path):
    found = dataset(np.asarray(noise(1)), PatientID="7 ")
    (tmp_path / "a").write_bytes(saved(found, syntax=DeflatedExplicitVRLittleEndian))
    (tmp_path / "b").write_bytes(saved(dataset(np.asarray(noise(1)), PatientID="7"), preamble=False, implicit=True))

    assert [read_header(tmp_path / name, ["PatientID"])["PatientID"] for name in "ab"] == ["7", "7"]


def test_a_field_of_the_same_name_inside_a_sequence_is_not_taken(tmp_path):
    inner = Dataset()
    inner.PatientID = "inner"
    (tmp_path / "film.dcm").write_bytes(film(1, PatientID=None, ReferencedPatientSequence=Sequence([inner])))

    assert read_header(tmp_path / "film.dcm", ["PatientID"]) == {"PatientID": ""}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no image", "it is no DICOM file"),
        (film(1)[:200], "its DICOM header is cut off, or too large"),
    ],
)
def test_a_header_that_cannot_be_read_says_why(tmp_path, content, text):
    (tmp_path / "film.dcm").write_bytes(content)

    with pytest.raises(BadImage, match=text):
        read_header(tmp_path / "film.dcm", ["PatientID"])


def test_the_key_of_a_storage_is_made_once_and_readable_by_its_owner_alone(tmp_path):
    first = ensure_group_key(tmp_path / "storage")

    assert ensure_group_key(tmp_path / "storage") == first
    assert len(first) == 64
    assert (tmp_path / "storage" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_is_refused_rather_than_replaced(tmp_path):
    (tmp_path / KEY_FILE).write_text("short")

    with pytest.raises(StorageError, match=r"group\.key is damaged; restore it from a backup"):
        ensure_group_key(tmp_path)
    assert (tmp_path / KEY_FILE).read_text() == "short"
