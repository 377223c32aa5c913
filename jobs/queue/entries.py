"""The only entry that a queue may hold: one fixed function name and one run id.

RQ calls any importable function that an entry names, and a JSON serializer does not change that. Here an entry is
only read and checked: the code decides what runs, and an entry with any other content is refused.
"""

import json
from typing import Any, cast

import rq
from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.serializers import JSONSerializer

from cluster.run_paths import RUN_ID
from jobs.errors import HostileJob

RUN_JOB = "jobs.tasks.run_job"  # a fixed mark that entries in Redis carry, not a path: nothing imports it
FOREIGN_FIELDS = (
    "success_callback_name", "failure_callback_name", "stopped_callback_name", "webhooks", "dependency_id",
    "dependency_ids", "repeats_left", "repeat_intervals", "rate_limit_key", "retries_left", "group_id",
)  # fmt: skip
NO_TIMEOUT = -1  # --max-duration stops the run instead, after a checkpoint


class RunEntry(rq.job.Job):
    """An entry of the queue, read as untrusted data: nothing in it is imported, called or sent anywhere."""

    foreign: str | None = None  # the reason why the entry is foreign

    def restore(self, raw_data: Any) -> None:
        """Read the entry, drop every field that makes RQ act, and remember whether there was one."""
        present = [name for name in FOREIGN_FIELDS if raw_data.get(name.encode())]
        ours = {key: value for key, value in raw_data.items() if key.decode(errors="replace") not in FOREIGN_FIELDS}
        try:
            super().restore(ours)
        except Exception as error:  # RQ's parsing can raise anything on a hash that RQ did not write
            raise NoSuchJobError(f"entry cannot be read: {type(error).__name__}") from error
        self.foreign = f"it has {present[0]}" if present else _what_is_foreign(self.data, self.id)

    def check(self) -> None:
        """Refuse a foreign entry.

        Raises:
            HostileJob: It names another function, argument, instance or hook.
        """
        if self.foreign:
            raise HostileJob(f"entry {self.id[:80]!r} is refused: {self.foreign}")

    def perform(self) -> Any:
        """Refuse: the job worker runs the run whose id the entry carries, and never the entry itself."""
        raise HostileJob(f"entry {self.id[:80]!r} is refused: entries are not called")


def new_entry(connection: Redis, run_id: str, queue_name: str = "") -> RunEntry:
    """Return a new entry for a run, not saved yet."""
    return cast(
        RunEntry,
        RunEntry.create(
            RUN_JOB,
            args=(run_id,),
            id=run_id,
            origin=queue_name,
            status=rq.job.JobStatus.QUEUED,
            connection=connection,
            serializer=JSONSerializer,
            timeout=NO_TIMEOUT,
            result_ttl=0,  # the run folder keeps the result
            failure_ttl=0,
            description=run_id,
        ),
    )


def fetch_entry(connection: Redis, entry_id: str) -> RunEntry:
    """Read an entry and check it.

    Raises:
        HostileJob: It is foreign.
        NoSuchJobError: It does not exist or cannot be read.
        ValueError: RQ does not accept the id.
    """
    entry = cast(RunEntry, RunEntry.fetch(entry_id, connection=connection, serializer=JSONSerializer))
    entry.check()
    return entry


def _what_is_foreign(data: bytes, entry_id: str) -> str | None:
    try:
        function, instance, args, keywords = json.loads(data)
    except Exception:  # a pickle, or JSON of another shape
        return "its data is not a JSON list of four items"
    if function != RUN_JOB:
        return f"it names {str(function)[:80]!r}"
    if instance is not None or keywords:
        return "it carries an instance or named arguments"
    if args != [entry_id] or not RUN_ID.fullmatch(entry_id):
        return f"its argument {str(args)[:80]!r} is not its own run id"
    return None
