"""Several ranks under NCCL train the model that one rank trains."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from cluster.files import read_lines
from cluster.gpus import count_gpus
from tests.gpu.marks import needs_gpus
from tests.processes import command_line
from tests.trained import new_run, train_spec, trainer_process, wait_until
from trainer.model.precision import is_supported

# No dropout and no stochastic depth, which each rank draws for itself. The last convolution and its batch norm train.
EQUAL_FOR_ANY_RANKS = {"freeze": "7", "norms": "batch", "dropout": 0.0, "precision": "fp32"}
OPTIONS = {"epochs": 3, "lr": 2e-3, "batch_size": 64}
RANKS = [pytest.param(count, marks=needs_gpus(count)) for count in (2, 4, 8)]
# As a trainer, which forks its fork server before it leases GPUs. What torch says is the UUID of the card.
FORKED_WORKERS = """
import sys, tempfile
from cluster.process_env import set_local_ray_environment, show_gpus
from trainer.distributed.ray_fork_server import forking_python, start_fork_server

set_local_ray_environment()
start_fork_server(lambda: None)
show_gpus(sys.argv[1:])
import ray

class Worker:
    def card(self):
        import torch
        return f"GPU-{torch.cuda.get_device_properties(0).uuid} of {torch.cuda.device_count()}"

with tempfile.TemporaryDirectory(prefix="ns-") as folder:
    with forking_python(folder):
        ray.init(num_cpus=1, num_gpus=len(sys.argv) - 1, include_dashboard=False, _temp_dir=folder, log_to_driver=False,
                 runtime_env={"env_vars": {"OF": "a runtime environment, as trainers have one"}})
    workers = [ray.remote(Worker).options(num_cpus=0, num_gpus=1).remote() for _ in sys.argv[1:]]
    print(*sorted(ray.get([worker.card.remote() for worker in workers])), sep="\\n")
    ray.shutdown()
"""


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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("ranks", RANKS[:2])
def test_several_ranks_train_in_half_precision_after_a_phase_of_the_head(tmp_path, digits_shards, ranks, precision):
    if not is_supported(precision, torch.device("cuda")):
        pytest.skip(f"{torch.cuda.get_device_name(0)} has no hardware for {precision}")
    options = {"freeze": "none", "head_epochs": 1, "ema": 0.9, "epochs": 6, "precision": precision}

    found = losses(tmp_path, digits_shards, workers=ranks, **options)

    assert found[-2] < found[0]


@pytest.mark.parametrize("ranks", RANKS[:2])
def test_a_head_on_features_of_several_ranks_is_that_of_one(tmp_path, digits_shards, ranks):
    options = {"freeze": "all", "precision": "fp32"}

    together = losses(tmp_path / "ranks", digits_shards, workers=ranks, **options)

    assert together == pytest.approx(losses(tmp_path / "one", digits_shards, workers=1, **options), rel=0.02)


@pytest.mark.parametrize("gpus", RANKS)
def test_forked_workers_use_the_gpus_that_the_run_has_leased(gpus):
    leased = count_gpus().uuids[1:gpus]  # another run has the first

    workers = subprocess.run(
        [sys.executable, "-c", FORKED_WORKERS, *leased], capture_output=True, text=True, check=True
    )

    assert workers.stdout.split("\n")[:-1] == sorted(f"{uuid} of 1" for uuid in leased)


@pytest.mark.parametrize("gpus", RANKS[1:])
def test_two_trainings_of_several_ranks_at_a_time_use_different_gpus(tmp_path, digits_shards, gpus):
    options = OPTIONS | {"freeze": "none", "workers": gpus // 2}
    runs = [new_run(tmp_path, train_spec(digits_shards, seed=seed, **options), f"run-{seed}") for seed in (1, 2)]

    trainers = [trainer_process(paths) for paths in runs]

    assert [trainer.wait(timeout=1200) for trainer in trainers] == [0, 0], runs[0].log.read_text()[-4000:]
    leased = [uuid for paths in runs for uuid in re.findall(r"\((GPU-[^)]+)\)", paths.log.read_text())]
    assert len(leased) == len(set(leased)) == 2 * (gpus // 2)


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
    """Train in a trainer of its own, whose Ray's workers are forks, and return the losses of each epoch."""
    paths = new_run(storage, train_spec(shards, **(OPTIONS | options)))
    assert trainer_process(paths).wait(timeout=1200) == 0, paths.log.read_text()[-4000:]
    return [line[name] for line in read_lines(paths.metrics) for name in ("train_loss", "valid_loss")]


def a_rank_of(trainer):
    """Return a Ray Train worker among the processes below the trainer's guard."""
    below = psutil.Process(trainer).children(recursive=True)
    return next(process.pid for process in below if "RayTrainWorker" in " ".join(command_line(process)))
