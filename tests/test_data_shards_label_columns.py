"""Which columns of a table are those of the image, the label, the group and the split."""

import pytest

from data_shards.errors import OptionError
from data_shards.pack.groups import groups_of
from data_shards.targets import ABSENT, PRESENT
from tests.labelled import labels_of, refused, scanned, source, targets_of


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
        ("annotation_id,annotator,choice,id,image", "7,1,LABEL,101,/data/upload/1/10_left.jpeg", "Cat", "Dog"),
    ],
)
def test_usual_columns_are_found_without_being_told(tmp_path, header, row, label, other):
    first, second = row.replace("LABEL", label), row.replace("LABEL", other).replace("10_left", "10_right")
    folder = source(tmp_path, ["images/10_left.jpeg", "images/10_right.jpeg"], t_csv=[header, first, second])

    found = scanned(folder, "t.csv")

    assert labels_of(found) == {"10_left.jpeg": label.strip("[']"), "10_right.jpeg": other.strip("[']")}


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("Bilddatei;label;patient_id", ["0000.jpg;a;1", "0001.jpg;b;0", "0002.jpg;b;2"]),  # as many patients as images
        ("Nr;Datei;label", ["2;0000.jpg;a", "0;0001.jpg;b", "1;0002.jpg;b"]),
        ("id;Datei;label", ["2;0000.jpg;a", "0;0001.jpg;b", "1;0002.jpg;b"]),
        # Of a larger set, whose rows name more images by the numbers of patients.
        ("image;label;patient_id", ["0000.jpg;a;1", "0001.jpg;b;0", "0002.jpg;b;2"] + ["gone.jpg;b;2"] * 9),
    ],
)
def test_names_of_image_files_are_surer_than_numbers_of_patients_or_rows(tmp_path, header, rows):
    folder = source(tmp_path, [f"{number:04d}.jpg" for number in range(3)], t_csv=[header, *rows])

    found = scanned(folder, "t.csv")

    assert labels_of(found) == {"0000.jpg": "a", "0001.jpg": "b", "0002.jpg": "b"}


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        # Several lesions of an image, whose crops are images of the source too.
        ("image_path,crop_path,label", ["0000.jpg,crop0.jpg,a", "0000.jpg,crop1.jpg,a", "0001.jpg,crop2.jpg,b"]),
        ("image file path,cropped image file path,ROI mask file path,label",
         ["0000.jpg,crop0.jpg,crop3.jpg,a", "0000.jpg,crop1.jpg,crop3.jpg,a", "0001.jpg,crop2.jpg,crop3.jpg,b"]),
        ("prior,image,label", ["0001.jpg,0000,a", "0000.jpg,0001,b"]),
        ("id;Bild;label", ["1;0000;a", "0;0001;b"]),
    ],
)  # fmt: skip
def test_the_column_of_images_is_surer_than_one_of_other_image_files_or_row_numbers(tmp_path, header, rows):
    crops = [f"crop{number}.jpg" for number in range(4)]
    folder = source(tmp_path, ["0000.jpg", "0001.jpg", *crops], t_csv=[header, *rows])

    found = scanned(folder, "t.csv", allow_unmatched=True)

    assert labels_of(found) == {"0000.jpg": "a", "0001.jpg": "b"}


@pytest.mark.parametrize(
    "rows",
    [
        ["mask,film,label", "0000_lung.jpg,0000.jpg,a", "0001_lung.jpg,0001.jpg,b"],
        ["Lung Mask File;film;label", "0000_lung.jpg;0000.jpg;a", "0001_lung.jpg;0001.jpg;b"],
        ["segmentation,film,label", "0000_lung.jpg,0000,a", "0001_lung.jpg,0001,b"],  # films without an ending
    ],
)
def test_a_column_of_masks_is_not_that_of_the_images_though_it_stands_first(tmp_path, rows):
    names = [f"{number:04d}{kind}.jpg" for number in range(2) for kind in ("", "_lung")]
    folder = source(tmp_path, names, t_csv=rows)

    found = scanned(folder, "t.csv", allow_unmatched=True)
    masks = scanned(folder, "t.csv", allow_unmatched=True, image_column=rows[0].replace(";", ",").split(",")[0])

    assert labels_of(found) == {"0000.jpg": "a", "0001.jpg": "b"}
    assert labels_of(masks) == {"0000_lung.jpg": "a", "0001_lung.jpg": "b"}


def test_a_column_of_masks_is_that_of_the_images_where_no_other_names_one(tmp_path):
    folder = source(tmp_path, ["0000.jpg", "0001.jpg"], t_csv=["mask,label", "0000.jpg,a", "0001.jpg,b"])

    assert labels_of(scanned(folder, "t.csv")) == {"0000.jpg": "a", "0001.jpg": "b"}


