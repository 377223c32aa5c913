"""Labels from tables: which image gets which label, split and group. The images are empty files: none is decoded."""

import unicodedata

import pytest

from data_shards.errors import OptionError
from data_shards.targets import ABSENT, PRESENT, UNKNOWN
from tests.labelled import labels_of, refused, scanned, source, targets_of


def test_tables_with_other_columns_are_joined_by_the_columns_of_both(tmp_path):
    folder = source(
        tmp_path,
        [f"p/{name}.png" for name in "abcd"],
        images_csv=["dicom_id,study_id,split", "a,1,train", "b,1,train", "c,2,validate", "d,3,test"],
        labels_csv=["study_id,finding", "1,edema", "2,edema", "3,mass"],
    )

    found = scanned(folder, "labels.csv", "images.csv", split_column="none")

    assert labels_of(found) == {"a.png": "edema", "b.png": "edema", "c.png": "edema", "d.png": "mass"}


def test_a_joined_table_with_two_answers_is_refused(tmp_path):
    folder = source(
        tmp_path,
        ["a.png", "b.png"],
        images_csv=["image,study", "a,1", "b,2"],
        labels_csv=["study,label", "1,x", "2,y", "1,y"],
    )

    refused("labels.csv line 2 and labels.csv line 4 have the same values in the columns that the tables are joined by",
            folder, "images.csv", "labels.csv")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label_column": "edema"}, "labels.csv line 3 has -1 in the column 'edema'; say what it means"),
        ({"label_columns": ("mass",), "multi_label": True}, "labels.csv line 3 has 'large' in the column 'mass'"),
        ({"label_column": "finding", "split_column": "fold"}, "images.csv line 2: 'seven'"),
    ],
)
def test_a_fault_in_a_joined_table_is_told_with_the_name_and_line_of_that_table(tmp_path, options, says):
    folder = source(
        tmp_path,
        ["a.png", "b.png"],
        images_csv=["image,study,fold", "a,1,seven", "b,2,test"],
        labels_csv=["study,edema,mass,finding", "2,1,1,x", "1,-1,large,y", "3,0,0,x"],
    )

    refused(says, folder, "images.csv", "labels.csv", **options)


def test_tables_without_a_common_column_are_refused(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], i_csv=["image,x", "a,1", "b,2"], l_csv=["case,label", "1,x"])

    refused("i.csv and l.csv have no column in common", folder, "i.csv", "l.csv", kind=OptionError)


ONE_HOT = ["image,MEL,NV,UNK", "a,1.0,0.0,0.0", "b,0.0,1.0,0.0", "c,1,0,"]


def test_tables_are_not_joined_by_two_columns_whose_names_differ_in_a_hash(tmp_path):
    labels, cases = ["image,label,Case", "a,x,1", "b,y,2"], ["Case #,age", "1,50", "2,60"]
    folder = source(tmp_path, ["a.png", "b.png"], labels_csv=labels, cases_csv=cases)

    refused("labels.csv and cases.csv have no column in common (image, label, Case; Case #, age)",
            folder, "labels.csv", "cases.csv", kind=OptionError)  # fmt: skip


def test_columns_of_one_and_zero_with_a_single_one_give_a_label(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png", "c.png"], t_csv=ONE_HOT)

    found = scanned(folder, "t.csv")

    assert labels_of(found) == {"a.png": "MEL", "b.png": "NV", "c.png": "MEL"}
    assert found.left_out == {"UNK": 0}
    refused("no image has the label 'UNK'; leave it out", folder, "t.csv", label_columns=("MEL", "NV", "UNK"))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("c,1,1", "1 of 3 images have several labels, such as c.png (A, B); use --multi-label"),
        ("c,0,0", "1 of 3 images have no label, that is no 1 in the columns A, B, such as c.png; add the column"),
        ("c,-1,0", "t.csv line 4 has -1 in the column 'A'; say what it means with --uncertain mask, positive"),
        ("c,2,0", "t.csv line 4 has '2' in the column 'A'; a column of --label-columns holds 1, 0, -1 or nothing"),
    ],
)
def test_a_row_that_gives_not_one_label_is_refused_with_its_own_cure(tmp_path, row, text):
    folder = source(tmp_path, ["a.png", "b.png", "c.png"], t_csv=["image,A,B", "a,1,0", "b,0,1", row])

    refused(text, folder, "t.csv", label_columns=("A", "B"))


