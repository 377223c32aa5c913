"""The moving average of the weights: what is validated and published in place of the weights of one step."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from trainer.model.checkpoint_folder import read_tensors

EMA = "average.safetensors"

# After n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage:
# an average over more steps than there were would be one of the random start.
YOUNG = (1, 10)


class ModelEma:
    """A module's weights and running statistics averaged over its latest steps; with a decay of 0, the module itself.

    Attributes:
        module: What is to be validated and published.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.trained, self.decay = trained, decay
        self.copy = AveragedModel(trained, multi_avg_fn=self._moved, use_buffers=True) if decay else None
        self.module: nn.Module = self.copy.module if self.copy else trained

    def update(self) -> None:
        """Take in the weights after a step."""
        if self.copy:
            self.copy.update_parameters(self.trained)

    @property
    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """The file that a checkpoint holds besides the module that trains; none where that is all there is."""
        return {EMA: dict(self.copy.state_dict())} if self.copy else {}

    def read(self, folder: Path) -> None:
        """Load what `checkpoint` left in a folder that has been checked."""
        if self.copy:
            self.copy.load_state_dict(read_tensors(folder / EMA))

    def apply_to_module(self) -> None:
        """Put the average into the module that trains: the training is over."""
        if self.copy:
            self.trained.load_state_dict(self.copy.module.state_dict())

    @torch.no_grad()
    def _moved(self, averaged: PARAM_LIST, current: PARAM_LIST, steps: Tensor | int) -> None:
        """Move `averaged` towards `current`; whole numbers, which count steps, are those of the latest."""
        if not torch.is_floating_point(averaged[0]):
            torch._foreach_copy_(averaged, current)
            return
        decay = min(self.decay, (YOUNG[0] + int(steps)) / (YOUNG[1] + int(steps)))
        get_ema_multi_avg_fn(decay)(averaged, current, steps)  # type: ignore[no-untyped-call]  # torch has no types