@pytest.mark.parametrize(
    ("header", "rows", "named"),
    [
        # The film before, of the same patient, which the first row does not have.
        ("previous,film,label", [",0000.jpg,a", "0000.jpg,0001.jpg,b", "0001.jpg,0002.jpg,a"], "'previous', 'film'"),
        # Masks under a name that says nothing.
        ("lungs,film,label", ["m0.jpg,0000.jpg,a", "m1.jpg,0001.jpg,b", "m2.jpg,0002.jpg,a"], "'lungs', 'film'"),
    ],
)
def test_two_columns_of_file_names_that_may_both_be_the_images_are_refused(tmp_path, header, rows, named):
    names = [f"{kind}{number}.jpg" for number in range(3) for kind in ("000", "m")]
    folder = source(tmp_path, names, t_csv=[header, *rows])

    refused(f"the file names in the columns {named} of t.csv may all name the images; "
            "rename the right one to 'image', or give it with --image-column",
            folder, "t.csv", kind=OptionError, allow_unmatched=True)  # fmt: skip
    found = scanned(folder, "t.csv", allow_unmatched=True, image_column="film")

    assert labels_of(found) == {"0000.jpg": "a", "0001.jpg": "b", "0002.jpg": "a"}


def test_two_columns_with_the_same_file_names_are_no_rivals(tmp_path):
    rows = ["film,copy,label", "0000.jpg,0000.jpg,a", "0001.jpg,0001.jpg,b"]
    folder = source(tmp_path, ["0000.jpg", "0001.jpg"], t_csv=rows)

    assert labels_of(scanned(folder, "t.csv")) == {"0000.jpg": "a", "0001.jpg": "b"}


def test_numbers_name_images_where_nothing_else_does(tmp_path):
    rows = ["patientId,Target,sex", "1,0,F", "2,1,M", "3,1,F"]
    folder = source(tmp_path, [f"{number:06d}.jpg" for number in (1, 2, 3)], t_csv=rows)

    assert labels_of(scanned(folder, "t.csv")) == {"000001.jpg": "0", "000002.jpg": "1", "000003.jpg": "1"}


def test_numbers_of_patients_are_not_taken_for_images_where_the_column_of_images_names_none(tmp_path):
    rows = ["image,label,patient_id", "film_a.png,a,2", "film_b.png,b,1"]  # the files were renamed since
    folder = source(tmp_path, ["0001.jpg", "0002.jpg"], t_csv=rows)

    refused("t.csv names no image of the source", folder, "t.csv")


def test_numbers_of_patients_beside_other_numbers_that_name_images_are_refused(tmp_path):
    folder = source(tmp_path, ["1.jpg", "2.jpg", "3.jpg"], t_csv=["Nr;label;patient_id", "2;a;1", "1;b;2", "3;a;1"])

    refused("the numbers in the columns 'Nr', 'patient_id' of t.csv may all name the images; rename the right one",
            folder, "t.csv", kind=OptionError)  # fmt: skip
    found = scanned(folder, "t.csv", image_column="Nr")

    assert labels_of(found) == {"1.jpg": "b", "2.jpg": "a", "3.jpg": "a"}


def test_row_numbers_beside_other_numbers_that_name_images_are_refused_with_the_option(tmp_path):
    folder = source(tmp_path, ["1.jpg", "2.jpg", "3.jpg"], t_csv=["id;Nr;label", "1;2;a", "2;1;b", "3;3;a"])

    refused("the numbers in the columns 'id', 'Nr' of t.csv may all name the images; rename the right one to 'image', "
            "or give it with --image-column", folder, "t.csv", kind=OptionError)  # fmt: skip


def test_row_names_that_are_equal_to_the_numbers_of_patients_are_no_rivals(tmp_path):
    rows = ['"","patient_id","label"', *(f'"{number}",{number},"{"ab"[number % 2]}"' for number in (1, 2, 3))]
    folder = source(tmp_path, ["1.jpg", "2.jpg", "3.jpg"], t_csv=rows)  # as write.csv of R writes it

    assert labels_of(scanned(folder, "t.csv")) == {"1.jpg": "b", "2.jpg": "a", "3.jpg": "b"}


@pytest.mark.parametrize("tables", [("labels.csv", "clinical.csv"), ("clinical.csv", "labels.csv")])
def test_a_table_that_names_files_is_surer_than_one_with_more_numbers_of_patients(tmp_path, tables):
    rows = [f"{number:02d}.jpg,{'ab'[number % 2]},{19 - number}" for number in range(10, 19)]
    clinical = ["patient_id,age", *(f"{number},50" for number in range(1, 30))]
    names = [f"{number}.jpg" for number in range(10, 20)]
    folder = source(tmp_path, names, labels_csv=["file,label,patient_id", *rows], clinical_csv=clinical)

    found = scanned(folder, *tables)

    assert labels_of(found) == {f"{number}.jpg": "ab"[number % 2] for number in range(10, 19)}


