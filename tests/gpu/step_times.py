"""The time of a training step of heads on 32 rows of features, all that the training loop does included.

`python -m tests.gpu.step_times` prints it with and without CUDA graphs.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from data_shards.index import Shard, ShardIndex
from trainer.data.batches import FeatureLoader
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import build_head
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec, build
from trainer.training import batched_heads, loop
from trainer.training.batched_heads import HeadBatch, HeadRows
from trainer.training.ema import ModelEma
from trainer.training.head_fit import HeadFit, one_thread
from trainer.training.loop import LoopHooks, TrainLoop
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import TrainState

ROWS, CLASSES = 32, 2
STEPS = 200  # of an epoch
EPOCHS = 4
FOLDS = (5, 25)  # heads that train at once
FOLD_STEPS = 40
CONFIG = HeadConfig(classes=("a", "b"), width=512, dropout=0.4, image_size=224)
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def step_times() -> dict[str, int]:
    """Return microseconds of a step by what it is of."""
    found = {"head_step": _head_step(GPU), "head_step_with_ema": _head_step(GPU, ema=0.99)}
    found |= {f"step_of_{heads}_heads": _heads_step(heads) for heads in FOLDS}
    with _without_graphs():
        found |= {"eager_head_step": _head_step(GPU), "eager_head_step_with_ema": _head_step(GPU, ema=0.99)}
        found |= {f"eager_step_of_{heads}_heads": _heads_step(heads) for heads in FOLDS}
    found["head_step_on_the_cpu"] = _head_step(CPU)
    return {f"{name}_microseconds": round(1e6 * seconds) for name, seconds in found.items()}


@contextmanager
def _without_graphs() -> Iterator[None]:
    with mock.patch.object(loop, "DEVICES", ()), mock.patch.object(batched_heads, "DEVICES", ()):
        yield


def _head_step(device: torch.device, *, ema: float = 0.0) -> float:
    """Return the seconds of a step of a head of the default width."""
    rows, labels = torch.randn(ROWS * STEPS, 1280, device=device), torch.arange(ROWS * STEPS, device=device) % CLASSES
    half = len(rows) // 2
    shard = Shard(
        name="train-0.tar", split="train", samples=len(rows), per_class=(half, half), bytes=1, sha256="0" * 64
    )
    head = build_head(CONFIG).to(device)
    training = TrainLoop(
        spec=build(TrainSpec, shards="memory", epochs=STEPS, batch_size=ROWS, patience=None, ema=ema),
        index=ShardIndex(classes=CONFIG.classes, shards=(shard,)),
        process_group=ProcessGroup(0, 1, device),
        module=head,
        optimizer=build_optimizer(head, None, backbone_factor=1.0, weight_decay=0.0, device=device),
        loader=FeatureLoader({"train": rows}, {"train": labels}, device),
        class_weights=None,
        hooks=LoopHooks(),
        ema=ModelEma(head, ema),
    )
    state = training.train_epoch(TrainState())  # loads kernels, captures

    def train() -> None:
        nonlocal state
        for _ in range(EPOCHS):
            state = training.train_epoch(state)

    with one_thread(device.type == "cpu"):
        return _seconds(train) / (EPOCHS * STEPS)


def _heads_step(heads: int) -> float:
    """Return the seconds of a step of heads of folds, whose numbers of images differ by one."""
    draw = torch.Generator().manual_seed(0)
    images = ROWS * FOLD_STEPS
    features, labels = torch.randn(images, 1280, device=GPU), torch.arange(images, device=GPU) % CLASSES

    def batch(epochs: int) -> HeadBatch:
        spec = build(TrainSpec, shards="memory", epochs=epochs, batch_size=ROWS, patience=None)
        fit = HeadFit(spec=spec, config=CONFIG, device=GPU)
        rows = [torch.randperm(images, generator=draw)[: images - seed % 2] for seed in range(heads)]
        return HeadBatch(
            fit=fit, features=features, labels=labels, heads=[HeadRows(of, seed) for seed, of in enumerate(rows)]
        )

    batch(1).train()  # loads kernels
    few, many = (_seconds(batch(epochs).train) for epochs in (1, 1 + EPOCHS))
    return (many - few) / (EPOCHS * FOLD_STEPS)


def _seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    started = time.perf_counter()
    work()
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps({"gpu": torch.cuda.get_device_name(0), **step_times()}, indent=2))
