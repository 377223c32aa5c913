"""Losses and requests are gathered from all ranks once for several steps."""

import pytest
import torch

from tests.test_trainer_step_budget import FEATURES, GPU, STEPS, head, loop_on_cpu
from tests.trained import train_spec
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import Stopped, TrainingDiverged
from trainer.training.loop import LoopHooks
from trainer.training.micro_batching import warn_of_small_batches
from trainer.training.step_gatherer import MAX_STEPS, Requests, StepGatherer
from trainer.training.train_state import TrainState

CPU = torch.device("cpu")


class OfTwo(ProcessGroup):
    """A rank of two, whose sums contain what the other one gives."""

    def all_reduce_tensor(self, values):
        return (values + torch.tensor(self.other, dtype=torch.float64)).tolist()

    def with_other(self, *values):
        object.__setattr__(self, "other", values)
        return self


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def gatherer_of(group):
    gatherer = StepGatherer(group, now=Clock())
    gatherer.start()
    return gatherer


def step(gatherer, loss=1.0, seconds=0.0):
    gatherer.now.seconds += seconds
    gatherer.add(torch.tensor(loss, dtype=torch.float64))


@pytest.mark.parametrize(
    ("seconds", "interval"), [(0.0, MAX_STEPS), (0.001, MAX_STEPS), (0.11, 9), (0.3, 3), (0.7, 1), (20.0, 1)]
)
def test_a_gpu_is_waited_for_about_once_a_second(seconds, interval):
    gatherer = gatherer_of(ProcessGroup(0, 1, GPU))
    step(gatherer, seconds=seconds)
    assert gatherer.is_due  # after the first step of an epoch

    gatherer.gather(Requests())

    for number in range(1, interval + 1):
        step(gatherer, seconds=seconds)
        assert gatherer.is_due == (number == interval)


def test_nobody_is_waited_for_on_a_cpu():
    gatherer = gatherer_of(ProcessGroup(0, 1, CPU))

    for loss in (1.5, 2.5):
        step(gatherer, loss)
        assert gatherer.is_due
        assert gatherer.gather(Requests())[0] == [loss]


def test_ranks_sum_the_losses_of_each_step_and_take_the_interval_of_rank_zero():
    group = OfTwo(1, 2, CPU).with_other(10.0, 1.0, 0.0, 0.0, 7.0)  # of rank 0: loss, stop, save, poll, interval
    gatherer = gatherer_of(group)
    step(gatherer, 0.5, seconds=30.0)

    losses, gathered = gatherer.gather(Requests())

    assert losses == [10.5]
    assert (gathered.stops, gathered.saves, gathered.polls) == (True, False, False)
    for number in range(1, 8):
        assert not gatherer.is_due, number
        step(gatherer)
    assert gatherer.is_due


def trained(*, gathers_each_step, hooks=None):
    torch.manual_seed(3)
    loop = loop_on_cpu(head(), FEATURES, hooks=hooks)
    if gathers_each_step:
        loop._gatherer.process_group = loop.process_group  # on a CPU
    return loop, loop.train_epoch(TrainState())


def test_losses_and_weights_are_bit_equal_however_often_losses_are_gathered():
    each, state_of_each = trained(gathers_each_step=True)

    together, state = trained(gathers_each_step=False)

    assert state == state_of_each
    assert state.step == STEPS
    assert state.loss_sum > 0
    pairs = zip(each.module.parameters(), together.module.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


class Spoils(LoopHooks):
    """Makes the loss NaN from the third step on."""

    steps = 0

    def on_step_end(self, images):
        self.steps += 1
        if self.steps == STEPS - 1:
            torch.nn.init.constant_(self.module[1].weight, torch.nan)


def test_the_first_step_whose_loss_is_not_finite_is_named():
    hooks = Spoils()
    loop = loop_on_cpu(head(), FEATURES, hooks=hooks)
    hooks.module = loop.module

    with pytest.raises(TrainingDiverged, match=f"at step {STEPS} of epoch 1; use a lower --lr"):
        loop.train_epoch(TrainState())


class StopsAfterTwo(LoopHooks):
    """Asks to stop after the second step, between two gatherings."""

    steps = 0
    saved = ()

    def on_step_end(self, images):
        self.steps += 1

    def stop_reason(self):
        return "cancel" if self.steps == 2 else None

    def save_checkpoint(self, state, is_best):
        self.saved = (*self.saved, state)

    def wait_for_checkpoint(self):
        self.saved = (*self.saved, "written")


def test_the_only_rank_stops_after_the_step_in_which_it_is_asked_to():
    hooks = StopsAfterTwo()

    with pytest.raises(Stopped, match=r"stopped \(cancel\) after step 2, checkpoint saved"):
        trained(gathers_each_step=False, hooks=hooks)

    state, written = hooks.saved
    assert (state.step, state.batch) == (2, 2)
    assert state.loss_sum > 0
    assert written == "written"  # before the run counts as stopped


@pytest.mark.parametrize(
    ("batch_size", "workers", "device", "said"),
    [
        (32, 1, GPU, "each GPU gets 32 images in a step, and with fewer than 64 it is often idle; a larger"),
        (128, 4, GPU, "is often idle; a larger --batch-size or fewer --workers is faster"),
        (64, 1, GPU, ""),
        (256, 4, GPU, ""),
        (32, 1, CPU, ""),
    ],
)  # fmt: skip
def test_fewer_than_64_images_for_a_gpu_are_warned_of(caplog, batch_size, workers, device, said):
    spec = train_spec("x", freeze="none", batch_size=batch_size, workers=workers)

    for rank in range(workers):
        warn_of_small_batches(spec, ProcessGroup(rank, workers, device))

    assert len(caplog.records) == bool(said)
    assert said in caplog.text
