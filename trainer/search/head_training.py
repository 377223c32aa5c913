"""One head in training on stored features, an epoch at a time, able to pause between any two steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.stop_request import StopWatcher
from data_shards.index import ShardIndex, read_index
from trainer.data.batches import StoredFeatures
from trainer.distributed.process_group import Ranks
from trainer.distributed.worker import Order, Post
from trainer.evaluation.scoring import epoch_figures, scored
from trainer.model.efficientnet import Backbone, Head, build_head
from trainer.model.head import HeadConfig
from trainer.model.tensor_folder import newest_good, write_folder
from trainer.progress import Progress
from trainer.specs import SearchSpec, TrainSpec
from trainer.training.checkpointer import MODULE, TrainingState
from trainer.training.ema import Average
from trainer.training.loop import Course, train_epoch
from trainer.training.model_setup import class_weights, extraction_for, fresh_model
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import Position

CHECKPOINT_SECONDS = 60.0  # between two epochs; a head of a small data set trains faster than a disk syncs


@dataclass(frozen=True)
class HeadBench:
    """Everything that trials over one frozen backbone share.

    Attributes:
        config: Of the model, with the width and dropout of the search's own options.
        source: Features of the train and valid splits, on the device.
        start: State of the random numbers, by seed, as `train` has it when it builds the head.
    """

    post: Post
    index: ShardIndex
    config: HeadConfig
    source: StoredFeatures
    weights: Tensor | None
    start: dict[int, Tensor]

    @classmethod
    def of(cls, order: Order[SearchSpec], device: torch.device) -> "HeadBench":
        """Read the features, which the search has computed before its first trial, into memory.

        Raises:
            ShardError, CheckpointError: Shards or stored features are damaged.
        """
        spec = order.spec.trial_spec({})
        post = lone_post(order, spec, device)
        index = read_index(spec.shards)
        model, config = fresh_model(post, index)
        extraction = extraction_for(post, spec.shards, index, model, config, cached=True)
        found = {split: extraction.of_split(split) for split in ("train", "valid")}
        source = StoredFeatures(
            values={split: features.values.to(device) for split, features in found.items()},
            labels={split: features.labels.to(device) for split, features in found.items()},
        )
        return cls(post, index, config, source, class_weights(spec, index, device), {})

    @property
    def device(self) -> torch.device:
        """Where heads train."""
        return self.post.ranks.device

    def config_of(self, spec: TrainSpec) -> HeadConfig:
        """Return the description of a trial's model."""
        return self.config.model_copy(update={"width": spec.head_width, "dropout": spec.dropout})

    def fresh_head(self, spec: TrainSpec) -> Head:
        """Return the head that `train` with this spec would start from, to the last bit."""
        if spec.seed not in self.start:
            torch.manual_seed(spec.seed)
            Backbone(self.config.image_size, self.config.layout)  # draws what `train` has drawn before its head
            self.start[spec.seed] = torch.get_rng_state()
        torch.set_rng_state(self.start[spec.seed])
        return build_head(self.config_of(spec)).to(self.device)


def lone_post(order: Order[SearchSpec], spec: TrainSpec, device: torch.device) -> Post:
    """Return the post of a worker that works alone on one trial and leaves telling and stopping to the search."""
    attempt = order.attempt
    nowhere = attempt.paths.scratch / "nowhere" / "stop.json"  # a search that is stopped still publishes its best
    return Post(
        order=Order(attempt=attempt, spec=spec, source=order.source),
        ranks=Ranks(0, 1, device),
        progress=Progress(attempt.paths, attempt.number, writes=False),
        stop=StopWatcher(nowhere, attempt.number),
    )


class HeadTraining:
    """A head, its optimizer and where it stands; begins where its newest checkpoint is.

    Args:
        bench: What it trains on.
        spec: The training.
        folder: For its checkpoints.
        stop_reason: Why it shall pause, or None; asked at each step.
        attempt: Number of the attempt, written into checkpoints.
    """

    def __init__(
        self, bench: HeadBench, spec: TrainSpec, folder: Path, stop_reason: Callable[[], str | None], attempt: int
    ) -> None:
        self.bench, self.spec, self.folder, self.attempt = bench, spec, folder, attempt
        self.module = bench.fresh_head(spec)
        self.optimizer = build_optimizer(
            self.module, None, backbone_factor=1.0, weight_decay=spec.weight_decay, device=bench.device
        )
        self.average = Average(self.module, spec.ema)
        self.state = TrainingState(self.module, self.optimizer, self.average)
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.judged: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self.course = self._course(stop_reason)
        self.position = self._resumed()

    def epoch(self) -> dict[str, Any]:
        """Train one epoch and return its line as `metrics.jsonl` of a training would have it.

        Raises:
            Stopped: It shall pause; a checkpoint is saved.
            TrainingDiverged: The loss is no number any more.
        """
        self.position = train_epoch(self.course, self.module, self.position)
        return self.figures

    @property
    def value(self) -> float | None:
        """The metric that ranks, after the last epoch; None where the validation split leaves it undefined."""
        found = self.judged.get(self.spec.best_by)
        return None if found is None else float(found)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are behind, or patience has run out."""
        return self.position.epoch >= self.spec.epochs or self.position.out_of_patience(self.spec.patience)

    def write_candidate(self, folder: Path) -> None:
        """Write the head as it is now."""
        tensors = {MODULE: self.average.module.state_dict()}
        write_folder(folder, tensors=tensors, facts={}, about={"attempt": self.attempt})

    def save(self, position: Position) -> None:
        """Write a checkpoint to go on from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state.write(self.folder, position, attempt=self.attempt)
        self.saved_at, self.saved_step = time.monotonic(), position.step

    def settle(self) -> None:
        """Save a checkpoint of the last epoch, unless a later one is saved."""
        if self.position.step > self.saved_step:
            self.save(self.position)

    def _course(self, stop_reason: Callable[[], str | None]) -> Course:
        bench = self.bench
        return Course(
            spec=self.spec,
            index=bench.index,
            ranks=bench.post.ranks,
            module=self.module,
            optimizer=self.optimizer,
            source=bench.source,
            class_weights=bench.weights,
            validate=self._judge,
            save=self._save_now_and_then,
            record=self._remember,
            count=lambda _: None,
            begin_epoch=lambda _: None,
            stop_reason=stop_reason,
            after_step=self.average.follow,
        )

    def _judge(self) -> dict[str, Any]:
        bench = self.bench
        self.judged = epoch_figures(scored(self.average.module, bench.source, bench.index, "valid", bench.post.ranks))
        return self.judged

    def _save_now_and_then(self, position: Position, _is_best: bool) -> None:
        # In mid-epoch the loop saves only when it stops.
        if position.batch or time.monotonic() - self.saved_at >= CHECKPOINT_SECONDS:
            self.save(position)

    def _remember(self, figures: dict[str, Any]) -> None:
        self.figures = figures

    def _resumed(self) -> Position:
        found = newest_good(self.folder)
        if found is None:
            return Position()
        position = self.state.read(found)
        self.saved_step = position.step
        if position.epoch and not position.batch:
            self._judge()
        return position
