"""What a checkpoint holds of a training that goes on: module, optimizer, moving average and position."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cluster.files import read_json
from trainer.model.tensor_folder import read_tensors, remove_old, step_folder, write_folder
from trainer.training.ema import Average
from trainer.training.optimizer import load_optimizer, optimizer_tensors
from trainer.training.train_state import Position

MODULE, OPTIMIZER, POSITION = "module.safetensors", "optimizer.safetensors", "position.json"


@dataclass(frozen=True)
class TrainingState:
    """All that changes as a training goes on, but for its position."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average

    def write(self, checkpoints: Path, position: Position, *, attempt: int) -> None:
        """Write a checkpoint into the folder of all, and remove those that are too old.

        Raises:
            CheckpointError: The storage is full; the checkpoints before this one stay.
        """
        write_folder(
            step_folder(checkpoints, position.step),
            tensors={
                MODULE: self.module.state_dict(),
                OPTIMIZER: optimizer_tensors(self.optimizer),
                **self.average.checkpoint,
            },
            facts={POSITION: position.to_json()},
            about={"attempt": attempt},
        )
        remove_old(checkpoints)

    def read(self, checkpoint: Path) -> Position:
        """Take over what `write` left in a folder that has been checked, and return where that was."""
        self.module.load_state_dict(read_tensors(checkpoint / MODULE))
        load_optimizer(self.optimizer, read_tensors(checkpoint / OPTIMIZER))
        self.average.read(checkpoint)
        return Position(**read_json(checkpoint / POSITION))
