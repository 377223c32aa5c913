"""Measure frozen forward and fine-tuning on a GPU beside efficientnet_pytorch as it comes and, where installed, timm.

Also measures how much of the memory's bandwidth the frozen forward pass uses. All sides use bf16 and channels last, on
random images that are already on the GPU, and random weights: only speed is compared. `pip install timm` adds rows.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tests.bench.measure import Absent, Row, in_turn, row, seconds
from tests.bench.peers.training import backbone, head
from tests.bench.steps import CONFIG, LR, Stepper, batch_of, fresh
from tests.gpu.measure import COPY_BYTES, forward_bytes
from trainer.data.transforms import normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.model.folded_backbone import FoldedBackbone

COMMAND = "python -m tests.bench gpu"
PACKAGE = "unmodified efficientnet_pytorch"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured where.

    Attributes:
        device: A GPU; a CPU proves that the measurement works.
        forward_batch: Images of a forward pass.
        step_batch: Images of a step.
        repeats: Calls of each time that is taken.
        pairs: Times of each side.
        copy_bytes: Size of the copy that shows the bandwidth.
        with_timm: Whether to measure timm too, eager and compiled.
    """

    device: torch.device
    forward_batch: int = 256
    step_batch: int = 128
    repeats: int = 20
    pairs: int = 5
    copy_bytes: int = COPY_BYTES
    with_timm: bool = False

    def rows(self) -> Iterator[Row]:
        """Measure."""
        yield self._bandwidth()
        yield self._forward(_package(self.device).eval(), PACKAGE)
        yield self._step(_package(self.device), PACKAGE)
        for compiled in (False, True) if self.with_timm else ():
            name = f"timm efficientnet_b0, {'compiled' if compiled else 'eager'}"
            yield self._forward(_timm(self.device, compiled).eval(), name)
            yield self._step(_timm(self.device, compiled), name)

    def _bandwidth(self) -> Row:
        source = torch.empty(self.copy_bytes, dtype=torch.uint8, device=self.device)
        target, moved = torch.empty_like(source), self.forward_batch * forward_bytes()
        return self._row(
            self._ours_forward(), partial(target.copy_, source), (moved / 1e9, 2 * self.copy_bytes / 1e9),
            what=f"frozen forward, bf16, batch {self.forward_batch}: memory bandwidth", unit="GB/s",
            beside="a copy in the device's memory",
            parity=f"{moved / self.forward_batch / 1e6:.0f} MB an image: what all kernels read and write, counted",
        )  # fmt: skip

    def _forward(self, network: nn.Module, name: str) -> Row:
        pixels = self._pixels()

        @torch.no_grad()
        def peer() -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                return network(normalised(pixels, CONFIG))  # type: ignore[no-any-return]

        return self._row(
            self._ours_forward(), peer, (self.forward_batch, self.forward_batch), beside=f"{name}, autocast to bf16",
            what=f"frozen forward, bf16, batch {self.forward_batch}", unit="images/s",
            parity="the same layers and images; random weights",
        )  # fmt: skip

    def _step(self, network: nn.Module, name: str) -> Row:
        images, labels = batch_of(self.step_batch, self.device)
        ours = Stepper(fresh(self.device), ProcessGroup(0, 1, self.device), images, labels, bf16=True)
        theirs = nn.Sequential(network.requires_grad_(True), nn.Flatten(), head(512, 0.0, 2).to(self.device)).train()
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, fused=True)

        def peer() -> None:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(theirs(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()

        return self._row(
            ours.step, peer, (self.step_batch, self.step_batch), beside=f"{name}, autocast to bf16, fused AdamW",
            what=f"fine-tuning step, bf16, batch {self.step_batch}", unit="images/s",
            parity="the same layers, images and head; random weights",
        )  # fmt: skip

    def _ours_forward(self) -> Callable[[], object]:
        network = FoldedBackbone(fresh(self.device).eval().backbone, "bf16", self.device)
        return partial(network.on_device, self._pixels(), partial(normalised, config=CONFIG))

    def _pixels(self) -> Tensor:
        return torch.randint(0, 256, (self.forward_batch, 1, 224, 224), dtype=torch.uint8, device=self.device)

    def _row(
        self, ours: Callable[[], object], peer: Callable[[], object], amounts: tuple[float, float], **words: str
    ) -> Row:
        """Return the rates of both sides; `amounts` is what a call of each processes."""
        for work in (ours, peer):
            self._time_of(work)  # warm-up: compiles, and selects the fastest kernels
        mine, theirs = in_turn(
            lambda: amounts[0] / self._time_of(ours), lambda: amounts[1] / self._time_of(peer), pairs=self.pairs
        )
        return row(mine, theirs, more_is_better=True, goal=None, command=COMMAND, **words)

    def _time_of(self, work: Callable[[], object]) -> float:
        """Return the mean seconds of one call over several calls; the device has finished before and after."""
        work()
        self._wait()

        def several() -> None:
            for _ in range(self.repeats):
                work()
            self._wait()

        return seconds(several) / self.repeats

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def run() -> list[Row]:
    """Measure on the first GPU."""
    if not torch.cuda.is_available():
        raise Absent("there is no GPU on this machine")
    return list(Bench(device=torch.device("cuda"), with_timm=importlib.util.find_spec("timm") is not None).rows())


def _package(device: torch.device) -> nn.Module:
    return backbone(None).to(device, memory_format=torch.channels_last)


def _timm(device: torch.device, compiled: bool) -> nn.Module:
    import timm  # noqa: PLC0415 -- not a dependency of the project

    network = timm.create_model("efficientnet_b0", num_classes=0).to(device, memory_format=torch.channels_last)
    return torch.compile(network) if compiled else network
