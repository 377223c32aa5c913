"""Leases on the GPUs of this machine: no two runs use the same GPU.

A lease is a lock (flock) on a file that is named after the GPU's UUID. The kernel releases it when its holder ends,
however it ends. The files are in a folder of this machine, not in the storage, which other machines share.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import InsufficientResources, StorageError

POLL_SECONDS = 1.0
SHARED_FOLDER = 0o1777  # as /tmp: every user of the machine can add a lock file, and remove only their own
READABLE = 0o644  # a lock needs no right to write

_descriptors: set[int] = set()  # of all locks that this process holds


@dataclass
class GpuLease:
    """The GPUs that this process holds, until it releases them or ends.

    Attributes:
        descriptors: Open lock files by the GPU's UUID.
    """

    descriptors: dict[str, int] = field(default_factory=dict)

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs, as `CUDA_VISIBLE_DEVICES` names them."""
        return tuple(self.descriptors)

    def release(self, uuids: Iterable[str] | None = None) -> None:
        """Release these GPUs, by default all."""
        for uuid in tuple(self.uuids if uuids is None else uuids):
            _unlock(self.descriptors.pop(uuid))


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """GPUs that a run asks for.

    Attributes:
        uuids: The GPUs that it may use.
        need: The least number that it can start with.
        most: The largest number that it can use.
    """

    uuids: Sequence[str]
    need: int
    most: int


def wait_for_gpus(
    folder: Path,
    request: GpuRequest,
    on_wait: Callable[[str], None],
    *,
    limit_seconds: float,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> GpuLease:
    """Lease as many free GPUs as are asked for; wait until there are enough.

    Of several runs that may use the same GPUs, one waits for them and the others wait behind it. So a run that needs
    many is not overtaken for ever by runs that need few.

    Args:
        folder: For the lock files; the same for all processes of the machine.
        request: The GPUs.
        on_wait: Called with the reason each time that the run has to wait, such as "waiting for 2 GPUs (1 free)"; what
            it raises ends the wait.
        limit_seconds: Longest time to wait.
        now: Monotonic clock, in seconds.
        pause: Sleeps for a number of seconds.

    Raises:
        InsufficientResources: The GPUs were in use for the whole time.
        StorageError: The folder cannot be used.
    """
    _create(folder)
    until, place = now() + limit_seconds, folder / f"queue-{_digest(request.uuids)}.lock"
    turn: int | None = None
    try:
        while True:
            turn = _try_lock(place) if turn is None else turn
            free: int | None = None
            if turn is not None:
                lease = _take_free(folder, request)
                if len(lease.uuids) >= request.need:
                    return lease
                free = len(lease.uuids)
                lease.release()
            text = waiting_text(request.need, free)
            if now() >= until:
                raise InsufficientResources(
                    f"the run was {text} for {limit_seconds:g} s; see `nightshift list` and `nvidia-smi` for what uses "
                    "them, then retry, or raise NIGHTSHIFT_GPU_WAIT_SECONDS"
                )
            on_wait(text)
            pause(POLL_SECONDS)
    finally:
        if turn is not None:
            _unlock(turn)


def waiting_text(need: int, free: int | None, resource: str = "GPU") -> str:
    """Return what a run waits for, such as "waiting for 2 GPUs (1 free)"; `free` is None behind another run."""
    what = f"1 {resource}" if need == 1 else f"{need} {resource}s"
    return f"waiting for {what} ({'behind another run' if free is None else f'{free} free'})"


def _take_free(folder: Path, request: GpuRequest) -> GpuLease:
    lease = GpuLease()
    for uuid in request.uuids:
        if len(lease.descriptors) == request.most:
            break
        descriptor = _try_lock(folder / f"{uuid.replace('/', '_')}.lock")  # old names of MIG instances have slashes
        if descriptor is not None:
            lease.descriptors[uuid] = descriptor
    return lease


def _create(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(SHARED_FOLDER)
    except OSError as error:
        raise _unusable(folder, error) from error


def _try_lock(file: Path) -> int | None:
    """Lock a file; return its descriptor, None if another process holds the lock.

    Raises:
        StorageError: It cannot be created or locked.
    """
    try:
        descriptor = _open(file)
    except OSError as error:
        raise _unusable(file.parent, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise _unusable(file.parent, error) from error
    _descriptors.add(descriptor)
    return descriptor


def _open(file: Path) -> int:
    """Open a lock file of any user. Linux refuses O_CREAT for the file of another one in a folder such as /tmp."""
    existing = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(file, existing)
    with contextlib.suppress(FileExistsError):
        created = os.open(file, existing | os.O_CREAT | os.O_EXCL, READABLE)
        os.fchmod(created, READABLE)  # whatever the umask of this user is
        return created
    return os.open(file, existing)


def _unlock(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _close_in_child() -> None:
    """Close the locks that a fork has copied: they end with their holder, not with its last loader process."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _digest(uuids: Sequence[str]) -> str:
    return hashlib.sha256(",".join(sorted(uuids)).encode()).hexdigest()[:16]


def _unusable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder} cannot hold the locks of this machine's GPUs ({error.strerror}); set NIGHTSHIFT_GPU_LOCKS to "
        "a folder of this machine that every user of its GPUs can write to"
    )
