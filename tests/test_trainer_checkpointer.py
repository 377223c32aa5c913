"""Checkpoints are written by a thread while the training goes on."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.trained import lease_in, train_spec
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import CheckpointError, Stopped
from trainer.model.checkpoint_folder import latest_valid_checkpoint, write_checkpoint_folder
from trainer.training import checkpointer as module_of_checkpointer
from trainer.training.checkpointer import Checkpointer
from trainer.training.ema import ModelEma
from trainer.training.loop import EpochMetrics
from trainer.training.train_state import TrainState

CPU = torch.device("cpu")


class BlockedStorage:
    """A storage on which each write of a checkpoint waits until it is released."""

    def __init__(self):
        self.released, self.begun, self.error = threading.Event(), threading.Event(), None

    def write(self, folder, **content):
        self.begun.set()
        assert self.released.wait(600)
        if self.error:
            raise self.error
        write_checkpoint_folder(folder, **content)


@pytest.fixture
def storage(monkeypatch):
    blocked = BlockedStorage()
    monkeypatch.setattr(module_of_checkpointer, "write_checkpoint_folder", blocked.write)
    yield blocked
    blocked.released.set()


@pytest.fixture
def checkpointer(tmp_path):
    """Of a training of one weight with EMA, which has taken a step."""
    lease = lease_in(tmp_path)
    attempt = SimpleNamespace(lease=lease)
    context = SimpleNamespace(
        task=SimpleNamespace(attempt=attempt, paths=lease.paths),
        process_group=ProcessGroup(0, 1, CPU),
        spec=train_spec("x"),
    )
    module = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    checkpointer = Checkpointer(context, module, optimizer, ModelEma(module, 0.9))
    step(checkpointer)
    return checkpointer


def step(checkpointer):
    checkpointer.module(torch.ones(1, 1)).sum().backward()
    checkpointer.optimizer.step()
    checkpointer.ema.update()


def values(checkpointer):
    """Copies of weight, average and moments."""
    files = checkpointer.checkpoint.tensors()
    return {f"{file} {key}": value.clone() for file, group in files.items() for key, value in group.items()}


def metrics(epoch):
    return EpochMetrics(
        epoch=epoch, epochs=3, train_loss=1.0, valid={}, lr=0.1, micro_batches=1, best=False, seconds=1.0,
        images_per_second=1.0,
    )  # fmt: skip


def test_a_training_goes_on_while_its_checkpoint_is_written_and_changes_nothing_in_it(checkpointer, storage):
    before = values(checkpointer)
    state = TrainState(step=1, epoch=1)

    checkpointer.save(state, is_best=False)
    assert storage.begun.wait(600)
    state.step = 2
    step(checkpointer)
    storage.released.set()
    checkpointer.wait()

    assert not torch.equal(checkpointer.module.weight, before["module.safetensors weight"])
    resumed = checkpointer.resume()
    assert (resumed.step, resumed.epoch) == (1, 1)
    after = values(checkpointer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_best_model_is_that_of_the_moment_of_the_save(checkpointer, storage):
    best = checkpointer.ema.module.weight.detach().clone()

    checkpointer.save(TrainState(step=1, epoch=1, best_epoch=1), is_best=True)
    step(checkpointer)
    storage.released.set()
    checkpointer.load_best(TrainState(best_epoch=1))

    assert torch.equal(checkpointer.module.weight, best)


def test_the_line_of_an_epoch_follows_the_checkpoint_of_the_epoch_before(checkpointer):
    checkpointer.save(TrainState(step=1, epoch=1), is_best=False)

    checkpointer.log_epoch(metrics(2))

    assert latest_valid_checkpoint(checkpointer.folder).name == "step-000000001"


@pytest.mark.parametrize(
    "then",
    [
        lambda checkpointer: checkpointer.wait(),
        lambda checkpointer: checkpointer.save(TrainState(step=2, epoch=2), is_best=False),
        lambda checkpointer: checkpointer.log_epoch(metrics(2)),
        lambda checkpointer: checkpointer.load_best(TrainState(best_epoch=1)),
        lambda checkpointer: checkpointer.__exit__(None, None, None),
    ],
    ids=["wait", "save", "log", "load", "end"],
)
def test_a_failed_write_fails_the_training_at_the_next_moment(checkpointer, storage, then):
    storage.error = CheckpointError("the storage is full")
    storage.released.set()
    checkpointer.save(TrainState(step=1, epoch=1), is_best=False)

    with pytest.raises(CheckpointError, match="the storage is full"):
        then(checkpointer)

    assert latest_valid_checkpoint(checkpointer.folder) is None
    assert not checkpointer.paths.metrics.exists()


def test_a_training_that_fails_ends_with_its_own_error_after_its_last_checkpoint_is_written(checkpointer):
    checkpointer.save(TrainState(step=1, epoch=1), is_best=False)
    with pytest.raises(Stopped, match="cancel"), checkpointer:
        raise Stopped("cancel")

    assert latest_valid_checkpoint(checkpointer.folder).name == "step-000000001"


def test_a_checkpoint_that_is_lost_beside_another_error_is_warned_of(checkpointer, storage, caplog):
    storage.error = CheckpointError("the storage is full")
    storage.released.set()

    checkpointer.save(TrainState(step=1, epoch=1), is_best=False)
    with pytest.raises(Stopped, match="cancel"), checkpointer:
        raise Stopped("cancel")

    assert "the last checkpoint is not saved: the storage is full" in caplog.text
