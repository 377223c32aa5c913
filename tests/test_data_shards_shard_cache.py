import multiprocessing
import os
import shutil
from collections import Counter

import pytest

from data_shards import locations
from data_shards.errors import RemoteError
from data_shards.plan import EpochPlan
from data_shards.read import shard_cache
from data_shards.read.shard_cache import ShardCache
from data_shards.read.stream import open_batches, read_samples, read_shards
from tests import remote_shards
from tests.datasets import fetch_all
from tests.disks import small_disk
from tests.remote_shards import LOCATION, copies, ids_of, read

line, local, server, cache = remote_shards.line, remote_shards.local, remote_shards.server, remote_shards.cache


def test_a_full_disk_of_the_cache_is_named_and_not_the_server(server, local, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", 1) as disk:

        def onto_a_full_disk(*arguments):
            disk.fill()
            return locations.download(*arguments)

        monkeypatch.setattr(shard_cache, "download", onto_a_full_disk)
        cache = ShardCache(disk.folder / "cache")

        with pytest.raises(RemoteError, match=r"^the disk of the cache .*/disk/cache is full; raise NIGHTSHIFT_SHARD"):
            cache.path_of(LOCATION, local[1].shards[0])

        assert not list(cache.folder.glob("*.draft"))


def test_processes_of_one_machine_fetch_each_shard_once(server, local, cache):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fetch_all, args=(cache.folder, LOCATION, local[1])) for _ in range(3)]

    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert set(server.got.values()) == {1}
    assert len(copies(cache)) == len(local[1].shards)


