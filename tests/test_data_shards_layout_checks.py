"""Folders of data sets as people download them: which are packed, and which are refused with the cure."""

import shutil

import pytest

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import LabelOptions, PackOptions
from tests.labelled import labels_of, source


def scanned(folder, **chosen):
    return scan_source(folder, PackOptions(**{"split": "60/20/20", **chosen}))


def refused(folder, *texts, **chosen):
    with pytest.raises(SourceError) as caught:
        scanned(folder, **chosen)
    assert "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("stage_2_train_images", "stage_2_test_images"),  # RSNA
        ("train2017", "val2017"),  # COCO
        ("ISIC_2019_Training_Input", "ISIC_2019_Test_Input"),
    ],
)
def test_folders_that_differ_in_their_splits_are_no_classes_and_the_table_is_named(tmp_path, first, second):
    names = [f"{first}/film-{number}.png" for number in range(4)]
    folder = source(
        tmp_path,
        [*names, f"{second}/film-9.png", f"{second}/film-8.png"],
        boxes_csv=["patientId,x", *(f"film-{number},{number}.5" for number in range(4)), *["film-0,1.5"] * 9],
        labels_csv=[
            "# of the year",
            "# 2018",
            "patientId,Target",
            *(f"film-{number},{number % 2}" for number in range(4)),
        ],
    )

    refused(folder, "look like splits, not classes; labels.csv names 100% of the images in", "--labels labels.csv")
    found = scanned(folder, labels=LabelOptions(tables=("labels.csv",)))

    assert labels_of(found) == {f"{first}/film-{number}.png": str(number % 2) for number in range(4)}


def test_classes_with_the_words_of_splits_beside_other_words_are_classes(tmp_path):
    folder = source(tmp_path, ["positive_test/1.png", "negative_test/2.png"])

    assert scanned(folder).classes == ("negative_test", "positive_test")


def test_numbered_patients_with_folders_of_classes_are_no_classes(tmp_path):
    names = [f"{patient}/{label}/{n}.png" for patient in range(8863, 8867) for label in "01" for n in range(2)]
    folder = source(tmp_path / "images", names)
    moved = source(tmp_path / "moved", ["/".join((*name.split("/")[1::-1], name[-5:])) for name in names])

    refused(
        folder,
        "the folders 8863, 8864, 8865, ... are numbers, and most of them have the folders 0 and 1, which look like the "
        "classes of patients; move the images to CLASS/NUMBER/image",
        "or take the numbers as classes with --classes 8863,8864,8865,...",
    )
    chosen = scanned(folder, classes=("8863", "8864", "8865", "8866"))
    found = scanned(moved, group_by="^[^/]+/([^/]+)/")

    assert chosen.classes == ("8863", "8864", "8865", "8866")
    assert found.classes == ("0", "1")


@pytest.mark.parametrize(
    ("first", "inner"), [(0, ("AP", "PA")), (10, ("left", "right")), (10, ("images", "masks")), (10, ("train", "test"))]
)
def test_numbers_that_are_grades_or_have_no_classes_inside_are_classes(tmp_path, first, inner):
    numbers = [str(number) for number in range(first, first + 5)]
    folder = source(tmp_path, [f"{number}/{name}/1.png" for number in numbers for name in inner])

    assert scanned(folder).classes == tuple(numbers)


@pytest.mark.parametrize(
    ("copy", "passed_over"),
    [("PlantVillage", "PlantVillage/PlantVillage/"), ("../plantvillage/PlantVillage", "plantvillage/")],
)
def test_a_second_copy_of_the_class_folders_is_passed_over(tmp_path, copy, passed_over):
    folder = source(tmp_path / "images", [f"PlantVillage/{label}/{n}.jpg" for label in "abc" for n in range(2)])
    shutil.copytree(folder / "PlantVillage", tmp_path / "copy")
    shutil.copytree(tmp_path / "copy", folder / "PlantVillage" / copy)

    found = scanned(folder)

    assert found.classes == ("a", "b", "c")
    assert len(found.images) == 6
    assert found.passed_over == {passed_over: 6}


