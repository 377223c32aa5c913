"""What may stand in the queue: our one function with one run id, and nothing else.

RQ runs any importable function that an entry names, and a JSON serializer does not change that. Here an entry is
only ever looked at: what runs is fixed in the code, and an entry that says anything else is refused.
"""

import json
from typing import Any, cast

import rq
from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.serializers import JSONSerializer

from cluster.run_paths import RUN_ID
from jobs.errors import HostileJob

RUN_JOB = "jobs.tasks.run_job"
FOREIGN_FIELDS = (
    "success_callback_name", "failure_callback_name", "stopped_callback_name", "webhooks", "dependency_id",
    "dependency_ids", "repeats_left", "repeat_intervals", "rate_limit_key", "retries_left", "group_id",
)  # fmt: skip
NO_TIMEOUT = -1  # the run's own --max-duration ends it, with a checkpoint


class RunEntry(rq.job.Job):
    """An entry of the queue, read without trust: nothing in it is imported, called or sent anywhere."""

    foreign: str | None = None  # what the entry says that none of ours would

    def restore(self, raw_data: Any) -> None:
        """Read the entry, drop all that could make RQ act, and remember whether there was such a thing."""
        present = [name for name in FOREIGN_FIELDS if raw_data.get(name.encode())]
        ours = {key: value for key, value in raw_data.items() if key.decode(errors="replace") not in FOREIGN_FIELDS}
        try:
            super().restore(ours)
        except Exception as error:  # whatever a hand-written hash makes RQ's parsing raise, it is no entry of ours
            raise NoSuchJobError(f"entry cannot be read: {type(error).__name__}") from error
        self.foreign = f"it has {present[0]}" if present else _what_is_foreign(self.data, self.id)

    def check(self) -> None:
        """Refuse the entry unless it is one of ours.

        Raises:
            HostileJob: It names another function, argument, instance or hook.
        """
        if self.foreign:
            raise HostileJob(f"entry {self.id[:80]!r} is refused: {self.foreign}")

    def perform(self) -> Any:
        """Never run from here: the job worker runs the run whose id the entry carries."""
        raise HostileJob(f"entry {self.id[:80]!r} is refused: it was asked to run itself")


def new_entry(connection: Redis, run_id: str) -> RunEntry:
    """Return the entry that stands for a run; it is not saved yet."""
    return cast(
        RunEntry,
        RunEntry.create(
            RUN_JOB,
            args=(run_id,),
            id=run_id,
            connection=connection,
            serializer=JSONSerializer,
            timeout=NO_TIMEOUT,
            result_ttl=0,  # the run folder keeps the result
            failure_ttl=0,
            description=run_id,
        ),
    )


def fetch_entry(connection: Redis, entry_id: str) -> RunEntry:
    """Read an entry and check that it is one of ours.

    Raises:
        HostileJob: It is not.
        NoSuchJobError: There is none, or none that can be read.
        ValueError: The id is none that an entry could have.
    """
    entry = cast(RunEntry, RunEntry.fetch(entry_id, connection=connection, serializer=JSONSerializer))
    entry.check()
    return entry


def _what_is_foreign(data: bytes, entry_id: str) -> str | None:
    try:
        function, instance, args, keywords = json.loads(data)
    except Exception:  # a pickle, or JSON of another shape
        return "its data are no JSON list of four"
    if function != RUN_JOB:
        return f"it names {str(function)[:80]!r}"
    if instance is not None or keywords:
        return "it carries an instance or named arguments"
    if args != [entry_id] or not RUN_ID.fullmatch(entry_id):
        return f"its argument {str(args)[:80]!r} is not its own run id"
    return None
