import os
import shutil
import socket
import unicodedata
import zipfile

import pytest
from PIL import Image

from data_shards.errors import LeakageError, OptionError
from data_shards.index import read_index
from data_shards.pack.names import are_numbered_parts, split_of
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import pack
from tests.datasets import encoded, image_folder, noise
from tests.packed_folders import SPLITS, counts, packed, refused

GIVEN = {"train": {"covid": 3, "normal": 3}, "valid": {"covid": 2, "normal": 2}, "test": {"covid": 2, "normal": 2}}


@pytest.mark.parametrize("wrapping", ["", "data/", "a/b/c/"])
def test_split_folders_are_found_with_a_second_copy_of_the_set_beside_them(tmp_path, wrapping):
    source = image_folder(tmp_path / "images", {wrapping + name: count for name, count in SPLITS.items()})
    shutil.copytree(source, tmp_path / "copy")
    shutil.move(tmp_path / "copy" / wrapping, source / wrapping / "chest_xray")

    report = packed(source)

    assert counts(report) == GIVEN
    assert report.folder.passed_over == {f"{wrapping}chest_xray/": 14}


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("train_images", "valid_images", "test_images"),
        ("seg_train/seg_train", "seg_dev/seg_dev", "seg_test/seg_test"),
        ("training_set", "validate", "test_set"),
    ],
)
def test_splits_are_found_by_their_common_names(tmp_path, train, valid, test):
    names = {"train": train, "val": valid, "test": test}
    source = image_folder(
        tmp_path / "images", {f"{names[n.split('/')[0]]}/{n.split('/')[1]}": count for n, count in SPLITS.items()}
    )

    assert counts(packed(source)) == GIVEN


@pytest.mark.parametrize("name", ["trains", "testament", "evaluation", "contrast", "val1", "development"])
def test_other_names_are_no_splits(name):
    assert split_of(name) is None


def test_test_images_without_labels_are_refused_with_what_to_pack_instead(tmp_path):
    source = image_folder(tmp_path / "images", {"data/train/cat": 3, "data/train/dog": 3, "data/test": 2})

    refused(
        source,
        r"data/test/image-000.png lies outside the layout split/class/image; move it into a class folder, or, if the "
        r"images in data/test/ have no labels, give the folder data/train/ as SOURCE, with --split 70/15/15$",
    )


@pytest.mark.parametrize("folder", ["train", "test"])
def test_a_single_image_beside_class_folders_is_only_to_be_moved(tmp_path, folder):
    source = image_folder(tmp_path / "images", SPLITS)
    noise(99).save(source / folder / "x.png")

    refused(source, rf"^{folder}/x.png lies outside the layout split/class/image; move it into a class folder$")


def test_two_folders_for_one_split_are_refused(tmp_path):
    source = image_folder(tmp_path / "images", {**SPLITS, "validation/covid": 2})

    refused(source, r"val/ and validation/ both look like the split valid; keep or rename one")


