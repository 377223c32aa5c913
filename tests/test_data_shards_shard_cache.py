import multiprocessing
import os
import shutil
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from data_shards import locations
from data_shards.errors import BadIndex, RemoteError
from data_shards.index import read_index
from data_shards.locations import file_system
from data_shards.plan import EpochPlan
from data_shards.read import shard_cache
from data_shards.read.shard_cache import ShardCache
from data_shards.read.stream import open_batches, read_samples, read_shards
from data_shards.verify import verify
from tests.datasets import fetch_all, packed
from tests.disks import small_disk

LOCATION = "s3://films/chest"
SPLITS = {"train/covid": 10, "train/normal": 14}


class Faults:
    """Moto's S3 behind a line that fails as it is told to, one entry of `coming` for each GET of a shard."""

    def __init__(self, app):
        self.app, self.coming, self.got = app, [], Counter()

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET" or not path.endswith(".tar"):
            return self.app(environ, start_response)
        self.got[path.rpartition("/")[2]] += 1
        fault = self.coming.pop(0) if self.coming else None
        if fault == "503":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.app(environ, start_response))
        if fault == "cut":
            return [body[: len(body) // 2]]  # fewer bytes than promised, then the connection ends
        if fault == "wrong byte":
            return [body[:700] + bytes([body[700] ^ 1]) + body[701:]]
        return [body]


@pytest.fixture(scope="module")
def line():
    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    faults.url = f"http://127.0.0.1:{server.server_port}"
    yield faults
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("remote"), SPLITS)


@pytest.fixture
def server(line, local, monkeypatch):
    """The data set in a bucket, with the credentials that a user would set."""
    for name, value in {
        "AWS_ENDPOINT_URL": line.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    file_system.cache_clear()  # one made for an earlier server
    client = boto3.client("s3")
    client.create_bucket(Bucket="films")
    for file in local[0].iterdir():
        client.upload_file(str(file), "films", f"chest/{file.name}")
    client.close()
    line.coming.clear()
    line.got.clear()
    return line


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", limit_bytes=1_000_000, pause=lambda _: None)


def read(location, index, cache, workers=0):
    plan = EpochPlan(index=index, split="train", batch_size=8, seed=3)
    return list(open_batches(location, index, plan, image_size=32, loader_workers=workers, cache=cache))


def ids_of(batches):
    return [number for batch in batches for number in batch.ids.tolist()]


def copies(cache):
    return sorted(cache.folder.glob("*.tar"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bucket_is_read_like_a_folder(server, local, cache, workers):
    shards, index = local

    found = read(LOCATION, read_index(LOCATION), cache, workers)

    expected = read(str(shards), index, cache)
    assert ids_of(found) == ids_of(expected)
    assert all((one.images == other.images).all() for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("fault", ["cut", "503", "wrong byte"])
def test_a_failing_line_costs_another_try_and_no_sample(server, local, cache, fault):
    server.coming += [fault, None, fault]

    found = read(LOCATION, local[1], cache)

    assert sorted(ids_of(found)) == list(range(24))
    assert server.got.total() > len(local[1].shards)
    assert len(copies(cache)) == len(local[1].shards)


def test_a_shard_that_stays_wrong_is_refused_by_name(server, local, cache):
    server.coming += ["wrong byte"] * 100

    with pytest.raises(RemoteError, match=r"train-0000\d.tar .* after 3 tries; check the server"):
        read(LOCATION, local[1], cache)

    assert copies(cache) == []


def test_a_shard_missing_in_the_bucket_is_named(server, local, cache):
    client = boto3.client("s3")
    client.delete_object(Bucket="films", Key="chest/train-00003.tar")
    client.close()

    with pytest.raises(RemoteError, match=r"s3://films/chest/train-00003.tar is missing"):
        read(LOCATION, local[1], cache)


def test_a_bucket_without_an_index_is_no_data_set(server):
    with pytest.raises(BadIndex, match=r"s3://films/nothing/index.json does not exist"):
        read_index("s3://films/nothing")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_web_server_is_read_like_a_folder(local, cache):
    shards, index = local
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards))) as server:
        Thread(target=server.serve_forever).start()
        location = f"http://127.0.0.1:{server.server_port}"

        found = read(location, read_index(location), cache)
        server.shutdown()

    assert ids_of(found) == ids_of(read(str(shards), index, cache))


class Stalling(Quiet):
    """Sends half of a shard, then nothing until the test ends."""

    ended = Event()

    def copyfile(self, source, target):
        if not self.path.endswith(".tar"):
            return super().copyfile(source, target)
        target.write(source.read()[:700])
        target.flush()
        return self.ended.wait()


def test_a_server_that_stalls_in_the_middle_of_a_shard_is_given_up_and_named(local, cache, monkeypatch):
    shards, index = local
    monkeypatch.setattr(locations, "STALL_SECONDS", 0.3)
    file_system.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Stalling, directory=str(shards))) as server:
        Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(RemoteError, match=r"\(the server has sent nothing for 0.3 s\), after 3 tries"):
                cache.path_of(f"http://127.0.0.1:{server.server_port}", index.shards[0])
        finally:
            Stalling.ended.set()
            server.shutdown()
            file_system.cache_clear()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_download_that_goes_on_has_no_limit_of_time(scheme):
    file_system.cache_clear()

    limits = file_system(scheme, 0).client_kwargs["timeout"]

    assert (limits.total, limits.sock_read) == (None, locations.STALL_SECONDS)


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


def test_a_server_that_does_not_answer_is_one_line(monkeypatch):
    with pytest.raises(BadIndex, match=r"http://127.0.0.1:9/shards/index.json cannot be read") as error:
        read_index("http://127.0.0.1:9/shards")

    assert "\n" not in str(error.value)


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


def test_verify_reads_what_the_server_has_and_not_a_copy(server, local):
    sound = verify(LOCATION, processes=1)
    name = local[1].shards[0].name
    raw = (local[0] / name).read_bytes()
    client = boto3.client("s3")
    client.put_object(Bucket="films", Key=f"chest/{name}", Body=raw[:700] + bytes([raw[700] ^ 1]) + raw[701:])
    client.close()

    found = verify(LOCATION, processes=2)

    assert sound == ()
    assert {fault.shard for fault in found} == {name}


def test_a_draft_left_by_a_killed_process_is_no_obstacle(server, local, cache):
    cache.folder.mkdir()
    for shard in local[1].shards:
        (cache.folder / f"{shard.sha256}.draft").write_bytes(b"half")

    assert sorted(ids_of(read(LOCATION, local[1], cache))) == list(range(24))
    assert not list(cache.folder.glob("*.draft"))


def test_a_bucket_is_verified_like_a_folder(server, cache):
    assert verify(LOCATION, processes=1, cache=cache) == ()
