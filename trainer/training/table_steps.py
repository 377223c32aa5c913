"""Steps of a training that read all that differs between them from tables on the device, so that they can be graphs."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from trainer.training.ema import ModelEma
from trainer.training.step_graphs import StepGraphs

Shape = TypeVar("Shape", bound=Hashable)  # of a step
Row = Callable[[str], Tensor]  # returns what a column has for the step that is taken


@dataclass(frozen=True, kw_only=True)
class EpochSteps(Generic[Shape]):
    """The T steps of an epoch.

    Attributes:
        first: Number of the first one to take, from 0.
        shapes: Of each step, what its kernels depend on.
        lrs: Of each step, the learning rate of the head.
        columns: What steps read, by name: `(T, ...)` each.
        losses: Shape of the losses of a step.
    """

    first: int
    shapes: Sequence[Shape]
    lrs: Sequence[float]
    columns: Mapping[str, Tensor]
    losses: tuple[int, ...] = ()


class StepTable:
    """Columns with a row for each step of an epoch, and the number of the next step, on a device.

    The tensors stay where they are, epoch after epoch, as long as their shapes do.
    """

    def __init__(self, device: torch.device) -> None:
        self.columns: dict[str, Tensor] = {}
        self._number = torch.zeros(1, dtype=torch.int64, device=device)

    def fill(self, first: int, columns: Mapping[str, Tensor]) -> None:
        """Set columns, `(T, ...)` each, and the number of the next step."""
        for name, found in columns.items():
            if name in self.columns and self.columns[name].shape == found.shape:
                self.columns[name].copy_(found, non_blocking=True)
            else:
                self.columns[name] = found.to(self._number.device, copy=True, non_blocking=True)
        self._number.fill_(first)

    def row(self, name: str) -> Tensor:
        """Return what a column has for the next step."""
        return self.columns[name].index_select(0, self._number)[0]

    def copy_row(self, name: str, target: Tensor) -> None:
        """Write what a column has for the next step, `(1, ...)`, to a tensor that stays where it is."""
        torch.index_select(self.columns[name], 0, self._number, out=target)

    def end_step(self, name: str, value: Tensor) -> None:
        """Write a value to a column, and go on to the next step."""
        column = self.columns[name]
        is_this = (self.columns["number"] == self._number).view(-1, *[1] * value.ndim)
        torch.where(is_this, value, column, out=column)
        self._number.add_(1)

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [self._number, *self.columns.values()]


class TableSteps:
    """Takes the steps of a training whose data or batch is on the device, on a GPU as CUDA graphs.

    The same function computes a step eagerly and in a graph, from the same tables. So results do not depend on which
    steps are graphs: a resumed training begins with eager ones where the uninterrupted one had graphs.

    Args:
        module: What trains.
        optimizer: Its learning rates are tensors from the first step on.
        ema: Average of the module, or of a module of which it is a part; None: there is none.
        data: Other tensors that steps use.
    """

    def __init__(
        self, *, module: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEma | None, data: Iterable[Tensor] = ()
    ) -> None:
        self.optimizer, self.ema = optimizer, ema if ema is not None and ema.averaged else None
        self.device = device = next(module.parameters()).device
        self._modules = [module] if self.ema is None else [module, self.ema.source, self.ema.module]
        self._data = list(data)
        self._table = StepTable(device)
        # A kernel on a GPU takes a rate in float32; on a CPU it takes the number that a training without tables has.
        self._rate_type = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = [torch.zeros(1, dtype=self._rate_type, device=device) for _ in optimizer.param_groups]
        self._graphs = StepGraphs(device, optimizer)

    def use(self, *tensors: Tensor) -> None:
        """Name more tensors that the steps use."""
        self._data += tensors

    def take(
        self, steps: EpochSteps[Shape], prepare: Callable[[int], None], train_on: Callable[[Shape, Row], Tensor]
    ) -> Iterator[Tensor]:
        """Take the steps of an epoch one after another, and yield the losses of each.

        Args:
            steps: All of them.
            prepare: Called with the number of each step before it: seeds the random numbers.
            train_on: Computes a step of a shape but for the EMA, and returns its losses, float64 on the device.
        """
        self._fill(steps)
        self._graphs.start(self._tensors())
        for number in range(steps.first, len(steps.shapes)):
            shape = steps.shapes[number]
            self._graphs.take(shape, partial(self._step, shape, train_on), partial(prepare, number))
            if self.ema is not None:
                self.ema.count()
            yield self._table.columns["losses"][number]

    def _fill(self, steps: EpochSteps[Shape]) -> None:
        count = len(steps.shapes)
        columns = {
            "number": torch.arange(count),
            "losses": torch.zeros(count, *steps.losses, dtype=torch.float64),
            **steps.columns,
        }
        for place, group in enumerate(self.optimizer.param_groups):
            rates = [lr * group["factor"] for lr in steps.lrs]
            columns[f"lr {place}"] = torch.tensor(rates, dtype=self._rate_type)
            group["lr"] = self._rates[place][0]
        if self.ema is not None:
            before = self.ema.updates - steps.first
            decays = [self.ema.decay_after(max(0, before + number)) for number in range(count)]
            columns["ema"] = torch.tensor([1 - decay for decay in decays])
        self._table.fill(steps.first, columns)

    def _step(self, shape: Shape, train_on: Callable[[Shape, Row], Tensor]) -> None:
        for place, rate in enumerate(self._rates):
            self._table.copy_row(f"lr {place}", rate)
        losses = train_on(shape, self._table.row)
        if self.ema is not None:
            self.ema.move(self._table.row("ema"))
        self._table.end_step("losses", losses)

    def _tensors(self) -> Iterator[Tensor]:
        modules = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in self._modules)
        return chain(modules, self._data, self._rates, self._table.tensors())