def test_files_and_folders_of_operating_systems_are_ignored_at_every_depth(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    for folder in ("", "train", "train/covid"):
        for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints"):
            image_folder(source, {f"{folder}/{name}/inner".lstrip("/"): 1})
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
            (source / folder / name).write_bytes(b"x")

    report = packed(source)

    assert counts(report) == GIVEN
    assert (report.folder.passed_over, report.folder.other_files) == ({}, {})


def test_images_in_hidden_files_and_folders_are_counted_and_not_packed(tmp_path):
    source = image_folder(tmp_path / "images", {**SPLITS, ".trash/old": 3, "train/covid/.x": 1})
    (source / "train/covid/.kept-back.PNG").write_bytes(b"x")
    (source / "train/covid/._image-000.png").write_bytes(b"what macOS keeps beside a file")
    (source / ".trash/list.txt").write_text("no image")

    report = packed(source)

    assert counts(report) == GIVEN
    assert (report.folder.hidden, report.to_json()["hidden"]) == (5, 5)


def test_images_in_folders_of_the_system_are_counted_and_not_packed(tmp_path):
    source = image_folder(
        tmp_path / "images",
        {**SPLITS, "$RECYCLE.BIN/S-1-5": 2, "train/lost+found": 1, "#recycle/old": 3, "System Volume Information": 1},
    )
    for name in ("__MACOSX/._a.png", "train/covid/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/S-1-5/$IA1B2.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"what a system keeps of an image")

    report = packed(source)

    assert counts(report) == GIVEN
    assert report.folder.hidden == 7


@pytest.mark.parametrize(
    "folders",
    [
        ["images_001/images", "images_002/images"],
        ["HAM10000_images_part_1", "HAM10000_images_part_2"],
        ["patient00001/study1", "patient00002/study1"],
        ["chunk-1", "chunk-2", "chunk-3"],
    ],
)
def test_parts_of_a_download_are_no_classes(tmp_path, folders):
    source = image_folder(tmp_path / "images", dict.fromkeys(folders, 4))

    refused(source, "look like parts of one set, not classes; sort them into class folders", split="50/25/25")


@pytest.mark.parametrize(
    "names", [["class_0", "class_1"], ["grade 1", "grade 2"], ["BI-RADS 1", "BI-RADS 2"], ["0", "1"]]
)
def test_numbered_classes_are_no_parts(names):
    assert not are_numbered_parts(names)


@pytest.mark.parametrize(
    ("image_name", "mask_name"), [("images", "masks"), ("image", "mask"), ("imgs", "ground_truth")]
)
def test_masks_in_a_class_are_counted_and_not_packed(tmp_path, image_name, mask_name):
    source = image_folder(tmp_path / "images", {f"{c}/{image_name}": 4 for c in ("covid", "normal")})
    for label in ("covid", "normal"):
        (source / label / mask_name).mkdir()
        for number in range(4):
            Image.new("L", (20, 20), 255).save(source / label / mask_name / f"image-{number:03d}.png")

    report = packed(source, split="50/25/25")

    assert sum(report.index.samples_in(split) for split in report.index.splits) == 8
    assert report.folder.masks == 8


def test_masks_beside_their_images_are_counted_and_not_packed(tmp_path):
    source = image_folder(tmp_path / "images", {"benign": 4, "normal": 4})
    for number in range(4):
        Image.new("L", (20, 20), 255).save(source / f"benign/image-{number:03d}_mask.png")
    Image.new("L", (20, 20), 255).save(source / "benign/image-000_mask_1.png")
    (source / "normal/lonely_mask.png").write_bytes(encoded(noise(77)))

    report = packed(source, split="50/25/25")

    assert sum(report.index.samples_in(split) for split in report.index.splits) == 9
    assert report.folder.masks == 5


def test_a_folder_of_masks_beside_the_images_is_counted(tmp_path):
    source = image_folder(tmp_path / "images", {"images/covid": 4, "images/normal": 4, "masks/covid": 4})

    report = packed(source, split="50/25/25")

    assert (report.index.classes, report.folder.masks) == (("covid", "normal"), 4)


def test_a_class_named_like_masks_must_be_named_on_purpose(tmp_path):
    source = image_folder(tmp_path / "images", {"mask": 4, "no_mask": 4})

    refused(
        source, "mask/ looks like segmentation masks, not a class; leave it out with --drop-class", split="50/25/25"
    )

    assert packed(source, split="50/25/25", classes=("mask", "no_mask")).index.classes == ("mask", "no_mask")


def test_a_class_named_like_a_split_must_be_named_on_purpose(tmp_path):
    source = image_folder(tmp_path / "images", {"bus": 4, "car": 4, "train": 4})

    refused(source, r"the images in train/ have no class folders; .* --classes train,bus,car", split="50/25/25")

    assert packed(source, split="50/25/25", classes=("train", "bus", "car")).index.classes == ("bus", "car", "train")


@pytest.mark.parametrize("broken", ["empty", "pdf"])
def test_a_class_folder_without_an_image_is_refused_by_name(tmp_path, broken):
    source = image_folder(tmp_path / "images", SPLITS)
    (source / "train/pneumonia").mkdir()
    if broken == "pdf":
        (source / "train/pneumonia/1.pdf").write_bytes(b"%PDF-1.7")

    refused(source, r"train/pneumonia/ holds no image \((it is empty|1 .pdf)\); add images, remove the folder, or use")

    assert packed(source, drop_classes=("pneumonia",)).index.classes == ("covid", "normal")


@pytest.mark.parametrize("ending", [".webp", ".jfif", "", ".JPE", ".dat"])
def test_a_class_in_any_format_and_ending_is_packed(tmp_path, ending):
    source = image_folder(tmp_path / "images", {"covid": 4})
    (source / "normal").mkdir()
    kind = "WEBP" if ending == ".webp" else "JPEG"
    for number in range(4):
        (source / f"normal/{number}{ending}").write_bytes(encoded(noise(100 + number), kind))

    assert packed(source, split="50/25/25").index.classes == ("covid", "normal")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("COVID", "Covid"),
        ("covid", "covid "),
        ("Viral Pneumonia", "viral_pneumonia"),
        (unicodedata.normalize("NFC", "Lésion"), unicodedata.normalize("NFD", "Lésion")),
    ],
)
def test_two_spellings_of_a_class_are_refused(tmp_path, first, second):
    source = image_folder(
        tmp_path / "images", {f"train/{first}": 3, "train/normal": 3, f"test/{second}": 3, "test/normal": 3}
    )

    refused(source, "differ only in upper case, blanks or Unicode form; give both one name")


