"""Loader processes in a small shared memory: what they fill is bounded, and what does not fit ends in an error."""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from data_shards.errors import ShardError, SharedMemoryFull
from data_shards.plan import EpochPlan
from data_shards.read.loader_processes import LoaderProcesses, processes_for
from data_shards.read.stream import open_batches, read_shards
from tests.datasets import packed
from trainer.data.images import ImageFiles
from trainer.model.head import HeadConfig

CLONE_NEWNS = 0x00020000
SIZE = 64
BATCH = 8
BATCH_BYTES = BATCH * SIZE**2
SHARED_BYTES = 10 * BATCH_BYTES
PROCESSES = 3

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores


@pytest.mark.parametrize(
    ("processes", "limit", "expected"),
    [
        (0, 100, (0, 4)),
        (12, None, (12, 4)),
        (12, 10 * 50, (12, 4)),
        (12, 10 * 49, (12, 3)),
        (12, 10 * 14, (12, 1)),
        (12, 10 * 7, (5, 1)),
        (2, 10 * 5, (2, 1)),
        (12, 10 * 3, (1, 1)),
        (12, 29, (0, 4)),
        (12, 0, (0, 4)),
    ],
)
def test_loader_processes_prefetch_no_more_than_shared_memory_holds(caplog, processes, limit, expected):
    found = LoaderProcesses(processes, 4).within(limit, batch_bytes=10)

    assert (found.count, found.prefetch) == expected
    assert not found.count or limit is None or (found.count * found.prefetch + 2) * 10 <= limit
    assert ("three batches of 0.0 MB do not fit into" in caplog.text) == (processes > 0 and found.count == 0)


@pytest.mark.parametrize(
    ("images", "most", "expected"),
    [(0, 12, 0), (127, 12, 0), (128, 12, 1), (511, 12, 1), (512, 12, 2), (4500, 12, 5), (10**6, 12, 12), (10**6, 0, 0)],
)
def test_few_images_start_few_loader_processes(images, most, expected):
    assert processes_for(images, most=most) == expected


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    shards, index = packed(tmp_path_factory.mktemp("shards"), {"train/a": 40, "train/b": 40}, shard_bytes=60_000)
    return str(shards), index


def of_a_split(location, index, **options):
    return open_batches(location, index, EpochPlan(index=index, split="train", batch_size=BATCH), **options)


def of_all_shards(location, index, **options):
    return (batch for _, batch in read_shards(location, index.shards, index, batch_size=BATCH, **options))


def of_files(location, index, *, image_size, **options):
    config = HeadConfig(classes=index.classes, width=8, dropout=0.0, image_size=image_size)
    files = tuple(str(file) for file in Path(location).parent.glob("images/train/*/*"))
    return ImageFiles(files).batches(config, batch_size=BATCH, **options)


@pytest.mark.parametrize("read", [of_a_split, of_all_shards])
def test_a_small_shared_memory_holds_the_batches_within_the_limit(data_set, read):
    options = {"image_size": SIZE, "loader_workers": PROCESSES, "prefetch_bytes": SHARED_BYTES // 2}

    images, most = in_small_shared_memory(lambda: read(*data_set, **options))

    assert images == 80
    assert BATCH_BYTES < most < SHARED_BYTES


@pytest.mark.parametrize("read", [of_a_split, of_files])
def test_batches_beyond_shared_memory_end_in_an_error_that_names_the_cure(data_set, read):
    options = {"image_size": 4 * SIZE, "loader_workers": PROCESSES}  # not even one batch fits

    error = in_small_shared_memory(lambda: read(*data_set, **options))

    assert isinstance(error, SharedMemoryFull)
    assert "give the container more (--shm-size)" in str(error)


def test_a_batch_without_a_readable_image_passes_through_shared_memory(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    config = HeadConfig(classes=("a", "b"), width=8, dropout=0.0, image_size=SIZE)

    [batch] = ImageFiles((str(tmp_path / "text.png"),)).batches(config, batch_size=BATCH, loader_workers=1)

    assert len(batch.pixels) == 0
    assert batch.errors[0] is not None


def in_small_shared_memory(read):
    """Read batches slowly in a process with a small /dev/shm; return their images and the most that was used, or the
    error."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_read, args=(read, theirs))
    child.start()
    try:
        found = ours.recv() if ours.poll(60) else None
    finally:
        child.kill()
        child.join()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def _read(read, pipe):
    if refusal := _mount_small_shared_memory():
        pipe.send(refusal)
        return
    images = most = 0
    try:
        for batch in read():
            time.sleep(0.02)  # so that the processes read ahead as far as they may
            images, most = images + len(batch.ids), max(most, shutil.disk_usage("/dev/shm").used)
        pipe.send((images, most))
    except ShardError as error:
        pipe.send(error)


def _mount_small_shared_memory():
    """Mount a tmpfs at /dev/shm that only this process sees; return why it cannot."""
    if os.getuid() or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        return "a private /dev/shm needs root, and a kernel that lets it create mount namespaces"
    mount = f"mount --make-rprivate / && mount -t tmpfs -o size={SHARED_BYTES} tmpfs /dev/shm"
    done = subprocess.run(["sh", "-c", mount], capture_output=True, text=True, check=False)
    return f"a tmpfs cannot be mounted: {done.stderr}" if done.returncode else None
