"""Tables of labels beside images: found, named, and not taken for classes."""

import shutil

import pytest

from data_shards.pack.label_tables import best_table
from tests.datasets import image_folder
from tests.packed_folders import SPLITS, names_below, packed, refused, table


def test_bare_numbers_beside_a_table_are_refused_and_the_table_is_named(tmp_path):
    source = image_folder(tmp_path / "images", {"0": 5, "1": 5, "2": 5})
    alone = packed(source, split="60/20/20")
    shutil.rmtree(tmp_path / "shards")
    table(source / "labels.csv", "ImageID,Labels", [f"{name},normal" for name in names_below(source)])

    refused(source, r"0, 1, 2 are numbers beside a table, not classes; labels.csv names 100%", split="60/20/20")

    assert alone.index.classes == ("0", "1", "2")
    assert packed(source, split="60/20/20", classes=("0", "1", "2")).index.digest


@pytest.mark.parametrize(
    "folders", [["images"], ["train_images", "test_images"], ["train", "val", "test"], ["a/b/p1", "a/b/p2"]]
)
@pytest.mark.parametrize("split", [None, "50/25/25"])
def test_images_whose_labels_are_in_a_table_are_refused_and_the_table_is_named(tmp_path, folders, split):
    source = image_folder(tmp_path / "images", {})
    source.mkdir()
    rows = []
    for folder in folders:
        image_folder(source, {folder: 6})
        for file in (source / folder).iterdir():
            rows.append(f"{folder.replace('/', '-')}-{file.stem},{len(rows) % 2}")
            file.rename(file.with_name(f"{folder.replace('/', '-')}-{file.name}"))
    table(source / "labels.csv", "image_id,dx", rows)

    refused(
        source,
        r"labels.csv names 100% of the images: the labels must come from a table; give it with --labels",
        split=split,
    )


def test_a_table_for_each_split_is_named(tmp_path):
    source = image_folder(tmp_path / "images", {"train": 4, "test": 4})
    for split in ("train", "test"):
        for file in (source / split).iterdir():
            file.rename(file.with_name(f"{split}{file.name}"))
        table(source / f"{split}.txt", "", [f"1 {file.name} positive" for file in (source / split).iterdir()])

    refused(source, r"the images in train/, test/ have no class folders; train.txt names 100% of the images in train/")


def test_a_table_beside_class_folders_is_pointed_out(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    names = names_below(source)
    table(source / "ages.csv", "file,age", [f"{name},50" for name in names])

    report = packed(source)

    assert str(report.folder.table) == "ages.csv names 100% of the images"


@pytest.mark.parametrize("share", [0.8, 1.0])
def test_a_table_counts_from_nine_tenths_of_the_images(tmp_path, share):
    images = [f"a/film-{number:04d}.png" for number in range(100)]
    table(tmp_path / "t.csv", "Path;Label", [f"set\\film-{n:04d}.PNG;1" for n in range(int(share * 100))])

    found = best_table(tmp_path, ["t.csv"], {"": images})

    assert (found is not None) == (share == 1.0)


def test_files_of_one_name_are_named_by_their_path(tmp_path):
    images = [f"set/train/patient{n}/study1/view1.jpg" for n in range(10)]
    table(tmp_path / "paths.csv", "Path,Sex", [f"set/train/patient{n}/study1/view1.jpg,F" for n in range(10)])
    table(tmp_path / "names.csv", "Path,Sex", ["view1.jpg,F"])

    assert best_table(tmp_path, ["names.csv"], {"": images}) is None
    assert str(best_table(tmp_path, ["names.csv", "paths.csv"], {"": images})) == "paths.csv names 100% of the images"
