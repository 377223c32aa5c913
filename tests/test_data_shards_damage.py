import errno
import hashlib
import os
import pickle
import random
import shutil

import pytest

from data_shards.errors import DamagedShard, UnreadableShard
from data_shards.plan import EpochPlan
from data_shards.read.shard_files import ShardFiles
from data_shards.read.stream import open_batches
from data_shards.samples import Extent, read_square
from data_shards.verify import find_shard_faults, verify
from tests.datasets import encoded, noise, packed, sample_members, untrusted

SPLITS = {"train/covid": 10, "train/normal": 14}


@pytest.fixture
def data_set(tmp_path):
    shards, index = packed(tmp_path, SPLITS)
    return shards, index


def train(location, index, workers=0):
    """Read an epoch as training does and return how many samples came."""
    plan = EpochPlan(index=index, split="train", batch_size=8)
    stream = open_batches(str(location), index, plan, image_size=32, loader_workers=workers)
    return sum(len(batch.ids) for batch in stream)


def assert_found(location, index, *names):
    """Both verify and training find the damage, and say where it is."""
    faults = verify(str(location), processes=1)
    assert faults
    for name in names:
        assert any(name in fault.text for fault in faults), [fault.text for fault in faults]
    with pytest.raises(DamagedShard) as raised:
        train(location, index)
    assert "\n" not in str(raised.value)
    for name in names:
        assert name in str(raised.value)


def test_a_sound_data_set_has_no_faults_and_trains(data_set):
    shards, index = data_set

    assert verify(str(shards)) == ()
    assert train(shards, index) == 24


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (100, ["train-00001.tar", "header after the start"]),  # in a header
        (512, ["train-00001.tar", "cut off within"]),  # between a header and its data
        (2000, ["train-00001.tar", "cut off"]),
        (-1024, ["train-00001.tar"]),  # in the zeros at the end
    ],
)
def test_a_cut_shard_is_found(data_set, place, names):
    shards, index = data_set
    path = shards / "train-00001.tar"
    raw = path.read_bytes()

    path.write_bytes(raw[:place])

    assert_found(shards, index, *names)


def test_a_shard_cut_between_samples_is_found_though_it_is_a_tar_like_any(data_set):
    shards, index = data_set
    path = shards / "train-00001.tar"
    raw = path.read_bytes()
    second = raw.index(b".cls", 200) - 8  # the header of the second sample's label

    path.write_bytes(raw[:second])

    assert_found(shards, index, "train-00001.tar")


def test_a_flipped_byte_in_an_image_names_the_sample(data_set):
    shards, index = data_set
    path = shards / "train-00001.tar"
    raw = bytearray(path.read_bytes())
    key = f"{index.shards[0].samples:08d}"
    raw[raw.index(b"IDAT") + 100] ^= 0x10

    path.write_bytes(raw)

    assert_found(shards, index, "train-00001.tar", key)


def test_a_missing_shard_is_named(data_set):
    shards, index = data_set

    (shards / "train-00002.tar").unlink()

    assert_found(shards, index, "train-00002.tar is missing")


def test_a_shard_with_a_bad_block_is_named_with_the_number_of_the_error(data_set):
    location, index = data_set
    shard = index.shards[0].model_copy(update={"bytes": 0})
    (location / shard.name).unlink()
    (location / shard.name).symlink_to("/proc/self/mem")  # reading it gives EIO, as a bad block does
    files = ShardFiles(str(location), index)
    extent = Extent(shard.name, location / shard.name, 0, (0, 1, 1, 1, 2, 1))

    with pytest.raises(UnreadableShard) as of_file:
        files.table_of(shard)
    with pytest.raises(UnreadableShard) as of_sample:
        read_square(extent, index=index, size=8)
    passed_on = pickle.loads(pickle.dumps(of_sample.value))  # as by a loader process

    assert str(of_file.value) == (
        f"{shard.name} cannot be read (Input/output error); check its disk, its server and its permissions, or copy it "
        "again"
    )
    assert str(passed_on).startswith(f"{extent.where} cannot be read (Input/output error); ")
    assert (of_file.value.errno, passed_on.errno) == (errno.EIO, errno.EIO)


def test_verify_lists_a_shard_that_cannot_be_read_once(data_set):
    location, index = data_set
    shard = index.shards[0].model_copy(update={"bytes": 0})
    (location / shard.name).unlink()
    (location / shard.name).symlink_to("/proc/self/mem")  # reading it gives EIO, as a bad block does

    faults = find_shard_faults(ShardFiles(str(location), index), shard)

    assert [fault.text.partition(" (")[0] for fault in faults] == [f"{shard.name} cannot be read"]
    assert faults[0].text.endswith("; check its disk, its server and its permissions, or copy it again")