@pytest.mark.parametrize(
    ("uncertain", "blank", "minus", "nothing"),
    [
        ("mask", None, UNKNOWN, UNKNOWN),
        ("positive", "negative", PRESENT, ABSENT),
        ("negative", "mask", ABSENT, UNKNOWN),
    ],
)
def test_minus_one_and_blank_mean_what_the_options_say(tmp_path, uncertain, blank, minus, nothing):
    folder = source(tmp_path, list("abc"), t_csv=["image,A,B", "a,1,0", "b,0,1", "c,-1.0,"])
    for name in "abc":
        (folder / name).rename(folder / f"{name}.png")

    found = scanned(folder, "t.csv", multi_label=True, label_columns=("B", "A"), uncertain=uncertain, blank=blank)

    assert found.label_names == ("A", "B")
    assert targets_of(found) == {
        "a.png": {"A": PRESENT, "B": ABSENT},
        "b.png": {"A": ABSENT, "B": PRESENT},
        "c.png": {"A": minus, "B": nothing},
    }


def test_a_label_that_is_never_absent_but_blank_is_refused_with_the_cure(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["Path,Edema,Fracture", "a.png,1,1", "b.png,,0"])

    refused("no image is known to lack the label 'Edema'", folder, "t.csv", multi_label=True)

    found = scanned(folder, "t.csv", multi_label=True, blank="negative")
    assert targets_of(found)["b.png"] == {"Edema": ABSENT, "Fracture": ABSENT}


MANY = ["Image Index,Finding Labels", "a.png,Effusion|Mass", "b.png,No Finding", "c.png,Mass", "d.png,"]


