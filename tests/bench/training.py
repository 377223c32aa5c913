"""A frozen training of 10 epochs, from the first image to the best checkpoint, beside the same without Nightshift."""

import logging
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from data_shards.index import read_index
from data_shards.options import PackOptions
from data_shards.pack import pack
from tests.bench.measure import Row, in_turn, row, seconds
from tests.bench.peers import training as peer
from tests.trained import done, evaluated
from trainer.model import Head
from trainer.specs import TrainSpec, build

SHARED = Path(__file__).resolve().parents[3] / "shared"
IMAGES = SHARED / "data" / "chest_xray"
WEIGHTS = SHARED / "weights" / "efficientnet-b0-standin.pth"
EPOCHS = 10
PAIRS = 3
COLD_GOAL, WARM_GOAL = 8.0, 40.0
POINT = 0.01
COMMAND = "python -m tests.bench training"
PEER = "ImageFolder + DataLoader, eager float32, frozen in eval mode"


def run() -> list[Row]:
    """Measure cold and warm beside the same peer runs."""
    if not IMAGES.exists():
        raise SystemExit(f"the images of {IMAGES} are absent; this benchmark needs them")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        pack(IMAGES, Path(folder) / "shards", PackOptions(shard_bytes=1_500_000))
        bench = Bench(Path(folder))
        bench.ours("warm-up")
        cold, theirs = in_turn(bench.cold, bench.peer, pairs=PAIRS)
        warm = [bench.warm() for _ in theirs]
        words = {
            "beside": PEER,
            "unit": "s",
            "parity": f"test accuracy, median of {PAIRS} seeds: {bench.accuracy:.3f} and {bench.peer_accuracy:.3f}",
            "command": COMMAND,
            "more_is_better": False,
        }
        return [
            row(cold, theirs, what=f"{EPOCHS} epochs, cache cold", goal=COLD_GOAL, **words),
            row(warm, theirs, what=f"{EPOCHS} epochs, cache warm", goal=WARM_GOAL, **words),
        ]


@dataclass
class Bench:
    """The runs of one measurement; each pair has its own seed."""

    folder: Path
    cold_runs: int = 0
    warm_runs: int = 0

    def __post_init__(self) -> None:
        self.accuracies: list[float] = []
        self.peer_accuracies: list[float] = []

    @cached_property
    def shards(self) -> Path:
        """The packed X-rays."""
        return self.folder / "shards"

    def cold(self) -> float:
        """Train in a storage that has no features yet."""
        self.cold_runs += 1
        return self.ours(f"cold-{self.cold_runs}", seed=self.cold_runs - 1)

    def warm(self) -> float:
        """Train in the storage of the cold run."""
        self.warm_runs += 1
        return self.ours(f"cold-{self.warm_runs}", run="warm", seed=self.warm_runs - 1)

    def ours(self, storage: str, *, run: str = "run", seed: int = 0) -> float:
        """Return the seconds of one training in this process."""
        spec = build(TrainSpec, shards=str(self.shards), weights=str(WEIGHTS), epochs=EPOCHS, seed=seed)
        took = seconds(lambda: done(self.folder / storage, spec, run))
        if storage.startswith("cold") and run == "run":
            best = self.folder / storage / "runs" / run / "best"
            self.accuracies.append(evaluated(self.folder / storage, best, self.shards).metrics["accuracy"])
        return took

    def peer(self) -> float:
        """Return the seconds of the peer's training, with the head that ours starts from."""
        torch.manual_seed(len(self.peer_accuracies))
        head = Head(2, TrainSpec.model_fields["head_width"].default, TrainSpec.model_fields["dropout"].default)
        counts = read_index(str(self.shards)).per_class_in("train")
        weights = torch.tensor([sum(counts) / (2 * n) for n in counts])
        took = seconds(lambda: peer.train(IMAGES, WEIGHTS, head, epochs=EPOCHS, lr=5e-4, class_weights=weights))
        self.peer_accuracies.append(peer.accuracy(IMAGES, WEIGHTS, head))
        return took

    @property
    def accuracy(self) -> float:
        """Median over the seeds."""
        return sorted(self.accuracies)[len(self.accuracies) // 2]

    @property
    def peer_accuracy(self) -> float:
        """Median over the seeds."""
        return sorted(self.peer_accuracies)[len(self.peer_accuracies) // 2]
