"""A small training that saves a checkpoint after one of its steps, for tests that resume it."""

from functools import partial

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
from trainer.training.loop import LoopHooks, TrainLoop
from trainer.training.optimizer import build_optimizer

CPU = torch.device("cpu")
CONFIG = HeadConfig(classes=("a", "b"), width=16, dropout=0.2, image_size=32)
SHARD = Shard(name="train-0.tar", split="train", samples=12, per_class=(6, 6), bytes=1, sha256="0" * 64)
INDEX = ShardIndex(classes=CONFIG.classes, shards=(SHARD,))
EPOCHS, STEPS = 2, 6  # three steps of four images in an epoch


class Training(LoopHooks):
    """A training with EMA and two micro-batches per step, that saves a checkpoint after one of its steps."""

    def __init__(self, folder, freeze, precision="fp32", *, save_after=None, device=CPU, loader=None):
        self.folder, self.save_after = folder, save_after
        torch.manual_seed(0)
        self.model = build_model(CONFIG).to(device)
        self.model.backbone.freeze(freeze)
        self.optimizer = build_optimizer(
            self.model.head, self.model.backbone, backbone_factor=0.1, weight_decay=0.01, device=device
        )
        self.ema = ModelEma(self.model, 0.9)
        self.scaler = grad_scaler(device, precision)
        self.checkpoint = TrainingCheckpoint(self.model, self.optimizer, self.ema, self.scaler)
        self.loop = TrainLoop(
            spec=build(TrainSpec, shards="memory", epochs=EPOCHS, batch_size=4, freeze=freeze, accumulate=True),
            index=INDEX,
            process_group=ProcessGroup(0, 1, device),
            module=self.model,
            optimizer=self.optimizer,
            loader=loader or partial(batches, device),
            class_weights=None,
            hooks=self,
            ema=self.ema,
            micro_batches=2,
            precision=precision,
            scaler=self.scaler,
        )

    def run(self, state):
        while not self.loop.is_over(state):
            state = self.loop.train_epoch(state)
        return state

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


def batches(device, plan, start=0):
    """Yield images that depend on the sample ids only."""
    for number in range(start, plan.batches):
        ids = torch.from_numpy(plan.ids(number))
        images = torch.stack([image_of(int(sample)) for sample in ids])
        yield DeviceBatch(normalised(images.to(device), CONFIG), (ids % 2).to(device), ids, plan.images_in_step(number))


def image_of(sample):
    generator = torch.Generator().manual_seed(sample)
    return torch.randint(0, 256, (1, 32, 32), dtype=torch.uint8, generator=generator)
