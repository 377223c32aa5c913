"""Time the trials of a search of heads that train together; the peer trains them one after the other.

All train on random features of 374 images, 299 of them in steps of 32. On a CPU the time is that of the CPU.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from data_shards.index import Shard, ShardIndex
from tests.bench.measure import Row, in_turn, row
from trainer.data.batches import FeatureLoader
from trainer.distributed.process_group import ProcessGroup
from trainer.model.head import FEATURES, HeadConfig
from trainer.search.head_group import HeadGroup
from trainer.search.head_training import HeadTraining, HeadTrainingData
from trainer.specs import TrainSpec, build
from trainer.training.head_fit import one_thread
from trainer.training.optimizer import import_compiler

IMAGES, EPOCHS, PAIRS, CLASSES = {"train": 299, "valid": 75}, 10, 3, ("a", "b")
ON_CPU = [(8, (64,)), (8, (128,)), (8, (256,))]  # trials, and the widths of their heads
ON_GPU = [(16, (512,)), (16, (128, 256, 512, 1024)), (64, (128, 256, 512, 1024))]
COMMAND = "python -m tests.bench trials"


def run(*, epochs: int = EPOCHS, pairs: int = PAIRS) -> list[Row]:
    """Measure narrow heads on the CPU and, where there is one, heads of all widths on the first GPU."""
    import_compiler()
    with one_thread(True):
        rows = [_row(Bench(torch.device("cpu"), widths, trials, epochs), pairs) for trials, widths in ON_CPU]
    return rows + (on_gpu() if torch.cuda.is_available() else [])


def on_gpu(*, epochs: int = EPOCHS // 2, pairs: int = 1) -> list[Row]:
    """Measure on the first GPU alone; most of the minute that it takes is that of the peer."""
    return [_row(Bench(torch.device("cuda"), widths, trials, epochs), pairs) for trials, widths in ON_GPU]


@dataclass
class Bench:
    """The trials of one measurement, which differ in learning rate, dropout, weight decay and width."""

    device: torch.device
    widths: Sequence[int]
    trials: int
    epochs: int

    def __post_init__(self) -> None:
        self.data = data_on(self.device)

    def heads(self) -> list[HeadTraining]:
        """Return the heads of the trials before their first step."""
        return [self._head(number) for number in range(self.trials)]

    def together(self) -> list[float]:
        """Train all trials together; return the last valid loss of each."""
        heads, group = self.heads(), HeadGroup(max(self.widths), lambda: None)
        for _ in range(self.epochs):
            failed = [error for error in group.train_epoch(heads).values() if error is not None]
            assert not failed, failed
        return [head.line["valid_loss"] for head in heads]

    def alone(self) -> list[float]:
        """Train one trial after the other; return the last valid loss of each."""
        heads = self.heads()
        for head in heads:
            for _ in range(self.epochs):
                head.epoch()
        return [head.line["valid_loss"] for head in heads]

    def seconds(self, train: Any) -> float:
        """Return the seconds that a training takes, on a CPU those of the CPU."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        began = clock()
        train()
        return clock() - began

    def _head(self, number: int) -> HeadTraining:
        spec = build(
            TrainSpec,
            shards="memory",
            epochs=self.epochs,
            patience=None,
            lr=10 ** (-4 + 2 * number / self.trials),
            dropout=0.6 * number / self.trials,
            weight_decay=0.01 * (number % 3),
            head_width=self.widths[number % len(self.widths)],
        )
        return HeadTraining(self.data, spec, Path("/nowhere"), lambda: None, cast("Any", None))


def data_on(device: torch.device) -> HeadTrainingData:
    """Draw features that depend on the label of each image."""
    draw = torch.Generator().manual_seed(0)
    direction = 0.02 * torch.randn(FEATURES, generator=draw)
    labels = {split: (torch.rand(count, generator=draw) < 0.25).long() for split, count in IMAGES.items()}
    values = {
        split: 0.3 * torch.randn(len(found), FEATURES, generator=draw).abs() + found[:, None] * direction
        for split, found in labels.items()
    }
    return HeadTrainingData(
        context=cast("Any", SimpleNamespace(process_group=ProcessGroup(0, 1, device))),
        index=ShardIndex(classes=CLASSES, shards=tuple(_shard(split, found) for split, found in labels.items())),
        config=HeadConfig(classes=CLASSES, width=512, dropout=0.0, image_size=224),
        loader=FeatureLoader(_on(values, device), _on(labels, device), device),
        groups=(),
        weights=None,
        start={},
    )


def _on(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {split: tensor.to(device) for split, tensor in tensors.items()}


def _shard(split: str, labels: Tensor) -> Shard:
    per_class = tuple(torch.bincount(labels, minlength=len(CLASSES)).tolist())
    return Shard(
        name=f"{split}-0.tar", split=split, samples=len(labels), per_class=per_class, bytes=1, sha256="0" * 64
    )  # fmt: skip


def _row(bench: Bench, pairs: int) -> Row:
    apart = max(abs(one - other) for one, other in zip(bench.together(), bench.alone(), strict=True))
    times = in_turn(lambda: bench.seconds(bench.together), lambda: bench.seconds(bench.alone), pairs=pairs)
    widths = ", ".join(map(str, bench.widths))
    on = "the CPU" if bench.device.type == "cpu" else torch.cuda.get_device_name(0)
    return row(
        *times, more_is_better=False, unit="CPU s" if bench.device.type == "cpu" else "s", goal=None, command=COMMAND,
        what=f"{bench.trials} trials with heads of width {widths}, {bench.epochs} epochs on {on}",
        beside="one after the other",
        parity=f"valid losses differ by at most {apart:.1e}",
    )  # fmt: skip


if __name__ == "__main__":
    for found in on_gpu():
        print(f"{found.what}: {found.ours:.2f} s, {found.beside} {found.peer:.2f} s; {found.parity}")
