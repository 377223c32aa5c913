"""The use of GPUs over the last hour: one job worker of each machine measures it and keeps it in Redis for the page."""

import contextlib
import json
import math
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import redis

from cluster.gpu_use import GpuUse, gpu_use
from cluster.settings import Settings
from jobs.queue.leader_lock import LeaderLock
from jobs.queue.queues import text_of

SAMPLE_SECONDS = 10.0
KEPT_SECONDS = 3600
KEPT_SAMPLES = int(KEPT_SECONDS / SAMPLE_SECONDS)
MACHINES = "nightshift:gpu-measured"  # sorted set of the machines, by the time of their newest sample
PREFIX = "nightshift:gpu-use:"  # of a list for each machine, the newest sample first


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The GPUs of a machine at a moment.

    Attributes:
        at: When they were measured, in seconds since 1970.
        gpus: The GPUs.
    """

    at: float
    gpus: tuple[GpuUse, ...]

    @classmethod
    def from_json(cls, text: bytes | str) -> "Sample":
        """Return a sample that `record` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError: It is none.
        """
        value: dict[str, Any] = json.loads(text)
        gpus = tuple(_checked(GpuUse(**one)) for one in value["gpus"])
        return cls(at=float(value["at"]), gpus=gpus)


@dataclass(frozen=True, kw_only=True)
class GpuHistory:
    """A GPU over the last hour.

    Attributes:
        machine: Name of its machine.
        index: Its number there.
        points: Each measurement with its age in seconds, the oldest first.
    """

    machine: str
    index: int
    points: tuple[tuple[float, GpuUse], ...]

    @property
    def newest(self) -> GpuUse:
        """The last measurement."""
        return self.points[-1][1]

    def to_json(self) -> dict[str, Any]:
        """Return the GPU as JSON."""
        return {
            "machine": self.machine,
            "index": self.index,
            "name": self.newest.name,
            "memory_bytes": self.newest.memory_bytes,
            "samples": [
                {"age_seconds": round(age, 1), "utilization": gpu.utilization, "used_bytes": gpu.used_bytes}
                for age, gpu in self.points
            ],
        }


def gpu_sampler(settings: Settings, holder: str) -> AbstractContextManager[object]:
    """Return the thread that measures the GPUs of this machine; nothing where there is no NVIDIA driver.

    Args:
        settings: Of this machine.
        holder: Name of this job worker; one job worker of a machine measures.
    """
    machine = socket.gethostname()
    if shutil.which("nvidia-smi") is None:
        return contextlib.nullcontext()
    return LeaderLock(
        settings, f"gpu-use:{machine}", holder, lambda connection: record(connection, machine), SAMPLE_SECONDS
    )


def record(connection: redis.Redis, machine: str, now: float | None = None) -> None:
    """Measure the GPUs of this machine and keep the measurements of an hour."""
    gpus = gpu_use()
    if not gpus:
        return
    moment = time.time() if now is None else now
    text = json.dumps({"at": moment, "gpus": [asdict(one) for one in gpus]})
    with connection.pipeline() as pipe:
        pipe.zadd(MACHINES, {machine: moment})
        pipe.zremrangebyscore(MACHINES, "-inf", moment - KEPT_SECONDS)
        pipe.lpush(PREFIX + machine, text)
        pipe.ltrim(PREFIX + machine, 0, KEPT_SAMPLES - 1)
        pipe.expire(PREFIX + machine, KEPT_SECONDS)
        pipe.expire(MACHINES, KEPT_SECONDS)
        pipe.execute()


def gpu_histories(connection: redis.Redis, now: float | None = None) -> list[GpuHistory]:
    """Return the GPUs that were measured in the last hour, by machine and number; malformed values are skipped."""
    moment = time.time() if now is None else now
    found: list[GpuHistory] = []
    names = [name for name in connection.zrange(MACHINES, 0, -1) if isinstance(name, bytes | str)]
    for machine in sorted(map(text_of, names)):
        samples = [
            (moment - sample.at, sample)
            for text in connection.lrange(PREFIX + machine, 0, KEPT_SAMPLES - 1)
            if (sample := _sample(text)) is not None and sample.at > moment - KEPT_SECONDS
        ]
        found += _histories(machine, samples[::-1])
    return found


def _histories(machine: str, samples: Sequence[tuple[float, Sample]]) -> list[GpuHistory]:
    points: dict[int, list[tuple[float, GpuUse]]] = {}
    for age, sample in samples:
        for gpu in sample.gpus:
            points.setdefault(gpu.index, []).append((max(0.0, age), gpu))
    return [GpuHistory(machine=machine, index=index, points=tuple(points[index])) for index in sorted(points)]


def _sample(text: bytes | str) -> Sample | None:
    try:
        return Sample.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _checked(gpu: GpuUse) -> GpuUse:
    """Return the measurement if its values have the right types.

    Raises:
        TypeError: They have not.
        OverflowError: A number is larger than any float.
    """
    numbers = (gpu.index, gpu.used_bytes, gpu.memory_bytes, 0 if gpu.utilization is None else gpu.utilization)
    if not isinstance(gpu.name, str) or not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
        raise TypeError("no measurement of a GPU")
    return gpu
