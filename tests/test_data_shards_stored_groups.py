"""No identifier of a group, such as a patient number, is stored: keyed hashes replace it."""

import json
import re
import unicodedata
from functools import partial

import pytest

from cluster.group_key import KEY_FILE, read_group_key
from data_shards.errors import OptionError
from data_shards.index import read_index
from data_shards.pack.add import add
from data_shards.pack.hidden_names import HiddenNames
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.pack.pseudonyms import GROUP, key_fingerprint, pseudonym
from data_shards.pack.stored_groups import with_stored_groups
from tests.adding import new_images
from tests.test_data_shards_pack import infos

KEY = "ab" * 32
EXPRESSION = "([A-Z]{6}-[0-9]+)"
PATIENTS = [f"CANARY-{number}" for number in range(6)]
NAMES = [f"{'ab'[number % 2]}/{patient}/{patient.lower()}_{n}.png" for number, patient in enumerate(PATIENTS)
         for n in range(2)]  # fmt: skip
BESIDE = ("CANARY-0_report.txt", "CANARY-77.zip")  # files that are no images
WITHOUT_IMAGE = ("a/CANARY-99/1.png", "CANARY-99")  # a row of the table


def key():
    return KEY


def hashed(text):
    return pseudonym(text, GROUP, KEY)


