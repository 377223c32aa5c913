"""Which image a row of a table is about."""

import gzip
import unicodedata

import pytest

from data_shards.errors import OptionError
from data_shards.pack.labels.matching import Ambiguous, ImageMatcher, nearest
from tests.labelled import labels_of, refused, scanned, source


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


def test_masks_and_a_second_copy_are_no_candidates(tmp_path):
    names = [f"{folder}/{split}/{n}.png" for folder in ("images", "masks") for split in ("train", "test") for n in "ab"]
    rows = ["image,label", "train/a,x", "train/b,y", "test/a,x", "test/b,y"]
    folder = source(tmp_path, [*names, "images/copy/a.png", "images/train/a_mask.png"], t_csv=rows)

    found = scanned(folder, "t.csv", split=None)

    assert sorted(labels_of(found)) == ["test/a.png", "test/b.png", "train/a.png", "train/b.png"]
    assert (found.masks, found.passed_over) == (5, {"images/copy/": 1})
