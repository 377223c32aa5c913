"""Splits from a column of a table, and from lists."""

import pytest

from data_shards.errors import OptionError
from data_shards.pack.labelled_folder import scan_source
from data_shards.pack.options import PackOptions
from tests.labelled import refused, scanned, source

SPLITS = ["image,label,split", "a,x,train", "b,y,Training", "c,x,validate", "d,y,test"]


def test_the_split_comes_from_a_column_and_the_rest_is_divided(tmp_path):
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=SPLITS)

    found = scanned(folder, "t.csv", split=None)

    assert [image.split for image in found.images] == ["train", "train", "valid", "test"]
    refused("every image has its split by the column 'split' already; leave out --split, or use --split-column none",
            folder, "t.csv", kind=OptionError)  # fmt: skip
    assert {image.split for image in scanned(folder, "t.csv", split_column="none").images} == {None}


def test_a_column_of_splits_that_was_found_is_named(tmp_path):
    rows = ["image,label,Subset", "a,x,train", "b,y,train", "c,x,test", "d,y,test"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=rows)
    note = "splits: column 'Subset'; --split-column none leaves it out"

    assert note in scanned(folder, "t.csv", split=None).labels.notes
    assert note not in scanned(folder, "t.csv", split="50/0/50", split_column="none").labels.notes


def test_shares_divide_train_where_a_column_has_no_valid_images(tmp_path):
    rows = ["image,label,split", "a,x,train", "b,y,train", "c,x,test", "d,y,test"]
    folder = source(tmp_path, [f"{name}.png" for name in "abcd"], t_csv=rows)

    found = scanned(folder, "t.csv", split="80/20/0")

    assert [image.split for image in found.images] == [None, None, "test", "test"]
    assert any(note.startswith("splits: column 'split'") for note in found.labels.notes)
    refused("--split 70/15/15 takes test images out of train, but there are test images already; divide train with "
            "--split 85/15/0, or use --split-column none",
            folder, "t.csv", split="70/15/15", kind=OptionError)  # fmt: skip


def test_shares_do_not_divide_the_test_images_of_a_column_without_others(tmp_path):
    folder = source(tmp_path, ["a.png", "b.png"], t_csv=["image,label,split", "a,x,test", "b,y,test"])

    refused("every image has its split by the column 'split' already; leave out --split, or use --split-column none",
            folder, "t.csv", split="70/15/15", kind=OptionError)  # fmt: skip


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
    rows = ["image,label", "a,x", "b,y", "c,x", "d,y"]
    folder = source(
        tmp_path,
        [f"{name}.png" for name in "abcd"],
        t_csv=rows,
        one_txt=["a.png", "b.png", "bb.png"],
        two_txt=["b.png"],
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


def test_the_lists_of_splits_divide_class_folders_too(tmp_path):
    names = [f"{label}/{label}{number}.png" for label in "xy" for number in range(4)]
    folder = source(tmp_path, names, test_txt=["x/x0", "y/y0"])

    found = scan_source(folder, PackOptions(split="50/50/0", split_files=(("test", "test.txt"),)))

    assert [image.name for image in found.images if image.split == "test"] == ["x/x0.png", "y/y0.png"]
