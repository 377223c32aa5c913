"""Exponential moving average (EMA) of the weights: the model that is validated and published."""

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.model.checkpoint_folder import read_tensors

EMA = "average.safetensors"

# After n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage. Otherwise the
# random initial weights would dominate the average of a short training.
WARM_UP = (1, 10)


class ModelEma:
    """The exponential moving average of a module's weights and buffers; with a decay of 0, the module itself.

    Attributes:
        module: The averaged module, to validate and publish.
        source: The module that trains.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.source, self.decay = source, decay
        self.averaged = AveragedModel(source, use_buffers=True) if decay else None
        self.module: nn.Module = self.averaged.module if self.averaged else source
        self.updates = 0  # as `n_averaged`, but known without waiting for a GPU

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after an optimizer step."""
        if self.averaged is None:
            return
        averages, sources = self._floating()
        average = get_ema_multi_avg_fn(self.decay_after(self.updates))  # type: ignore[no-untyped-call]  # torch has none
        average(averages, sources, self.updates)
        self.count()

    def count(self) -> None:
        """Count an update. The counters are on the CPU, where a replay of a CUDA graph changes nothing."""
        if self.averaged is not None:
            self.updates += 1
            self.averaged.n_averaged += 1

    def decay_after(self, updates: int) -> float:
        """Return the decay of the next update after so many; 0 of the first, which copies."""
        return min(self.decay, (WARM_UP[0] + updates) / (WARM_UP[1] + updates)) if updates else 0.0

    @torch.no_grad()
    def move(self, weight: Tensor) -> None:
        """Move the average as `update` does, by a weight that can differ between replays of a CUDA graph.

        It is not counted as an update.

        Args:
            weight: 1 - decay, `() float32` on the device.
        """
        if self.averaged is None:
            return
        for average, source in zip(*self._floating(), strict=True):
            average.lerp_(source, weight)

    def _floating(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the floating-point tensors of the average and of the module that trains; copy those that count steps.

        These are integer buffers, which have no average.
        """
        pairs = list(zip(_tensors(self.module), _tensors(self.source), strict=True))
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        if copied:
            torch._foreach_copy_([pair[0] for pair in copied], [pair[1] for pair in copied])
        moved = [pair for pair in pairs if pair[0].is_floating_point()]
        return [pair[0] for pair in moved], [pair[1] for pair in moved]

    def state_files(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the checkpoint by file name; empty when the decay is 0."""
        return {EMA: dict(self.averaged.state_dict())} if self.averaged else {}

    def load(self, checkpoint: Path) -> None:
        """Load what `state_files` returned from the folder of a verified checkpoint."""
        if self.averaged:
            self.averaged.load_state_dict(read_tensors(checkpoint / EMA))
            self.updates = int(self.averaged.n_averaged)

    def copy_to_source(self) -> None:
        """Copy the average into the module that trained, at the end of the training."""
        if self.averaged:
            self.source.load_state_dict(self.averaged.module.state_dict())


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers."""
    return [tensor.detach() for tensor in itertools.chain(module.parameters(), module.buffers())]