@pytest.fixture
def source(tmp_path):
    """Two images of each patient with the patient's number in folder and name, other such files, and a table."""
    folder = new_images(tmp_path / "images", NAMES)
    for name in BESIDE:
        (folder / name).write_bytes(b"PK")
    rows = [(name, name.split("/")[1], name[0]) for name in NAMES] + [(*WITHOUT_IMAGE, "a")]
    lines = ["file,patient,class", *(",".join(row) for row in rows), f"{BESIDE[1]},CANARY-77,b"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return folder


def chosen(way, folder, **others):
    table = str(folder / "table.csv")
    options = {
        "table": {"group_by": table},
        "expression": {"group_by": EXPRESSION},
        "column": {"labels": LabelOptions(tables=(table,), label_column="class", allow_unmatched=True)},
    }
    return PackOptions(**{"split": "34/33/33", "processes": 1, "group_key": key, **options[way], **others})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("way", ["table", "expression", "column"])
def test_nothing_that_a_pack_writes_has_a_patient_number(tmp_path, source, way):
    report = pack(source, tmp_path / "shards", chosen(way, tmp_path))

    written = contents(tmp_path / "shards")
    assert {"index.json", "pack-report.json"} < written.keys()
    assert not [name for name, data in written.items() if re.search(b"canary", data, re.IGNORECASE)]
    assert "canary" not in str(report.to_json()).casefold()
    assert report.folder.renamed == len(NAMES)
    assert report.index.options["group_key"] == key_fingerprint(KEY)
    found = infos(tmp_path / "shards")
    assert sorted(info["group"] for info in found) == sorted(2 * [hashed(patient) for patient in PATIENTS])
    assert len({info["source"] for info in found}) == len(NAMES)
    assert all(info["source"].split("/")[1] == info["group"] for info in found)


def test_a_pack_hides_short_patient_numbers_wherever_they_stand(tmp_path):
    names = [f"{'ab'[n % 2]}/patient{n}/patient{n}_{n:03}-{view}.png" for n in range(6) for view in "xy"]
    folder = new_images(tmp_path / "images", names)
    (folder / "patient3_report.txt").write_text("x")
    (folder / "a/patient99_patient99.txt").write_text("x")

    report = pack(folder, tmp_path / "shards", chosen("expression", tmp_path, group_by="patient([0-9]+)"))

    raw = re.compile(rb"patient[0-9]{1,2}[^0-9a-f]|_00[0-9]-")
    assert not [name for name, data in contents(tmp_path / "shards").items() if raw.search(data)]
    assert not raw.search(str(report.to_json()).encode())
    found = {(info["source"], info["group"]) for info in infos(tmp_path / "shards")}
    assert found == {
        (
            f"{'ab'[n % 2]}/patient{hashed(str(n))}/patient{hashed(str(n))}_{hashed(f'{n:03}')}-{view}.png",
            hashed(str(n)),
        )
        for n in range(6)
        for view in "xy"
    }


def test_a_data_set_with_plain_groups_stores_what_earlier_versions_stored(tmp_path, source):
    options = PackOptions(split="34/33/33", processes=1, group_by=EXPRESSION, plain_groups=True)

    index = pack(source, tmp_path / "shards", options).index

    assert "group_key" not in index.options
    assert {(info["source"], info["group"]) for info in infos(tmp_path / "shards")} == {
        (name, name.split("/")[1]) for name in NAMES
    }


def test_new_images_of_a_hashed_group_go_to_its_split(tmp_path, source):
    pack(source, tmp_path / "shards", chosen("table", tmp_path))
    shards = str(tmp_path / "shards")
    before = {info["group"] for info in infos(tmp_path / "shards")}
    new = new_images(tmp_path / "new", ["a/x.png", "b/y.png"], seed=500)
    (tmp_path / "new.csv").write_text("file,group\na/x.png,CANARY-2\nb/y.png,CANARY-3\n")

    report = add(shards, new, {"processes": 1, "group_by": str(tmp_path / "new.csv"), "group_key": key})

    assert sum(report.added.values()) == 2
    assert report.leakage == ()
    assert {info["group"] for info in infos(tmp_path / "shards")} == before
    assert not [name for name, data in contents(tmp_path / "shards").items() if b"CANARY" in data]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {},
            "are keyed hashes, and this storage has no group.key; set NIGHTSHIFT_STORAGE to the one that it was packed",
        ),
        ({"group_key": lambda: "cd" * 32}, "named with the key of another storage; set NIGHTSHIFT_STORAGE to the one"),
    ],
)
def test_an_add_without_the_key_of_the_data_set_is_refused_before_anything_is_written(tmp_path, source, given, text):
    pack(source, tmp_path / "shards", chosen("table", tmp_path))
    before = contents(tmp_path / "shards")

    with pytest.raises(OptionError, match=text):
        add(str(tmp_path / "shards"), source, {"processes": 1, "group_by": str(tmp_path / "table.csv"), **given})

    assert contents(tmp_path / "shards") == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"group_by": "(.)/"},
            r"--group-by \(.\)/ needs a key for the hashes that replace identifiers, and PackOptions.group_key gives "
            "none; give one, or store groups as they are with --plain-groups$",
        ),
        ({"group_by": "dicom:PatientID", "group_key": lambda: ""}, "PatientID needs a key .* gives none; give one$"),
        (
            {"group_by": "dicom:PatientID", "group_key": key, "plain_groups": True},
            "--plain-groups with --group-by dicom",
        ),
        ({"group_by": "(", "group_key": key}, "'\\(' is neither a table nor a valid regular expression .* character 1"),
        ({"group_by": "patients.tsv", "group_key": key}, "patients.tsv: there is no such file"),
        (
            {"labels": LabelOptions(tables=("../table.csv",), label_column="class", allow_unmatched=True)},
            "the column of groups in the tables needs a key",
        ),
    ],
)
def test_groups_that_cannot_be_stored_are_refused_before_anything_is_written(tmp_path, source, options, text):
    with pytest.raises(OptionError, match=text):
        pack(source, tmp_path / "shards", PackOptions(**{"split": "34/33/33", "processes": 1, **options}))

    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("group", "name", "hidden"),
    [
        ("p0012", "p0012/scan-P0012.png", "{p0012}/scan-{P0012}.png"),
        ("p0012", "xp00123.png", "x{p0012}3.png"),  # long enough to be meant
        ("12", "x12/12_1212.png", "x{12}/{12}_1212.png"),
        ("12", "00000012_012.png", "{00000012}_{012}.png"),  # ChestX-ray14
        ("2", "2/film2.jp2", "{2}/film{2}.jp2"),
        ("012", "patient12_120.png", "patient{12}_120.png"),
        ("p12", "P0012/patientp12b_p120.png", "{P0012}/patient{p12}b_p120.png"),
        ("ab", "cab/scanAB1_ab.png", "cab/scan{AB}1_{ab}.png"),
        ("王伟", "王伟胸片1.png", "{王伟}胸片1.png"),
        ("İ-47110", "x/i̇-1/İ-47110.png", "x/i̇-1/{İ-47110}.png"),  # longer in lower case
        ("4711", "image 04711.png", "image {04711}.png"),
        ("image a.png", "a.png", "a.png"),  # an image without a group
    ],
)
def test_the_name_of_an_image_loses_the_identifier_of_its_group(group, name, hidden):
    names = HiddenNames(KEY, GROUP, None, {group})

    expected = re.sub("{([^}]+)}", lambda match: hashed(match[1]), hidden)
    assert names.of_image(name, group) == expected


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("notes/4711.txt", "notes/{4711}.txt"),
        ("notes/47112.txt", "notes/{4711}2.txt"),
        ("notes/004711.txt", "notes/{004711}.txt"),
        ("reports/scanP-1.txt", "reports/scan{P-1}.txt"),
        ("case99/99_scan.txt", "case{99}/{99}_scan.txt"),
        ("P-1/P-1.001", "{P-1}/{P-1}.001"),
        ("x.7z/case7.7z", "x.{7}z/case{7}.7z"),
        ("x/scan.4711", "x/scan.{4711}"),
        ("case99/case98.txt", "case{99}/case{98}.txt"),
        ("P-1 (old).txt", "{P-1} (old).txt"),
        ("case99_x.txt", "case{99}_x.txt"),
    ],
)
def test_the_name_of_another_file_loses_the_identifier_of_every_group(text, hidden):
    names = HiddenNames(KEY, GROUP, re.compile("case([0-9]+)"), {"4711", "P-1"})

    assert names.of_file(text) == re.sub("{([^}]+)}", lambda match: hashed(match[1]), hidden)


