"""`--keep-column`: values of a label table that are stored with the images, and columns that are refused."""

import pytest
from click.testing import CliRunner

from data_shards.columns import KeptColumn
from data_shards.errors import OptionError, SourceError
from data_shards.index import read_index
from data_shards.pack.add import add
from data_shards.pack.label_checks import refuse_identifying_values
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.pack.packing import pack
from jobs.cli.shards import shards as shards_command
from tests.datasets import noise
from tests.test_data_shards_labels import source
from tests.test_data_shards_pack import infos

SEX, AGE = KeptColumn(name="sex"), KeptColumn(name="age", bounds=(40, 65))


def scanned(folder, *columns, rows, header="image,label,sex,age", **options):
    names = [f"{number:02d}.png" for number in range(len(rows))]
    cells = [f"{name},{row}" for name, row in zip(names, rows, strict=True)]
    source(folder, names, t_csv=[header, *cells])
    labels = LabelOptions(tables=("t.csv",), keep_columns=columns)
    return scan_source(folder, PackOptions(labels=labels, split="50/25/25", plain_groups=True, **options))


def test_values_of_kept_columns_are_those_of_the_table_and_numbers_are_cut_into_bands(tmp_path):
    rows = ["a,F,39", "b,M,40", "a,,64.5", "b,F,065Y", "a,NA,"]

    found = scanned(tmp_path, SEX, AGE, rows=rows)

    assert [dict(image.columns) for image in found.images] == [
        {"sex": "F", "age": "below 40"},
        {"sex": "M", "age": "40 to below 65"},
        {"sex": "", "age": "40 to below 65"},
        {"sex": "F", "age": "65 or more"},
        {"sex": "", "age": ""},
    ]
    assert "kept for metrics by subgroup: column 'sex' (F 2, M 1, not stated 2)" in found.labels.notes


@pytest.mark.parametrize(
    ("header", "cell", "column", "text"),
    [
        ("image,label,sex", "F", "gender", "--keep-column gender: t.csv has no such column"),
        ("image,label,sex", "F", "image", "holds the names of the images"),
        ("image,label,sex", "F", "label", "holds the labels"),
        ("image,label,patient", "p", "patient", "holds the groups"),
        ("image,label,MRN", "p", "MRN", "holds the groups"),
        ("image,label,Accession", "p", "Accession", "by its name, the column 'Accession' identifies patients"),
        ("image,label,Patient.Name", "p", "Patient Name", "by its name, the column 'Patient.Name' identifies patients"),
        ("image,label,Date of Birth", "p", "date_of_birth", "by its name, the column 'Date of Birth' identifies"),
        ("image,label,taken", "2024-01-0{n}", "taken", "the column holds dates"),
        ("image,label,taken", "2024010{n}", "taken", "the column holds dates"),
        ("image,label,remark", "x" * 81, "remark", "texts of more than 80 characters"),
        ("image,label,code", "k{number}", "code", "the column has 24 different values, more than 20, and may identify"),
        ("image,label,age", "{number}", "age", "give bounds of bands, such as --keep-column age=40,60,80"),
        ("image,label,sex", "", "sex", "the column has no value for any of the images"),
        ("image,label,sex", "F", "age=40", "--keep-column age: t.csv has no such column"),
        (
            "image,label,age",
            "{number}",
            f"age={','.join(map(str, range(20)))}",
            "21 bands are more than 20; give fewer",
        ),
        ("image,label,sex", "F", "sex=40", "t.csv line 2 has no number in the column 'sex'"),
    ],
)
def test_a_column_that_may_identify_patients_or_has_no_subgroups_is_refused(tmp_path, header, cell, column, text):
    name, _, bounds = column.partition("=")
    kept = KeptColumn(name=name, bounds=tuple(map(float, filter(None, bounds.split(",")))))
    rows = [f"{'ab'[n % 2]},{cell.format(n=n % 3 + 1, number=n)}" for n in range(24)]

    with pytest.raises(OptionError) as caught:
        scanned(tmp_path, kept, rows=rows, header=header)

    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "is_refused"), [("AABBCCDD", True), ("AAAAAABB", False)])
def test_a_column_of_which_each_patient_has_an_own_value_is_refused(tmp_path, values, is_refused):
    rows = [f"{'ab'[n % 2]},p{n // 2},{value}" for n, value in enumerate(values)]
    found = scanned(tmp_path, KeptColumn(name="code"), rows=rows, header="image,label,patient,code")

    if is_refused:
        with pytest.raises(OptionError, match="4 groups have 4 different values"):
            refuse_identifying_values(found)
    else:
        refuse_identifying_values(found)


