"""The job workers that serve the queues, as Redis lists them."""

import contextlib
import logging
from dataclasses import dataclass
from datetime import datetime

import redis
import rq
from redis import Redis
from rq.command import send_shutdown_command
from rq.serializers import JSONSerializer
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from jobs.errors import Refused
from jobs.queue.entries import RunEntry
from jobs.queue.queues import PREFIX, RunQueue, queue_names

VERSION_FIELD = "nightshift_version"  # in RQ's hash of a worker
# State of one whose heartbeats stopped. It renews its key every 10 s for 70 s if busy, every 45 s for 120 s if idle:
# one with less time left has missed heartbeats. Redis counts the time, so no other clock matters.
SILENT, SILENT_BELOW_SECONDS = "silent", 40
SERVING_STATES = ("busy", "idle", "started", "suspended")
log = logging.getLogger("nightshift.worker_list")


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """One job worker.

    Attributes:
        name: Host, process id and a random part.
        state: idle, busy, started or suspended; or silent, if its heartbeats have stopped.
        run: Id of the run that it is running.
        queues: The priorities that it serves.
        since: When it started.
        beat: When it last sent a heartbeat.
        version: Its version of Nightshift; None for 0.1.0, which does not say it.
    """

    name: str
    state: str
    run: str | None
    queues: tuple[str, ...]
    since: str | None
    beat: str | None
    version: str | None = None


def live_workers(connection: Redis) -> list[WorkerRecord]:
    """Return the job workers whose keys in Redis have not expired, by name.

    Workers of other applications that share the Redis, and malformed entries in RQ's sets, are skipped.
    """
    return find_workers(connection)[0]


def serving_workers(connection: Redis) -> list[WorkerRecord]:
    """Return the live job workers that send heartbeats, by name."""
    return [worker for worker in live_workers(connection) if worker.state != SILENT]


def find_workers(connection: Redis) -> tuple[list[WorkerRecord], int]:
    """Return the live job workers by name, and the number of malformed or foreign entries among our queues' workers."""
    found, skipped = [], 0
    for key in sorted(_worker_keys(connection)):
        try:
            worker = rq.Worker.find_by_key(
                key, connection, job_class=RunEntry, queue_class=RunQueue, serializer=JSONSerializer
            )
            if worker is None:  # its key has expired
                continue
            is_ours = bool(worker.queue_names()) and set(worker.queue_names()) <= set(queue_names())
            record = _record(worker)
        except (redis.ConnectionError, redis.TimeoutError):
            raise
        except Exception as error:  # RQ's parsing can raise anything on a hash that RQ did not write
            log.debug("%r in RQ's set of workers is skipped: %s", key, error)
            skipped += 1
            continue
        if is_ours:
            found.append(record)
        else:
            skipped += 1
    return sorted(found, key=lambda record: record.name), skipped


def _worker_keys(connection: Redis) -> set[str]:
    """Return the worker keys that RQ keeps for our queues, not those of other applications' queues."""
    keys: set[str] = set()
    for name in queue_names():
        with contextlib.suppress(redis.ResponseError):  # the key holds another type
            members = connection.smembers(WORKERS_BY_QUEUE_KEY % name)
            keys |= {str(member, errors="replace") if isinstance(member, bytes) else member for member in members}
    return keys


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
    found = worker.connection.hget(worker.key, VERSION_FIELD)
    left = worker.connection.ttl(worker.key)  # -1: it never expires
    is_silent = 0 <= left < SILENT_BELOW_SECONDS
    return WorkerRecord(
        name=worker.name,
        state=SILENT if is_silent else str(worker.get_state()),
        run=worker.get_current_job_id(),
        queues=tuple(name.removeprefix(PREFIX) for name in worker.queue_names()),
        since=_moment(worker.birth_date),
        beat=_moment(worker.last_heartbeat),
        version=found.decode(errors="replace") if isinstance(found, bytes) else found,
    )


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z") if moment else None
