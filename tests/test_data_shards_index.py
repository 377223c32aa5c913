import json

import pytest

from data_shards.errors import BadIndex, SourceError
from data_shards.index import INDEX_NAME, Addition, Shard, ShardIndex, overview, read_index, write_index
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


def test_an_index_that_the_system_cannot_read_has_the_reason_without_an_error_number(tmp_path):
    (tmp_path / INDEX_NAME).mkdir()

    with pytest.raises(BadIndex) as refused:
        read_index(str(tmp_path))

    assert (
        str(refused.value)
        == f"{tmp_path / INDEX_NAME} cannot be read: Is a directory; check the disk and its permissions"
    )


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


def shard(number, split="train"):
    name = f"{split}-{number:05d}.tar"
    return Shard(name=name, split=split, samples=2, per_class=(1, 1), bytes=1, sha256=str(number) * 64)


def grown(index, *shards, time="2026-11-26T02:00:00Z"):
    before = Addition(
        digest=index.digest, shards=len(index.shards), widths=index.widths, heights=index.heights, time=time
    )
    history = (*index.history, before)
    return index.model_copy(
        update={"shards": (*index.shards, *shards), "history": history, "widths": (1, 2, 3)}
    ).sealed()


PACKED = ShardIndex(classes=("a", "b"), shards=(shard(0), shard(1, "test"))).sealed()


def test_a_data_set_without_additions_has_the_digest_of_an_index_that_knows_no_history():
    assert PACKED.digest == "65fb5f9cf39a84ba76aa85e47c6ff03cfb59c71d6ea4ca2b7b642506dff20259"
    assert "history" not in PACKED.to_json()


def test_every_earlier_version_of_a_data_set_can_be_given_back():
    once = grown(PACKED, shard(2))
    twice = grown(once, shard(3), shard(4, "test"))

    assert twice.version_with(twice.digest) == twice
    assert twice.version_with(once.digest) == once
    assert twice.version_with(PACKED.digest) == PACKED
    assert twice.version_with("0" * 64) is None
    assert all(index.is_intact() for index in (PACKED, once, twice))


def test_the_digest_depends_on_what_was_added_and_not_on_when():
    again = grown(PACKED, shard(2), time="2027-01-01T00:00:00Z")

    assert grown(PACKED, shard(2)).digest == again.digest
    assert grown(PACKED, shard(3)).digest != again.digest


def test_the_overview_counts_the_images_of_each_addition():
    twice = grown(grown(PACKED, shard(2)), shard(3), shard(4, "test"))

    history = overview(twice)["history"]

    assert [addition["samples"] for addition in history] == [{"train": 2}, {"train": 2, "test": 2}]
    assert history[0]["digest_before"] == PACKED.digest
    assert history[0]["digest_after"] == history[1]["digest_before"]
    assert history[1]["digest_after"] == twice.digest


def test_a_history_is_written_and_read_back(tmp_path):
    index = grown(PACKED, shard(2))

    write_index(tmp_path, index)

    assert read_index(str(tmp_path)) == index


@pytest.mark.parametrize("shards", [2, 3, 99])
def test_an_addition_without_shards_is_refused(tmp_path, shards):
    content = grown(PACKED, shard(2)).to_json()
    content["history"].append({**content["history"][0], "shards": shards + 1})

    with pytest.raises(BadIndex, match="the history has an addition without shards"):
        read_index(written(tmp_path, content))
