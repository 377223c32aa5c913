"""Gathers losses and requests from all ranks once for several steps: each time, the CPU waits for the GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.distributed.process_group import ProcessGroup

GATHER_SECONDS = 1.0  # about, between two times: a training stops that soon
MAX_STEPS = 64  # between two times: what a GPU is given ahead


@dataclass(frozen=True)
class Requests:
    """What rank 0 asks all ranks for after a step.

    Attributes:
        stop_reason: Why the training should stop; None: it should not.
        saves: Whether to save a checkpoint.
        polls: Whether to ask for notices of a preemption.
    """

    stop_reason: str | None = None
    saves: bool = False
    polls: bool = False

    def __bool__(self) -> bool:
        return self.stop_reason is not None or self.saves or self.polls


@dataclass
class StepGatherer:
    """The losses of the steps since the last time that all ranks gathered them.

    The first step of an epoch is gathered alone. Then rank 0 decides, by the time that the last steps took, after how
    many steps the ranks gather again.
    """

    process_group: ProcessGroup
    now: Callable[[], float] = time.monotonic
    _losses: list[Tensor] = field(default_factory=list)
    _every: int = 1
    _since: float = 0.0

    def start(self) -> None:
        """Start an epoch, or the rest of one."""
        self._losses, self._every, self._since = [], 1, self.now()

    def add(self, loss_sum: Tensor) -> None:
        """Keep the sum of this rank's losses in a step, () float64 on the device."""
        self._losses.append(loss_sum)

    @property
    def is_empty(self) -> bool:
        """Whether the losses of all steps are gathered."""
        return not self._losses

    @property
    def is_due(self) -> bool:
        """Whether all ranks gather after this step; the same on every rank."""
        return len(self._losses) >= self._every

    def gather(self, requests: Requests) -> tuple[list[float], "Gathered"]:
        """Return the loss of each step over all ranks, and what any of them asks for; every rank must call this."""
        group, steps = self.process_group, len(self._losses)
        losses = torch.stack(self._losses)
        if group.world_size == 1:
            found = [*losses.tolist(), *_as_numbers(requests), 0.0]
        else:
            every = float(self._next_interval(steps)) if group.is_rank_zero else 0.0
            own = torch.tensor([*_as_numbers(requests), every], dtype=torch.float64, device=losses.device)
            found = group.all_reduce_tensor(torch.cat([losses, own]))
        stops, saves, polls, every = found[steps:]
        self._every, self._losses, self._since = int(every) or self._next_interval(steps), [], self.now()
        return found[:steps], Gathered(stops=bool(stops), saves=bool(saves), polls=bool(polls))

    def _next_interval(self, steps: int) -> int:
        """Return after how many more steps to gather; after each one where the CPU waits for nobody."""
        if self.process_group.world_size == 1 and self.process_group.device.type == "cpu":
            return 1
        seconds = (self.now() - self._since) / steps
        return max(1, min(MAX_STEPS, int(GATHER_SECONDS / max(seconds, 1e-9))))


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What any rank asks for."""

    stops: bool
    saves: bool
    polls: bool


def _as_numbers(requests: Requests) -> tuple[float, float, float]:
    return float(requests.stop_reason is not None), float(requests.saves), float(requests.polls)
