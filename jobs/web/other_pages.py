"""What the page shows of the models in use, and of the queues."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from cluster.access import unreadable
from cluster.errors import StorageError
from cluster.run_paths import RUN_ID
from cluster.settings import Settings
from jobs.errors import JobError
from jobs.queue.connection import connect, with_running_redis
from jobs.queue.gpu_history import GpuHistory, gpu_histories
from jobs.queue.overview import queue_overview
from jobs.queue.schedules import schedules
from jobs.queue.worker_list import WorkerRecord, live_workers
from jobs.runs.promotions import Promotion, history_of, promoted_names
from jobs.web.gpu_charts import gpu_charts
from trainer.report.charts import ReportChart


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A name and its promotions.

    Attributes:
        history: The promotions, the newest first; empty if its file is damaged.
        warning: Why the name cannot be read, None if it can.
    """

    name: str
    history: tuple[Promotion, ...] = ()
    warning: str | None = None

    @property
    def has_run(self) -> bool:
        """Whether the model in use is that of a run of this storage."""
        return bool(self.history) and RUN_ID.fullmatch(self.history[0].model) is not None

    def to_json(self) -> dict[str, Any]:
        """Return the name as JSON."""
        history = [one.model_dump(mode="json") for one in self.history]
        return {"name": self.name, "history": history, "warning": self.warning}


@dataclass(frozen=True, kw_only=True)
class QueuePage:
    """The queues, job workers and schedules.

    Attributes:
        queues: What `nightshift queue show --json` prints; None if Redis does not answer.
        workers: The job workers that are alive.
        gpus: The GPUs of the job workers' machines over the last hour.
        schedules: Name, cron line, time zone, next time and newest run of each schedule.
        warning: Why the queues cannot be read, None if they can.
    """

    queues: Mapping[str, Any] | None
    workers: Sequence[WorkerRecord]
    schedules: Sequence[Mapping[str, Any]]
    gpus: Sequence[GpuHistory] = ()
    warning: str | None = None

    @property
    def charts(self) -> tuple[ReportChart, ...]:
        """A chart for each GPU."""
        return gpu_charts(self.gpus)

    def to_json(self) -> dict[str, Any]:
        """Return the page as JSON."""
        return {
            "queues": self.queues,
            "workers": [dataclasses.asdict(worker) for worker in self.workers],
            "gpus": [gpu.to_json() for gpu in self.gpus],
            "schedules": list(self.schedules),
            "warning": self.warning,
        }


def named_models(storage: Path) -> list[NamedModel]:
    """Return the names of the models in use with their promotions."""
    return [_named(storage, name) for name in promoted_names(storage)]


def queue_page(settings: Settings, *, is_read_only: bool = False) -> QueuePage:
    """Return the queues, the job workers and the schedules; without the first two if Redis does not answer.

    Args:
        settings: The storage and the queue.
        is_read_only: Whether an embedded Redis that does not run is left so.
    """
    planned = [
        {
            "name": one.name,
            "cron": one.cron,
            "timezone": one.timezone,
            "next": one.due_at().isoformat(timespec="minutes"),
            "last_run": one.last_run,
        }
        for one in schedules(settings)
    ]
    try:
        with connect(with_running_redis(settings) if is_read_only else settings) as connection:
            return QueuePage(
                queues=queue_overview(connection),
                workers=live_workers(connection),
                schedules=planned,
                gpus=gpu_histories(connection),
            )
    except (JobError, StorageError, redis.RedisError) as error:
        return QueuePage(queues=None, workers=(), schedules=planned, warning=str(error))
    except OSError as error:
        return QueuePage(queues=None, workers=(), schedules=planned, warning=unreadable(error, "the address of Redis"))


def _named(storage: Path, name: str) -> NamedModel:
    try:
        return NamedModel(name=name, history=tuple(reversed(history_of(storage, name))))
    except StorageError as error:
        return NamedModel(name=name, warning=str(error))