def test_several_labels_in_a_cell_become_targets(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png", "c.png", "d.png"], t_csv=MANY)

    refused("1 of 3 images have several labels, such as a.png (Effusion, Mass); use --multi-label", folder, "t.csv")
    found = scanned(folder, "t.csv", multi_label=True, drop_classes=("No Finding",))

    assert targets_of(found) == {
        "a.png": {"Effusion": PRESENT, "Mass": PRESENT},
        "b.png": {"Effusion": ABSENT, "Mass": ABSENT},
        "c.png": {"Effusion": ABSENT, "Mass": PRESENT},
    }
    assert (found.left_out, found.labels.images_without_label) == ({"No Finding": 1}, ("d.png",))


def test_another_separator_of_labels_is_told(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,label", "a,x;y", "b,y"])

    assert scanned(folder, "t.csv", multi_label=True, label_separator=";").label_names == ("x", "y")
    assert scanned(folder, "t.csv").classes == ("x;y", "y")


@pytest.mark.parametrize("separator", [";", ","])
def test_labels_with_another_separator_are_no_label_of_their_own_in_silence(tmp_path, separator):
    rows = ["image,label", "a,fox", f'b,"fox{separator} badger"', "c,badger", "d,", "e,owl"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcde"], t_csv=rows)
    text = f"t.csv line 3 has 'fox{separator} badger' in the column 'label', and other rows a part of it; use "

    refused(f"{text}--label-separator '{separator}' if these are several labels", folder, "t.csv", multi_label=True)
    told = scanned(folder, "t.csv", multi_label=True, label_separator=separator)
    one = scanned(folder, "t.csv", multi_label=True, label_separator="")

    assert told.label_names == ("badger", "fox", "owl")
    assert one.label_names == ("badger", "fox", f"fox{separator} badger", "owl")


def test_a_comma_in_the_name_of_a_label_is_no_separator(tmp_path):
    rows = ["image,label", 'a,"pneumonia, viral"', "b,\"['owl', 'fox']\"", 'c,"pneumonia, bacterial"', "d,owl"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=rows)

    found = scanned(folder, "t.csv", multi_label=True)

    assert found.label_names == ("fox", "owl", "pneumonia, bacterial", "pneumonia, viral")


@pytest.mark.parametrize(
    ("readers", "result"),
    [
        ("agree", "has rows with different labels (x, y); correct them"),
        ("refuse", "has several rows; remove all but one"),
        ("majority", {"a.png": "x", "b.png": "y"}),
        ("any", "1 of 2 images have several labels"),
    ],
)
def test_several_rows_of_one_image_agree_are_voted_joined_or_refused(tmp_path, readers, result):
    rows = ["image,label", "a,x", "a,y", "a,x", "b,y", "b,y"]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    if isinstance(result, str):
        refused(result, folder, "t.csv", readers=readers)
    else:
        assert labels_of(scanned(folder, "t.csv", readers=readers)) == result


def test_all_rows_of_a_reader_are_one_vote(tmp_path):
    """As in VinDr-CXR: a row for each finding of each radiologist."""
    rows = ["image_id,class_name,rad_id"]
    rows += [f"a,{label},R{reader}" for reader in (1, 2, 3) for label in ("x", "x", "y")]
    rows += ["b,x,R1", "b,x,R1", "b,x,R1", "b,none,R2", "b,none,R3", "c,x,R1", "c,y,R1", "c,none,R2", "c,x,R3"]
    folder = source(tmp_path, ["a.png", "b.png", "c.png"], t_csv=rows)

    found = scanned(folder, "t.csv", readers="majority", multi_label=True)

    present = {
        name: {label for label, value in targets.items() if value} for name, targets in targets_of(found).items()
    }
    assert present == {"a.png": {"x", "y"}, "b.png": {"none"}, "c.png": {"x"}}
    assert "readers: column 'rad_id'; all rows of a reader are one vote" in found.labels.notes


def test_each_row_without_a_reader_is_one_vote(tmp_path):
    rows = ["image_id,class_name,rad_id", "a,x,R1", "a,x,R1", "a,none,", "a,none,", "b,x,R1", "b,x,R2", "b,none,R1"]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    found = targets_of(scanned(folder, "t.csv", readers="majority", multi_label=True))

    assert found == {"a.png": {"none": PRESENT, "x": ABSENT}, "b.png": {"none": UNKNOWN, "x": PRESENT}}


def test_with_one_label_for_an_image_each_row_of_a_reader_is_one_vote(tmp_path):
    rows = ["image_id,label,reader", "a,x,R1", "a,x,R1", "a,y,R1", "b,x,R1", "b,y,R1", "b,none,R2", "b,x,R3", "c,y,R1"]
    folder = source(tmp_path, ["a.png", "b.png", "c.png"], t_csv=rows)

    found = scanned(folder, "t.csv", readers="majority")

    assert labels_of(found) == {"a.png": "x", "b.png": "x", "c.png": "y"}
    assert not any(note.startswith("readers:") for note in found.labels.notes)


def test_equal_votes_are_refused_and_leave_one_of_several_labels_unknown(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,label", "a,x", "a,y", "b,y", "b,y"])

    refused("a.png has as many rows for x as for y; remove or add one", folder, "t.csv", readers="majority")
    voted = targets_of(scanned(folder, "t.csv", readers="majority", multi_label=True))
    joined = targets_of(scanned(folder, "t.csv", readers="any", multi_label=True))

    assert voted["a.png"] == {"x": UNKNOWN, "y": UNKNOWN}
    assert joined == {"a.png": {"x": PRESENT, "y": PRESENT}, "b.png": {"x": ABSENT, "y": PRESENT}}


def test_rows_are_chosen_by_the_values_of_columns(tmp_path):
    rows = ["image,label,view,site", "a,x,PA,1.0", "b,y,AP,2.0", "c,y,LL,1.0", "d,x,PA,2.0"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=rows)

    either = scanned(folder, "t.csv", where=(("view", "PA"), ("view", "ap")))
    listed = scanned(folder, "t.csv", where=(("view", "PA,AP"),))
    both = scanned(folder, "t.csv", where=(("view", "PA,AP"), ("site", "2")))

    assert sorted(labels_of(either)) == sorted(labels_of(listed)) == ["a.png", "b.png", "d.png"]
    assert sorted(labels_of(both)) == ["b.png", "d.png"]
    assert (either.labels.filtered_rows, either.labels.filtered_images) == (1, 1)
    refused("--where view=PB: no row of t.csv has 'PB' there; the column has PA (2), AP (1), LL (1)",
            folder, "t.csv", kind=OptionError, where=(("view", "PB"),))  # fmt: skip


def test_groups_come_from_a_column_and_an_image_without_one_is_alone(tmp_path):
    rows = ["image,label,patient_id", "a,x,7.0", "b,y,7.0", "c,x,", "d,y,NaN"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=rows)

    found = scanned(folder, "t.csv")

    groups = {image.name: image.group for image in found.images}
    assert groups["a.png"] == groups["b.png"]
    assert len(set(groups.values())) == 3
    assert found.labels.images_without_group == 2
    assert {image.group for image in scanned(folder, "t.csv", group_column="none").images} == {None}


def test_a_group_in_composed_and_decomposed_unicode_is_one(tmp_path):
    spellings = [unicodedata.normalize(form, "José") for form in ("NFC", "NFD")]
    rows = ["image,label,patient_id", *(f"{n},{label},{one}" for one in spellings for n, label in ("ax", "by"))]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    assert {image.group for image in scanned(folder, "t.csv").images} == {spellings[0]}


def test_an_image_with_two_groups_is_refused_without_their_names(tmp_path):
    rows = ["image,label,patient_id", "a,x,Smith", "a,x,Jones", "b,y,Lee"]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    refused("t.csv line 2 and t.csv line 3 give a.png different values in the column 'patient_id', its group",
            folder, "t.csv")  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("covid", "Covid ", "the labels 'Covid' and 'covid' differ only in upper case, blanks or Unicode form"),
        ("viral_pneumonia", "Viral Pneumonia", "differ only in upper case, blanks or Unicode form"),
        ("x" * 300, "y", "a class name has 300 characters, 'xxx"),
        ("=1+1", "x", "the class '=1+1' is a formula to a spreadsheet; rename it"),
        ("a\x07b", "x", "the class 'a\\x07b' has a control character in its name; rename it"),
    ],
)
def test_labels_that_cannot_be_class_names_are_refused(tmp_path, first, second, text):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,label", f"a,{first}", f"b,{second}"])

    refused(text, folder, "t.csv")


def test_classes_are_chosen_and_dropped_and_counted(tmp_path):
    rows = ["image,label", *(f"{name},{name}" for name in "abc")]
    folder = source(tmp_path, ["a.png", "b.png", "c.png"], t_csv=rows)

    assert scanned(folder, "t.csv", classes=("a", "b")).left_out == {"c": 1}
    assert scanned(folder, "t.csv", drop_classes=("a",)).classes == ("b", "c")
    refused("the tables have no label 'd'; they have a, b, c", folder, "t.csv", kind=OptionError, classes=("d",))


def test_a_gap_in_the_label_column_is_no_class_unless_it_is_chosen(tmp_path):
    rows = ["image,label", "a,x", "b,y", "c,NA", "d,"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=rows)

    found = scanned(folder, "t.csv")

    assert (found.classes, found.labels.images_without_label) == (("x", "y"), ("c.png", "d.png"))
    assert scanned(folder, "t.csv", classes=("x", "NA")).classes == ("NA", "x")