def test_two_rows_of_an_image_with_different_values_are_refused(tmp_path):
    source(tmp_path, ["1.png", "2.png"], t_csv=["image,label,sex", "1.png,a,F", "1.png,a,M", "2.png,b,F"])
    labels = LabelOptions(tables=("t.csv",), keep_columns=(SEX,))

    with pytest.raises(SourceError, match=r"t\.csv line 2 and t\.csv line 3 give one image different values"):
        scan_source(tmp_path, PackOptions(labels=labels, split="50/25/25"))


def films(folder, count, *, first=0, header="image,label,site,age"):
    """Write images of two classes and a table with the columns site and age."""
    folder.mkdir()
    names = [f"{first + n:02d}.png" for n in range(count)]
    for n, name in enumerate(names):
        noise(first + n).save(folder / name)
    rows = [f"{name},{'ab'[n % 2]},{('north', 'south')[n // 2 % 2]},{30 + n}" for n, name in enumerate(names)]
    (folder / "t.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def run(*arguments):
    return CliRunner().invoke(shards_command, [str(one) for one in arguments], catch_exceptions=False)


def test_shards_have_the_values_and_added_images_have_them_too(tmp_path):
    first, second = films(tmp_path / "first", 12), films(tmp_path / "second", 4, first=50)
    data = tmp_path / "shards"

    packed = run("pack", first, data, "--labels", "t.csv", "--keep-column", "site", "--keep-column", "age=40",
                 "--split", "50/25/25", "--processes", "1")  # fmt: skip
    before = read_index(str(data))
    added = run("add", data, second, "--labels", "t.csv", "--processes", "1")
    shown = run("show", data)

    index = read_index(str(data))
    assert (packed.exit_code, added.exit_code) == (0, 0)
    assert index.columns == before.columns == (KeptColumn(name="site"), KeptColumn(name="age", bounds=(40.0,)))
    stored = {info["source"]: info["columns"] for info in infos(data)}
    assert len(stored) == 16
    assert stored["00.png"] == {"site": "north", "age": "below 40"}
    assert stored["52.png"] == {"site": "south", "age": "below 40"}
    assert "kept for metrics by subgroup: column 'site' (north 6, south 6)" in packed.stderr
    assert "kept columns: site, age=40" in shown.output


def test_images_added_without_a_table_have_no_value_and_other_columns_are_refused(tmp_path):
    data = tmp_path / "shards"
    labels = LabelOptions(tables=("t.csv",), keep_columns=(KeptColumn(name="site"),))
    pack(films(tmp_path / "first", 12), data, PackOptions(labels=labels, split="50/25/25", processes=1))
    (tmp_path / "more" / "a").mkdir(parents=True)
    noise(90).save(tmp_path / "more" / "a" / "x.png")

    added = run("add", data, tmp_path / "more", "--processes", "1")
    other = {"labels": LabelOptions(tables=("t.csv",), keep_columns=(SEX,))}

    assert (
        "note: the new images have no value in the kept columns site; values come from --labels TABLE" in added.stderr
    )
    assert [info.get("columns") for info in infos(data) if info["source"] == "a/x.png"] == [None]
    with pytest.raises(OptionError, match="--keep-column sex: the data set keeps site; leave the option out"):
        add(str(data), tmp_path / "more", other)


@pytest.mark.parametrize("value", ["age=", "age=60,40", "age=40,forty", "age=nan", "=40", " "])
def test_bounds_that_are_no_rising_numbers_are_wrong_usage(tmp_path, value):
    films(tmp_path / "films", 2)

    result = run("pack", tmp_path / "films", tmp_path / "shards", "--labels", "t.csv", "--keep-column", value)

    assert result.exit_code == 2
    assert "write COLUMN" in result.stderr
    assert not (tmp_path / "shards").exists()


def test_a_column_is_only_kept_from_a_table(tmp_path):
    result = run("pack", films(tmp_path / "films", 2), tmp_path / "shards", "--keep-column", "site")

    assert result.exit_code == 2
    assert "--keep-column needs a table; give it with --labels TABLE" in result.stderr


def test_values_are_in_order_of_bands_and_numbers_and_images_without_a_value_come_last():
    assert AGE.in_order(["", "65 or more", "below 40", "40 to below 65"]) == [*AGE.bands, ""]
    assert SEX.in_order(["10", "", "9", "M", "F"]) == ["9", "10", "F", "M", ""]
