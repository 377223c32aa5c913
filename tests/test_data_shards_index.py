import json

import pytest

from data_shards.errors import BadIndex, SourceError
from data_shards.index import read_index
from tests.datasets import packed

SPLITS = {"train/a": 3, "train/b": 3}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("index"), SPLITS)[0]


@pytest.fixture
def content(shards):
    return json.loads((shards / "index.json").read_text())


def written(folder, content):
    (folder / "index.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder)


def changed(content, **fields):
    return {**content, **fields}


def first_shard(content, **fields):
    return changed(content, shards=[{**content["shards"][0], **fields}, *content["shards"][1:]])


def test_a_path_and_a_file_url_read_the_same_index(shards):
    assert read_index(str(shards)) == read_index(f"file://{shards}")


def test_an_absent_index_says_what_makes_one(tmp_path):
    with pytest.raises(BadIndex, match=r"index\.json does not exist; `shards pack` makes a data set"):
        read_index(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda _: "{half", "is not JSON"),
        (lambda _: "[1, 2]", "has version None, this program reads 1"),
        (lambda c: changed(c, version=2), "has version 2, this program reads 1; pack the data set again"),
        (lambda c: changed(c, classes=["b", "a"]), "was changed after packing"),
        (lambda c: changed(c, digest="0" * 64), "was changed after packing"),
        (lambda c: changed(c, surprise=1), "is damaged: surprise"),
        (lambda c: changed(c, classes=["a", "a"]), "one is listed twice"),
        (lambda c: changed(c, shards=c["shards"][:1] * 2), "a shard is listed twice"),
        (lambda c: first_shard(c, name="../elsewhere.tar"), r"is damaged: shards\.0\.name"),
        (lambda c: first_shard(c, name="pipe:sh.tar"), r"is damaged: shards\.0\.name"),
        (lambda c: first_shard(c, sha256="short"), r"is damaged: shards\.0\.sha256"),
        (lambda c: first_shard(c, samples=99), "counts 99 samples, but 1 over its classes"),
        (lambda c: first_shard(c, per_class=[1]), "counts 1 classes of 2"),
        (lambda c: first_shard(c, per_class=[2, -1]), r"is damaged: shards\.0\.per_class\.1"),
    ],
)
def test_an_index_that_cannot_be_trusted_is_refused_with_the_reason(tmp_path, content, change, text):
    location = written(tmp_path, change(content))

    with pytest.raises(BadIndex, match=text):
        read_index(location)


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat /etc/passwd",
        "pipe://x",
        "ftp://host/shards",
        "hdfs://host/shards",
        "exec:x",
        "simplecache::s3://x",
        "S3://x",
        "file://elsewhere/shards",
    ],
)
def test_only_allowed_schemes_are_opened(location):
    with pytest.raises(SourceError, match=r"not allowed|names the machine"):
        read_index(location)
