"""A resumed training equals the uninterrupted one bit for bit: weights, EMA, Adam's moments and their strides."""

import random

import pytest
import torch

from tests.resumable import STEPS, Training
from trainer.training.head_fit import one_thread
from trainer.training.train_state import TrainState


@pytest.fixture(autouse=True)
def one_thread_for_small_batches():
    with one_thread(True):
        yield


@pytest.fixture
def random_step():
    """A step after which the training is interrupted; the printed seed reproduces it."""
    seed = random.SystemRandom().randrange(10_000)
    print(f"seed {seed} of the step")
    return random.Random(seed).randrange(1, STEPS)


@pytest.mark.parametrize(("freeze", "precision"), [("none", "fp32"), ("3", "fp32"), ("all", "fp32"), ("6", "fp16")])
def test_a_training_resumed_at_a_random_step_equals_the_uninterrupted_one(tmp_path, random_step, freeze, precision):
    uninterrupted = Training(tmp_path, freeze, precision, save_after=random_step)
    expected_state = uninterrupted.run(TrainState())

    resumed = Training(tmp_path, freeze, precision)
    state = resumed.checkpoint.load(next(tmp_path.glob(f"step-{random_step:09d}")))
    assert state.step == random_step
    state = resumed.run(state)

    assert state == expected_state
    found, expected = resumed.tensors, uninterrupted.tensors
    assert found.keys() == expected.keys()
    assert any(name.startswith("exp_avg_sq of ") for name in found)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert [name for name in found if found[name].stride() != expected[name].stride()] == []


@pytest.mark.parametrize("freeze", ["none", "3"])
def test_the_moments_of_a_loaded_checkpoint_have_the_strides_of_their_parameters(tmp_path, freeze):
    Training(tmp_path, freeze, save_after=1).run(TrainState())

    resumed = Training(tmp_path, freeze)
    resumed.checkpoint.load(next(tmp_path.glob("step-*")))

    moments = [
        (name, parameter.stride(), resumed.optimizer.state[parameter][moment].stride())
        for name, parameter in resumed.model.named_parameters()
        if parameter in resumed.optimizer.state
        for moment in ("exp_avg", "exp_avg_sq")
    ]
    assert moments
    assert [name for name, expected, found in moments if found != expected] == []
