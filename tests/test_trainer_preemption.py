"""The notice that a machine goes: heard once for each machine, and worth a checkpoint."""

import json
from types import SimpleNamespace

import pytest
from ray.train import PreemptionInfo

from cluster.files import read_json
from cluster.run_paths import TrialPaths
from cluster.settings import Settings
from tests.ray_cluster import Cluster
from tests.trained import new_run, train_spec, trainer_process, wait_until
from trainer.attempt import DEFAULT_RESTARTS, Attempt
from trainer.distributed.worker import WorkerTask
from trainer.search import run_trainable
from trainer.training import preemption
from trainer.training.preemption import PreemptionWatcher


def test_each_machine_is_news_once():
    notices = [None, notice("a"), notice("a"), notice("a", "b"), notice("a", "b"), None]
    heard = PreemptionWatcher(iter(notices).__next__)

    found = [heard.poll() for _ in notices]

    assert found == [False, True, False, True, False, False]


def test_it_is_time_to_look_at_first_and_again_after_a_while(monkeypatch):
    heard = PreemptionWatcher()

    at_first = heard.should_poll()
    heard.poll()
    at_once = heard.should_poll()
    monkeypatch.setattr(preemption, "POLL_SECONDS", 0.0)
    later = heard.should_poll()

    assert (at_first, at_once, later) == (True, False, True)


@pytest.mark.parametrize("retries", [0, 5])
def test_workers_are_started_again_as_often_as_the_run_may_be(tmp_path, retries):
    paths = new_run(tmp_path, train_spec(tmp_path))
    paths.job.write_text(json.dumps({"retries": retries}))

    attempt = Attempt.of(paths.folder, None, Settings(storage=tmp_path))

    assert attempt.restarts == retries


@pytest.mark.parametrize("retries", [0, 5])
def test_the_workers_of_a_trial_are_started_again_as_often_as_those_of_its_search(tmp_path, retries, monkeypatch):
    paths = new_run(tmp_path, train_spec(tmp_path))
    paths.job.write_text(json.dumps({"retries": retries}))
    monkeypatch.setattr(run_trainable, "run_index", lambda *_: SimpleNamespace(longest_shard=1))
    search = WorkerTask(attempt=Attempt.of(paths.folder, None, Settings(storage=tmp_path)), spec=None, source=None)

    trial = run_trainable.task_in(TrialPaths(paths.checkpoints / "trial-000000"), search, train_spec(tmp_path))

    assert trial.attempt.restarts == retries
    assert trial.paths.folder == paths.checkpoints / "trial-000000"


def test_a_run_that_was_never_queued_has_restarts_too(tmp_path):
    paths = new_run(tmp_path, train_spec(tmp_path))

    attempt = Attempt.of(paths.folder, None, Settings(storage=tmp_path))

    assert attempt.restarts == DEFAULT_RESTARTS


@pytest.fixture
def cluster():
    """A Ray cluster whose head has no CPU and whose only other machine has two."""
    found = Cluster()
    found.add_machine(cpus=2)
    yield found
    found.remove()


@pytest.fixture
def training(cluster, tmp_path, digits_shards):
    """The files and the process of a training on it, in the middle of a first epoch of minutes."""
    spec = train_spec(digits_shards, freeze="none", epochs=50, batch_size=4, image_size=224)
    paths = new_run(tmp_path, spec)
    process = trainer_process(paths, RAY_ADDRESS=cluster.address, **cluster.token)
    assert wait_until(lambda: process.poll() is not None or images_seen(paths) > 10)
    assert not list(paths.checkpoints.glob("step-*"))
    yield paths, process
    cluster.kill()
    process.wait(600)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_whose_machine_is_drained_saves_a_checkpoint_and_goes_on(cluster, training):
    paths, process = training

    cluster.drain(cluster.machine_with_cpus())

    assert wait_until(lambda: process.poll() is not None or saved_batches(paths)), paths.log.read_text()
    assert saved_batches(paths)[0] > 0
    saved_at = images_seen(paths)
    assert wait_until(lambda: process.poll() is not None or images_seen(paths) > saved_at)
    assert process.poll() is None, paths.log.read_text()
    assert len(saved_batches(paths)) == 1


def images_seen(paths):
    progress = read_json(paths.progress) if paths.progress.exists() else {}
    return progress["done"] if progress.get("phase") == "train" else 0


def saved_batches(paths):
    return [read_json(position)["batch"] for position in paths.checkpoints.glob("step-*/position.json")]


def notice(*nodes):
    return PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={node: [0] for node in nodes})
