"""One attempt at a run: its folder, its right to publish, and the beat that says it lives."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ClusterError
from cluster.files import read_json, write_json
from cluster.lease import HEARTBEAT_SECONDS, Lease, latest_attempt
from cluster.periodic import periodic_calls
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.read.shard_cache import limit_default_cache

DEFAULT_RESTARTS = 2  # of a run that was started by hand, without a queue


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What every part of the trainer needs to know of the run it works for.

    Attributes:
        paths: The run's files.
        lease: The right to publish into them.
        settings: Of this machine.
        restarts: How often a group of workers of which one died is started again: as often as the run is, by
            `--retries`. A machine that was taken away with notice does not count.
        began: When the attempt began, on the monotonic clock.
    """

    paths: RunPaths
    lease: Lease
    settings: Settings
    restarts: int = DEFAULT_RESTARTS
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, folder: Path, number: int | None, settings: Settings) -> "Attempt":
        """Join attempt `number`, or claim the next one when started by hand.

        Raises:
            LeaseLost: Another process owns the run.
        """
        limit_default_cache(settings.shard_cache_bytes)
        paths = RunPaths(folder.absolute())
        lease = Lease.join(paths, number) if number is not None else Lease.claim(paths, after=latest_attempt(paths))
        restarts = int(read_json(paths.job)["retries"]) if paths.job.exists() else DEFAULT_RESTARTS
        return cls(paths=paths, lease=lease, settings=settings, restarts=restarts)

    @property
    def number(self) -> int:
        """The attempt's number."""
        return self.lease.attempt

    @property
    def seconds(self) -> float:
        """How long the attempt has been going."""
        return time.monotonic() - self.began

    def fail(self, error: Exception) -> None:
        """Write `error.json`, unless a newer attempt owns the run."""
        line = " ".join(str(error).split()) or type(error).__name__
        try:
            self.lease.check()
        except ClusterError:
            return
        write_json(self.paths.error, {"attempt": self.number, "error": line})

    def sending_heartbeats(self) -> AbstractContextManager[None]:
        """Beat from a thread while the block runs."""
        return periodic_calls(
            self.lease.heartbeat, every_seconds=HEARTBEAT_SECONDS, name=f"the beat of attempt {self.number}"
        )
