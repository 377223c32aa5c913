"""Images are added to a data set: what stays, what is recognised, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.errors import OptionError, SourceError
from data_shards.index import read_index, write_index
from data_shards.pack.add import add
from data_shards.pack.image_records import PATTERN
from data_shards.pack.options import EncodeOptions
from data_shards.pack.packing import pack
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches
from data_shards.verify import verify
from tests import adding
from tests.adding import NEW, added, files_of, new_images, options, split_of
from tests.datasets import encoded, image_folder, noise
from tests.disks import small_disk
from tests.test_data_shards_pack import infos

made, source, shards, divided = adding.made, adding.source, adding.shards, adding.divided


def test_new_images_become_shards_behind_the_old_ones_which_stay_as_they_are(tmp_path, shards):
    before, files = read_index(str(shards)), files_of(shards)

    report = added(shards, new_images(tmp_path / "new", [f"a/new-{n}.png" for n in range(4)]))

    index = read_index(str(shards))
    assert report.index == index
    assert index.shards[: len(before.shards)] == before.shards
    assert sum(report.added.values()) == 4
    assert index.per_class_in("train+valid+test") == (24, 20)
    assert index.version_with(before.digest) == before
    assert files.items() <= {**files_of(shards), "index.json": files["index.json"]}.items()
    assert {path.name for path in shards.iterdir()} - files.keys() == {
        "add-report-1.json",
        *(shard.name for shard in index.shards[len(before.shards) :]),
        *(path.name for path in shards.glob(PATTERN) if path.name not in files),
    }
    assert verify(str(shards)) == ()


def test_images_added_one_by_one_can_all_be_read_and_the_history_gives_back_every_version(tmp_path, shards):
    versions = [read_index(str(shards))]

    for number in range(5):
        added(shards, new_images(tmp_path / f"new{number}", [f"b/{number}.png"], seed=NEW + number))
        versions.append(read_index(str(shards)))

    assert [versions[-1].version_with(index.digest) for index in versions] == versions
    assert verify(str(shards)) == ()
    assert len(infos(shards)) == 45


def test_the_same_images_added_to_the_same_data_set_give_the_same_digest(tmp_path, shards):
    shutil.copytree(shards, tmp_path / "other")
    new = new_images(tmp_path / "new", [f"a/new-{n}.png" for n in range(4)])

    added(shards, new)
    add(str(tmp_path / "other"), new, {"processes": 1})

    assert read_index(str(shards)).digest == read_index(str(tmp_path / "other")).digest


def test_a_single_image_does_not_need_every_class_or_split(tmp_path, shards):
    report = added(shards, new_images(tmp_path / "new", ["b/only.png"]))

    assert sum(report.added.values()) == 1
    assert verify(str(shards)) == ()


def test_images_that_the_data_set_has_are_skipped_and_named(tmp_path, source, shards):
    new = new_images(tmp_path / "new", ["a/new.png"])
    shutil.copyfile(source / "a/image-003.png", new / "a/copy.png")
    split = split_of(shards)["a/image-003.png"]

    report = added(shards, new)

    assert [str(image) for image in report.known] == [f"a/copy.png is a/image-003.png in {split}"]
    assert sum(report.added.values()) == 1


def test_adding_the_same_source_again_changes_nothing(tmp_path, source, shards):
    before, files = read_index(str(shards)), files_of(shards)

    report = added(shards, source)

    assert (report.index, report.added, len(report.known)) == (before, {}, 40)
    assert files_of(shards) == files


def test_an_image_with_another_label_than_in_the_data_set_is_refused(tmp_path, source, shards):
    (tmp_path / "new/b").mkdir(parents=True)
    shutil.copyfile(source / "a/image-003.png", tmp_path / "new/b/x.png")
    files = files_of(shards)

    with pytest.raises(SourceError, match=r"1 image is in the data set with another label, such as b/x.png is a/ima"):
        added(shards, tmp_path / "new")

    assert files_of(shards) == files


@pytest.mark.parametrize("has_records", [True, False])
def test_a_file_that_the_data_set_has_with_two_labels_is_known_with_either(tmp_path, source, has_records):
    shutil.copyfile(source / "a/image-003.png", source / "b/copy.png")
    pack(source, tmp_path / "shards", options(split="70/15/15"))
    for file in (tmp_path / "shards").glob(PATTERN if not has_records else "none"):
        file.unlink()

    report = added(tmp_path / "shards", source)

    assert (report.added, len(report.known)) == ({}, 41)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["c/1.png"], "the data set has no class 'c', only a, b; leave it out with --drop-class c, or pack a new"),
        (["a/1.png", "c/1.png", "d/2.png"], "no class 'c', 'd', only a, b; leave it out with --drop-class c --drop-cl"),
        (["A/1.png"], "the class 'A' is called 'a' in the data set; rename the folder"),
        (["train/a/1.png", "test/new class/1.png"], "no class 'new class', only a, b; .*--drop-class 'new class'"),
        (["1.png"], "has no class folders|lies outside the layout|no class folders"),
    ],
)
def test_a_source_with_other_classes_is_refused_with_the_cure(tmp_path, shards, names, text):
    files = files_of(shards)

    with pytest.raises(SourceError, match=text):
        added(shards, new_images(tmp_path / "new", names))

    assert files_of(shards) == files


def test_a_class_can_be_left_out(tmp_path, shards):
    report = added(shards, new_images(tmp_path / "new", ["a/1.png", "c/2.png"]), drop_classes=("c",))

    assert sum(report.added.values()) == 1
    assert report.folder.left_out == {"c": 1}


@pytest.mark.parametrize("chosen", [{"classes": ("a", "b")}, {"drop_classes": ("c",)}])
def test_classes_that_were_left_out_when_packing_are_left_out_again(tmp_path, chosen):
    source = image_folder(tmp_path / "images", {"a": 10, "b": 10, "c": 10})
    pack(source, tmp_path / "shards", options(split="70/15/15", **chosen))

    report = added(tmp_path / "shards", new_images(tmp_path / "new", ["a/1.png", "c/2.png"]))

    assert sum(report.added.values()) == 1
    assert report.folder.left_out == {"c": 1}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"image_size": 512}, "--image-size 512 differs from the 256 of the data set; leave the option out"),
        ({"encoding": "lossless"}, "--encoding lossless differs from the jpeg of the data set"),
        ({"quality": 80}, "--quality 80 differs from the 95 of the data set"),
        ({"multi_label": True}, "--multi-label True differs from the False of the data set"),
        ({"split": "80/10/10"}, "--split 80/10/10 differs from the --split 70/15/15 of the data set"),
        ({"group_by": "(.*)"}, "--group-by: the images of the data set have no groups"),
    ],
)
def test_an_option_that_contradicts_the_data_set_is_refused(tmp_path, shards, given, text):
    with pytest.raises(OptionError, match=text):
        added(shards, new_images(tmp_path / "new", ["a/1.png"]), **given)


def test_options_that_agree_with_the_data_set_are_accepted(tmp_path, shards):
    given = {"image_size": 256, "encoding": "jpeg", "quality": 95, "multi_label": False, "split": "14/3/3"}

    assert added(shards, new_images(tmp_path / "new", ["a/1.png"]), **given).added


def test_groups_from_a_table_must_be_given_again(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 9, "b": 9})
    for name, folder in (("old.csv", source), ("new.csv", tmp_path / "new")):
        new_images(tmp_path / "new", ["a/1.png", "b/2.png"])
        files = [file.relative_to(folder).as_posix() for file in folder.rglob("*.png")]
        (tmp_path / name).write_text("file,group\n" + "".join(f"{file},{file[:-4]}\n" for file in files))
    pack(source, tmp_path / "shards", options(split="70/15/15", group_by=str(tmp_path / "old.csv")))

    with pytest.raises(OptionError, match=r"have groups, from old.csv; give those of the new images with --group-by"):
        added(tmp_path / "shards", tmp_path / "new")
    added(tmp_path / "shards", tmp_path / "new", group_by=str(tmp_path / "new.csv"))

    assert [info["group"] for info in infos(tmp_path / "shards") if info["source"] == "a/1.png"] == ["a/1"]


def packed_by_table(folder):
    """Pack two images of each of 20 patients by a table with a case for each."""
    names = [f"{'ab'[patient % 2]}/{patient:02d}-{n}.png" for patient in range(20) for n in range(2)]
    source = new_images(folder / "images", names, seed=0)
    groups = [f"{name},c{name[2:4]}" for name in names]
    (folder / "old.csv").write_text("\n".join(["file,case", *groups]) + "\n")
    pack(source, folder / "shards", options(split="60/20/20", group_by=str(folder / "old.csv")))
    return folder / "shards"


def new_with_table(folder, header, row):
    """Write an image of each of the 20 patients, and their table."""
    names = [f"{'ab'[patient % 2]}/{patient:02d}-9.png" for patient in range(20)]
    new_images(folder / "new", names)
    (folder / "new.csv").write_text("\n".join([header, *(f"{name},{row.format(name[2:4])}" for name in names)]) + "\n")
    return str(folder / "new.csv")


@pytest.mark.parametrize(
    ("header", "row"),
    [("file,case,patient_id", "c{0},p{0}"), ("file,patient_id,Case", "p{0},c{0}"), ("file,mrn", "c{0}")],
)
def test_the_column_of_a_table_of_groups_stays_that_of_the_data_set(tmp_path, header, row):
    shards = packed_by_table(tmp_path)
    before = {name[2:4]: split for name, split in split_of(shards).items()}
    table = new_with_table(tmp_path, header, row)

    added(shards, tmp_path / "new", group_by=table)

    assert read_index(str(shards)).group_column == "case"
    assert {name[2:4]: split for name, split in split_of(shards).items() if "-9" in name} == before


@pytest.mark.parametrize(
    ("known", "text"),
    [("case", "none of them is the 'case' of the data set"), ("", "it is not known which one is that")],
)
def test_a_table_with_several_other_columns_of_groups_is_refused(tmp_path, known, text):
    shards = packed_by_table(tmp_path)
    write_index(shards, read_index(str(shards)).model_copy(update={"group_column": known}))
    table = new_with_table(tmp_path, "file,mrn,patient_id", "m{0},p{0}")

    with pytest.raises(
        OptionError, match=rf"several columns that may be groups \(mrn, patient_id\), and {text}.*leave"
    ):
        added(shards, tmp_path / "new", group_by=table)


def test_images_are_stored_as_the_data_set_was_packed(tmp_path):
    source = image_folder(tmp_path / "images", {"a": 9, "b": 9}, size=(80, 60))
    encode = EncodeOptions(image_size=24, encoding="lossless")
    pack(source, tmp_path / "shards", options(split="70/15/15", encode=encode))

    report = added(tmp_path / "shards", new_images(tmp_path / "new", ["a/1.png"], size=(400, 300)))

    assert (report.index.image_size, report.index.options["encoding"]) == (24, "lossless")
    assert (report.index.widths, report.index.heights) == ((80, 80, 400), (60, 60, 300))
    assert verify(str(tmp_path / "shards")) == ()


def test_color_images_in_a_gray_data_set_are_named_and_read_as_gray(tmp_path, shards):
    report = added(shards, new_images(tmp_path / "new", ["train/a/color.png"], mode="RGB"))

    index = read_index(str(shards))
    plan = EpochPlan(index=index, split="train", batch_size=64, shuffle=False)
    (batch,) = open_batches(str(shards), index, plan, image_size=32)
    assert report.color == ("train/a/color.png",)
    assert (index.color, batch.images.shape[1]) == ("L", 1)
    assert verify(str(shards)) == ()


def test_an_old_data_set_without_records_is_read_once_and_knows_its_images(tmp_path, source, shards):
    for file in shards.glob(PATTERN):
        file.unlink()
    new = new_images(tmp_path / "new", ["a/new.png"])
    shutil.copyfile(source / "a/image-003.png", new / "a/copy.png")

    first = added(shards, new)
    second = added(shards, source)

    assert (first.hashed, [image.record.source for image in first.known]) == (40, ["a/image-003.png"])
    assert (second.hashed, len(second.known), second.added) == (0, 40, {})


def test_an_old_data_set_whose_images_were_stored_otherwise_knows_them_by_name_size_and_look(tmp_path, source, shards):
    for file in shards.glob(PATTERN):
        file.unlink()
    for file in source.rglob("*.png"):  # the same films, exported again
        file.write_bytes(encoded(noise(int(file.stem[-3:]) + 20 * (file.parent.name == "b")), "PNG", compress_level=1))

    report = added(shards, source)

    assert (len(report.known), report.added) == (40, {})


def test_unreadable_images_are_skipped_up_to_the_share_of_the_data_set(tmp_path, shards):
    new = new_images(tmp_path / "new", ["a/1.png", "a/2.png", "b/3.png"])
    (new / "a/broken.png").write_bytes(b"no image")

    with pytest.raises(SourceError, match=r"1 of 4 images cannot be used, more than --max-bad 0.01 allows"):
        added(shards, new)
    report = added(shards, new, max_bad=0.5)

    assert (dict(report.skipped).keys(), sum(report.added.values())) == ({"a/broken.png"}, 3)
    assert json.loads((shards / "add-report-1.json").read_text())["skipped"].keys() == {"a/broken.png"}


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_an_archive_is_added_like_a_folder(tmp_path, shards, form):
    new = new_images(tmp_path / "new", ["batch/a/1.png", "batch/b/2.png"])
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), form, new))

    report = added(shards, archive)

    assert sum(report.added.values()) == 2
    assert not (shards / ".adding").exists()


@pytest.mark.parametrize("location", ["s3://bucket/shards", "https://host/shards"])
def test_a_remote_data_set_is_refused(tmp_path, location):
    with pytest.raises(SourceError, match="is not on this machine; add to a local copy, and upload its new files"):
        added(location, tmp_path)


@pytest.mark.parametrize("use", [added, lambda shards, source: pack(source, shards.with_name("again"), options())])
def test_a_data_set_as_source_is_refused(shards, use):
    with pytest.raises(SourceError, match="is a data set of shards; give the images that it was packed from"):
        use(shards, shards)


def test_a_data_set_that_cannot_be_written_is_refused_in_one_line(tmp_path, shards):
    new = new_images(tmp_path / "new", ["a/1.png"])

    with small_disk(tmp_path / "disk", 2) as disk:
        shutil.copytree(shards, disk.folder / "shards")
        subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        with pytest.raises(SourceError, match=r"shards cannot be written \(Read-only file system\); check its permis"):
            added(disk.folder / "shards", new)


def test_a_running_training_goes_on_with_the_data_that_it_started_with(tmp_path, shards):
    index = read_index(str(shards))
    plan = EpochPlan(index=index, split="train", batch_size=8, seed=3)
    expected = [batch.sources for batch in open_batches(str(shards), index, plan, image_size=32)]
    running = open_batches(str(shards), index, plan, image_size=32)
    first = next(running).sources

    added(shards, new_images(tmp_path / "new", [f"train/a/{n}.png" for n in range(20)]))

    assert [first, *(batch.sources for batch in running)] == expected


def test_adding_reads_no_old_shard_and_writes_only_the_new_images(tmp_path, shards):
    size_before = sum(file.stat().st_size for file in shards.iterdir())
    new = new_images(tmp_path / "new", ["a/1.png"])
    opened, watching = [], True
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if watching and event == "open" else 0)

    added(shards, new)
    watching = False

    old = [path for path in opened if path.startswith(str(shards)) and path.endswith(".tar") and ".adding" not in path]
    written = sum(file.stat().st_size for file in shards.iterdir()) - size_before
    assert old == []
    assert written < size_before / 40 + 4096  # one image of 40, one line of history, a report


def test_verify_finds_a_history_that_does_not_agree_with_its_digest(tmp_path, shards):
    added(shards, new_images(tmp_path / "new", ["a/1.png"]))
    index = read_index(str(shards))
    changed = index.history[0].model_copy(update={"widths": (1, 2, 3)})
    write_index(shards, index.model_copy(update={"history": (changed,)}).sealed())

    faults = verify(str(shards))

    assert [fault.text for fault in faults] == [
        "index.json: the history from 2026-11-26T02:00:00Z does not agree with its digest; copy it again"
    ]
