"""Labels from tables: which image gets which label, split and group. The images are empty files: none is decoded."""

import gzip
import unicodedata

import pytest

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.labels.matching import Ambiguous, ImageMatcher, nearest
from data_shards.pack.options import LabelOptions, PackOptions
from data_shards.targets import ABSENT, PRESENT, UNKNOWN

SHARES = "50/25/25"
LABELS = set(LabelOptions.__dataclass_fields__)


def source(folder, names, **tables):
    """Make empty image files and tables; a table's name has `_` for its dot."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, lines in tables.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def scanned(folder, *tables, **chosen):
    labels = {name: chosen.pop(name) for name in LABELS & set(chosen)}
    chosen.setdefault("split", SHARES)
    return scan_source(folder, PackOptions(labels=LabelOptions(tables=tables, **labels), **chosen))


def labels_of(found):
    return {image.name: image.label for image in found.images}


def targets_of(found):
    return {image.name: dict(zip(found.label_names, image.targets, strict=True)) for image in found.images}


def refused(text, folder, *tables, kind=SourceError, **chosen):
    with pytest.raises(kind) as caught:
        scanned(folder, *tables, **chosen)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "row", "label", "other"),
    [
        ("image,level", "10_left,LABEL", "0", "3"),
        ("id_code,diagnosis", "10_left,LABEL", "0", "4"),
        ("id,label", "10_left,LABEL", "0", "1"),
        ("lesion_id,image_id,dx,dx_type", "L1,10_left,LABEL,histo", "mel", "nv"),
        ("Image Index,Finding Labels,Follow-up #,Patient ID", "10_left.jpeg,LABEL,0,7", "No Finding", "Mass"),
        ("ImageID,StudyID,PatientID,Labels", "10_left.jpeg,s,p,LABEL", "['normal']", "['nodule']"),
        ("patientid,finding,view,folder,filename", "4,LABEL,PA,images,10_left.jpeg", "Pneumonia/Viral", "No Finding"),
        ("file_name,label", "10_left.jpeg,LABEL", "ok", "defect"),
        ("Path,Sex,Target", "set/images/10_left.jpeg,F,LABEL", "1", "0"),
        ("patientId,x,y,Target", "10_left,1.5,2.5,LABEL", "1", "0"),
    ],
)
def test_usual_columns_are_found_without_being_told(tmp_path, header, row, label, other):
    first, second = row.replace("LABEL", label), row.replace("LABEL", other).replace("10_left", "10_right")
    folder = source(tmp_path, ["images/10_left.jpeg", "images/10_right.jpeg"], t_csv=[header, first, second])

    found = scanned(folder, "t.csv")

    assert labels_of(found) == {"10_left.jpeg": label.strip("[']"), "10_right.jpeg": other.strip("[']")}


def test_a_table_without_header_has_numbered_columns(tmp_path):
    rows = [f"{number} film-{number}.png {'positive' if number % 2 else 'negative'} site" for number in range(4)]
    folder = source(tmp_path, [f"x/film-{number}.png" for number in range(4)], t_txt=rows)

    refused("choose with --label-column", folder, "t.txt", kind=OptionError)
    found = scanned(folder, "t.txt", label_column="3")

    assert labels_of(found) == {f"film-{n}.png": ("negative", "positive")[n % 2] for n in range(4)}
    assert "t.txt has no header; its columns are named 1 to 4" in found.labels.notes


def test_columns_of_1_and_0_beside_those_of_known_findings_are_not_left_out_in_silence(tmp_path):
    rows = ["image_id,rad_id,Aortic enlargement,Cardiomegaly,No finding", "a,R1,1,0,0", "b,R2,0,1,0"]  # VinDr-CXR
    folder = source(tmp_path, ["a.jpg", "b.jpg"], t_csv=rows)

    refused("t.csv has columns of 1 and 0 beside those named like findings: Aortic enlargement; give those that are "
            "labels, such as --label-columns 'Aortic enlargement,Cardiomegaly,No finding'",
            folder, "t.csv", kind=OptionError)  # fmt: skip


def test_several_columns_that_may_be_the_labels_are_refused(tmp_path):
    rows = ["image_name,diagnosis,benign_malignant,target", "a,nevus,benign,0", "b,melanoma,malignant,1"]
    folder = source(tmp_path, ["a.jpg", "b.jpg"], t_csv=rows)

    refused("the columns diagnosis, benign_malignant, target of t.csv may all be the labels; choose one with",
            folder, "t.csv", kind=OptionError)  # fmt: skip

    assert labels_of(scanned(folder, "t.csv", label_column="Benign Malignant")) == {
        "a.jpg": "benign", "b.jpg": "malignant",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [("image_column", "Image"), ("label_column", "dx"), ("group_column", "pid"), ("split_column", "fold")],
)
def test_a_column_that_is_not_there_is_wrong_usage_and_the_columns_are_named(tmp_path, option, value):
    folder = source(tmp_path, ["a.jpg", "b.jpg"], t_csv=["file,label", "a.jpg,x", "b.jpg,y"])

    refused(f"--{option.replace('_', '-')} {value}: t.csv has no such column; it has file, label",
            folder, "t.csv", kind=OptionError, **{option: value})  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [
        "cls/Größe 1.png", "cls\\Größe 1.png", "./cls/Größe 1.png", "/data/of/others/cls/Größe 1.png", "Größe 1.png",
        "Größe 1", "größe 1.PNG", unicodedata.normalize("NFD", "Größe 1.png"), "Größe 1.dcm", "a/set/cls/Größe 1",
    ],
)  # fmt: skip
def test_an_image_is_found_by_path_name_or_id(cell):
    matcher = ImageMatcher(["set/cls/Größe 1.png", "set/cls/2.png"])

    assert matcher.find(cell) == "set/cls/Größe 1.png"


@pytest.mark.parametrize("cell", ["other.png", "Größe", "1", "", "test/a.png", "Größe 1.png/x"])
def test_another_name_finds_no_image(cell):
    matcher = ImageMatcher(["set/cls/Größe 1.png", "train/a.png"])

    assert matcher.find(cell) is None


@pytest.mark.parametrize("cell", ["10", "010", "10.0", "0010"])
def test_an_id_is_found_without_its_leading_zeros_as_a_spreadsheet_writes_it(cell):
    assert ImageMatcher(["0010.png", "0011.png"]).find(cell) == "0010.png"
    assert isinstance(ImageMatcher(["a/0010.png", "b/010.png"]).find("10"), Ambiguous)


@pytest.mark.parametrize("header", ["image,label,label", "image,Patient ID,label,patient_id"])
def test_two_columns_of_one_name_are_refused(tmp_path, header):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=[header, "a" + ",x" * header.count(",")])

    refused("t.csv has 2 columns of one name, ", folder, "t.csv")


def test_a_column_of_one_and_zero_is_one_of_several_labels(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,target", "a,1.0", "b,0"])

    assert targets_of(scanned(folder, "t.csv", multi_label=True)) == {
        "a.png": {"target": PRESENT}, "b.png": {"target": ABSENT},
    }  # fmt: skip


def test_an_id_with_dots_is_no_name_with_an_ending():
    matcher = ImageMatcher(["1.2.840.1.png", "1.2.840.2.png"])

    assert matcher.find("1.2.840.1") == "1.2.840.1.png"
    assert matcher.find("1.2.840") is None


@pytest.mark.parametrize(
    ("paths", "cell", "found"),
    [
        (["train/1.png", "test/1.png"], "1.png", None),
        (["train/1.png", "test/1.png"], "test/1.png", "test/1.png"),
        (["1.png", "copy/1.png"], "1.png", "1.png"),
        (["a/x.jpg", "a/x.png"], "x", None),
        (["a/x.jpg", "a/x.png"], "x.png", "a/x.png"),
        (["a/IMG1.JPG", "a/img1.jpg"], "img1.jpg", "a/img1.jpg"),
        (["a/IMG1.JPG", "a/img1.jpg"], "Img1.jpg", None),
    ],
)
def test_a_name_that_fits_two_images_is_ambiguous_unless_one_is_meant(paths, cell, found):
    matched = ImageMatcher(paths).find(cell)

    assert matched == found or (found is None and isinstance(matched, Ambiguous))


@pytest.mark.parametrize("cell", ["x/a", "x/a.png", "x/a.jpg", "x\\a.dcm"])
def test_the_image_whose_folder_the_cell_names_is_meant_although_another_has_the_same_id(cell):
    matcher = ImageMatcher(["x/a.png", "y/a.jpg"])

    assert matcher.find(cell) == "x/a.png"


PATIENTS = [f"patient{n}/view1_frontal.png,{'a' if n == 2 else 'b'}" for n in range(1, 6)]


@pytest.mark.parametrize("readers", ["agree", "majority", "refuse"])
def test_a_row_of_another_patient_does_not_label_the_image_of_the_same_name(tmp_path, readers):
    folder = source(tmp_path, ["patient2/view1_frontal.png", "patient7/x.png"], t_csv=["file,label", *PATIENTS, "x,b"])

    found = scanned(folder, "t.csv", readers=readers)

    assert labels_of(found) == {"patient2/view1_frontal.png": "a", "patient7/x.png": "b"}
    assert [line.partition(" (")[0] for line in found.labels.rows_without_image] == [
        f"t.csv line {n + 1}: patient{n}/view1_frontal.png" for n in (1, 3, 4, 5)
    ]


def test_rows_of_several_folders_do_not_label_the_image_of_another_folder(tmp_path):
    rows = ["patient1/view1,a", "patient3/view1.png,a", "q/patient3/view1,a", "x,a", "y,b"]
    folder = source(tmp_path, ["patient2/view1.png", "x.png", "y.png"], t_csv=["file,label", *rows])

    found = scanned(folder, "t.csv", allow_unmatched=True)

    assert labels_of(found) == {"x.png": "a", "y.png": "b"}
    assert found.labels.images_without_row == ("patient2/view1.png",)
    assert len(found.labels.rows_without_image) == 3


def test_rows_of_one_other_folder_label_an_image_and_are_counted(tmp_path):
    rows = ["old/x.png,a", "data/old/x.png,a", "old/y.png,b", "z.png,b"]
    folder = source(tmp_path, [f"new/{name}.png" for name in "xyz"], t_csv=["file,label", *rows])

    found = scanned(folder, "t.csv")

    assert labels_of(found) == {"x.png": "a", "y.png": "b", "z.png": "b"}
    assert "3 of 4 rows match by file name alone; their folders differ" in found.labels.notes


def test_a_row_of_another_patient_does_not_make_the_image_of_the_same_name_ambiguous(tmp_path):
    rows = ["p1/view1,a", "p2/view1,a", "p3/view1,b"]
    folder = source(tmp_path, ["p2/view1.png", "p3/view1.jpg"], t_csv=["file,label", *rows])

    found = scanned(folder, "t.csv")

    assert labels_of(found) == {"p2/view1.png": "a", "p3/view1.jpg": "b"}


def test_a_row_means_the_image_beside_the_split_folders_if_it_names_its_folder(tmp_path):
    names = ["train/a.png", "train/b.png", "train/c.png", "test/d.png", "copy/a.png"]
    rows = ["copy/a.png,x", "b.png,x", "c.png,y", "d.png,y"]
    folder = source(tmp_path, names, t_csv=["file,label", *rows])

    found = scanned(folder, "t.csv", split="50/50/0", split_column="none")

    assert labels_of(found) == {"copy/a.png": "x", "train/b.png": "x", "train/c.png": "y", "test/d.png": "y"}


def test_the_nearest_name_is_searched_with_and_without_ending():
    assert nearest("IM-0001.png", ["a/IM-0002x.png", "b/IM-00O1.png"]) == "b/IM-00O1.png"
    assert nearest("zzz", ["a/IM-0002x.png"]) is None


def test_a_name_that_fits_two_images_is_refused_before_any_is_read(tmp_path):
    folder = source(tmp_path, ["a/1.png", "b/1.png", "a/2.png"], t_csv=["file,label", "1.png,x", "2.png,y"])

    refused("t.csv line 2: '1.png' fits 2 images, a/1.png and b/1.png; write its path into the table", folder, "t.csv")


def test_a_table_in_a_split_folder_is_about_that_split(tmp_path):
    names = [f"{split}/{number}.png" for split in ("train", "test") for number in range(2)]
    rows = {f"{split}__metadata_csv": ["file_name,label", "0.png,ok", "1.png,bad"] for split in ("train", "test")}
    folder = source(tmp_path, names, **rows)

    found = scanned(folder, "train/metadata.csv", "test/metadata.csv", split=None)

    assert {(image.name, image.split, image.label) for image in found.images} == {
        (f"{split}/{number}.png", split, label)
        for split in ("train", "test") for number, label in enumerate(["ok", "bad"])
    }  # fmt: skip


def test_what_does_not_match_is_counted_and_named_on_both_sides(tmp_path):
    names = [f"film-{number:02d}.png" for number in range(20)]
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate([*names[:19], "film-0l9.png"])]
    folder = source(tmp_path, names, t_csv=["file,label", *rows])

    found = scanned(folder, "t.csv")

    assert found.labels.rows_without_image == ("t.csv line 21: film-0l9.png (nearest: film-19.png)",)
    assert found.labels.images_without_row == ("film-19.png",)
    assert len(found.images) == 19


@pytest.mark.parametrize(("names", "rows"), [(40, 10), (10, 40)])
def test_images_without_rows_and_rows_without_images_are_left_out(tmp_path, names, rows):
    lines = [f"{number:04d},{'ab'[number % 2]}" for number in range(rows)]
    folder = source(tmp_path, [f"{number:04d}.png" for number in range(names)], t_csv=["id,label", *lines])

    found = scanned(folder, "t.csv")

    assert len(found.images) == 10
    assert len(found.labels.images_without_row) + len(found.labels.rows_without_image) == 30


def test_a_table_that_hardly_fits_is_refused_unless_allowed(tmp_path):
    lines = [f"{number:04d},{'ab'[number % 2]}" for number in range(20)]
    folder = source(tmp_path, [f"{number:04d}.png" for number in range(10, 30)], t_csv=["id,label", *lines])

    refused("10 of 20 rows name no image, and 10 of 20 images have no row: t.csv line 2: 0000 (nearest:",
            folder, "t.csv")  # fmt: skip

    assert len(scanned(folder, "t.csv", allow_unmatched=True).images) == 10


def test_a_table_of_other_images_is_refused(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["file,label", "c.png,x", "d.png,y"])

    refused("t.csv names no image of the source (columns file, label; the first row has 'c.png'", folder, "t.csv")


def test_a_table_is_found_below_the_source_and_a_missing_one_is_wrong_usage(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"])
    (folder / "t.csv.gz").write_bytes(gzip.compress(b"file;label\na;x\nb;y\n"))

    assert labels_of(scanned(folder, "t.csv.gz")) == {"a.png": "x", "b.png": "y"}
    refused("there is no file s.csv, neither here nor in the source", folder, "s.csv", kind=OptionError)
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/s.csv").write_text("")
    refused("in the source; did you mean deep/er/s.csv?", folder, "s.csv", kind=OptionError)


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


SPLITS = ["image,label,split", "a,x,train", "b,y,Training", "c,x,validate", "d,y,test"]


def test_the_split_comes_from_a_column_and_the_rest_is_divided(tmp_path):
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=SPLITS)

    found = scanned(folder, "t.csv", split=None)

    assert [image.split for image in found.images] == ["train", "train", "valid", "test"]
    refused("the column 'split' give every image its split already; leave out --split, or use --split-column none",
            folder, "t.csv", kind=OptionError)  # fmt: skip
    assert {image.split for image in scanned(folder, "t.csv", split_column="none").images} == {None}


def test_another_value_of_a_split_column_is_refused_if_it_was_told_and_else_passed_over(tmp_path):
    rows = ["image,label,split", "a,x,fold1", "b,y,fold2"]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    assert {image.split for image in scanned(folder, "t.csv").images} == {None}
    refused("t.csv line 2: 'fold1' is no split; write train, valid or test", folder, "t.csv", split_column="split")


@pytest.mark.parametrize(
    "lines", [["a.png", "b.png"], ["Image Index", "a.png", "b.png"], ["0 a.png x", "1 b.png y"], ["id,k", "a,1", "b,2"]]
)
def test_the_split_comes_from_a_list_and_the_rest_is_divided(tmp_path, lines):
    rows = ["image,label", *(f"{name},{'xy'[number % 2]}" for number, name in enumerate("abcdefgh"))]
    folder = source(tmp_path, [f"{name}.png" for name in "abcdefgh"], t_csv=rows, l_txt=lines)

    found = scanned(folder, "t.csv", split="75/25/0", split_files=(("test", "l.txt"),))

    assert {image.name: image.split for image in found.images if image.split} == {"a.png": "test", "b.png": "test"}
    refused("6 of 8 images have no split by the lists of --split-file, such as c.png, d.png, e.png; divide them with",
            folder, "t.csv", split=None, split_files=(("test", "l.txt"),))  # fmt: skip


def test_an_image_in_two_lists_is_refused_and_an_unknown_entry_is_named(tmp_path):
    rows = ["image,label", "a,x", "b,y", "c,x"]
    folder = source(
        tmp_path, ["a.png", "b.png", "c.png"], t_csv=rows, one_txt=["a.png", "b.png", "bb.png"], two_txt=["b.png"]
    )

    refused("b.png is in the lists of train and test; remove it from one",
            folder, "t.csv", split_files=(("train", "one.txt"), ("test", "two.txt")))  # fmt: skip
    found = scanned(folder, "t.csv", split="50/50/0", split_files=(("test", "one.txt"),))

    assert "one.txt: 1 of 3 entries name no image, such as 'bb.png' (nearest: b.png)" in found.labels.notes


def test_an_entry_of_a_list_does_not_mean_the_image_of_another_folder_that_another_entry_names(tmp_path):
    rows = ["image,label", "view1,x", "b,y", "c,x", "d,x"]
    folder = source(
        tmp_path,
        ["p2/view1.png", "p3/b.png", "p4/c.png", "p4/d.png"],
        t_csv=rows,
        train_txt=["p1/view1.png", "b.png", "p4/d.png"],
        test_txt=["p2/view1.png", "old/c.png"],
    )

    found = scanned(folder, "t.csv", split=None, split_files=(("train", "train.txt"), ("test", "test.txt")))

    assert {image.name: image.split for image in found.images} == {
        "p2/view1.png": "test", "p3/b.png": "train", "p4/c.png": "test", "p4/d.png": "train",
    }  # fmt: skip
    assert found.labels.notes[-2:] == (
        "train.txt: 1 of 3 entries name no image, such as 'p1/view1.png' (nearest: p2/view1.png)",
        "test.txt: 1 of 2 entries match by file name alone; their folders differ",
    )


def test_all_images_in_train_are_refused_with_the_cure(tmp_path):
    rows = ["file_name,label", "0.png,ok", "1.png,bad"]
    folder = source(tmp_path, ["train/0.png", "train/1.png"], train__metadata_csv=rows)

    refused("all images are in train by the split folders; add --split 70/15/15", folder, "train/metadata.csv",
            split=None)  # fmt: skip

    assert {image.split for image in scanned(folder, "train/metadata.csv").images} == {None}


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


def test_masks_and_a_second_copy_are_no_candidates(tmp_path):
    names = [f"{folder}/{split}/{n}.png" for folder in ("images", "masks") for split in ("train", "test") for n in "ab"]
    rows = ["image,label", "train/a,x", "train/b,y", "test/a,x", "test/b,y"]
    folder = source(tmp_path, [*names, "images/copy/a.png", "images/train/a_mask.png"], t_csv=rows)

    found = scanned(folder, "t.csv", split=None)

    assert sorted(labels_of(found)) == ["test/a.png", "test/b.png", "train/a.png", "train/b.png"]
    assert (found.masks, found.passed_over) == (5, {"images/copy/": 1})


def test_the_lists_of_splits_divide_class_folders_too(tmp_path):
    names = [f"{label}/{label}{number}.png" for label in "xy" for number in range(4)]
    folder = source(tmp_path, names, test_txt=["x/x0", "y/y0"])

    found = scan_source(folder, PackOptions(split="50/50/0", split_files=(("test", "test.txt"),)))

    assert [image.name for image in found.images if image.split == "test"] == ["x/x0.png", "y/y0.png"]


@pytest.mark.parametrize("name", ["PatientenID", "Patienten-Nr", "Fallnummer", "MRN", "patient_code", "Subject Number"])
def test_columns_of_patients_are_found_as_hospitals_name_them(tmp_path, name):
    rows = [f"{n}.png,{'ab'[n % 2]},{n // 4}" for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=[f"file,label,{name}", *rows])

    found = scanned(tmp_path, "labels.csv")

    assert {image.name: image.group for image in found.images} == {f"{n}.png": str(n // 4) for n in range(16)}
    assert f"groups: column '{name}'; --group-column none leaves it out" in found.labels.notes


@pytest.mark.parametrize("name", ["Patient Age", "patient_sex", "Fallzahl"])
def test_columns_that_describe_patients_are_no_groups(tmp_path, name):
    rows = [f"{n}.png,{'ab'[n % 2]},{n // 4}" for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=[f"file,label,{name}", *rows])

    assert {image.group for image in scanned(tmp_path, "labels.csv").images} == {None}
