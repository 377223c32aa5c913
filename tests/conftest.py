"""Fixtures that tests of several packages share."""

import os

# Before torch is loaded, also by child processes: several test processes share few cores, and a thread of torch that
# spins until the other threads of its process get a core took 10 times the CPU of the work itself. Tensors of tests are
# too small for threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where the trainer sets the number of threads itself

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from redis import Redis

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.index import Shard, ShardIndex
from jobs.__main__ import main
from jobs.queue import embedded_redis
from jobs.queue.stack import Stack, start_stack
from tests.datasets import packed_digits
from tests.stack import FAKE_WORKER

Say = Callable[..., tuple[int, str, str]]  # a command's words to its exit code, stdout and stderr

# The files that take longest, those with slow tests before others. They begin first, so that at the end not one process
# works on such a file alone.
LONGEST_FILES = (
    "test_trainer_search_run_trainable", "test_trainer_worker", "test_jobs_demo", "test_trainer_search_run",
    "test_trainer_search_refit", "test_jobs_faults", "test_trainer_training_phases", "test_jobs_real_runs",
    "test_jobs_full_disk", "test_trainer_export", "test_trainer_multi_label", "test_jobs_clocks",
    "test_jobs_web_browser", "test_trainer_train", "test_trainer_predict", "test_jobs_multi_label",
    "test_trainer_audit",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `LONGEST_FILES` first; all others keep their order."""
    places = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


# A busy machine must not fail a test: no test here is about time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """An empty storage folder."""
    return Settings(storage=tmp_path / "storage").with_storage_ready().storage


@pytest.fixture
def settings(storage: Path) -> Iterator[Settings]:
    """Settings with a separate embedded Redis, which ends with the test."""
    server = embedded_redis.ensure_running(storage)
    yield Settings(storage=storage, redis_url=server.url, lease_seconds=3.0)
    if left := embedded_redis.running(storage):  # perhaps another process than at the start
        os.kill(left.pid, signal.SIGKILL)  # it looks for a SIGTERM ten times a second only
        with contextlib.suppress(ChildProcessError):
            os.waitpid(left.pid, 0)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """A connection to that Redis."""
    with Redis.from_url(str(settings.redis_url)) as connection:
        yield connection


@pytest.fixture
def stack(settings: Settings) -> Iterator[Stack]:
    """A job worker whose trainers are fakes."""
    with start_stack(settings, 1, worker_command=FAKE_WORKER) as running:
        yield running


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 handwritten digits of ten classes at 32 pixels, several shards per split."""
    return packed_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_training(tmp_path_factory: pytest.TempPathFactory, digits_shards: Path) -> RunPaths:
    """A training on the digits with the options of `QUICK`. Tests may add runs to its storage, and thresholds to it."""
    from tests.trained import done, train_spec  # noqa: PLC0415 -- imports the trainer, which few tests need

    return done(tmp_path_factory.mktemp("storage"), train_spec(digits_shards), "train-20260102-030405-abcdef")[0]


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no reports, for tests that only compare trainings: a report takes a third of such a training."""
    from trainer import evaluate, train  # noqa: PLC0415 -- imports torch, which few tests need

    for module in (evaluate, train):
        monkeypatch.setattr(module, "write_report", lambda *_: None)


@pytest.fixture
def run_main(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in this process; return its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main(list(map(str, arguments)))
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def say(settings: Settings, monkeypatch: pytest.MonkeyPatch, run_main: Say) -> Say:
    """Run a command with the storage and Redis of `settings`, as `run_main` does."""
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(settings.storage))
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", str(settings.redis_url))
    monkeypatch.delenv("COLUMNS", raising=False)  # a table is as wide as it likes
    return run_main


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """An index of two training shards and one shard for each other split; there are no tar files."""
    folder = tmp_path / "shards"
    folder.mkdir()
    entries = [("train", 0), ("train", 1), ("valid", 0), ("test", 0)]
    index = ShardIndex(
        classes=("covid", "normal"),
        shards=tuple(
            Shard(name=f"{split}-{n}.tar", split=split, samples=8, per_class=(4, 4), bytes=1024, sha256="0" * 64)
            for split, n in entries
        ),
    ).sealed()
    (folder / "index.json").write_text(index.model_dump_json())
    return str(folder)
