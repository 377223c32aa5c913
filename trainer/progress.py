"""`progress.json`: the current phase, speed and ETA of the running attempt."""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from cluster.lease import Lease
from cluster.run_paths import TrainingPaths
from trainer.phase_times import PhaseTimes
from trainer.result import FeatureCounts

WRITE_SECONDS = 1.0


@dataclass
class Progress:
    """Counts the images of a phase and writes the file about once a second.

    Attributes:
        epoch: The current epoch; in a phase without `epochs` the number of steps, see `add_step`.
        gpus: GPUs that the workers of the run use.
        features: Where the features that were read came from.
    """

    paths: TrainingPaths
    lease: Lease
    writes: bool = True
    hang_seconds: float | None = None
    phase: str = "starting"
    total: int = 0
    done: int = 0
    epoch: int = 0
    epochs: int = 0
    gpus: int = 0
    times: PhaseTimes = field(default_factory=PhaseTimes)
    features: FeatureCounts = field(default_factory=FeatureCounts)
    _began: float = field(default_factory=time.monotonic)
    _began_at: int = 0
    _written: float = 0.0

    def start_phase(self, phase: str, *, total: int, done: int = 0, epoch: int = 0, epochs: int = 0) -> None:
        """Start a phase of `total` images, of which `done` are done."""
        self.phase, self.total, self.done, self.epoch, self.epochs = phase, total, done, epoch, epochs
        self._began, self._began_at = time.monotonic(), done
        self.times.start(phase)
        self.write()

    def add(self, images: int) -> None:
        """Count processed images, over all workers."""
        self.done += images
        self._write_if_due()

    def add_step(self) -> None:
        """Count a step that completes no image, such as an iteration of a fit whose iterations are not known before."""
        self.epoch += 1
        self._write_if_due()

    def _write_if_due(self) -> None:
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    @property
    def images_per_second(self) -> float:
        """Speed in this phase."""
        return (self.done - self._began_at) / max(time.monotonic() - self._began, 1e-9)

    def write(self) -> None:
        """Write the file now.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        self._written = time.monotonic()
        if not self.writes:
            return
        with contextlib.suppress(OSError):  # a storage that fails hides the progress, but must not end the run
            self.lease.write_json(self.paths.progress, self._content())

    def _content(self) -> dict[str, Any]:
        speed = self.images_per_second
        eta = (self.total - self.done) / speed if speed > 0 else None
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "done": self.done,
            "total": self.total,
            "images_per_second": round(speed, 1),
            "eta_seconds": None if eta is None else round(eta, 1),
            "attempt": self.lease.attempt,
            "gpus": self.gpus,
            **({} if self.hang_seconds is None else {"hang_seconds": self.hang_seconds}),
        }
