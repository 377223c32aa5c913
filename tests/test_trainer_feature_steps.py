"""Steps from tables equal those that take each batch from the loader, bit for bit; here on a CPU, without graphs."""

import dataclasses

import pytest
import torch

from data_shards.plan import EpochPlan
from tests.head_loops import CPU, EPOCHS, OPTIONS, STEPS, HeadLoop, differences
from trainer.data.batches import DeviceBatch
from trainer.data.split_features import StoredRows
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import Stopped, TrainingDiverged
from trainer.training.batch_steps import BatchSteps
from trainer.training.feature_steps import FeatureSteps
from trainer.training.step_graphs import StepGraphs


@pytest.fixture
def tables(monkeypatch):
    """Let a CPU take steps from tables, as a GPU does."""
    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_weights_losses_and_rates_are_those_of_steps_that_take_batches_from_the_loader(options, monkeypatch):
    usual = HeadLoop(**options)
    expected_state = usual.run()

    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))
    tables = HeadLoop(**options)
    state = tables.run()

    assert usual.loop._steps_on_gpu is None
    assert tables.loop._steps_on_gpu is not None
    assert dataclasses.asdict(state) == dataclasses.asdict(expected_state)
    assert differences(tables, usual) == []
    assert (tables.losses, tables.images) == (usual.losses, usual.images)
    assert sorted(set(usual.images)) == [12, 13]
    assert [torch.equal(one, other) for one, other in zip(tables.validated, usual.validated, strict=True)] == [
        True
    ] * EPOCHS
    assert usual.losses[-1] < usual.losses[0]


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_training_resumed_at_a_step_equals_the_uninterrupted_one(tmp_path, step, tables):
    uninterrupted = HeadLoop(tmp_path, save_after=step, ema=0.9)
    expected_state = uninterrupted.run()

    resumed = HeadLoop(tmp_path, ema=0.9)
    state = resumed.run(resumed.checkpoint.load(next(tmp_path.glob(f"step-{step:09d}"))))

    assert state == expected_state
    assert differences(resumed, uninterrupted) == []


def test_a_checkpoint_of_steps_from_tables_is_resumed_without_tables_and_the_reverse(tmp_path, monkeypatch):
    expected = HeadLoop(ema=0.9)
    expected.run()
    first, second, last = (tmp_path / name for name in ("first", "second", "last"))

    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))
    HeadLoop(first, ema=0.9, save_after=5).run()
    monkeypatch.setattr("trainer.training.loop.DEVICES", ())
    loop = HeadLoop(second, ema=0.9, save_after=9)
    loop.steps = 5
    loop.run(loop.checkpoint.load(next(first.glob("step-*"))))
    monkeypatch.setattr("trainer.training.loop.DEVICES", ("cpu",))
    loop = HeadLoop(last, ema=0.9)
    loop.run(loop.checkpoint.load(next(second.glob("step-*"))))

    assert differences(loop, expected) == []


def test_a_stop_request_and_a_loss_that_is_not_finite_end_the_training_at_their_step(tables):
    stopped, spoilt = HeadLoop(stop_after=3), HeadLoop()
    torch.nn.init.constant_(spoilt.module[1].weight, torch.nan)

    with pytest.raises(Stopped, match=r"stopped \(test\) after step 3"):
        stopped.run()
    with pytest.raises(TrainingDiverged, match=r"at step 1 of epoch 1"):
        spoilt.run()

    assert stopped.steps == 3


def test_the_learning_rates_of_the_optimizer_are_numbers_again_in_a_phase_without_tables(tables, monkeypatch):
    training = HeadLoop(epochs=1)
    training.run()

    monkeypatch.setattr("trainer.training.loop.DEVICES", ())
    usual = HeadLoop()
    usual.optimizer.param_groups[0]["lr"] = training.optimizer.param_groups[0]["lr"]
    usual.run()

    assert isinstance(training.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert isinstance(usual.optimizer.param_groups[0]["lr"], float)


def test_what_is_counted_on_the_cpu_goes_on_while_graphs_are_replayed(tmp_path, tables, monkeypatch):
    """A replay runs no line of Python: what a step counts on the CPU, such as the updates of the EMA, would stand."""
    training, taken = HeadLoop(tmp_path, ema=0.9, save_after=STEPS), StepGraphs.take

    def take(self, shape, step, seed):
        if training.steps < 4:
            return taken(self, shape, step, seed)
        return seed()  # all that the CPU does for a replay

    monkeypatch.setattr(StepGraphs, "take", take)
    state = training.run()

    loaded = HeadLoop(ema=0.9)
    loaded.checkpoint.load(next(tmp_path.glob("step-*")))
    assert (state.step, training.ema.updates, loaded.ema.updates) == (STEPS, STEPS, STEPS)


def test_other_inputs_and_places_take_their_batches_from_the_loader_and_ranks_have_no_tables(tables):
    loop = HeadLoop().loop

    def found(**changes):
        return dataclasses.replace(loop, **changes)._steps_on_gpu

    def batches(plan: EpochPlan, start: int = 0) -> list[DeviceBatch]:
        return []

    stored = dataclasses.replace(loop.loader, values={"train": StoredRows((loop.loader.values["train"],))})
    assert isinstance(found(), FeatureSteps)
    assert type(found(loader=batches)) is BatchSteps
    assert type(found(loader=stored)) is BatchSteps
    assert found(process_group=ProcessGroup(1, 2, CPU)) is None
    assert found(process_group=ProcessGroup(0, 1, torch.device("cuda"))) is None
    assert isinstance(found(micro_batches=2), FeatureSteps)
    assert found(scaler=torch.amp.GradScaler("cpu")) is None
