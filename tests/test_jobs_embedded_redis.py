"""The embedded Redis: one per storage, private, found again."""

import errno
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO

import psutil
import pytest
from redis import AuthenticationError, Redis

from cluster.errors import StorageError
from cluster.guard import is_alive
from cluster.settings import Settings
from jobs.cli.doctor import redis_findings
from jobs.errors import QueueUnreachable, Refused
from jobs.queue import embedded_redis
from jobs.queue.connection import refuse_plain, without_password
from tests.stack import arguments_of, eventually
from tests.test_jobs_worker_list import register


@pytest.fixture
def place(storage: Path) -> Iterator[Path]:
    yield storage
    embedded_redis.stop(storage)


def pid_at(storage: Path) -> int:
    return embedded_redis.ensure_running(storage).pid


def test_only_its_owner_can_read_its_address(place: Path) -> None:
    server = embedded_redis.ensure_running(place)

    url = place / "redis" / "url"

    assert url.read_text().strip() == server.url
    assert stat.S_IMODE(url.stat().st_mode) == 0o600
    assert stat.S_IMODE((place / "redis" / "redis.conf").stat().st_mode) == 0o600


def test_the_password_is_required_and_never_an_argument(place: Path) -> None:
    server = embedded_redis.ensure_running(place)
    password = server.url.split(":")[2].split("@")[0]

    arguments = b" ".join(arguments_of(server.pid)).decode()

    assert password not in arguments
    assert password not in (place / "redis" / "redis.log").read_text()
    with pytest.raises(AuthenticationError), Redis(unix_socket_path=str(place / "redis" / "socket")) as stranger:
        stranger.ping()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
def test_the_folder_of_its_socket_is_no_link_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place, own = tmp_path / ("long" * 30), tmp_path / "own"
    own.mkdir()
    own.chmod(0o755)
    digest = hashlib.sha256(os.fsencode(place / "redis")).hexdigest()[:16]
    link = tmp_path / f"nightshift-{os.getuid()}-{digest}"
    link.symlink_to(own)
    os.lchown(link, 3002, -1)

    with pytest.raises(
        QueueUnreachable, match="is not a folder of this user; set NIGHTSHIFT_STORAGE to a shorter path"
    ):
        embedded_redis.ensure_running(place)

    assert stat.S_IMODE(own.stat().st_mode) == 0o755


def test_a_link_that_leads_nowhere_is_no_folder_of_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = tmp_path / ("long" * 30)
    digest = hashlib.sha256(os.fsencode(place / "redis")).hexdigest()[:16]
    (tmp_path / f"nightshift-{os.getuid()}-{digest}").symlink_to(tmp_path / "nowhere")

    with pytest.raises(
        QueueUnreachable, match="is not a folder of this user; set NIGHTSHIFT_STORAGE to a shorter path"
    ):
        embedded_redis.ensure_running(place)


def test_a_client_of_a_server_that_was_stopped_knows_the_password_of_the_next_one(place: Path) -> None:
    before = embedded_redis.ensure_running(place).url
    embedded_redis.stop(place)

    assert embedded_redis.ensure_running(place).url == before


def test_it_is_found_again(place: Path) -> None:
    first = embedded_redis.ensure_running(place)

    second = embedded_redis.ensure_running(place)

    assert (second.url, second.pid) == (first.url, first.pid)
    assert (first.started_here, second.started_here) == (True, False)


def test_doctor_finds_it_and_the_job_workers_that_it_lists(place: Path) -> None:
    with Redis.from_url(embedded_redis.ensure_running(place).url) as connection:
        register(connection, "ours-1", "nightshift-normal")

    (finding, *_), workers = redis_findings(Settings(storage=place))

    assert (finding.ok, finding.found) == (True, "the embedded server answers")
    assert [worker.name for worker in workers] == ["ours-1"]


