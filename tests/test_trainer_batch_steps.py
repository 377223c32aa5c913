"""Steps of a fine-tuning from tables equal the steps that take each batch from the loader; on a CPU, without graphs."""

import pytest
import torch

from tests.head_loops import HeadLoop
from tests.head_loops import differences as head_differences
from tests.resumable import EPOCHS, STEPS, Training, batches
from trainer.training.batch_steps import BatchSteps
from trainer.training.head_fit import one_thread
from trainer.training.train_state import TrainState


@pytest.fixture
def tables(monkeypatch):
    """Let a CPU take steps from tables, as a GPU does."""
    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))


def trained(training, state=None):
    with one_thread(True):
        return training.run(state or TrainState())


def differences(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("freeze", ["none", "3"])
def test_weights_moments_and_averages_are_those_of_steps_that_take_batches_from_the_loader(
    tmp_path, monkeypatch, freeze
):
    usual = Training(tmp_path, freeze)
    expected = trained(usual)

    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))
    tables = Training(tmp_path, freeze)
    state = trained(tables)

    assert usual.loop._steps_on_gpu is None
    assert type(tables.loop._steps_on_gpu) is BatchSteps
    assert state == expected
    assert differences(tables.tensors, usual.tensors) == []


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_training_resumed_at_a_step_equals_the_uninterrupted_one(tmp_path, step, tables):
    uninterrupted = Training(tmp_path, "3", save_after=step)
    expected = trained(uninterrupted)

    resumed = Training(tmp_path, "3")
    state = trained(resumed, resumed.checkpoint.load(next(tmp_path.glob(f"step-{step:09d}"))))

    assert state == expected
    assert differences(resumed.tensors, uninterrupted.tensors) == []


def test_every_batch_of_a_size_is_read_from_the_same_place(tmp_path, tables):
    places, seen = set(), []

    def loader(plan, start=0):
        for batch in batches(torch.device("cpu"), plan, start):
            seen.append(batch.ids.tolist())
            yield batch

    training = Training(tmp_path, "3", loader=loader)
    train_on, read = training.loop._train_on, []

    def noted(batch):
        places.add((batch.inputs.data_ptr(), batch.labels.data_ptr()))
        read.append(batch.ids.tolist())
        return train_on(batch)

    object.__setattr__(training.loop, "_train_on", noted)
    trained(training)

    assert len(places) == 1
    assert read == seen
    assert len(read) == STEPS == 3 * EPOCHS


def test_batches_of_two_sizes_are_read_from_two_places(monkeypatch):
    usual = HeadLoop(ema=0.9)
    expected = usual.run()

    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))
    tables = HeadLoop(ema=0.9)
    stored = tables.loop.loader
    object.__setattr__(tables.loop, "loader", lambda plan, start=0: stored(plan, start))
    state = tables.run()

    assert type(tables.loop._steps_on_gpu) is BatchSteps
    assert sorted(tables.loop._steps_on_gpu._batches) == [12, 13]
    assert (state, tables.losses) == (expected, usual.losses)
    assert head_differences(tables, usual) == []