def test_a_table_without_header_has_numbered_columns(tmp_path):
    rows = [f"{number} film-{number}.png {'positive' if number % 2 else 'negative'} site" for number in range(4)]
    folder = source(tmp_path, [f"x/film-{number}.png" for number in range(4)], t_txt=rows)

    refused("choose with --label-column", folder, "t.txt", kind=OptionError)
    found = scanned(folder, "t.txt", label_column="3")

    assert labels_of(found) == {f"film-{n}.png": ("negative", "positive")[n % 2] for n in range(4)}
    assert "t.txt has no header; its columns are named 1 to 4" in found.labels.notes


def test_columns_are_found_as_r_writes_their_names(tmp_path):
    rows = ["Image.Index,Finding.Labels,Patient.ID", "a.png,Mass,7", "b.png,No Finding,8"]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    assert labels_of(scanned(folder, "t.csv")) == {"a.png": "Mass", "b.png": "No Finding"}


def test_columns_whose_numbers_differ_in_a_dot_are_two(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,label,1.5,15", "a,x,0,1", "b,y,1,0"])

    assert labels_of(scanned(folder, "t.csv")) == {"a.png": "x", "b.png": "y"}


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


@pytest.mark.parametrize("header", ["image,label,label", "image,Patient ID,label,patient_id"])
def test_two_columns_of_one_name_are_refused(tmp_path, header):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=[header, "a" + ",x" * header.count(",")])

    refused("t.csv has 2 columns of one name, ", folder, "t.csv")


def test_a_name_and_the_same_name_with_a_hash_are_two_columns(tmp_path):
    rows = ["image,label,Patient,Patient #", "a.png,x,Doe,1", "b.png,y,Roe,2"]
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=rows)

    found = scanned(folder, "t.csv", group_column="patient #")

    assert {image.name: image.group for image in found.images} == {"a.png": "1", "b.png": "2"}


def test_a_column_of_one_and_zero_is_one_of_several_labels(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,target", "a,1.0", "b,0"])

    assert targets_of(scanned(folder, "t.csv", multi_label=True)) == {
        "a.png": {"target": PRESENT}, "b.png": {"target": ABSENT},
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["PatientenID", "Patienten-Nr", "Fallnummer", "MRN", "patient_code", "Subject Number", "Patient.ID", "Pat.-Nr.",
     "Patient #", "Pseudonym", "animal ID"],
)  # fmt: skip
def test_columns_of_patients_are_found_as_hospitals_name_them(tmp_path, name):
    rows = [f"{n}.png,{'ab'[n % 2]},{n // 4}" for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=[f"file,label,{name}", *rows])

    found = scanned(tmp_path, "labels.csv")

    assert {image.name: image.group for image in found.images} == {f"{n}.png": str(n // 4) for n in range(16)}
    assert f"groups: column '{name}'; --group-column none leaves it out" in found.labels.notes


@pytest.mark.parametrize("empty", ["Patient ID", "Patient Name"])
@pytest.mark.parametrize("cell", ["", "NaN"])
def test_an_empty_column_of_patients_is_passed_over_for_the_next(tmp_path, empty, cell):
    rows = [f"{n}.png,{'ab'[n % 2]},{cell},{n // 4}" for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=[f"file,label,{empty},Subject ID", *rows])

    found = scanned(tmp_path, "labels.csv")

    assert {image.name: image.group for image in found.images} == {f"{n}.png": str(n // 4) for n in range(16)}
    assert groups_of(["1.png", "5.png"], str(tmp_path / "labels.csv")).of_image == {"1.png": "0", "5.png": "1"}


def test_a_constant_name_of_patients_is_no_group(tmp_path):
    rows = [f"{n}.png,{'ab'[n % 2]},ANONYMOUS,{n // 4}" for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=["file,label,Patient Name,Subject ID", *rows])

    found = scanned(tmp_path, "labels.csv")

    assert {image.name: image.group for image in found.images} == {f"{n}.png": str(n // 4) for n in range(16)}


def test_a_table_whose_only_column_of_patients_is_empty_gives_no_groups(tmp_path):
    rows = [f"{n}.png,{'ab'[n % 2]}," for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=["file,label,Patient ID", *rows])

    found = scanned(tmp_path, "labels.csv")

    assert {image.group for image in found.images} == {None}
    assert not any("groups: column" in note for note in found.labels.notes)


@pytest.mark.parametrize("name", ["Patient Age", "patient_sex", "Fallzahl", "animal"])
def test_columns_that_describe_patients_are_no_groups(tmp_path, name):
    rows = [f"{n}.png,{'ab'[n % 2]},{n // 4}" for n in range(16)]
    source(tmp_path, [f"{n}.png" for n in range(16)], labels_csv=[f"file,label,{name}", *rows])

    assert {image.group for image in scanned(tmp_path, "labels.csv").images} == {None}
