"""Fixtures that tests of several packages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from cluster.settings import Settings
from data_shards.pack import PackOptions, pack
from data_shards.sample import write_sample
from jobs import embedded


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage folder with nothing in it yet."""
    return Settings(storage=tmp_path / "storage").with_storage_ready().storage


@pytest.fixture
def settings(storage: Path) -> Iterator[Settings]:
    """Settings with an embedded Redis of their own, which ends with the test."""
    server = embedded.ensure_running(storage)
    yield Settings(storage=storage, redis_url=server.url, lease_seconds=3.0)
    embedded.stop(storage)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """A connection to that Redis."""
    with Redis.from_url(str(settings.redis_url)) as connection:
        yield connection


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 handwritten digits of ten classes at 32 pixels, several shards a split."""
    folder = tmp_path_factory.mktemp("digits")
    write_sample(folder / "images", limit=300)
    pack(folder / "images", folder / "shards", PackOptions(shard_bytes=100_000, processes=1))
    return folder / "shards"
