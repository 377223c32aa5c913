"""Which split the images that are added go to."""

import pytest

from data_shards.errors import LeakageError, SourceError
from data_shards.index import read_index
from data_shards.pack.packing import pack
from tests import adding
from tests.adding import GROUP, added, files_of, new_images, options, split_of
from tests.datasets import encoded, noise

made, source, shards, divided, grouped = adding.made, adding.source, adding.shards, adding.divided, adding.grouped


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


def test_a_near_duplicate_with_another_label_is_listed_with_both_labels(tmp_path, shards):
    (tmp_path / "new/b").mkdir(parents=True)
    (tmp_path / "new/b/again.jpg").write_bytes(encoded(noise(3, (40, 36)), "JPEG", quality=95))
    new_images(tmp_path / "new", ["a/1.png"])
    (tmp_path / "new/b/same.png").write_bytes((tmp_path / "new/a/1.png").read_bytes())
    split = split_of(shards)["a/image-003.png"]

    report = added(shards, tmp_path / "new")

    near, same = sorted(report.contradictions, key=lambda line: "same" in line)
    assert near.startswith(f"a/image-003.png ({split}) and b/again.jpg are near-duplicates (")
    assert near.endswith(": a and b")
    assert same == "a/1.png and b/same.png are the same file: a and b"
    assert report.duplicates == ()
    assert report.to_json()["contradictions"] == report.contradictions


def test_a_near_duplicate_of_an_image_in_another_split_is_refused(tmp_path, divided):
    (tmp_path / "new/train/a").mkdir(parents=True)
    (tmp_path / "new/train/a/x.jpg").write_bytes(encoded(noise(12), "JPEG", quality=95))
    files = files_of(divided)

    with pytest.raises(LeakageError, match=r"1 new image or group would be in two splits, such as") as refused:
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
