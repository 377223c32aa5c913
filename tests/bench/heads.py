"""Time the training of 25 heads as those of folds are trained; the peer trains them one after the other.

Both train on random features of 374 images, each head on 299 of them, for 10 epochs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.resources import cpu_count
from tests.bench.measure import Row, in_turn, row, seconds
from trainer.model.head import FEATURES, HeadConfig
from trainer.specs import TrainSpec, build
from trainer.training.batched_heads import HeadBatch, HeadRows, head_batches, heads_at_once
from trainer.training.forked_work import results_of
from trainer.training.head_fit import HeadFit, one_thread
from trainer.training.optimizer import import_compiler

HEADS, IMAGES, OF_HEAD, EPOCHS, PAIRS = 25, 374, 299, 10, 3
NARROW, DEFAULT = (64, 128, 256), 512
COMMAND = "python -m tests.bench heads"


def run(*, heads: int = HEADS, epochs: int = EPOCHS, pairs: int = PAIRS) -> list[Row]:
    """Measure narrow heads that train as one model, in CPU seconds, and wide ones in several processes."""
    import_compiler()
    return [
        *(_as_one_model(Bench.of(width, heads, epochs), pairs=pairs) for width in NARROW),
        _in_processes(Bench.of(DEFAULT, heads, epochs), pairs=pairs),
    ]


@dataclass(frozen=True)
class Bench:
    """The heads of one width, and what they train on."""

    fit: HeadFit
    features: Tensor
    labels: Tensor
    heads: Sequence[HeadRows]

    @classmethod
    def of(cls, width: int, heads: int, epochs: int) -> "Bench":
        """Draw features that depend on the label of each image."""
        draw = torch.Generator().manual_seed(0)
        labels = (torch.rand(IMAGES, generator=draw) < 0.25).long()
        direction = 0.02 * torch.randn(FEATURES, generator=draw)
        features = 0.3 * torch.randn(IMAGES, FEATURES, generator=draw).abs() + labels[:, None] * direction
        spec = build(TrainSpec, shards="memory", head_width=width, epochs=epochs)
        config = HeadConfig(classes=("a", "b"), width=width, dropout=spec.dropout, image_size=spec.image_size)
        rows = [HeadRows(torch.randperm(IMAGES, generator=draw)[:OF_HEAD], seed) for seed in range(heads)]
        fit = HeadFit(spec=spec, config=config, device=torch.device("cpu"))
        return cls(fit, features, labels, rows)

    @property
    def at_once(self) -> int:
        """Heads of a batch."""
        return heads_at_once(self.fit.config, self.fit.spec, self.fit.device)

    def together(self) -> dict[int, nn.Module]:
        """Train the heads in batches; return them by their numbers."""
        found = dict[int, nn.Module]()
        for batch in head_batches(self.heads, batch_size=self.fit.spec.batch_size, most=self.at_once):
            chosen = [self.heads[number] for number in batch]
            trained = HeadBatch(fit=self.fit, features=self.features, labels=self.labels, heads=chosen).train()
            found |= dict(zip(batch, trained, strict=True))
        return found

    def alone(self, number: int) -> nn.Module:
        """Train one head."""
        head = self.heads[number]
        return self.fit.fit(self.features[head.rows], self.labels[head.rows], seed=head.seed)

    @torch.no_grad()
    def logits(self, head: nn.Module) -> Tensor:
        """Return the logits of all images."""
        found: Tensor = head(self.features)
        return found


def _as_one_model(bench: Bench, *, pairs: int) -> Row:
    apart = max(
        float((bench.logits(head) - bench.logits(bench.alone(number))).abs().max())
        for number, head in bench.together().items()
    )
    times = in_turn(
        lambda: _cpu_seconds(bench.together),
        lambda: _cpu_seconds(lambda: [bench.alone(number) for number in range(len(bench.heads))]),
        pairs=pairs,
    )
    return row(
        *times, more_is_better=False, unit="CPU s", goal=None, command=COMMAND,
        what=f"{len(bench.heads)} heads of width {bench.fit.config.width}, at most {bench.at_once} at once",
        beside="one after the other", parity=f"logits differ by at most {apart:.1e}",
    )  # fmt: skip


def _in_processes(bench: Bench, *, pairs: int) -> Row:
    numbers = range(len(bench.heads))

    def logits_of(number: int, _: Callable[[int], None]) -> NDArray[np.float32]:
        return bench.logits(bench.alone(number)).numpy()

    def forked() -> dict[int, NDArray[np.float32]]:
        return dict(results_of(logits_of, numbers, processes=cpu_count(), on_images=lambda _: None))

    with one_thread(True):
        here = {number: logits_of(number, lambda _: None) for number in numbers}
        apart = max(float(abs(found - here[number]).max()) for number, found in forked().items())
        times = in_turn(
            lambda: seconds(forked),
            lambda: seconds(lambda: [bench.alone(number) for number in numbers]),
            pairs=pairs,
        )
    return row(
        *times, more_is_better=False, unit="s", goal=None, command=COMMAND,
        what=f"{len(bench.heads)} heads of width {bench.fit.config.width}, in {cpu_count()} processes",
        beside="one after the other", parity=f"logits differ by at most {apart:.1e}",
    )  # fmt: skip


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