def test_four_starters_at_once_get_one_server(place: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        pids = set(pool.map(pid_at, [place] * 4))

    assert len(pids) == 1


def test_what_was_written_survives_kill_9(place: Path) -> None:
    first = embedded_redis.ensure_running(place)
    with Redis.from_url(first.url) as connection:
        connection.set("kept", "yes")
        connection.execute_command("WAITAOF", 1, 0, 5000)

    os.kill(first.pid, signal.SIGKILL)
    os.waitpid(first.pid, 0)
    second = embedded_redis.ensure_running(place)

    with Redis.from_url(second.url) as connection:
        assert connection.get("kept") == b"yes"
    assert second.started_here


def test_a_server_whose_parent_does_not_wait_for_it_is_dead_when_it_has_ended(place: Path) -> None:
    code = "import sys; from pathlib import Path; from jobs.queue import embedded_redis as redis; "
    code += "print(redis.ensure_running(Path(sys.argv[1])).pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        server = embedded_redis.running(place)
        assert server is not None

        os.kill(server.pid, signal.SIGKILL)

        assert eventually(lambda: psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE)
        assert not server.is_alive


def test_a_lock_that_a_stopped_process_keeps_is_named_with_the_cure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "HELD_SECONDS", 0.2)
    lock = place / "redis" / ".lock"
    lock.parent.mkdir()
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another open file: it excludes this process as it does others

        with pytest.raises(StorageError, match=rf"another process has held {lock} for 0.2 s; it may be stopped: find"):
            embedded_redis.ensure_running(place)


def stopped_with_data(storage: Path) -> Path:
    """Return the folder of the data of a server that has one key and was stopped."""
    with Redis.from_url(embedded_redis.ensure_running(storage).url) as client:
        client.set("key", "value")
    embedded_redis.stop(storage)
    return storage / "redis" / "appendonlydir"


def zeros_first(file: Path) -> None:
    file.write_bytes(b"\0" * 4096 + file.read_bytes())  # as after a loss of power


def a_flipped_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of the checksum
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("*.incr.aof", zeros_first),
        ("*.incr.aof", Path.unlink),
        ("*.base.rdb", a_flipped_bit),
        ("*.manifest", zeros_first),
        ("*.manifest", lambda file: file.write_bytes(b"")),
        ("*.manifest", lambda file: file.write_bytes(b"x\n")),
    ],
    ids=["zeros", "deleted", "base with a wrong bit", "manifest of zeros", "empty manifest", "text"],
)
def test_a_server_whose_data_are_damaged_starts_without_them_and_keeps_them(
    place: Path, caplog: pytest.LogCaptureFixture, pattern: str, damage: Callable[[Path], object]
) -> None:
    data = stopped_with_data(place)
    damage(next(data.glob(pattern)))
    damaged = {file.name: file.read_bytes() for file in data.iterdir()}

    with Redis.from_url(embedded_redis.ensure_running(place).url) as client:
        kept = client.get("key")

    (aside,) = (place / "redis").glob("appendonlydir.unreadable-*")
    assert kept is None
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == damaged
    assert f"the embedded Redis cannot read its data, which are moved to {aside}; the queues are" in caplog.text


def test_data_that_are_damaged_again_leave_the_earlier_ones_where_they_are(place: Path) -> None:
    for _ in range(2):
        zeros_first(next(stopped_with_data(place).glob("*.incr.aof")))
        embedded_redis.ensure_running(place)
        embedded_redis.stop(place)

    assert len(list((place / "redis").glob("appendonlydir.unreadable-*/*.incr.aof"))) == 2


def unknown_version(data: Path) -> None:
    file = next(data.glob("*.base.rdb"))
    file.write_bytes(file.read_bytes().replace(file.read_bytes()[6:9], b"999", 1))


def unknown_format(data: Path) -> None:
    file = next(data.glob("*.base.rdb"))
    file.write_bytes(b"SERVER" + file.read_bytes()[6:])  # as a newer server may begin it


def unreadable_file(data: Path) -> None:
    file = next(data.glob("*.incr.aof"))
    file.unlink()
    file.mkdir()  # reading it fails, as from a bad disk


def cut_base(data: Path) -> None:
    file = next(data.glob("*.base.rdb"))
    file.write_bytes(file.read_bytes()[:-7])  # the server logs the same for a read that failed


@pytest.mark.parametrize("fault", [unknown_version, unknown_format, unreadable_file, cut_base])
def test_data_that_may_be_sound_stay_where_they_are_though_an_earlier_start_found_damage(
    place: Path, fault: Callable[[Path], None]
) -> None:
    fault(stopped_with_data(place))
    with (place / "redis" / "redis.log").open("a") as earlier:
        earlier.write("1:M # Bad file format reading the append only file appendonly.aof.1.incr.aof\n")

    with pytest.raises(QueueUnreachable, match=r"did not start; .*redis\.log says why"):
        embedded_redis.ensure_running(place)

    assert [folder.name for folder in (place / "redis").glob("appendonly*")] == ["appendonlydir"]


