"""The moving average of the weights: how it moves, and what of a training it becomes."""

import pytest
import torch
from torch import nn

from tests.trained import attempted, done, new_run, stop_at_epoch, train_spec
from trainer.errors import Stopped
from trainer.model.checkpoint_folder import read_tensors
from trainer.training.ema import ModelEma

AVERAGED = {"seed": 7, "epochs": 3, "ema": 0.9}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, digits_shards):
    return done(tmp_path_factory.mktemp("storage"), train_spec(digits_shards, **AVERAGED))


def test_after_many_steps_the_average_moves_by_its_decay():
    module = nn.Linear(1, 1, bias=False)
    ema = ModelEma(module, 0.9)
    followed(ema, [1.0] * 100)

    followed(ema, [2.0])

    assert weight_of(ema) == pytest.approx(1.1)


def test_a_young_average_lets_go_of_the_start():
    ema = ModelEma(nn.Linear(1, 1, bias=False), 0.999)

    followed(ema, [8.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    assert weight_of(ema) < 1.1


def test_running_statistics_are_averaged_and_their_count_is_the_latest():
    norm = nn.BatchNorm1d(1)
    ema = ModelEma(norm, 0.5)
    for mean in (0.0, 0.0, 4.0):
        norm.running_mean.fill_(mean)
        norm.num_batches_tracked.add_(1)
        ema.update()

    found = ema.module

    assert 0 < float(found.running_mean) < 4
    assert found.num_batches_tracked == 3


def test_without_a_decay_the_average_is_the_module_itself():
    module = nn.Linear(1, 1)

    ema = ModelEma(module, 0.0)

    assert ema.module is module
    assert ema.state_files() == {}


def test_the_published_model_is_the_average_and_not_the_last_step(averaged):
    paths, result = averaged
    newest = max(paths.checkpoints.glob("step-*"))
    assert result.details["best_epoch"] == 3, "the best epoch is the last, so that the newest checkpoint holds it"

    published = {
        name.removeprefix("head."): tensor
        for name, tensor in read_tensors(paths.best / "model.safetensors").items()
        if name.startswith("head.")
    }

    ema = read_tensors(newest / "average.safetensors")
    assert all(tensor.equal(ema[f"module.{name}"]) for name, tensor in published.items())
    assert not published["8.weight"].equal(read_tensors(newest / "module.safetensors")["8.weight"])


def test_a_run_stopped_in_an_epoch_goes_on_to_the_very_same_average(averaged, tmp_path, digits_shards, monkeypatch):
    uninterrupted, _ = averaged
    spec = train_spec(digits_shards, **AVERAGED)
    paths = new_run(tmp_path, spec)
    stop_at_epoch(monkeypatch, paths, 1)

    with pytest.raises(Stopped):
        attempted(paths, spec)
    attempted(paths, spec)

    assert (paths.best / "model.safetensors").read_bytes() == (uninterrupted.best / "model.safetensors").read_bytes()


def followed(ema, weights):
    """Let the average follow a weight through these values."""
    for weight in weights:
        with torch.no_grad():
            ema.source.weight.fill_(weight)
        ema.update()


def weight_of(ema):
    return float(ema.module.weight.detach())
