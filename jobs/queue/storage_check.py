"""Compare the storage with the one that the queue's Redis knows: an unmounted share must not take runs."""

import redis

from cluster.errors import StorageError
from cluster.settings import Settings
from cluster.storage_marker import MARKER, ensure_storage_id, read_storage_id
from jobs.errors import QueueUnreachable
from jobs.queue.connection import connect

KEY = "nightshift:storage"  # the id of the storage that all clients of this Redis use


def ready_storage(settings: Settings, connection: redis.Redis) -> Settings:
    """Create the storage folders and return the settings, if the storage is that of the queue.

    The first use makes the storage's id known to Redis; the same happens after Redis was emptied.

    Raises:
        StorageError: The folder is not the storage of the queue, or it cannot be written. Nothing was written.
        QueueUnreachable: Redis went away.
    """
    try:
        if connection.exists(KEY):
            refuse_other_storage(settings, connection)
            return settings.with_storage_ready()
        settings.with_storage_ready()
        connection.set(KEY, ensure_storage_id(settings.storage), nx=True)
        refuse_other_storage(settings, connection)  # another client may have been first
    except redis.RedisError as error:
        raise QueueUnreachable(
            f"the connection to Redis was lost ({error}); repeat the command when it is back"
        ) from error
    return settings


def refuse_other_storage(settings: Settings, connection: redis.Redis) -> None:
    """Check that the storage has the id that Redis knows, if it knows one.

    Raises:
        StorageError: It has another id, or none.
    """
    value = connection.get(KEY)
    known = value.decode(errors="replace") if isinstance(value, bytes) else value
    found = read_storage_id(settings.storage)
    if known is None or found == known:
        return
    reason = f"it has no {MARKER}" if found is None else f"the id in {MARKER} is {found}"
    raise StorageError(
        f"{settings.storage} is not the storage of this queue, whose id is {known}: {reason}; mount the shared storage "
        f"there or correct NIGHTSHIFT_STORAGE (if the storage was replaced on purpose, delete the key {KEY} in Redis)"
    )


def refuse_unmounted(settings: Settings) -> None:
    """Ask the queue's Redis about a storage without a folder of runs: it is new, or a share that is not mounted.

    Raises:
        StorageError: Redis knows another storage.
        QueueUnreachable: Redis does not answer, so nobody knows.
    """
    if settings.redis_url is None or settings.runs.exists():
        return
    try:
        refuse_other_storage(settings, connect(settings))
    except redis.RedisError as error:
        raise QueueUnreachable(
            f"the connection to Redis was lost ({error}); repeat the command when it is back"
        ) from error
