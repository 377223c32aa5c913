"""Several ranks under NCCL train the model that one rank trains."""

import os
import signal

import psutil
import pytest

from cluster.files import read_lines
from tests.gpu.marks import needs_gpus
from tests.processes import command_line
from tests.trained import done, new_run, train_spec, trainer_process, wait_until

OPTIONS = {"freeze": "none", "epochs": 3, "lr": 2e-3, "batch_size": 64, "precision": "fp32", "dropout": 0.0}


@pytest.mark.parametrize("ranks", [pytest.param(count, marks=needs_gpus(count)) for count in (2, 4, 8)])
def test_the_losses_of_several_ranks_are_those_of_one(tmp_path, digits_shards, ranks):
    together = losses(tmp_path / "ranks", digits_shards, workers=ranks)

    assert together == pytest.approx(losses(tmp_path / "one", digits_shards, workers=1), rel=0.05)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=needs_gpus(2))])
def test_a_training_goes_on_after_a_rank_was_killed_or_stopped(tmp_path, digits_shards, ranks, fault):
    paths = new_run(tmp_path, train_spec(digits_shards, **(OPTIONS | {"epochs": 30, "workers": ranks})))
    trainer = trainer_process(paths, NIGHTSHIFT_HANG_SECONDS="60")
    assert wait_until(lambda: len(read_lines(paths.metrics)) >= 2)

    os.kill(a_rank_of(trainer.pid), fault)

    assert trainer.wait(timeout=500) == 0
    assert [line["epoch"] for line in read_lines(paths.metrics)] == list(range(1, 31))


def losses(storage, shards, **options):
    paths, _ = done(storage, train_spec(shards, **(OPTIONS | options)))
    return [line[name] for line in read_lines(paths.metrics) for name in ("train_loss", "valid_loss")]


def a_rank_of(trainer):
    """Return a Ray Train worker among the processes below the trainer's guard."""
    below = psutil.Process(trainer).children(recursive=True)
    return next(process.pid for process in below if "RayTrainWorker" in " ".join(command_line(process)))
