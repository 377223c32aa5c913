"""A resumed training equals the uninterrupted one bit for bit: weights, EMA, Adam's moments and their strides."""

import random

import pytest
import torch

from data_shards.index import Shard, ShardIndex
from tests.trained import lease_in
from trainer.data.batches import DeviceBatch
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.model.precision import grad_scaler
from trainer.specs import TrainSpec, build
from trainer.training.checkpointer import TrainingCheckpoint
from trainer.training.ema import ModelEma
from trainer.training.head_fit import one_thread
from trainer.training.loop import LoopHooks, TrainLoop
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

CPU = torch.device("cpu")
CONFIG = HeadConfig(classes=("a", "b"), width=16, dropout=0.2, image_size=32)
SHARD = Shard(name="train-0.tar", split="train", samples=12, per_class=(6, 6), bytes=1, sha256="0" * 64)
INDEX = ShardIndex(classes=CONFIG.classes, shards=(SHARD,))
EPOCHS, STEPS = 2, 6  # three steps of four images in an epoch


class Training(LoopHooks):
    """A training with EMA and two micro-batches per step, that saves a checkpoint after one of its steps."""

    def __init__(self, folder, freeze, precision="fp32", save_after=None):
        self.folder, self.save_after = folder, save_after
        torch.manual_seed(0)
        self.model = build_model(CONFIG)
        self.model.backbone.freeze(freeze)
        self.optimizer = build_optimizer(
            self.model.head, self.model.backbone, backbone_factor=0.1, weight_decay=0.01, device=CPU
        )
        self.ema = ModelEma(self.model, 0.9)
        self.scaler = grad_scaler(CPU, precision)
        self.checkpoint = TrainingCheckpoint(self.model, self.optimizer, self.ema, self.scaler)
        self.loop = TrainLoop(
            spec=build(TrainSpec, shards="memory", epochs=EPOCHS, batch_size=4, freeze=freeze, accumulate=True),
            index=INDEX,
            process_group=ProcessGroup(0, 1, CPU),
            module=self.model,
            optimizer=self.optimizer,
            loader=batches,
            class_weights=None,
            hooks=self,
            micro_batches=2,
            precision=precision,
            scaler=self.scaler,
        )

    def run(self, state):
        while not self.loop.is_over(state):
            state = self.loop.train_epoch(state)
        return state

    def on_optimizer_step(self):
        self.ema.update()

    def checkpoint_is_due(self):
        return self.save_after is not None

    def save_checkpoint(self, state, is_best):
        if state.step == self.save_after:
            self.checkpoint.save(self.folder, state, lease=lease_in(self.folder))

    @property
    def tensors(self):
        """Weights, EMA and moments by name."""
        moments = {
            f"{name} of {parameter_name}": self.optimizer.state[parameter][name]
            for parameter_name, parameter in self.model.named_parameters()
            for name in self.optimizer.state.get(parameter, {})
        }
        averaged = {f"EMA of {name}": value for name, value in self.ema.module.state_dict().items()}
        scale = {} if self.scaler is None else {"scale of the loss": torch.tensor(self.scaler.get_scale())}
        return self.model.state_dict() | averaged | moments | scale


def batches(plan, start=0):
    """Yield images that depend on the sample ids only."""
    for number in range(start, plan.batches):
        ids = torch.from_numpy(plan.ids(number))
        images = torch.stack([image_of(int(sample)) for sample in ids])
        yield DeviceBatch(normalised(images, CONFIG), ids % 2, ids, plan.images_in_step(number))


def image_of(sample):
    generator = torch.Generator().manual_seed(sample)
    return torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8, generator=generator)


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
