"""One attempt at a run: its folder, its lease, and its heartbeat."""

import contextlib
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.errors import ClusterError, NewerVersion
from cluster.files import read_json, read_json_object_if_any
from cluster.lease import HEARTBEAT_SECONDS, Lease, latest_attempt
from cluster.periodic import periodic_calls
from cluster.run_paths import RunPaths
from cluster.settings import CACHE_PRECISIONS, Settings
from data_shards.read.shard_cache import limit_default_cache
from trainer.errors import InfrastructureError
from trainer.phase_times import PhaseTimes
from trainer.result import FeatureCounts

DEFAULT_RESTARTS = 2  # for a run that was started by hand, without a queue
FEATURES = "features"  # key of the precision that a run's cache stores them in, beside that of its backbones

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The run that this process works on, and the attempt that it is.

    Attributes:
        paths: The run's files.
        lease: Allows this attempt to publish into the run's folder until a newer attempt takes over.
        settings: Addresses and folders of this machine, and the precision of cached features that the run began with.
        restarts: How often Ray Train restarts the workers after one of them died, set by `--retries`. Preempted nodes
            do not count.
        queued_seconds: From the submission to the claim of the first attempt; 0 for a run that was not queued.
        claimed_seconds: From the claim of this attempt to the start of its process.
        times: How long its parts took.
        features: Where its features of the frozen backbone came from.
        began: Start of the attempt on the monotonic clock, in seconds.
    """

    paths: RunPaths
    lease: Lease
    settings: Settings
    restarts: int = DEFAULT_RESTARTS
    queued_seconds: float = 0.0
    claimed_seconds: float = 0.0
    times: PhaseTimes = field(default_factory=PhaseTimes)
    features: FeatureCounts = field(default_factory=FeatureCounts)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, folder: Path, number: int | None, settings: Settings) -> "Attempt":
        """Join attempt `number`, which the caller claimed, or claim the next one when `number` is None.

        Raises:
            LeaseLost: Another process owns the run.
        """
        limit_default_cache(settings.shard_cache_bytes)
        paths = RunPaths(folder.absolute())
        lease = Lease.join(paths, number) if number is not None else Lease.claim(paths, after=latest_attempt(paths))
        restarts = int(read_json(paths.job)["retries"]) if paths.job.exists() else DEFAULT_RESTARTS
        return cls(
            paths=paths,
            lease=lease,
            settings=_with_precision_of_run(settings, paths, lease),
            restarts=restarts,
            queued_seconds=_queued_seconds(paths),
            claimed_seconds=_held_seconds(lease) if number is not None else 0.0,
        )

    @property
    def number(self) -> int:
        """The attempt's number."""
        return self.lease.attempt

    @property
    def seconds(self) -> float:
        """Seconds since the attempt started."""
        return time.monotonic() - self.began

    def timing(self) -> dict[str, float]:
        """Return where the time went, in seconds: queue, start, and the parts that were measured.

        "start" is all that is none of the others: Python, Ray, waiting for workers and starting them again.
        """
        parts = self.times.seconds
        start = max(0.0, self.claimed_seconds + self.seconds - sum(parts.values()))
        return {
            name: round(value, 3) for name, value in {"queue": self.queued_seconds, "start": start, **parts}.items()
        }

    def fail(self, error: Exception) -> None:
        """Write `error.json` unless a newer attempt owns the run; with `retry` if another attempt may succeed."""
        line = " ".join(str(error).split()) or type(error).__name__
        retry = {"retry": True} if isinstance(error, InfrastructureError | NewerVersion) else {}
        with contextlib.suppress(ClusterError):
            self.lease.write_json(self.paths.error, {"attempt": self.number, "error": line, **retry})

    def sending_heartbeats(self) -> AbstractContextManager[None]:
        """Send heartbeats from a thread while the block runs."""
        return periodic_calls(
            self.lease.heartbeat, every_seconds=HEARTBEAT_SECONDS, name=f"the heartbeat of attempt {self.number}"
        )


def _with_precision_of_run(settings: Settings, paths: RunPaths, lease: Lease) -> Settings:
    """Return settings with the precision of cached features that the run began with.

    It is recorded beside the precision of the backbone, which the run's workers decide, and only if it is not the
    default. A run whose earlier attempts ended before their workers decided has not begun.

    Raises:
        StorageAway: The record cannot be read now.
    """
    default, own = CACHE_PRECISIONS[0], settings.cache_precision
    decided = read_json_object_if_any(paths.precision)
    if not decided:
        if own != default:
            lease.write_json(paths.precision, {FEATURES: own})
        return settings
    found = decided.get(FEATURES)
    kept = found if found in CACHE_PRECISIONS else default
    if kept != own:
        logger.warning(
            "NIGHTSHIFT_CACHE_PRECISION is %s, but the run began with features in %s and keeps them; start a new run "
            "for %s",
            *(own, kept, own),
        )
    return replace(settings, cache_precision=str(kept))


def _held_seconds(lease: Lease) -> float:
    try:
        return lease.held_seconds()
    except OSError:  # the disk is full; what fails because of it says so
        return 0.0


def _queued_seconds(paths: RunPaths) -> float:
    """Return the seconds from a run's submission to the claim of its first attempt, by the file system's clock."""
    try:
        claimed, submitted = (paths.attempts / "1.claimed").stat(), paths.job.stat()
    except OSError:  # it was not queued
        return 0.0
    return max(0.0, claimed.st_mtime - submitted.st_mtime)