def test_counts_and_lines_are_not_taken_for_identifiers():
    names = HiddenNames(KEY, GROUP, None, {"12"})

    assert names.of_row("t.csv line 12: 12.png") == f"t.csv line 12: {hashed('12')}.png"
    assert names.of_note("12 entries name no image, such as '12'") == (
        f"12 entries name no image, such as '{hashed('12')}'"
    )


@pytest.mark.parametrize("expression", ["patient([0-9]+)", "^patient([0-9]+).*", "^patient([0-9]+).*[.]png$"])
def test_every_match_of_the_expression_is_hidden_in_images_rows_and_notes(expression):
    names = HiddenNames(KEY, GROUP, re.compile(expression), {"7"})
    seven, other = hashed("7"), hashed("98")
    hidden = f"patient{other}/patient{other}_1.png"
    nearest = f"(nearest: patient{seven}/patient{seven}_1.png)"

    row = names.of_row("t.csv line 7: patient98/patient98_1.png (nearest: patient7/patient7_1.png)")
    note = names.of_note("7 rows, such as 'patient98/patient98_1.png' (nearest: patient7/patient7_1.png)")

    assert names.of_image("patient7/patient7_2.png", "7") == f"patient{seven}/patient{seven}_2.png"
    assert names.of_file("patient98/patient98_1.png") == hidden
    assert row == f"t.csv line 7: {hidden} {nearest}"
    assert note == f"7 rows, such as '{hidden}' {nearest}"
    assert names.of_note("a note without an example") == "a note without an example"


def stored(folder, table, **chosen):
    """Return the scan of a source that a table labels, as it is stored."""
    (folder.parent / "labels.csv").write_text("\n".join(table))
    labels = LabelOptions(tables=(str(folder.parent / "labels.csv"),))
    options = PackOptions(**{"split": "50/50/0", "group_key": key, "labels": labels, **chosen})
    return with_stored_groups(scan_source(folder, options), options)


