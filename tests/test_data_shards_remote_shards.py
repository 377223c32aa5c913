from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import boto3
import pytest

from data_shards import locations
from data_shards.errors import BadIndex, RemoteError
from data_shards.index import read_index
from data_shards.locations import file_system
from data_shards.verify import verify
from tests import remote_shards
from tests.remote_shards import LOCATION, copies, ids_of, read

line, local, server, cache = remote_shards.line, remote_shards.local, remote_shards.server, remote_shards.cache


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


def test_a_server_that_does_not_answer_is_one_line(monkeypatch):
    with pytest.raises(BadIndex, match=r"http://127.0.0.1:9/shards/index.json cannot be read") as error:
        read_index("http://127.0.0.1:9/shards")

    assert "\n" not in str(error.value)


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


def test_a_bucket_is_verified_like_a_folder(server, cache):
    assert verify(LOCATION, processes=1, cache=cache) == ()
