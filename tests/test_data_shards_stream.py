import errno
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.errors import DamagedShard, PlanError
from data_shards.index import ShardIndex, write_index
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from data_shards.pack.write import Sample, write_shard
from data_shards.plan import EpochPlan
from data_shards.read.stream import _Decoder, open_batches, read_shards
from tests.datasets import encoded, image_folder, noise, packed, sample_members, untrusted

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = {"train/covid": 13, "train/normal": 24, "test/covid": 6, "test/normal": 13}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    shards, index = packed(tmp_path_factory.mktemp("stream"), SPLITS, shard_bytes=12_000)
    return str(shards), index


def batches(data_set, *, workers=0, start=0, split="train", image_size=32, **of_plan):
    location, index = data_set
    plan = EpochPlan(index=index, split=split, **{"batch_size": 8, "seed": 5, **of_plan})
    options = {"image_size": image_size, "loader_workers": workers, "start_batch": start}
    return list(open_batches(location, index, plan, **options))


def threads():
    return {entry.name for entry in Path("/proc/self/task").iterdir()}


def ids_of(found):
    return [number for batch in found for number in batch.ids.tolist()]


@given(world_size=st.integers(1, 16), workers=st.integers(0, 4), split=st.sampled_from(["train", "test"]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_ranks_together_read_every_sample_once_whatever_their_loader_workers(data_set, world_size, workers, split):
    shuffle = split == "train"
    per_rank = [
        batches(
            data_set,
            workers=workers if rank in (0, world_size - 1) else 0,
            split=split,
            world_size=world_size,
            rank=rank,
            batch_size=20,
            shuffle=shuffle,
        )
        for rank in range(world_size)
    ]

    seen = sorted(number for found in per_rank for number in ids_of(found))

    assert seen == list(range(sum(n for name, n in SPLITS.items() if name.startswith(split))))
    if shuffle:
        assert len({len(found) for found in per_rank}) == 1


def test_loader_workers_change_neither_order_nor_pixels(data_set):
    alone, helped = batches(data_set), batches(data_set, workers=3)

    assert len(alone) == len(helped) == 5
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.sources, one.ids.tolist()) == (other.sources, other.ids.tolist())


def source_of(data_set, key):
    """Return the source file of the train sample that is stored under a key."""
    location, index = data_set
    for shard in index.of_split("train"):
        with tarfile.open(Path(location) / shard.name) as tar:
            if f"{key}.json" in tar.getnames():
                return json.load(tar.extractfile(f"{key}.json"))["source"]
    return None


def test_a_batch_carries_pixels_labels_and_where_they_came_from(data_set):
    _, index = data_set

    batch = batches(data_set)[0]

    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (len(batch.ids), 1, 32, 32))
    for row, source in enumerate(batch.sources):
        assert source.startswith(f"train/{index.classes[batch.labels[row]]}/")
        assert source == source_of(data_set, f"{batch.ids[row]:08d}")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_resumed_in_the_middle_goes_on_with_the_next_sample(data_set, workers):
    whole = batches(data_set)

    rest = batches(data_set, start=2, workers=workers)

    assert ids_of(rest) == ids_of(whole[2:])
    assert batches(data_set, start=len(whole)) == []
    with pytest.raises(PlanError, match="start batch 6 is outside the 5 batches"):
        batches(data_set, start=6)


def test_reading_that_ends_early_leaves_no_thread_or_process(data_set):
    location, index = data_set
    plan = EpochPlan(index=index, split="train", batch_size=4)
    before, processes, deadline = threads(), psutil.Process().children(), time.monotonic() + 600

    stream = open_batches(location, index, plan, image_size=32, loader_workers=2)
    next(stream)
    stream.close()

    while not threads() <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before
    assert psutil.Process().children() == processes


def test_two_splits_read_as_one_give_every_sample_of_both_once(data_set):
    _, index = data_set
    train, test = (batches(data_set, split=split, shuffle=False) for split in ("train", "test"))

    both = batches(data_set, split="train+test", batch_size=11)

    count = index.samples_in("train")
    pixels = {number: row for batch in both for number, row in zip(batch.ids.tolist(), batch.images, strict=True)}
    sources = {number: name for batch in both for number, name in zip(batch.ids.tolist(), batch.sources, strict=True)}
    assert sorted(ids_of(both)) == list(range(count + index.samples_in("test")))
    for first, alone in ((0, train), (count, test)):
        for batch in alone:
            for number, name, row in zip(batch.ids.tolist(), batch.sources, batch.images, strict=True):
                assert torch.equal(pixels[first + number], row)
                assert sources[first + number] == name


