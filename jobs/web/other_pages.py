"""What the page shows of the models in use, and of the queues."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from cluster.access import unreadable
from cluster.errors import StorageError, UnknownRun
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from jobs.errors import JobError
from jobs.queue.connection import connect, with_running_redis
from jobs.queue.gpu_history import GpuHistory, gpu_histories
from jobs.queue.overview import queue_faults, queue_overview
from jobs.queue.schedules import schedules
from jobs.queue.worker_list import WorkerRecord, live_workers
from jobs.runs.promotions import Promotion, history_of, promoted_names
from jobs.runs.state import read_state
from jobs.web.gpu_charts import gpu_charts
from trainer.report.charts import ReportChart


@dataclass(frozen=True, kw_only=True)
class PromotedName:
    """A name and its promotions.

    Attributes:
        history: The promotions, the newest first; empty if its file is damaged.
        runs: The names of the runs in the history that have one, by their ids.
        warning: Why the name cannot be read, None if it can.
    """

    name: str
    history: tuple[Promotion, ...] = ()
    runs: Mapping[str, str] = field(default_factory=dict)
    warning: str | None = None

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
        names: The names of the runs of job workers and schedules that have one, by their ids.
        warning: Why the queues cannot be read, None if they can.
    """

    queues: Mapping[str, Any] | None
    workers: Sequence[WorkerRecord]
    schedules: Sequence[Mapping[str, Any]]
    gpus: Sequence[GpuHistory] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    warning: str | None = None

    @property
    def faults(self) -> list[str]:
        """What is wrong with the queues, in a line each."""
        return [] if self.queues is None else queue_faults(self.queues)

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


def promoted_models(storage: Path) -> list[PromotedName]:
    """Return the names of the models in use with their promotions."""
    return [_named(storage, name) for name in promoted_names(storage)]


def queue_page(settings: Settings) -> QueuePage:
    """Return the queues, the job workers and the schedules; without the first two if Redis does not answer.

    No Redis is started: a page that is open loads again and again.
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
    names = _names(settings.storage, [one["last_run"] for one in planned])
    try:
        with connect(with_running_redis(settings)) as connection:
            workers = live_workers(connection)
            return QueuePage(
                queues=queue_overview(connection),
                workers=workers,
                schedules=planned,
                gpus=gpu_histories(connection),
                names=names | _names(settings.storage, [worker.run for worker in workers]),
            )
    except (JobError, StorageError, redis.RedisError) as error:
        text = str(error)
    except OSError as error:
        text = unreadable(error, "the address of Redis")
    return QueuePage(queues=None, workers=(), schedules=planned, names=names, warning=text)


def _names(storage: Path, run_ids: Sequence[str | None]) -> dict[str, str]:
    """Return the names of runs that have one; a run that is deleted or damaged has none."""
    names = dict[str, str]()
    for run_id in run_ids:
        with contextlib.suppress(StorageError, UnknownRun):
            if run_id is not None and (name := read_state(RunPaths.of(storage, run_id)).name):
                names[run_id] = name
    return names


def _named(storage: Path, name: str) -> PromotedName:
    try:
        history = tuple(reversed(history_of(storage, name)))
        models = [one.model for one in history if RUN_ID.fullmatch(one.model)]
        return PromotedName(name=name, history=history, runs=_names(storage, models))
    except StorageError as error:
        return PromotedName(name=name, warning=str(error))
