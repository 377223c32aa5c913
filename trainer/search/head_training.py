"""One head in training on stored features, an epoch at a time, able to pause between any two steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.evaluation.epoch_figures import epoch_figures
from trainer.evaluation.scoring import scored
from trainer.model.tensor_folder import newest_good, write_folder
from trainer.search.tuning_bench import HeadBench
from trainer.specs import TrainSpec
from trainer.training.ema import Average
from trainer.training.loop import Course, train_epoch
from trainer.training.optimizer import build_optimizer
from trainer.training.train_state import Position
from trainer.training.training_state import MODULE, TrainingState

CHECKPOINT_SECONDS = 60.0  # between two epochs; a head of a small data set trains faster than a disk syncs


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