def test_a_server_that_is_still_reading_its_data_has_not_started(place: Path) -> None:
    file = next(stopped_with_data(place).glob("*.incr.aof"))
    many = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n" * 300_000  # it answers each time after a thousand
    file.write_bytes(file.read_bytes() + many + b"\0" * 4096)

    with Redis.from_url(embedded_redis.ensure_running(place).url) as client:
        kept = client.get("key")

    assert kept is None
    assert len(list((place / "redis").glob("appendonlydir.unreadable-*"))) == 1


def test_damaged_data_that_cannot_be_moved_are_named_with_the_cure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros_first(next(stopped_with_data(place).glob("*.incr.aof")))

    def denied(self: Path, _target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", denied)
        with pytest.raises(QueueUnreachable, match=r"appendonlydir, and they cannot be moved \(Permission denied\)"):
            embedded_redis._set_data_aside(place / "redis")


def test_a_server_that_does_not_start_for_another_reason_keeps_its_data(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Redis.from_url(embedded_redis.ensure_running(place).url) as client:
        client.set("key", "value")
    embedded_redis.stop(place)
    with monkeypatch.context() as patched:
        patched.setattr(embedded_redis, "CONFIGURATION", embedded_redis.CONFIGURATION + "no-such-option yes\n")

        with pytest.raises(QueueUnreachable, match=r"did not start; .*redis\.log says why"):
            embedded_redis.ensure_running(place)

    with Redis.from_url(embedded_redis.ensure_running(place).url) as client:
        assert client.get("key") == b"value"
    assert [folder.name for folder in (place / "redis").glob("appendonly*")] == ["appendonlydir"]


def test_a_storage_with_a_long_path_and_a_blank_works(tmp_path: Path) -> None:
    deep = tmp_path / ("a long name " * 10)
    deep.mkdir()

    server = embedded_redis.ensure_running(deep)

    with Redis.from_url(server.url) as connection:
        assert connection.ping()
    embedded_redis.stop(deep)
    assert embedded_redis.running(deep) is None


def test_it_ends_with_the_process_that_asked_for_that(storage: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from jobs.queue.embedded_redis import ensure_running;"
        "print(ensure_running(Path(sys.argv[1]), ends_with_caller=True).pid, flush=True); os.kill(os.getpid(), 9)"
    )

    said = subprocess.run([sys.executable, "-c", code, str(storage)], capture_output=True, text=True, check=False)

    assert eventually(lambda: not is_alive(int(said.stdout)))


def test_a_stack_uses_it_on_nfs_where_a_shared_lock_needs_a_file_that_can_be_read(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def flock_of_nfs(file: IO[str], operation: int) -> None:
        if operation & fcntl.LOCK_SH and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)

    with embedded_redis.used_by_stack(storage) as server:
        assert server.is_alive
    assert embedded_redis.running(storage) is None


def test_a_server_of_another_machine_is_refused_with_the_cure(storage: Path) -> None:
    server = embedded_redis.ensure_running(storage)
    embedded_redis.stop(storage)
    (storage / "redis" / "url").write_text(server.url)
    (storage / "redis" / "host.json").write_text('{"host": "elsewhere"}')

    with pytest.raises(QueueUnreachable, match="was started on elsewhere; set NIGHTSHIFT_REDIS_URL"):
        embedded_redis.ensure_running(storage)


@pytest.mark.parametrize("url", ["redis://:secret@10.0.0.7:6379/0", "redis://redis.example:6379"])
def test_plain_redis_on_another_machine_is_refused_unless_allowed(url: str) -> None:
    with pytest.raises(Refused, match="plain Redis on another machine; use rediss://") as refusal:
        refuse_plain(url, allowed=False)

    refuse_plain(url, allowed=True)

    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("url", ["rediss://10.0.0.7", "redis://127.0.0.1:6379", "redis://localhost", "unix:///tmp/s"])
def test_encrypted_and_local_redis_is_accepted(url: str) -> None:
    refuse_plain(url, allowed=False)


def test_an_address_is_shown_without_its_password() -> None:
    assert without_password("rediss://user:secret@host:6380/2") == "rediss://host:6380"
