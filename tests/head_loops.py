"""A training of a head on features in memory, for tests that compare ways to take its steps."""

import torch

from tests.trained import lease_in
from trainer.data.batches import FeatureLoader
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import build_head
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec, build
from trainer.training.checkpointer import TrainingCheckpoint
from trainer.training.ema import ModelEma
from trainer.training.head_fit import index_of_rows, one_thread
from trainer.training.loop import LoopHooks, TrainLoop
from trainer.training.model_setup import class_weights
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

CPU = torch.device("cpu")
IMAGES, EPOCHS, STEPS = 50, 3, 12  # four steps of 12 or 13 images in an epoch
CLASSES = ("a", "b", "c")
OPTIONS = {
    "defaults": {},
    "EMA, weight decay, class weights": {"ema": 0.9, "weight_decay": 0.05, "class_weights": True},
    "no dropout": {"dropout": 0.0},
    "several labels": {"multi_label": True, "ema": 0.5},
}


def rows_of(*, multi_label=False):
    """Return features that depend on the labels, and the labels."""
    draw = torch.Generator().manual_seed(7)
    targets = (torch.rand(IMAGES, len(CLASSES), generator=draw) < torch.tensor([0.5, 0.3, 0.2])).long()
    features = torch.rand(IMAGES, 1280, generator=draw) + 0.1 * targets @ torch.randn(3, 1280, generator=draw)
    if multi_label:
        targets[torch.rand(IMAGES, len(CLASSES), generator=draw) < 0.1] = -1
        return features, targets
    return features, targets[:, 2] * 2 + (1 - targets[:, 2]) * targets[:, 1]


class HeadLoop(LoopHooks):
    """A training that keeps its losses and what it validates, and saves a checkpoint after one of its steps."""

    def __init__(self, folder=None, *, device=CPU, save_after=None, stop_after=None, multi_label=False, **options):
        self.folder, self.save_after, self.stop_after = folder, save_after, stop_after
        features, labels = rows_of(multi_label=multi_label)
        spec = build(
            TrainSpec, shards="memory", **({"epochs": EPOCHS, "batch_size": 16, "head_width": 64, "lr": 0.01} | options)
        )
        config = HeadConfig(
            classes=CLASSES, width=spec.head_width, dropout=spec.dropout, image_size=224, multi_label=multi_label
        )
        index = index_of_rows(labels, config)
        torch.manual_seed(0)
        self.module = build_head(config).to(device)
        self.optimizer = build_optimizer(
            self.module, None, backbone_factor=1.0, weight_decay=spec.weight_decay, device=device
        )
        self.ema = ModelEma(self.module, spec.ema)
        self.checkpoint = TrainingCheckpoint(self.module, self.optimizer, self.ema)
        self.features = features.to(device)
        self.validated, self.losses, self.images = [], [], []
        self.steps = 0
        self.loop = TrainLoop(
            spec=spec,
            index=index,
            process_group=ProcessGroup(0, 1, device),
            module=self.module,
            optimizer=self.optimizer,
            loader=FeatureLoader({"train": self.features}, {"train": labels.to(device)}, device),
            class_weights=class_weights(spec, index, device),
            hooks=self,
            ema=self.ema,
        )

    def run(self, state=None):
        state = state or TrainState()
        with one_thread(True):
            while not self.loop.is_over(state):
                state = self.loop.train_epoch(state)
        return state

    def on_step_end(self, images):
        self.steps += 1
        self.images.append(images)

    def stop_reason(self):
        return "test" if self.steps == self.stop_after else None

    def checkpoint_is_due(self):
        return self.steps == self.save_after

    def save_checkpoint(self, state, is_best):
        if state.step == self.save_after:
            self.checkpoint.save(self.folder, state, lease=lease_in(self.folder))

    @torch.no_grad()
    def validate(self):
        self.validated.append(self.ema.module.eval()(self.features).cpu())
        return {}

    def log_epoch(self, metrics):
        self.losses.append((metrics.train_loss, metrics.lr))

    @property
    def tensors(self):
        """Weights, EMA and moments by name."""
        moments = {
            f"{name} of {parameter_name}": value
            for parameter_name, parameter in self.module.named_parameters()
            for name, value in self.optimizer.state[parameter].items()
        }
        averaged = {f"EMA of {name}": value for name, value in self.ema.module.state_dict().items()}
        return self.module.state_dict() | averaged | moments


def differences(one, other):
    """Return the names of the tensors in which two trainings differ in any bit."""
    found, expected = one.tensors, other.tensors
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]
