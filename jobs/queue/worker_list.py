"""The job workers that serve the queues, as Redis lists them."""

from dataclasses import dataclass
from datetime import datetime

import rq
from redis import Redis
from rq.command import send_shutdown_command
from rq.serializers import JSONSerializer

from jobs.errors import Refused
from jobs.queue.entries import RunEntry
from jobs.queue.queues import PREFIX, RunQueue


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """One job worker.

    Attributes:
        name: Host, process id and a random part.
        state: idle, busy, started or suspended.
        run: Id of the run that it is running.
        queues: The priorities that it serves.
        since: When it started.
        beat: When it last sent a heartbeat.
    """

    name: str
    state: str
    run: str | None
    queues: tuple[str, ...]
    since: str | None
    beat: str | None


def live_workers(connection: Redis) -> list[WorkerRecord]:
    """Return the job workers whose keys in Redis have not expired, by name."""
    workers = rq.Worker.all(connection, job_class=RunEntry, queue_class=RunQueue, serializer=JSONSerializer)
    return sorted((_record(worker) for worker in workers), key=lambda record: record.name)


def drain(connection: Redis, name: str | None) -> list[str]:
    """Ask one job worker, or all with None, to hand back its run and end; return the names of those asked.

    Raises:
        Refused: There is no such job worker.
    """
    names = [worker.name for worker in live_workers(connection)]
    if name is not None and name not in names:
        raise Refused(f"no job worker is called {name!r}; `nightshift worker list` shows them")
    asked = names if name is None else [name]
    for one in asked:
        send_shutdown_command(connection, one)
    return asked


def _record(worker: rq.worker.BaseWorker) -> WorkerRecord:
    return WorkerRecord(
        name=worker.name,
        state=str(worker.get_state()),
        run=worker.get_current_job_id(),
        queues=tuple(name.removeprefix(PREFIX) for name in worker.queue_names()),
        since=_moment(worker.birth_date),
        beat=_moment(worker.last_heartbeat),
    )


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None
