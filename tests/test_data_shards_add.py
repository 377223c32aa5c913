import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from filelock import FileLock

from data_shards.errors import LeakageError, OptionError, ShardError, SourceError
from data_shards.index import read_index, write_index
from data_shards.pack import add as add_module
from data_shards.pack.add import add
from data_shards.pack.image_records import PATTERN
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import pack
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches
from data_shards.verify import verify
from tests.datasets import encoded, image_folder, noise
from tests.disks import small_disk
from tests.test_data_shards_pack import infos

GROUP = "(p[0-9]+)-"
NEW = 10_000  # seeds of new images


def options(**chosen):
    return PackOptions(**{"processes": 1, "shard_bytes": 20_000, "plain_groups": True, **chosen})


def added(shards, source, **given):
    moment = datetime(2026, 11, 26, 2, 0, tzinfo=UTC)
    return add(str(shards), source, {"processes": 1, **given}, clock=lambda: moment)


def new_images(folder, names, *, seed=NEW, size=(40, 36), mode="L"):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed + number, size, mode).save(folder / name)
    return folder


def files_of(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def split_of(shards):
    """Return the split of each image by the name of its file."""
    index = read_index(str(shards))
    splits = [shard.split for shard in index.shards for _ in range(shard.samples)]
    return {info["source"]: split for info, split in zip(infos(shards), splits, strict=True)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data sets that are made once: one divided by shares, one from split folders, one with two images a patient."""
    folder = tmp_path_factory.mktemp("made")
    names = [f"{'ab'[patient % 2]}/p{patient:02d}-{n}.png" for patient in range(20) for n in range(2)]
    sources = {
        "plain": image_folder(folder / "plain/images", {"a": 20, "b": 20}),
        "divided": image_folder(folder / "divided/images", {"train/a": 6, "train/b": 6, "test/a": 3, "test/b": 3}),
        "grouped": new_images(folder / "grouped/images", names, seed=0),
    }
    chosen = {"plain": {"split": "70/15/15"}, "divided": {}, "grouped": {"split": "70/15/15", "group_by": GROUP}}
    for name, source in sources.items():
        pack(source, folder / name / "shards", options(**chosen[name]))
    return folder


def copied(made, name, tmp_path):
    return shutil.copytree(made / name / "shards", tmp_path / "shards")


@pytest.fixture
def source(made, tmp_path):
    return shutil.copytree(made / "plain/images", tmp_path / "images")


@pytest.fixture
def shards(made, tmp_path):
    return copied(made, "plain", tmp_path)


@pytest.fixture
def divided(made, tmp_path):
    return copied(made, "divided", tmp_path)


@pytest.fixture
def grouped(made, tmp_path):
    return copied(made, "grouped", tmp_path)


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


def test_groups_keep_their_split_and_new_groups_keep_the_shares(tmp_path, grouped):
    before = split_of(grouped)
    known = {name.rpartition("-")[0]: split for name, split in before.items()}
    names = [f"{name}-9.png" for name in known] + [f"{'ab'[n % 2]}/p{n}-{i}.png" for n in range(50, 90) for i in "01"]

    added(grouped, new_images(tmp_path / "new", names))

    after = split_of(grouped)
    assert all(after[f"{name}-9.png"] == split for name, split in known.items())
    assert all(after[name.replace("-0.", "-1.")] == split for name, split in after.items() if "-0." in name)
    shares = [list(after.values()).count(split) / len(after) for split in ("train", "valid", "test")]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_classes_keep_the_shares_too(tmp_path, shards):
    added(shards, new_images(tmp_path / "new", [f"a/{n}.png" for n in range(60)]))

    index = read_index(str(shards))
    assert [index.per_class_in(split) for split in ("train", "valid", "test")] == [(56, 14), (12, 3), (12, 3)]


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

    with pytest.raises(SourceError, match=r"1 images are in the data set with another label, such as b/x.png is a/ima"):
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


def test_a_near_duplicate_goes_to_the_split_of_the_image_that_it_looks_like(tmp_path, shards):
    splits = split_of(shards)
    for name in splits:
        copy = noise(int(name[-7:-4]) + 20 * name.startswith("b"), (40, 36))
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).with_suffix(".jpg").write_bytes(encoded(copy, "JPEG", quality=95))

    report = added(shards, tmp_path / "new")

    after = split_of(shards)
    assert all(after[name.replace(".png", ".jpg")] == split for name, split in splits.items())
    assert len(report.duplicates) == 40
    assert any(line.startswith("a/image-000.png (") or "a/image-000.png (" in line for line in report.duplicates)


def test_a_near_duplicate_of_an_image_in_another_split_is_refused(tmp_path, divided):
    (tmp_path / "new/train/a").mkdir(parents=True)
    (tmp_path / "new/train/a/x.jpg").write_bytes(encoded(noise(12), "JPEG", quality=95))
    files = files_of(divided)

    with pytest.raises(LeakageError, match=r"1 new images or groups would be in two splits, such as") as refused:
        added(divided, tmp_path / "new")

    assert "test/a/image-000.png (test)" in refused.value.findings[0]
    assert files_of(divided) == files


def test_a_new_image_that_connects_two_splits_is_refused(tmp_path, grouped):
    splits = split_of(grouped)
    in_train = next(name for name, split in splits.items() if split == "train" and name.startswith("a/"))
    in_test = next(name for name, split in splits.items() if split == "test" and name.startswith("a/"))
    group = in_test.rpartition("-")[0]
    copy = noise(int(in_train[3:5]) * 2 + int(in_train[6]))
    (tmp_path / "new/a").mkdir(parents=True)
    (tmp_path / f"new/{group}-7.jpg").write_bytes(encoded(copy, "JPEG", quality=95))

    with pytest.raises(LeakageError, match="would be in two splits"):
        added(grouped, tmp_path / "new")


def test_split_folders_of_the_source_give_the_splits(tmp_path, shards):
    added(shards, new_images(tmp_path / "new", ["test/a/1.png", "test/a/2.png", "train/b/3.png"]))

    assert {name: split for name, split in split_of(shards).items() if name[0] == "t"} == {
        "test/a/1.png": "test",
        "test/a/2.png": "test",
        "train/b/3.png": "train",
    }


@pytest.mark.parametrize("listed", [("a/1.png", "b/2.png"), ("b/2.png",)])
def test_a_list_gives_the_splits_of_all_or_some_images(tmp_path, shards, listed):
    new = new_images(tmp_path / "new", ["a/1.png", "b/2.png"])
    (tmp_path / "test.txt").write_text("\n".join(listed))

    added(shards, new, split_files=(("test", str(tmp_path / "test.txt")),))

    splits = split_of(shards)
    assert {splits[name] for name in listed} == {"test"}
    assert splits.keys() >= {"a/1.png", "b/2.png"}


def test_a_known_group_in_another_split_folder_is_refused(tmp_path, grouped):
    name = next(name for name, split in split_of(grouped).items() if split == "train")
    new = new_images(tmp_path / "new", [f"test/{name.replace('-', '-9')}"])

    with pytest.raises(LeakageError, match=rf"group {name[2:5]} is in test \(test/.*-9.*png\) and train \(.*png\)"):
        added(grouped, new)


def test_shares_can_be_given_for_a_data_set_that_was_packed_from_split_folders(tmp_path, divided):
    new = new_images(tmp_path / "new", [f"a/{n}.png" for n in range(10)])

    with pytest.raises(SourceError, match="no folders train, valid and test; add --split 70/15/15"):
        added(divided, new)
    report = added(divided, new, split="50/0/50")

    assert report.added == {"train": 5, "test": 5}


def test_a_data_set_with_allowed_leakage_takes_an_image_of_two_splits_into_train(tmp_path):
    names = ["train/a/p1-1.png", "train/b/p2-1.png", "test/a/p1-2.png", "test/b/p3-1.png"]
    pack(
        new_images(tmp_path / "images", names, seed=0),
        tmp_path / "shards",
        options(group_by=GROUP, allow_leakage=True),
    )

    report = added(tmp_path / "shards", new_images(tmp_path / "new", ["a/p1-3.png"]), split="70/15/15")

    assert report.added == {"train": 1}
    assert report.leakage == ("group p1 is in test (test/a/p1-2.png) and train (train/a/p1-1.png)",)


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


def test_a_data_set_as_source_is_refused(shards):
    with pytest.raises(SourceError, match="is a data set of shards; give the images that it was packed from"):
        added(shards, shards)


def test_a_data_set_that_cannot_be_written_is_refused_in_one_line(tmp_path, shards):
    new = new_images(tmp_path / "new", ["a/1.png"])

    with small_disk(tmp_path / "disk", 2) as disk:
        shutil.copytree(shards, disk.folder / "shards")
        subprocess.run(["mount", "-o", "remount,ro", disk.folder], check=True)
        with pytest.raises(SourceError, match=r"shards cannot be written \(Read-only file system\); check its permis"):
            added(disk.folder / "shards", new)


def test_a_second_add_at_the_same_time_is_refused(tmp_path, shards):
    (shards / ".adding").mkdir()

    with (
        FileLock(shards / ".adding/lock"),
        pytest.raises(SourceError, match=r"another add works on .*shards; wait for it"),
    ):
        added(shards, new_images(tmp_path / "new", ["a/1.png"]))


def test_a_data_set_that_changes_during_an_add_is_not_overwritten(tmp_path, shards, monkeypatch):
    changed = tmp_path / "changed"
    shutil.copytree(shards, changed)
    added(changed, new_images(tmp_path / "other", ["b/9.png"], seed=NEW + 50))
    write = add_module.write_shards

    def write_while_somebody_changes_the_index(*arguments, **options):
        shutil.copyfile(changed / "index.json", shards / "index.json")
        return write(*arguments, **options)

    monkeypatch.setattr(add_module, "write_shards", write_while_somebody_changes_the_index)

    with pytest.raises(SourceError, match="was changed while images were added to it; add them again"):
        added(shards, new_images(tmp_path / "new", ["a/1.png"]))

    assert read_index(str(shards)) == read_index(str(changed))
    assert not (shards / ".adding").exists()


def test_an_add_that_starts_while_another_one_removes_its_folder_adds_its_images(tmp_path, shards, monkeypatch):
    def lock_after_the_other_add_has_ended(path, **options):
        shutil.rmtree(path.parent)
        return FileLock(path, **options)

    monkeypatch.setattr("data_shards.pack.add_folder.FileLock", lock_after_the_other_add_has_ended)

    report = added(shards, new_images(tmp_path / "new", ["a/1.png"]))

    assert sum(report.added.values()) == 1
    assert not (shards / ".adding").exists()


def test_an_add_whose_process_was_killed_keeps_its_work_for_the_next_one(tmp_path, shards, monkeypatch):
    def write_and_lose_a_process(*arguments, **options):
        raise ShardError("one of 2 processes was killed")

    new = new_images(tmp_path / "new", [f"a/{n}.png" for n in range(4)])
    with monkeypatch.context() as patched:
        patched.setattr(add_module, "write_shards", write_and_lose_a_process)
        with pytest.raises(ShardError, match="was killed"):
            added(shards, new)
    encoded_before = {file.name: file.stat().st_mtime_ns for file in (shards / ".adding/spool").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(add_module, "write_shards", write_and_lose_a_process)
        with pytest.raises(ShardError, match="was killed"):
            added(shards, new)

    assert encoded_before
    assert {file.name: file.stat().st_mtime_ns for file in (shards / ".adding/spool").iterdir()} == encoded_before
    assert sum(added(shards, new).added.values()) == 4
    assert not (shards / ".adding").exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(monkeypatch, number):
    """End the add at the file operation with this number: a rename or a written file."""
    count = 0

    def counting(function):
        def counted(*arguments, **options):
            nonlocal count
            count += 1
            if count == number:
                raise Killed
            return function(*arguments, **options)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", counting(Path.replace))
        try:
            yield
        except Killed:
            pass
        else:
            pytest.fail(f"there are fewer than {number} renames")


@pytest.mark.parametrize("number", [1, 3, 5, 9, 13, 14, 15, 17, 20, 21])
def test_an_add_that_is_killed_anywhere_leaves_the_data_set_and_the_next_one_completes_it(
    tmp_path, shards, monkeypatch, number
):
    expected = tmp_path / "expected"
    shutil.copytree(shards, expected)
    new = new_images(tmp_path / "new", [f"a/{n}.png" for n in range(12)])
    added(expected, new)
    before = read_index(str(shards))

    with killed_at(monkeypatch, number):
        added(shards, new)
    between = read_index(str(shards))
    added(shards, new)

    assert between == before
    assert read_index(str(shards)) == read_index(str(expected))
    assert {file.name for file in shards.iterdir()} == {file.name for file in expected.iterdir()}
    assert verify(str(shards)) == ()


def test_an_add_that_is_killed_after_the_index_is_written_has_added_its_images(tmp_path, shards, monkeypatch):
    def write_index_and_die(*arguments):
        write_index(*arguments)
        raise Killed

    new = new_images(tmp_path / "new", ["a/1.png"])
    monkeypatch.setattr("data_shards.pack.add_folder.write_index", write_index_and_die)
    with pytest.raises(Killed):
        added(shards, new)
    monkeypatch.undo()
    between = read_index(str(shards))
    added(shards, new_images(tmp_path / "other", ["b/2.png"], seed=NEW + 500))

    assert sum(between.per_class_in("train+valid+test")) == 41
    assert len(infos(shards)) == 42
    assert verify(str(shards)) == ()
    assert not (shards / ".adding").exists()


@pytest.mark.parametrize("number", [4, 15, 18, 21])
def test_leftovers_of_a_killed_add_are_removed_by_an_add_of_other_images(tmp_path, shards, monkeypatch, number):
    expected = tmp_path / "expected"
    shutil.copytree(shards, expected)
    other = new_images(tmp_path / "other", ["b/other.png"], seed=NEW + 500)
    added(expected, other)

    with killed_at(monkeypatch, number):
        added(shards, new_images(tmp_path / "new", [f"a/{n}.png" for n in range(12)]))
    added(shards, other)

    assert read_index(str(shards)) == read_index(str(expected))
    assert {file.name for file in shards.iterdir()} == {file.name for file in expected.iterdir()}
    assert verify(str(shards)) == ()


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