def test_every_file_that_is_no_image_is_counted_and_named(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    (source / "README.txt").write_text("notes")
    (source / "train/covid/DICOMDIR").write_bytes(bytes(128) + b"DICM")

    report = packed(source)

    assert report.folder.other_files == {".txt": 1, "no ending": 1}
    assert set(report.folder.other_names) == {"README.txt", "train/covid/DICOMDIR"}


def test_classes_are_chosen_and_dropped_and_the_rest_is_counted(tmp_path):
    source = image_folder(tmp_path / "images", {"covid": 4, "normal": 4, "pneumonia": 4})

    chosen = packed(source, split="50/25/25", classes=("covid", "normal"))
    shutil.rmtree(tmp_path / "shards")
    dropped = packed(source, split="50/25/25", drop_classes=("pneumonia",))

    assert chosen.index.classes == dropped.index.classes == ("covid", "normal")
    assert chosen.folder.left_out == dropped.folder.left_out == {"pneumonia": 4}
    assert read_index(str(tmp_path / "shards")).options["drop_classes"] == "pneumonia"


@pytest.mark.parametrize("chosen", [{"classes": ("covd", "normal")}, {"drop_classes": ("covd",)}])
def test_a_chosen_class_that_is_not_there_is_wrong_usage(tmp_path, chosen):
    source = image_folder(tmp_path / "images", {"covid": 4, "normal": 4})

    refused(source, "the source has no class 'covd'; it has covid, normal", OptionError, split="50/25/25", **chosen)


def test_the_options_of_an_ordinary_pack_are_those_of_earlier_data_sets_and_keep_small(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)

    options = packed(source).index.options

    assert sorted(options) == sorted(
        ("split", "group_by", "seed", "shard_bytes", "max_bad", "allow_leakage", "image_size", "encoding", "quality",
         "keep_small")
    )  # fmt: skip


def test_a_data_set_as_source_is_refused(tmp_path):
    source = image_folder(tmp_path / "photos", SPLITS)
    pack(source, tmp_path / "sets/chest", PackOptions(processes=1))

    refused(tmp_path / "sets/chest", "/chest is a data set of shards; give the images that it was packed from")


def test_an_archive_in_the_source_is_named_where_there_is_no_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "competition.zip", "w") as archive:
        archive.writestr("train.zip", b"PK\x03\x04")
        archive.writestr("sample_submission.csv", "id\n")

    refused(tmp_path / "competition.zip", "/competition.zip holds no image, but the archive train.zip; unpack it first")


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("chest.npz", "but 1 .npz; save each image in it as a file, such as CLASS/1.png, and pack the folder of these"),
        ("data/train-00000-of-00001.parquet", "but 1 .parquet; save each image in it as a file"),
        ("scan.nii.gz", "but 1 .gz; convert its images to PNG or DICOM files"),
        ("notes.txt", "but 1 .txt; give a folder of image files"),
    ],
)
def test_a_source_without_image_files_is_refused_with_what_to_do_with_its_files(tmp_path, name, cure):
    (tmp_path / "source" / name).parent.mkdir(parents=True)
    (tmp_path / "source" / name).write_bytes(b"content")

    refused(tmp_path / "source", cure)


def test_a_pack_refused_after_encoding_leaves_nothing_behind(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    shutil.copyfile(source / "train/covid/image-000.png", source / "test/covid/again.png")

    with pytest.raises(LeakageError):
        packed(source)

    assert not (tmp_path / "shards").exists()


def test_a_pipe_and_a_device_among_the_images_are_skipped_and_listed(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    os.mkfifo(source / "train/covid/pipe.jpg")
    (source / "train/covid/endless.jpg").symlink_to("/dev/zero")

    report = packed(source, max_bad=0.5)

    assert dict(report.skipped) == {
        f"train/covid/{name}.jpg": "it is a pipe, device or folder, not a regular file" for name in ("endless", "pipe")
    }


def test_a_socket_and_a_sparse_file_of_100_gigabytes_are_skipped_and_listed(tmp_path, monkeypatch):
    source = image_folder(tmp_path / "images", SPLITS)
    monkeypatch.chdir(source / "train/covid")  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    with (source / "train/covid/sparse.png").open("wb") as file:
        file.truncate(100 << 30)

    report = packed(source, max_bad=0.5)

    assert dict(report.skipped) == {
        "train/covid/socket.jpg": "it is a socket, not a regular file",
        "train/covid/sparse.png": "the file has 107374182400 bytes, above the limit of 1073741824 for one image",
    }


def test_a_film_above_the_limit_names_the_option_that_raises_it(tmp_path):
    source = image_folder(tmp_path / "images", SPLITS)
    Image.new("1", (2000, 1000)).save(source / "train/covid/film.png")

    report = pack(
        source, tmp_path / "shards", PackOptions(processes=1, max_bad=0.5, encode=EncodeOptions(max_megapixels=1))
    )

    fault = dict(report.skipped)["train/covid/film.png"]
    assert fault == "2000 x 1000 are 2 megapixels, above the limit of 1; raise --max-megapixels"