def test_the_cache_keeps_its_limit_by_removing_what_was_used_least(server, local, tmp_path):
    size = Counter(shard.bytes for shard in local[1].shards).most_common(1)[0][0]
    shards = [shard for shard in local[1].shards if shard.bytes == size]
    small = ShardCache(tmp_path / "small", limit_bytes=3 * size, pause=lambda _: None)

    for shard in (*shards[:3], shards[0], shards[3]):
        small.path_of(LOCATION, shard)
        assert sum(file.stat().st_size for file in small.folder.iterdir()) <= 3 * size

    kept = {file.stem for file in copies(small)}
    assert kept == {shards[number].sha256 for number in (0, 2, 3)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
@pytest.mark.parametrize("is_link", [True, False])
def test_a_folder_or_link_that_another_user_has_put_in_its_place_is_not_used(local, tmp_path, is_link):
    own, folder = tmp_path / "own", tmp_path / "cache"
    own.mkdir()
    (own / "films.tar").touch()
    if is_link:
        folder.symlink_to(own)
    else:
        shutil.copytree(local[0], folder)
    os.lchown(folder, 3002, -1)
    for shard in local[1].shards if not is_link else ():
        (folder / shard.name).rename(folder / f"{shard.sha256}.tar")

    with pytest.raises(RemoteError, match=r"is not a folder of this user; set TMPDIR to a folder of your own"):
        ShardCache(folder, limit_bytes=max(shard.bytes for shard in local[1].shards)).path_of(
            "http://127.0.0.1:9", local[1].shards[0]
        )

    assert [file.name for file in own.iterdir()] == ["films.tar"]


def test_a_link_that_leads_nowhere_in_its_place_is_not_used(local, tmp_path):
    folder = tmp_path / "cache"
    folder.symlink_to(tmp_path / "nowhere")

    with pytest.raises(RemoteError, match=r"is not a folder of this user; set TMPDIR to a folder of your own"):
        ShardCache(folder, limit_bytes=max(shard.bytes for shard in local[1].shards)).path_of(
            "http://127.0.0.1:9", local[1].shards[0]
        )


def test_a_cache_too_small_to_mix_samples_is_refused_with_the_size_it_needs(server, local, tmp_path):
    index = local[1]
    small = ShardCache(tmp_path / "small", limit_bytes=3 * index.shards[0].bytes)
    tiny = ShardCache(tmp_path / "tiny", limit_bytes=100)

    with pytest.raises(RemoteError, match=r"of 8 shards that are mixed at a time; raise NIGHTSHIFT_SHARD_CACHE_GB"):
        read(LOCATION, index, small)
    with pytest.raises(RemoteError, match="larger than the cache's limit of 100; raise NIGHTSHIFT_SHARD_CACHE_GB"):
        tiny.path_of(LOCATION, index.shards[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_holds_one_shard_is_enough_to_read_each_shard_once(server, local, tmp_path, workers):
    index = local[1]
    largest = max(shard.bytes for shard in index.shards)
    small = ShardCache(tmp_path / "small", limit_bytes=largest, pause=lambda _: None)
    tiny = ShardCache(tmp_path / "tiny", limit_bytes=largest - 1)
    options = {"image_size": 32, "batch_size": 2, "loader_workers": workers}

    found = [batch for _, batch in read_shards(LOCATION, index.of_split("train"), index, cache=small, **options)]

    assert ids_of(found) == list(range(24))
    assert {server.got[shard.name] for shard in index.of_split("train")} == {1}
    with pytest.raises(RemoteError, match=f"below the {largest} of the largest shard; raise NIGHTSHIFT_SHARD_CACHE_GB"):
        next(read_shards(LOCATION, index.shards, index, cache=tiny, **options))


def test_single_samples_are_read_with_a_cache_that_holds_one_shard(server, local, tmp_path):
    index = local[1]
    small = ShardCache(tmp_path / "small", limit_bytes=max(shard.bytes for shard in index.shards))

    found = list(read_samples(LOCATION, index, "train", range(24), image_size=32, cache=small))

    assert ids_of(found) == list(range(24))
    assert {server.got[shard.name] for shard in index.of_split("train")} == {1}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_copy_removed_under_a_waiting_batch_is_fetched_again(server, local, cache, workers):
    plan = EpochPlan(index=local[1], split="train", batch_size=2, seed=3)
    stream = open_batches(LOCATION, local[1], plan, image_size=32, loader_workers=workers, cache=cache)
    seen = next(stream).ids.tolist()

    for file in copies(cache):
        file.unlink()
    seen += ids_of(stream)

    assert sorted(seen) == list(range(24))


def test_a_copy_that_rotted_on_the_disk_is_replaced(server, local, cache):
    read(LOCATION, local[1], cache)
    victim = copies(cache)[0]
    raw = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(raw[:700] + bytes([raw[700] ^ 1]) + raw[701:])

    found = read(LOCATION, local[1], cache)

    assert sorted(ids_of(found)) == list(range(24))
    assert victim.read_bytes() == raw


def test_a_copy_removed_before_it_is_read_is_fetched_again(server, local, tmp_path):
    class Crowded(ShardCache):
        def path_of(self, location, shard):
            path = super().path_of(location, shard)
            if server.got[shard.name] == 1:  # others needed its room
                path.unlink()
            return path

    crowded = Crowded(tmp_path / "crowded", limit_bytes=1_000_000)

    assert sorted(ids_of(read(LOCATION, local[1], crowded))) == list(range(24))
    assert set(server.got.values()) == {2}


def test_a_cache_takes_no_more_than_its_disk_can_give(server, local, cache, monkeypatch):
    usage = shutil.disk_usage(cache.folder.parent)
    monkeypatch.setattr(
        "data_shards.read.shard_cache.disk_usage", lambda _: usage._replace(free=3 * local[1].shards[0].bytes)
    )

    for shard in local[1].shards:
        cache.path_of(LOCATION, shard)

    assert 0 < len(copies(cache)) < len(local[1].shards)


def test_a_draft_left_by_a_killed_process_is_no_obstacle(server, local, cache):
    cache.folder.mkdir()
    for shard in local[1].shards:
        (cache.folder / f"{shard.sha256}.draft").write_bytes(b"half")

    assert sorted(ids_of(read(LOCATION, local[1], cache))) == list(range(24))
    assert not list(cache.folder.glob("*.draft"))