def test_an_image_without_a_group_loses_the_identifiers_of_all_groups(tmp_path):
    names = ["4711_1.png", "4711_2.png", "x4712.png", "slice3.png"]
    table = ["file,patient,label", "4711_1.png,4711,a", "4711_2.png,,b", "x4712.png,,a", "slice3.png,4712,b"]

    found = stored(new_images(tmp_path / "images", names), table)

    assert [image.name for image in found.images] == [
        f"{hashed('4711')}_1.png",
        f"{hashed('4711')}_2.png",
        "slice3.png",
        f"x{hashed('4712')}.png",
    ]
    assert len({image.group for image in found.images}) == 4
    assert found.renamed == 3


def test_patients_in_a_table_of_labels_are_hidden_where_other_groups_are_chosen(tmp_path):
    folder = new_images(tmp_path / "images", ["ann/s1.png", "bob/s2.png", "cara/s3.png", "cara/s4.png"])
    (folder / "cara.txt").write_bytes(b"PK")
    table = ["file,patient,label", "ann/s1.png,ann,a", "bob/s2.png,bob,b", "cara/s3.png,cara,a", "cara/s4.png,,b"]

    found = stored(folder, table, group_by="s([0-9])")

    ann, bob, cara = map(hashed, ("ann", "bob", "cara"))
    assert [image.name for image in found.images] == [
        f"{ann}/s{hashed('1')}.png",
        f"{bob}/s{hashed('2')}.png",
        f"{cara}/s{hashed('3')}.png",
        f"{cara}/s{hashed('4')}.png",
    ]
    assert found.other_names == (f"{cara}.txt",)


@pytest.mark.parametrize("plain", [True, False])
def test_rows_of_groups_that_match_by_file_name_alone_are_counted_in_a_note(tmp_path, plain):
    folder = new_images(tmp_path / "images", ["a/1.png", "b/2.png"])
    table = tmp_path / "patients.csv"
    table.write_text("file,group\na/1.png,ann\nold/2.png,bob\n")
    options = PackOptions(split="50/50/0", group_by=str(table), group_key=key, plain_groups=plain)

    found = with_stored_groups(scan_source(folder, options), options)

    assert f"{table}: 1 of 2 rows match by file name alone; their folders differ" in found.labels.notes
    assert [image.group for image in found.images] == (["ann", "bob"] if plain else [hashed("ann"), hashed("bob")])


def test_a_storage_packs_with_its_key_and_shows_the_name_of_a_group(tmp_path, source, storage, monkeypatch, run_main):
    say = partial(run_main, "shards")
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))
    shards = tmp_path / "shards"

    packed = say("pack", source, shards, "--split", "34/33/33", "--processes", 1, "--group-by", EXPRESSION)
    named = say("group-names", "CANARY-0", "CANARY-5")
    of_table = say("group-names", "--table", tmp_path / "table.csv")
    (tmp_path / "gaps.csv").write_text("number\n4711.0\n\n12.0\n")
    forms = {say("group-names", unicodedata.normalize(form, "José"))[1] for form in ("NFC", "NFD")}
    spelled = say("group-names", "--table", tmp_path / "gaps.csv", "--column", "Number", "--json")
    wrong = [say("group-names"), say("group-names", "--table", "absent.csv"), say("group-names", "1", "--column", "a")]
    (storage / KEY_FILE).rename(tmp_path / "elsewhere")
    refused = say("add", shards, source)
    unnamed = say("group-names", "CANARY-0")

    assert packed[0] == 0
    assert "note: keyed hashes replace the groups and, in the names of 12 images, their text" in packed[2]
    assert "canary" not in (packed[1] + packed[2]).casefold()
    lines = [line.split(",") for line in named[1].splitlines()]
    assert [line[1] for line in lines] == ["group", "CANARY-0", "CANARY-5"]
    assert {line[0] for line in lines[1:]} < {info["group"] for info in infos(shards)}
    assert {info["group"] for info in infos(shards)} < {line.split(",")[0] for line in of_table[1].splitlines()}
    assert [row["group"] for row in json.loads(spelled[1])] == ["4711", "12"]
    assert len(forms) == 1
    assert [code for code, *_ in wrong] == [2, 2, 2]
    assert refused[0] == 2
    assert "this storage has no group.key" in refused[2]
    assert (unnamed[0], read_group_key(storage)) == (1, None)
    assert read_index(str(shards)).grouped