def test_a_shard_is_read_in_stored_order(data_set):
    location, index = data_set
    shard = index.of_split("train")[1]
    first = index.of_split("train")[0].samples

    found = [batch for _, batch in read_shards(location, [shard], index, image_size=32, batch_size=3)]

    assert ids_of(found) == list(range(first, first + shard.samples))


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_shards_of_several_splits_are_read_with_their_own_samples(data_set, loader_workers):
    location, index = data_set
    shards = [shard for split in ("valid", "train", "test") for shard in index.of_split(split)]
    alone = {shard.name: list(read_shards(location, [shard], index, image_size=32, batch_size=3)) for shard in shards}

    found = read_shards(location, shards, index, image_size=32, batch_size=3, loader_workers=loader_workers)

    names = {split: [] for split in index.splits}
    for shard, batch in found:
        _, expected = alone[shard.name].pop(0)
        assert batch.sources == expected.sources
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
        names[shard.split] += batch.sources
    assert not any(alone.values())
    for split in index.splits:
        plan = EpochPlan(index=index, split=split, batch_size=7, shuffle=False)
        assert names[split] == [
            name for batch in open_batches(location, index, plan, image_size=32) for name in batch.sources
        ]


def test_color_images_come_in_three_channels_and_gray_ones_among_them_too(tmp_path):
    source = image_folder(tmp_path / "images", {"train/a": 3, "train/b": 3}, mode="RGB")
    image_folder(tmp_path / "images", {"train/gray": 2})
    index = pack(source, tmp_path / "shards", PackOptions(processes=1)).index

    found = batches((str(tmp_path / "shards"), index))

    assert all(batch.images.shape[1] == 3 for batch in found)
    gray = [image for batch in found for image, label in zip(batch.images, batch.labels, strict=True) if label == 2]
    assert all(torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) for image in gray)


def test_the_group_of_each_sample_comes_along(tmp_path):
    shards, index = packed(tmp_path, {"a": 12, "b": 12}, split="70/15/15", group_by="[ab]/image-0([0-9]+)")

    found = batches((str(shards), index))

    assert index.grouped
    assert all(
        group == source[-6:-4] for batch in found for group, source in zip(batch.groups, batch.sources, strict=True)
    )


RANK = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from data_shards.index import read_index
from data_shards.plan import EpochPlan
from data_shards.read.stream import open_batches

location, rank, meeting = sys.argv[1], int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=3)
index = read_index(location)

train = EpochPlan(index=index, split="train", batch_size=10, world_size=3, rank=rank, seed=1)
for batch in open_batches(location, index, train, image_size=32, loader_workers=1):
    step = torch.tensor([len(batch.ids)])
    dist.all_reduce(step)  # as DDP does once a step: unequal counts of batches would wait here for ever
    assert step <= 10

plan = EpochPlan(index=index, split="test", batch_size=12, world_size=3, rank=rank, shuffle=False)
seen = [i for batch in open_batches(location, index, plan, image_size=32, loader_workers=1) for i in batch.ids.tolist()]
parts = [None] * 3
dist.all_gather_object(parts, seen)
if rank == 0:
    together = sorted(i for part in parts for i in part)
    print(len(index.of_split("test")), together == list(range(index.samples_in("test"))))
dist.destroy_process_group()
"""


def test_three_ranks_over_seven_uneven_shards_train_in_step_and_evaluate_every_sample_once(tmp_path):
    shards = uneven_shards(tmp_path, {"train": [5, 1, 9, 2, 7, 3, 4], "test": [1, 6, 2, 8, 3, 1, 4]})

    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(shards), str(rank), str(tmp_path / "meeting")],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert outputs == ["7 True\n", "", ""]


def uneven_shards(folder, sizes):
    """Write shards of exactly so many samples."""
    target = folder / "uneven"
    target.mkdir()
    shards = []
    for split, counts in sizes.items():
        first = 0
        for number, count in enumerate(counts):
            samples = []
            for n in range(count):
                image = folder / f"{split}-{first + n}.png"
                image.write_bytes(encoded(noise(first + n)))
                samples.append(
                    Sample(content=image, start=0, size=image.stat().st_size, suffix="png", label=n % 2, info={})
                )
            path = target / f"{split}-{number:05d}.tar"
            shards.append(write_shard(path, split, samples, first=first, classes=2))
            first += count
    write_index(target, ShardIndex(classes=("a", "b"), shards=tuple(shards), color="L").sealed())
    return target


def test_the_labels_of_a_class_are_those_of_the_index(data_set):
    found = batches(data_set)

    labels = np.concatenate([batch.labels.numpy() for batch in found])

    assert np.bincount(labels).tolist() == [13, 24]


def test_an_error_ends_the_threads_at_once_even_while_it_is_kept(tmp_path):
    location, index = untrusted(tmp_path, sample_members(0, label="7"), samples=1)
    plan = EpochPlan(index=index, split="train", batch_size=1, shuffle=False)

    with pytest.raises(DamagedShard) as kept:
        list(open_batches(location, index, plan, image_size=32))

    assert kept.tb is not None
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("shards")] == []


def test_an_error_of_a_disk_in_a_loader_process_keeps_its_number(monkeypatch):
    def unanswered(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(_Decoder, "_decoded", unanswered)

    assert _Decoder(None, 32)[()].errno == errno.ESTALE  # raised, it would reach the trainer as a text
