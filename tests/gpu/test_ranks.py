"""Several ranks under NCCL train the model that one rank trains."""

import os
import signal

import psutil
import pytest

from cluster.files import read_lines
from tests.gpu.marks import needs_gpus
from tests.processes import command_line
from tests.trained import done, new_run, train_spec, trainer_process, wait_until

# No dropout and no stochastic depth, which each rank draws for itself. The last convolution and its batch norm train.
EQUAL_FOR_ANY_RANKS = {"freeze": "7", "norms": "batch", "dropout": 0.0, "precision": "fp32"}
OPTIONS = {"epochs": 3, "lr": 2e-3, "batch_size": 64}
RANKS = [pytest.param(count, marks=needs_gpus(count)) for count in (2, 4, 8)]


@pytest.mark.parametrize("ranks", RANKS)
def test_the_losses_of_several_ranks_are_those_of_one(tmp_path, digits_shards, ranks):
    together = losses(tmp_path / "ranks", digits_shards, workers=ranks, **EQUAL_FOR_ANY_RANKS)

    assert together == pytest.approx(
        losses(tmp_path / "one", digits_shards, workers=1, **EQUAL_FOR_ANY_RANKS), rel=0.02
    )


@pytest.mark.parametrize("ranks", RANKS)
def test_several_ranks_train_all_layers(tmp_path, digits_shards, ranks):
    found = losses(tmp_path, digits_shards, workers=ranks, freeze="none", epochs=6)

    assert found[-2] < found[0]


@pytest.mark.parametrize("nccl2", ["1", "0"])  # 0: torch's older backend
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("ranks", RANKS[:1])
def test_a_training_goes_on_after_a_rank_was_killed_or_stopped(tmp_path, digits_shards, ranks, fault, nccl2):
    options = OPTIONS | {"freeze": "none", "epochs": 30, "workers": ranks}
    paths = new_run(tmp_path, train_spec(digits_shards, **options))
    trainer = trainer_process(paths, NIGHTSHIFT_HANG_SECONDS="60", TORCH_DIST_USE_NCCL2=nccl2)
    assert wait_until(lambda: len(list(read_lines(paths.metrics))) >= 2), paths.log.read_text()

    os.kill(a_rank_of(trainer.pid), fault)

    assert trainer.wait(timeout=600) == 0, paths.log.read_text()
    assert [line["epoch"] for line in read_lines(paths.metrics)] == list(range(1, 31))


def losses(storage, shards, **options):
    paths, _ = done(storage, train_spec(shards, **(OPTIONS | options)))
    return [line[name] for line in read_lines(paths.metrics) for name in ("train_loss", "valid_loss")]


def a_rank_of(trainer):
    """Return a Ray Train worker among the processes below the trainer's guard."""
    below = psutil.Process(trainer).children(recursive=True)
    return next(process.pid for process in below if "RayTrainWorker" in " ".join(command_line(process)))