def test_verify_names_a_shard_whose_samples_are_sound_and_whose_bytes_cannot_all_be_read(data_set, monkeypatch):
    location, _ = data_set

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", fail)

    faults = verify(str(location), processes=1)

    assert [fault.text.partition(";")[0] for fault in faults] == [
        f"{shard.name} cannot be read (Input/output error)" for shard in data_set[1].shards
    ]


def test_a_shard_of_another_data_set_is_found(data_set, tmp_path):
    shards, index = data_set

    shutil.copyfile(shards / "train-00000.tar", shards / "train-00001.tar")

    assert_found(shards, index, "train-00001.tar")


def test_a_tar_that_no_index_lists_is_a_fault(data_set):
    shards, _ = data_set

    shutil.copyfile(shards / "train-00000.tar", shards / "train-00099.tar")

    assert [fault.text for fault in verify(str(shards))] == [
        "train-00099.tar is not in the index; remove it or pack the data set again"
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_worker_is_one_line_of_ours(tmp_path, workers):
    location, index = untrusted(tmp_path / "x", sample_members(0, label="7"), samples=1)

    with pytest.raises(
        DamagedShard, match=r"^train-00000.tar: sample 00000000 has the label '7', outside the 2 classes"
    ):
        train(location, index, workers)


TWO_IMAGES = [*sample_members(0), ("00000000.jpg", encoded(noise(9), "JPEG"))]
NO_IMAGE = [member for member in sample_members(0) if not member[0].endswith("png")]
PICKLE = [*sample_members(0), ("00000000.pyd", b"\x80\x04N.")]
KEY = "sample 00000000"
SHARD = "train-00000.tar"


@pytest.mark.parametrize(
    ("members", "samples", "names"),
    [
        (TWO_IMAGES, 1, [SHARD, KEY, "one label, image and json"]),
        (NO_IMAGE, 1, [SHARD, KEY, "one label, image and json"]),
        (PICKLE, 1, [SHARD, "'00000000.pyd'"]),
        ([("../../etc/cron.d/x", b"evil")], 1, [SHARD, "'../../etc/cron.d/x'"]),
        ([("naïve.png", b"x")], 1, [SHARD, "is not part of a sample"]),
        (sample_members(0, label="7"), 1, [SHARD, KEY, "the label '7'"]),
        (sample_members(0, label="-1"), 1, [SHARD, KEY, "the label '-1'"]),
        (sample_members(0, label="²"), 1, [SHARD, KEY]),
        (sample_members(0, label=""), 1, [SHARD, KEY, "the label ''"]),
        (sample_members(0, image=b""), 1, [SHARD, KEY, "the file is empty"]),
        (sample_members(0, image=b"no image"), 1, [SHARD, KEY, "no readable JPEG"]),
        (sample_members(5), 1, [SHARD, KEY]),
        ([*sample_members(0), *sample_members(1)], 1, [SHARD, "holds 2 samples, the index says 1"]),
        (sample_members(0), 2, [SHARD, "holds 1 samples, the index says 2"]),
        ([], 1, [SHARD, "holds 0 samples, the index says 1"]),
    ],
)
def test_a_shard_that_agrees_with_its_index_is_still_not_trusted(tmp_path, members, samples, names):
    location, index = untrusted(tmp_path / "x", members, samples=samples)

    assert_found(location, index, *names)


def test_wrong_counts_of_classes_are_a_fault(tmp_path):
    location, _ = untrusted(tmp_path / "x", sample_members(0, label="1"), samples=1)

    (fault,) = verify(location)

    assert "has [0, 1] good samples of its classes, the index says [1, 0]" in fault.text


def test_200_cuts_and_200_flipped_bytes_are_all_found_by_verify_and_training(tmp_path):
    shards, index = packed(tmp_path, SPLITS)
    name = index.shards[0].name
    raw = (shards / name).read_bytes()
    draw = random.Random(20260101)

    for offset in draw.sample(range(len(raw)), 200):
        (shards / name).write_bytes(raw[:offset])
        assert_found(shards, index, name)
    for offset in draw.sample(range(len(raw)), 200):
        damaged = bytearray(raw)
        damaged[offset] ^= draw.randrange(1, 256)
        (shards / name).write_bytes(damaged)
        assert_found(shards, index, name)
