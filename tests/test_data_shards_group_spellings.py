"""A patient whose number is spelled in two ways, or of whom a table has several columns, stays one group."""

import pytest

from data_shards.errors import SourceError
from data_shards.pack.groups import groups_of
from data_shards.pack.identifiers import loose_identifier, other_spellings
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.pack.stored_groups import with_stored_groups
from tests.adding import added, new_images, split_of

NAMES = [f"{'ab'[n % 2]}/{n:02}.png" for n in range(24)]


def options(table, **chosen):
    return PackOptions(
        **{"split": "60/20/20", "group_by": str(table), "processes": 1, "group_key": lambda: "ab" * 32, **chosen}
    )


def write_table(path, group_of, header="file,patient"):
    path.write_text("\n".join([header, *(f"{name},{group_of(n)}" for n, name in enumerate(NAMES))]))
    return path


@pytest.mark.parametrize("header", ["file,case,patient_id", "case,patient_id,file"])
def test_the_column_of_patients_is_taken_before_that_of_cases_and_named(tmp_path, header):
    table = tmp_path / "groups.csv"
    cells = {"file": ["a.png", "b.png"], "case": ["1", "2"], "patient_id": ["7", "7"]}
    rows = zip(*(cells[name] for name in header.split(",")), strict=True)
    table.write_text("\n".join([header, *map(",".join, rows)]))

    found = groups_of(["a.png", "b.png"], str(table))

    assert found.of_image == {"a.png": "7", "b.png": "7"}
    note = f"groups: column 'patient_id' of {table}, not 'case'; name the column group that is meant"
    assert found.notes == (note,)


def test_a_column_that_is_named_group_is_meant(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("file,patient,group\na.png,7,x\n")

    assert groups_of(["a.png"], str(table)).of_image == {"a.png": "x"}


@pytest.mark.parametrize(
    ("first", "second"), [("0012", "12"), ("P12", "p12"), ("P0012-a", "p12-A"), ("000", "0"), ("12", "12")]
)
def test_leading_zeros_and_upper_case_do_not_tell_identifiers_apart(first, second):
    assert loose_identifier(first) == loose_identifier(second)


@pytest.mark.parametrize(
    ("written", "known"), [("12", "0012"), ("0012", "12"), ("p12", "P0012"), ("P0012-A", "p12-a"), ("0", "000")]
)
def test_another_spelling_of_an_identifier_is_tried(written, known):
    assert known in set(other_spellings(written))
    assert "13" not in set(other_spellings(written))


@pytest.mark.parametrize("plain", [True, False])
def test_groups_of_two_spellings_are_counted_in_a_note_without_their_identifiers(tmp_path, plain):
    folder = new_images(tmp_path / "images", NAMES)
    table = write_table(
        tmp_path / "t.csv", lambda n: f"CANARY{n // 2}" if n % 4 < 2 else f"{'Cc'[n % 2]}ANARY0{n // 2}"
    )
    chosen = options(table, plain_groups=plain)

    (column, spelling) = with_stored_groups(scan_source(folder, chosen), chosen).labels.notes

    assert column == f"groups: column 'patient' of {table}"
    assert spelling == (
        "12 groups differ from another one only in leading zeros or upper case, and may be in another split; if they "
        "are one patient, write them alike; they have images, such as a/02.png"
    )


def test_groups_that_are_spelled_in_one_way_need_no_note(tmp_path):
    folder = new_images(tmp_path / "images", NAMES)
    chosen = options(write_table(tmp_path / "t.csv", lambda n: f"P{n // 2:03}"))

    (column,) = with_stored_groups(scan_source(folder, chosen), chosen).labels.notes

    assert column.startswith("groups: column 'patient'")


@pytest.mark.parametrize("plain", [True, False])
def test_new_images_of_a_patient_in_another_spelling_are_refused(tmp_path, plain):
    folder = new_images(tmp_path / "images", NAMES)
    chosen = options(write_table(tmp_path / "t.csv", lambda n: f"{n // 2:04}"), plain_groups=plain)
    pack(folder, tmp_path / "shards", chosen)
    before = split_of(tmp_path / "shards")
    new = new_images(tmp_path / "new", ["a/x.png", "b/y.png"], seed=500)
    (tmp_path / "new.csv").write_text("file,patient\na/x.png,99\nb/y.png,7\n")
    given = {"group_by": str(tmp_path / "new.csv"), "group_key": chosen.group_key}

    with pytest.raises(SourceError, match="1 group of the new images, first that of image 2 of 2") as refused:
        added(tmp_path / "shards", new, **given)

    assert "write groups as in the data set" in str(refused.value)
    assert split_of(tmp_path / "shards") == before
    (tmp_path / "new.csv").write_text("file,patient\na/x.png,99\nb/y.png,0007\n")
    assert sum(added(tmp_path / "shards", new, **given).added.values()) == 2


def test_a_column_of_groups_that_an_option_replaces_is_not_said_to_be_used(tmp_path):
    folder = new_images(tmp_path / "images", NAMES)
    rows = [f"{name},{name[0]},{n // 2 or ''}" for n, name in enumerate(NAMES)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,patient", *rows]))
    labels = LabelOptions(tables=(str(tmp_path / "labels.csv"),))

    column = scan_source(folder, options(None, group_by=None, labels=labels)).labels
    replaced = scan_source(folder, options("([0-9]+)", labels=labels)).labels

    assert "groups: column 'patient'; --group-column none leaves it out" in column.notes
    assert column.images_without_group == 2
    assert not [note for note in replaced.notes if "groups" in note]
    assert replaced.images_without_group == 0
