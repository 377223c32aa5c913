"""The notice that a machine goes: heard once for each machine, and worth a checkpoint."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ray.train import PreemptionInfo

from cluster.files import read_json
from cluster.run_paths import TrialPaths
from cluster.settings import Settings
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
    yield found
    found.kill()


@pytest.fixture
def training(cluster, tmp_path, digits_shards):
    """The files and the process of a training on it, in the middle of a first epoch of minutes."""
    spec = train_spec(digits_shards, freeze="none", epochs=50, batch_size=4, image_size=224)
    paths = new_run(tmp_path, spec)
    process = trainer_process(paths, RAY_ADDRESS=cluster.address, **cluster.token)
    assert wait_until(lambda: process.poll() is not None or images_seen(paths) > 10, 200)
    assert not list(paths.checkpoints.glob("step-*"))
    yield paths, process
    cluster.kill()
    process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_whose_machine_is_drained_saves_a_checkpoint_and_goes_on(cluster, training):
    paths, process = training

    cluster.drain_the_machine()

    assert wait_until(lambda: process.poll() is not None or saved_batches(paths), 60), paths.log.read_text()
    assert saved_batches(paths)[0] > 0
    saved_at = images_seen(paths)
    assert wait_until(lambda: process.poll() is not None or images_seen(paths) > saved_at, 60)
    assert process.poll() is None, paths.log.read_text()
    assert len(saved_batches(paths)) == 1


class Cluster:
    """Two machines of Ray that are processes here."""

    def __init__(self):
        self.folder = Path(f"/tmp/ns-ray-{secrets.token_hex(3)}")  # Ray's own sockets allow no long path
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        self.ray(
            "start", "--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=0"
        )
        self.ray("start", f"--address={self.address}", "--num-cpus=2")
        self.machine = self.machine_with_cpus()

    def ray(self, *order):
        return self.run(str(Path(sys.executable).parent / "ray"), *order)

    def run(self, *order):
        environment = {**os.environ, **self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        return subprocess.run(order, env=environment, check=True, capture_output=True, text=True).stdout

    def machine_with_cpus(self):
        ask = (
            f"import ray; ray.init('{self.address}', logging_level='ERROR'); print(*(n['NodeID'] for n in ray.nodes() "
        )
        return self.run(sys.executable, "-c", ask + "if n['Resources'].get('CPU')))").split()[-1]

    def drain_the_machine(self):
        """Tell the cluster, as a cloud does, that the machine with CPUs goes in two minutes."""
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=120")
        self.ray("drain-node", f"--address={self.address}", f"--node-id={self.machine}", *reason)

    def kill(self):
        """End every process that knows the token."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_AUTH_TOKEN") == self.token["RAY_AUTH_TOKEN"]:
                    process.kill()
            except psutil.Error:
                continue
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def images_seen(paths):
    progress = read_json(paths.progress) if paths.progress.exists() else {}
    return progress["done"] if progress.get("phase") == "train" else 0


def saved_batches(paths):
    return [read_json(position)["batch"] for position in paths.checkpoints.glob("step-*/position.json")]


def notice(*nodes):
    return PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={node: [0] for node in nodes})
