"""Workers of a training on a Ray cluster: how it waits for them, and goes on with fewer and with more."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from cluster.exit_codes import ExitCode
from cluster.files import read_json
from cluster.settings import Settings
from jobs.queue.checks import checked
from tests.ray_cluster import Cluster
from tests.trained import attempted, new_run, stop_at_epoch, train_spec, wait_until
from trainer.errors import SpecError, Stopped
from trainer.specs import TrainSpec, build
from trainer.tracking.history import epoch_lines, read_metrics

ELASTIC = {"workers": 4, "min_workers": 3}
# A step is the same for any number of workers: no dropout and no stochastic depth, which each draws for itself, and no
# batch norm over the images of one worker, which the backbone has on CPUs. An image more or less changes the mean
# training loss of an epoch by half a percent; with steps this small, rounding changes far less, for however many
# epochs. The validation loss is not compared: it takes the running statistics of features that hardly vary, which
# enlarge the rounding to a percent after ten epochs.
EQUAL_FOR_ANY_WORKERS = {
    "freeze": "7",
    "norms": "kept",
    "dropout": 0.0,
    "batch_size": 20,
    "lr": 1e-6,
    "gpus_per_worker": 0,
}
TRAINER = (
    "import sys; from trainer.distributed import ray_train; ray_train.RESIZE_SECONDS = 2.0; "
    "from trainer.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


def test_more_workers_are_needed_than_there_may_be():
    with pytest.raises(SpecError) as refused:
        build(TrainSpec, shards="shards", workers=2, min_workers=3)

    assert str(refused.value) == "--min-workers 3 is more than --workers 2; use --workers 3 or more"


def test_workers_that_come_and_go_are_refused_on_one_machine(tmp_path, shards):
    spec = build(TrainSpec, shards=shards, weights="none", workers=2, min_workers=1)

    with pytest.raises(SpecError) as refused:
        checked(Settings(storage=tmp_path), spec)

    assert str(refused.value) == (
        "--min-workers 1 needs a Ray cluster, whose machines come and go; on one machine leave it out"
    )


@pytest.fixture
def cluster():
    """A Ray cluster whose head has no CPU."""
    found = Cluster()
    yield found
    found.remove()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_goes_on_with_the_workers_that_are_there_and_sees_each_image_once_an_epoch(
    cluster, tmp_path, digits_shards, monkeypatch
):
    options = EQUAL_FOR_ANY_WORKERS | ELASTIC | {"epochs": 500}
    paths = new_run(tmp_path / "storage", train_spec(digits_shards, **options))
    process = trainer_on(cluster, paths)
    assert wait_until(lambda: phase(paths) == "waiting for 3 CPUs (0 free)"), paths.log.read_text()

    cluster.add_machine(cpus=3)
    last = cluster.add_machine(cpus=1)
    assert wait_until(lambda: groups(paths)[-1:] == [4] and epochs(paths)), paths.log.read_text()
    last.kill()
    assert wait_until(lambda: groups(paths)[-2:] == [4, 3]), paths.log.read_text()
    with_three = len(epochs(paths))
    assert wait_until(lambda: len(epochs(paths)) > with_three), paths.log.read_text()
    cluster.add_machine(cpus=1)
    assert wait_until(lambda: groups(paths)[-3:] == [4, 3, 4]), paths.log.read_text()
    with_four = len(epochs(paths))
    assert wait_until(lambda: len(epochs(paths)) > with_four), paths.log.read_text()
    paths.stop.write_text(json.dumps({"reason": "cancel"}))
    code = process.wait(600)

    found = epochs(paths)
    alone = train_spec(digits_shards, **EQUAL_FOR_ANY_WORKERS, epochs=500)
    expected = epochs_of_one_worker(tmp_path / "alone", alone, len(found), monkeypatch)
    assert code == ExitCode.STOPPED, paths.log.read_text()
    assert [line["epoch"] for line in found] == list(range(1, len(found) + 1))
    assert training_losses(found) == pytest.approx(training_losses(expected), rel=1e-3)


def trainer_on(cluster, paths):
    """Start the trainer of a run on a cluster, which looks for new machines every two seconds."""
    with paths.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(paths.folder)],
            stdout=log,
            stderr=log,
            env={
                **os.environ, **cluster.token,
                "NIGHTSHIFT_STORAGE": str(paths.storage), "RAY_ADDRESS": cluster.address,
            },
        )  # fmt: skip


def phase(paths):
    return read_json(paths.progress)["phase"] if paths.progress.exists() else ""


def groups(paths):
    """Return how many workers each group had, in the order in which they started.

    All machines of the cluster share a folder here, so each of them sends the same line to the run's log.
    """
    found = re.findall(r"training with (\d) of at most 4 workers", paths.log.read_text())
    return [int(number) for number, _ in itertools.groupby(found)]


def epochs(paths):
    return epoch_lines(read_metrics(paths.metrics))


def training_losses(lines):
    return [line["train_loss"] for line in lines]


def epochs_of_one_worker(storage, spec, number, monkeypatch):
    """Return the same epochs of a training with one worker, in this process."""
    paths = new_run(storage, spec)
    stop_at_epoch(monkeypatch, paths, number)
    with pytest.raises(Stopped):
        attempted(paths, spec)
    return epochs(paths)
