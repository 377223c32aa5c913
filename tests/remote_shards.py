"""A data set in a bucket behind a line that fails, and a cache for its shards."""

from collections import Counter
from threading import Thread

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from data_shards.locations import file_system
from data_shards.plan import EpochPlan
from data_shards.read.shard_cache import ShardCache
from data_shards.read.stream import open_batches
from tests.datasets import packed

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