@pytest.mark.parametrize("image", [b"another image", b"other"])
def test_a_folder_that_is_spelt_alike_with_other_images_is_no_copy(tmp_path, image):
    folder = source(tmp_path, ["Cat/1.png", "Cat/2.png", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    (folder / "Cat/1.png").write_bytes(b"image")
    (folder / "cat/1.png").write_bytes(image)

    refused(folder, "the class folders 'Cat' and 'cat' differ only in upper case")


def test_other_images_in_folders_of_the_same_names_are_no_copy(tmp_path):
    names = ["benign/1.dcm", "malignant/1.dcm"]
    folder = source(tmp_path, [*names, *(f"hospital_2/{name}" for name in names)])
    for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
        path.write_bytes(bytes([number]))  # all of one size, as uncompressed images are
    (folder / "t.csv").write_text(
        "file,label\nbenign/1.dcm,a\nmalignant/1.dcm,b\nhospital_2/benign/1.dcm,b\nhospital_2/malignant/1.dcm,a\n"
    )

    by_folder = scanned(folder)
    by_table = scanned(folder, labels=LabelOptions(tables=("t.csv",)))

    assert by_folder.passed_over == {}
    assert len(by_folder.images) == 4
    assert labels_of(by_table) == {
        "benign/1.dcm": "a",
        "malignant/1.dcm": "b",
        "hospital_2/benign/1.dcm": "b",
        "hospital_2/malignant/1.dcm": "a",
    }


def test_labels_of_a_table_are_those_of_the_first_copy(tmp_path):
    names = [f"HAM_part_{1 + number // 4}/ISIC_{number}.jpg" for number in range(8)]
    rows = ["image_id,dx", *(f"ISIC_{number},{'ab'[number % 2]}" for number in range(8))]
    folder = source(tmp_path, [*names, *(name.replace("HAM", "ham") for name in names)], t_csv=rows)

    found = scanned(folder, labels=LabelOptions(tables=("t.csv",)))

    assert labels_of(found) == {name: "ab"[number % 2] for number, name in enumerate(names)}
    assert found.labels.images_without_row == ()
    assert found.passed_over == {"ham_part_1/": 4, "ham_part_2/": 4}


@pytest.mark.parametrize(("images", "beside"), [("images", "meta"), ("images", "annotations"), ("Data/set", "lists")])
def test_folders_without_images_beside_the_one_with_class_folders_are_no_classes(tmp_path, images, beside):
    splits = ("train/", "test/") if images == "Data/set" else ("",)
    names = [f"{split}{label}/{n}.jpg" for split in splits for label in ("cake", "pie") for n in range(2)]
    folder = source(tmp_path, [*(f"food/{images}/{name}" for name in names), f"food/{beside}/test.txt"])

    found = scanned(folder, split=None if splits[1:] else "60/20/20")

    assert found.classes == ("cake", "pie")
    assert found.other_names == (f"food/{beside}/test.txt",) or found.masks == 1


def test_a_table_gives_the_names_of_images_in_images_beside_folders_without_images(tmp_path):
    names = [f"images/p{patient}/s1/{n}.png" for patient in range(4) for n in range(2)]
    rows = ["file,label", *(f"{name},{'ab'[number % 2]}" for number, name in enumerate(names))]
    folder = source(tmp_path, names, csv__t_csv=rows)

    found = scanned(folder, labels=LabelOptions(tables=("csv/t.csv",)))

    assert set(labels_of(found)) == set(names)


def test_patients_in_splits_below_the_only_class_with_images_are_no_classes(tmp_path):
    names = [f"covid/{split}/{split}-{n}/1.png" for split in ("train", "test") for n in range(3)]
    folder = source(tmp_path, [*names, "normal/notes.txt"])

    refused(folder, "the class folder normal/ holds no image")


def test_a_copy_beside_images_without_class_folders_is_no_class_to_choose(tmp_path):
    folder = source(tmp_path, ["images/1.png", "Images/1.png"])

    with pytest.raises(SourceError, match="the images in Images/ have no class folders") as caught:
        scanned(folder)

    assert "--classes" not in str(caught.value)


def test_an_empty_class_folder_beside_a_class_with_folders_is_still_refused(tmp_path):
    folder = source(tmp_path, ["cat/black/1.png", "cat/white/2.png", "dog/notes.txt"])

    refused(folder, "the class folder dog/ holds no image")


def test_a_split_without_class_folders_beside_train_with_them_is_refused_with_what_to_pack(tmp_path):
    names = [f"{label}/images/{label}_{n}.JPEG" for label in ("n01", "n02") for n in range(2)]
    folder = source(
        tmp_path,
        [*(f"train/{name}" for name in names), "val/images/val_0.JPEG", "val/images/val_1.JPEG"],
        val__val_annotations_txt=["val_0.JPEG\tn01\t0\t32", "val_1.JPEG\tn02\t1\t30"],
    )

    refused(
        folder,
        "the images in val/images/ have no class folders, as those in train/ have; sort them into class folders by "
        "val/val_annotations.txt, or give the folder train/ as SOURCE, with --split 70/15/15",
        split=None,
    )
    found = scanned(folder / "train")

    assert labels_of(found) == {name: name.split("/")[0] for name in names}


def test_trimaps_beside_flat_images_are_masks_and_the_table_is_named(tmp_path):
    names = [f"{breed}_{n}" for breed in ("Bengal", "pug") for n in range(6)]
    folder = source(
        tmp_path,
        [*(f"images/{name}.jpg" for name in names), *(f"annotations/trimaps/{name}.png" for name in names)],
        annotations__list_txt=["#Image CLASS-ID", "#ID: 1:37", *(f"{name} {1 + (name > 'p')} 1" for name in names)],
    )

    refused(folder, "the images in images/ have no class folders; annotations/list.txt names 100% of the images")
    found = scanned(folder, labels=LabelOptions(tables=("annotations/list.txt",), label_column="2"))

    assert labels_of(found) == {f"images/{name}.jpg": str(1 + (name > "p")) for name in names}


@pytest.mark.parametrize("test", [("test",), ()])
def test_shares_divide_train_where_no_folder_has_valid_images(tmp_path, test):
    names = [f"{split}/{label}/{n}.png" for split in ("train", *test) for label in ("a", "b") for n in range(4)]
    folder = source(tmp_path, names)

    found = scanned(folder, split="80/20/0")

    assert {image.name: image.split for image in found.images} == {
        name: "test" if name.startswith("test") else None for name in names
    }
    assert {image.split for image in scanned(folder, split=None).images} == {"train", *test}


@pytest.mark.parametrize("split", [None, "80/20/0"])
def test_a_class_that_only_test_has_is_refused_whether_train_is_divided_or_not(tmp_path, split):
    names = [f"{folder}/{n}.png" for folder in ("train/a", "train/b", "test/a", "test/b", "test/c") for n in range(4)]
    folder = source(tmp_path, names)

    refused(
        folder, "class 'c' has no usable image in train; add some, or leave it out with --drop-class 'c'", split=split
    )
    assert scanned(folder, split=split, drop_classes=("c",)).classes == ("a", "b")


def test_shares_with_test_images_do_not_divide_train_beside_test_images(tmp_path):
    folder = source(
        tmp_path, [f"{split}/{label}/{n}.png" for split in ("train", "test") for label in "ab" for n in "12"]
    )

    with pytest.raises(OptionError, match=r"--split 70/15/15 takes test images out of train, .* with --split 85/15/0"):
        scanned(folder, split="70/15/15")


def test_patients_of_train_that_is_divided_are_noted_below_the_classes(tmp_path):
    names = [f"train/{'ab'[p % 2]}/p{p}/{n}.png" for p in range(12) for n in range(2)]
    folder = source(tmp_path, [*names, "test/a/p20/1.png", "test/b/p21/1.png"])

    found = scanned(folder, split="80/20/0")

    (note,) = found.labels.notes if found.labels else ()
    assert note.endswith(" with --group-by '^[^/]+/[^/]+/([^/]+)/'")
