"""CUDA graphs of training steps: the CPU gives a GPU a whole step by one call, instead of by one for each kernel."""

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

DEVICES = ("cuda",)  # kinds of devices whose steps read from tables; tests set () for steps from the loader
failed: list[torch.cuda.CUDAGraph] = []  # never destroyed: the allocator of torch may still ask an incomplete one

short_of_memory: list[int] = []  # bytes that graphs would have needed; the log says only the first

logger = logging.getLogger(__name__)

Step = Callable[[], None]


class StepGraphs:
    """Takes the steps of a training: of each shape the first one eagerly, the second as a CUDA graph that is captured.

    Later ones replay the graph. The first step loads the kernels and creates the optimizer's state. On a CPU, in a
    process in which a capture has failed, and where the memory does not suffice, steps are eager.

    A graph repeats the same kernels with the same addresses. So a step must read whatever differs between two steps of
    a shape from tensors on the device that stay where they are, must not wait for the GPU, and must not leave behind
    tensors that it allocated: the graphs of a training share their memory.

    A graph draws the random numbers that an eager step draws: at a replay torch gives it the seed that the generator
    of the device has then.

    Args:
        device: Of all tensors.
        optimizer: Whose step is part of the steps.
    """

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        self.device, self.optimizer = device, optimizer
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._needs: dict[Hashable, int] = {}  # bytes of memory, by the shapes of which a step was taken
        self._too_large = set[Hashable]()  # shapes whose graphs the memory has no room for
        self._tensors: list[Tensor] = []
        self._captured_at: list[int] = []  # addresses of the tensors

    def start(self, tensors: Iterable[Tensor]) -> None:
        """Start an epoch: forget the graphs of tensors that are elsewhere now, for example after loading a state.

        Args:
            tensors: That steps use and that are there before them, but for the optimizer's own.
        """
        self._tensors = list(tensors)
        if self._graphs and self._addresses() != self._captured_at:
            self._graphs, self._needs = {}, {}

    def take(self, shape: Hashable, step: Step, seed: Step) -> None:
        """Take a step.

        Args:
            shape: Steps of the same shape launch the same kernels.
            step: Computes it.
            seed: Seeds the random numbers; called right before the step.
        """
        run = self._way_to_take(shape, step)
        is_first = shape not in self._needs
        before = self._unused_bytes(release=True) if is_first else 0
        seed()
        run()
        if is_first:
            self._needs[shape] = self._unused_bytes() - before

    def _way_to_take(self, shape: Hashable, step: Step) -> Step:
        if self.device.type != "cuda" or failed:
            return step
        if shape not in self._needs:
            return partial(_run_aside, self._stream, step)
        if shape not in self._graphs:
            if not self._has_memory_for(shape):
                return step
            graph = self._captured(step)
            if graph is None:
                return step
            self._graphs[shape], self._captured_at = graph, self._addresses()
        return self._graphs[shape].replay

    @property
    def _stream(self) -> torch.cuda.Stream:
        """The stream of first steps and captures; one for all trainings, as torch keeps a workspace for each."""
        if self.device not in _STREAMS:
            _STREAMS[self.device] = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch has no types
        return _STREAMS[self.device]

    def _captured(self, step: Step) -> torch.cuda.CUDAGraph | None:
        """Return the graph of a step, which is not taken by that; None if it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        try:
            with (
                torch.cuda.stream(self._stream),  # restores the stream, which a graph whose capture fails does not
                _capturable(self.optimizer),
                # Other threads may use the GPU meanwhile.
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                step()
        except RuntimeError as error:
            failed.append(graph)
            self._graphs.clear()
            self.optimizer.zero_grad(set_to_none=True)
            _renew_generator(self.device)
            reason = str(error.__context__ or error).strip().split("\n")[0]  # the end of a failed capture fails, too
            logger.warning("no step is a CUDA graph from now on, and steps are slower: a capture failed: %s", reason)
            return None
        return graph

    def _unused_bytes(self, *, release: bool = False) -> int:
        """Return the memory of the GPU that torch holds and no tensor uses: after a step, what the step has needed.

        With `release` torch first gives back what it can; what stays is that of the graphs.
        """
        if self.device.type != "cuda":
            return 0
        if release:
            torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def _has_memory_for(self, shape: Hashable) -> bool:
        """Return whether a graph, which keeps its memory, leaves as much for other steps and for validation."""
        if shape in self._too_large:
            return False
        free, needed = self._free_bytes() + self._unused_bytes(), self._needs[shape]
        if free >= 2 * needed:
            return True
        if not short_of_memory:
            logger.warning(
                "steps are not CUDA graphs, and slower: a graph needs %.1f GB and validation may need as much, but "
                "%.1f are free; a smaller --batch-size has room for both",
                *(needed / 1e9, free / 1e9),
            )
        self._too_large.add(shape)
        short_of_memory.append(needed)
        return False

    def _free_bytes(self) -> int:
        """Return the memory of the GPU that torch may still take: not more than the share that the process may use."""
        free, total = torch.cuda.mem_get_info(self.device)
        share = torch.cuda.get_per_process_memory_fraction(self.device)
        return min(free, int(share * total) - torch.cuda.memory_reserved(self.device))

    def _addresses(self) -> list[int]:
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return [tensor.data_ptr() for tensor in (*self._tensors, *states)]


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _run_aside(stream: torch.cuda.Stream, step: Step) -> None:
    """Take a step on another stream, after all before it and before all after it."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        step()
    current.wait_stream(stream)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let a capture include the optimizer's step; of an eager one with this option torch warns that it is slow."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False


def _renew_generator(device: torch.device) -> None:
    """Give the generator of a device a copy of its state, which does not belong to a capture that has failed."""
    with torch.cuda.device(device):
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
