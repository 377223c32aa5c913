"""Measure how long fine-tuning steps wait for their checkpoints; the peer is a training that writes each one itself.

Both write the same files with the same code to a slow storage, which is this machine's disk with a pause that makes a
write as slow as a shared folder. A checkpoint is due far more often than the 10 minutes of a training. The training is
on the GPU where there is one.
"""

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from cluster.files import read_json
from tests.bench.measure import Row, in_turn, row
from tests.bench.steps import Stepper, batch_of, fresh
from tests.trained import lease_in, train_spec
from trainer.distributed.process_group import ProcessGroup
from trainer.model.checkpoint_folder import latest_valid_checkpoint, write_checkpoint_folder
from trainer.model.names import MANIFEST_FILE
from trainer.training import checkpointer as module_of_checkpointer
from trainer.training.checkpointer import Checkpointer
from trainer.training.ema import ModelEma

BATCH = 16
CHECKPOINTS = 3
EVERY = {"CPU": 4, "GPU": 60}  # steps from one checkpoint to the next, several seconds; as many follow the last one
BYTES_PER_SECOND = 50e6
EMA_DECAY = 0.99
PAIRS = 3
COMMAND = "python -m tests.bench checkpoints"


def run(*, pairs: int = PAIRS) -> list[Row]:
    """Measure the same steps with both ways to save."""
    bench = Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with _deterministic(bench.device):
        bench.epoch(waits=False)  # warm-up
        ours, peer = in_turn(lambda: bench.epoch(waits=False), lambda: bench.epoch(waits=True), pairs=pairs)
    saved = f"{CHECKPOINTS} checkpoints of {bench.megabytes:.0f} MB at {BYTES_PER_SECOND / 1e6:.0f} MB/s"
    steps = f"fine-tuning on a {bench.device_name}, {bench.every * (CHECKPOINTS + 1)} steps"
    notes = {"whole": "on a CPU the thread that writes takes time from the steps"} if bench.device_name == "CPU" else {}
    return [
        row(
            [one[what] for one in ours], [one[what] for one in peer], more_is_better=False,
            what=f"{steps}: {title}, {saved}",
            beside="the same training, which waits for each write", unit="s", goal=None, command=COMMAND,
            parity=f"the last checkpoints of all trainings have equal bytes: {len(bench.contents) == 1}",
            note=notes.get(what, ""),
        )
        for what, title in (("waited", "wait for checkpoints"), ("whole", "whole time"))
    ]  # fmt: skip


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Let a GPU add in a fixed order, so that two trainings are equal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic")
        torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


class Bench:
    """The trainings of one measurement, all from the same weights and on the same images.

    Attributes:
        device: What trains.
        contents: The sha256 of the files of each training's last checkpoint, without repetitions.
        megabytes: Size of a checkpoint.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.contents: list[dict[str, str]] = []
        self.megabytes = 0.0

    @property
    def every(self) -> int:
        """Steps from one checkpoint to the next."""
        return EVERY[self.device_name]

    @property
    def device_name(self) -> str:
        """The name of the device, as a reader of the results knows it."""
        return "GPU" if self.device.type == "cuda" else "CPU"

    def epoch(self, *, waits: bool) -> dict[str, float]:
        """Train; return the seconds that steps waited for checkpoints and the end for the last one, and all seconds."""
        stepper = Stepper(fresh(self.device), ProcessGroup(0, 1, self.device), *batch_of(BATCH, self.device))
        stepper.step()
        with tempfile.TemporaryDirectory() as folder, _slow_storage():
            checkpointer = _checkpointer(Path(folder), stepper)
            began, waited = time.perf_counter(), 0.0
            for step in range(1, self.every * (CHECKPOINTS + 1) + 1):
                stepper.step()
                if step % self.every == 0 and step <= self.every * CHECKPOINTS:
                    waited -= time.perf_counter()
                    checkpointer.save(stepper.state, is_best=False)
                    if waits:
                        checkpointer.wait()
                    waited += time.perf_counter()
            waited -= time.perf_counter()
            checkpointer.__exit__(None, None, None)
            ended = time.perf_counter()
            self._keep(checkpointer.folder)
        return {"waited": waited + ended, "whole": ended - began}

    def _keep(self, checkpoints: Path) -> None:
        last = latest_valid_checkpoint(checkpoints)
        assert last is not None
        files = read_json(last / MANIFEST_FILE)["files"]
        if files not in self.contents:
            self.contents.append(files)
        self.megabytes = sum(file.stat().st_size for file in last.iterdir()) / 1e6


def _checkpointer(folder: Path, stepper: Stepper) -> Checkpointer:
    lease = lease_in(folder)
    task = SimpleNamespace(attempt=SimpleNamespace(lease=lease), paths=lease.paths)
    context: Any = SimpleNamespace(task=task, process_group=stepper.process_group, spec=train_spec(Path("memory")))
    return Checkpointer(context, stepper.model, stepper.loop.optimizer, ModelEma(stepper.model, EMA_DECAY))


@contextmanager
def _slow_storage() -> Iterator[None]:
    """Make each write of a checkpoint take as long as its bytes on a slow storage; a pause takes no processor."""

    def write(folder: Path, *, tensors: Any, **content: Any) -> None:
        began = time.monotonic()
        write_checkpoint_folder(folder, tensors=tensors, **content)
        size = sum(value.nbytes for group in tensors.values() for value in group.values())
        time.sleep(max(0.0, size / BYTES_PER_SECOND - (time.monotonic() - began)))

    with patch.object(module_of_checkpointer, "write_checkpoint_folder", write):
        yield
