"""The number of groups of a data set, which is counted from the records of its images without keeping them."""

import gzip
import tracemalloc
from pathlib import Path

import pytest

from data_shards.index import Shard, ShardIndex
from data_shards.pack.group_counts import GroupCounts, group_counts, groups_by_split
from data_shards.pack.image_records import PATTERN, ImageRecord, read_records, write_records
from tests.datasets import packed

COUNTS = {"train/a": 5, "train/b": 4, "test/a": 2}


@pytest.fixture
def data_set(tmp_path):
    return packed(tmp_path, COUNTS, group_by="(.*)[.]png")


def record(**fields):
    empty = {"source": "", "group": "", "width": 1, "height": 1, "sha256": "", "stored_sha256": "", "phash": ""}
    return ImageRecord(**(empty | fields))


def shard(number, samples, *, split="train", **counts):
    name, counted = f"{split}-{number:05d}.tar", {"per_class": (samples, 0), **counts}
    return Shard(name=name, split=split, samples=samples, bytes=1, sha256=f"{number:064x}", **counted)


def recorded(folder: Path, shards, **fields):
    """Write the records of shards to a file; return the index of the data set."""
    write_records(folder, shards)
    listed = tuple(one for one, _ in shards)
    return ShardIndex(**{"classes": ("mass", "nodule"), "grouped": True, "shards": listed, **fields})


def test_the_groups_of_each_split_and_class_are_counted(tmp_path):
    shards, index = packed(tmp_path, COUNTS, group_by="(train/a|.*)")

    found = group_counts(str(shards), index, "train+test")

    assert found == {
        "train": GroupCounts(every=5, present=(1, 4)),
        "test": GroupCounts(every=2, present=(2, 0)),
        "train+test": GroupCounts(every=7, present=(3, 4)),
    }
    assert groups_by_split(str(shards), index) == {"train": 5, "test": 2}


def test_the_groups_that_have_and_lack_a_label_are_counted_where_it_is_known(tmp_path):
    images = [
        record(group="p1", label=(1, 0)),
        record(group="p1", label=(1, -1)),
        record(group="p2", label=(0, 1)),
        record(sha256="a", label=(1, 0)),
        record(stored_sha256="b", label=(-1, 0)),
    ]
    only = shard(0, 5, per_class=(3, 1), unknown=(1, 1))
    index = recorded(tmp_path, [(only, images)], multi_label=True)

    found = group_counts(str(tmp_path), index)

    assert found == {"train": GroupCounts(every=4, present=(2, 1), absent=(1, 3))}


def test_a_group_in_two_splits_is_one_group_of_both(tmp_path):
    one, other = shard(0, 1), shard(1, 1, split="valid", per_class=(0, 1))
    images = [record(group="p1", label=0)], [record(group="p1", label=1)]
    index = recorded(tmp_path, [(one, images[0]), (other, images[1])])

    found = group_counts(str(tmp_path), index, "train+valid")

    assert found["train+valid"] == GroupCounts(every=1, present=(1, 1))


def test_an_image_in_two_files_of_records_is_one_image(tmp_path):
    first = shard(0, 1)
    recorded(tmp_path, [(first, [record(sha256="a", label=0)])])
    index = recorded(tmp_path, [(first, [record(stored_sha256="b", label=0)]), (shard(1, 1), [record(label=0)])])

    assert group_counts(str(tmp_path), index)["train"].every == 2


def test_unknown_groups_are_not_counted(data_set, tmp_path):
    ungrouped, its_index = packed(tmp_path / "ungrouped", COUNTS)
    shards, index = data_set
    for file in shards.glob(PATTERN):
        file.unlink()

    assert group_counts(str(ungrouped), its_index) == {}
    assert group_counts(str(shards), index) == {}
    assert group_counts("s3://bucket/shards", index) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-40],
        lambda _: b"no gzip",
        lambda raw: gzip.compress(gzip.decompress(raw).replace(b'"train', b'12, "train')),
        lambda raw: gzip.compress(gzip.decompress(raw).replace(b'", 1, ', b'", 2, ')),
        lambda raw: gzip.compress(gzip.decompress(raw).replace(b'"samples": 1', b'"samples": 2', 1)),
    ],
    ids=["cut off", "no gzip", "another row", "another class", "another count"],
)
def test_the_groups_of_a_damaged_file_of_records_are_unknown(data_set, damage):
    shards, index = data_set
    (file,) = shards.glob(PATTERN)
    file.write_bytes(damage(file.read_bytes()))

    assert group_counts(str(shards), index) == {}


def test_counting_keeps_the_names_of_the_groups_and_not_the_records(tmp_path):
    shards = [
        (
            shard(number, 500),
            [record(source="x" * 100, group=f"p{n % 50}", label=0, phash="0" * 128) for n in range(500)],
        )
        for number in range(20)
    ]
    index = recorded(tmp_path, shards)
    del shards

    peaks = []
    for read in (lambda: group_counts(str(tmp_path), index), lambda: read_records(tmp_path, index)):
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[0] < peaks[1] / 4
