"""Submit a run: publish its folder with one rename, then put its id into the queue."""

import secrets
import shutil
import string
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import redis

from cluster.access import why_not
from cluster.errors import StorageError
from cluster.files import locked, write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.errors import QueueUnreachable
from jobs.queue.connection import connect
from jobs.queue.queues import enqueue
from jobs.queue.storage_check import ready_storage
from jobs.runs import names
from jobs.runs import state as run_state
from jobs.runs.drafts import draft_of
from jobs.runs.request import JobRequest
from jobs.runs.state import RunState
from jobs.runs.waits import start_blocker
from jobs.runs.webhook_outbox import refuse_address, store_url
from trainer.specs import Spec

ALPHABET = string.digits + string.ascii_lowercase  # in sorting order


def submit(settings: Settings, spec: Spec, request: JobRequest | None = None) -> str:
    """Queue a run and return its id.

    Raises:
        QueueUnreachable: Redis does not answer; nothing was written.
        StorageError: The storage cannot be written, or is not that of the queue; nothing was written.
        NameTaken: Another run has the name; nothing was written.
        Refused: The webhook URL is not allowed; nothing was written.
    """
    request = request or JobRequest()
    if request.notify:
        refuse_address(settings, request.notify)
    if settings.redis_url is None:
        settings.with_storage_ready()  # the embedded Redis is in it
    connection = connect(settings)  # first: without a queue nothing is written
    ready_storage(settings, connection)
    state = _first_state(settings.storage, spec, request)
    paths = RunPaths.of(settings.storage, state.id)
    publish(settings.storage, paths, spec, request, state)
    if state.state == "queued":
        try:
            enqueue(connection, state.id, state.priority)
        except redis.RedisError as error:
            raise QueueUnreachable(
                f"the connection to Redis was lost while {state.id} was queued ({error}); it is queued when Redis is "
                "back"
            ) from error
    return state.id


def refuse_request(settings: Settings, request: JobRequest) -> None:
    """Refuse what `submit` refuses of a request, without a queue.

    Raises:
        InvalidOption, Refused: The webhook URL is not valid or not allowed.
        NameTaken: Another run has the name.
    """
    if request.notify:
        refuse_address(settings, request.notify)
    if request.name:
        names.refuse_taken(settings.storage, request.name)


def new_run_id(kind: str) -> str:
    """Return a new run id: kind, time in UTC, and six characters.

    The first three of the six are the fraction of the second, so that ids sort by age; the other three are random.
    """
    moment = datetime.now(UTC)
    step = moment.microsecond * len(ALPHABET) ** 3 // 1_000_000
    base = len(ALPHABET)
    digits = (ALPHABET[step // base**2], ALPHABET[step // base % base], ALPHABET[step % base])
    random = (secrets.choice(ALPHABET) for _ in range(3))
    return f"{kind}-{moment:%Y%m%d-%H%M%S}-{''.join((*digits, *random))}"


def _first_state(storage: Path, spec: Spec, request: JobRequest) -> RunState:
    waits = start_blocker(storage, request)
    state = queued_state(spec, request)
    return replace(state, state="scheduled", why=waits.why) if waits else state


def queued_state(spec: Spec, request: JobRequest, run_id: str | None = None) -> RunState:
    """Return the state of a run that waits for its first attempt; it has a new id where none is given."""
    kind = str(spec.to_json()["kind"])
    return RunState(
        id=run_id or new_run_id(kind),
        kind=kind,
        name=request.name,
        priority=request.priority,
        tags=request.tags,
        note=request.note,
        owner=request.owner,
        state="queued",
        created=run_state.now(),
    )


def publish(storage: Path, paths: RunPaths, spec: Spec, request: JobRequest, state: RunState) -> None:
    """Write the run's folder as a draft and rename it into place, so that a run exists completely or not at all."""
    draft = draft_of(paths)
    try:
        draft.folder.mkdir()
        with locked(draft.lock):  # until the rename: a lock that is free means that this process has died
            write_json(draft.spec, spec.to_json())
            write_json(draft.job, request.without_url().without_labels().to_json())
            if request.notify:
                store_url(draft.webhook, request.notify)
            if request.name:
                names.claim(storage, request.name, paths.run_id)
            marker = run_state.pending_marker(paths)
            marker.parent.mkdir(exist_ok=True)
            marker.touch()
            write_json(draft.state, state.with_changes(changed=state.created).to_json())
            draft.folder.rename(paths.folder)
    except OSError as error:
        _discard_draft(paths, draft)
        reason = why_not(error, draft.folder, "free some space")
        raise StorageError(f"{draft.folder} cannot be written: {reason}") from error
    except BaseException:
        _discard_draft(paths, draft)
        raise


def _discard_draft(paths: RunPaths, draft: RunPaths) -> None:
    shutil.rmtree(draft.folder, ignore_errors=True)
    run_state.pending_marker(paths).unlink(missing_ok=True)
