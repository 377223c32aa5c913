"""Trainings on a GPU reach the losses that they reach on the CPU."""

import re

import pytest
import torch

from cluster.files import read_lines
from cluster.gpus import count_gpus
from tests.gpu.marks import needs_gpus
from tests.trained import done, new_run, train_spec, trainer_process
from trainer.model.precision import is_supported

pytestmark = needs_gpus(1)

OPTIONS = {"epochs": 3, "lr": 2e-3, "batch_size": 64}


def losses(storage, shards, **options):
    """Train a model; return the training and validation losses of each epoch."""
    paths, _ = done(storage, train_spec(shards, **(OPTIONS | options)))
    return [line[name] for line in read_lines(paths.metrics) for name in ("train_loss", "valid_loss")]


@pytest.fixture
def computes_alike(monkeypatch):
    """Let a GPU do what a CPU does: no stochastic depth, whose random numbers differ between them, and no TF32."""
    monkeypatch.setattr("efficientnet_pytorch.model.drop_connect", lambda inputs, p, training: inputs)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("freeze", ["all", "3", "none"])
@pytest.mark.usefixtures("computes_alike")
def test_the_losses_are_those_of_the_cpu(tmp_path, digits_shards, freeze):
    options = {"freeze": freeze, "precision": "fp32", "dropout": 0.0}

    on_gpu = losses(tmp_path / "gpu", digits_shards, gpus_per_worker=1, **options)

    on_cpu = losses(tmp_path / "cpu", digits_shards, gpus_per_worker=0, **options)
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)


def needs_hardware_for(precision):
    """Skip the test on a card that does not compute in this precision."""
    if not is_supported(precision, torch.device("cuda")):
        pytest.skip(f"{torch.cuda.get_device_name(0)} has no hardware for {precision}")


@pytest.mark.parametrize(("precision", "freeze"), [("bf16", "all"), ("bf16", "none"), ("fp16", "all")])
def test_the_losses_in_half_precision_are_near_those_in_float32(tmp_path, digits_shards, precision, freeze):
    needs_hardware_for(precision)
    options = {"freeze": freeze, "dropout": 0.0}

    half = losses(tmp_path / "half", digits_shards, precision=precision, **options)

    float32 = losses(tmp_path / "fp32", digits_shards, precision="fp32", **options)
    assert half == pytest.approx(float32, rel=0.1)


def test_all_layers_train_in_fp16_with_a_scaled_loss(tmp_path, digits_shards):
    """Steps whose gradients overflow are left out until the scale fits, so that only the trend can be compared."""
    found = losses(tmp_path, digits_shards, freeze="none", precision="fp16", epochs=6)

    assert found[-2] < found[0]


def test_a_training_computes_on_the_gpu(tmp_path, digits_shards):
    torch.cuda.reset_peak_memory_stats()

    paths, result = done(tmp_path, train_spec(digits_shards, freeze="none", gpus_per_worker=1))

    assert result.metrics["auroc"] is not None
    assert torch.cuda.max_memory_allocated() > 10 * 2**20
    assert paths.best.is_dir()


def test_augmented_images_are_trained_on(tmp_path, digits_shards):
    found = losses(tmp_path, digits_shards, freeze="none", augment=True, epochs=6)

    assert found[-2] < found[0]


def trained_together(storage, shards):
    """Train two models at a time, each in a process of its own; return the paths of both runs."""
    runs = [new_run(storage, train_spec(shards, freeze="none", seed=seed), f"run-{seed}") for seed in (1, 2)]
    trainers = [trainer_process(paths) for paths in runs]
    assert [trainer.wait(timeout=600) for trainer in trainers] == [0, 0], runs[0].log.read_text()[-2000:]
    return runs


def test_two_jobs_at_a_time_on_one_gpu_both_succeed(tmp_path, digits_shards, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", count_gpus().uuids[0])

    runs = trained_together(tmp_path, digits_shards)

    assert all(paths.result.is_file() for paths in runs)
    assert len(gpus_of(runs)) == 1


@pytest.mark.parametrize("gpus", [pytest.param(2, marks=needs_gpus(2))])
def test_two_jobs_at_a_time_on_two_gpus_use_one_each(tmp_path, digits_shards, monkeypatch, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(count_gpus().uuids[:gpus]))

    runs = trained_together(tmp_path, digits_shards)

    assert len(gpus_of(runs)) == gpus
    assert not any("waiting for" in paths.log.read_text() for paths in runs)


def gpus_of(runs):
    """Return the GPUs that the logs of the runs name."""
    return {uuid for paths in runs for uuid in re.findall(r"runs on .* \((GPU-[^)]+)\)", paths.log.read_text())}
