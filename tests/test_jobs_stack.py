"""`nightshift up`: which process ends which."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.settings import Settings
from cluster.version import VERSION
from jobs.errors import StackError
from jobs.queue import embedded_redis
from jobs.queue import stack as jobs_stack
from jobs.queue.embedded_redis import EmbeddedRedis
from jobs.queue.stack import Stack, log_file, start_stack
from jobs.queue.submit import submit
from tests.conftest import Say
from tests.stack import FAKE_WORKER, FakeSpec, arguments_of, children_of, eventually, processes_in, reaches, state_of

NIGHTSHIFT = [sys.executable, "-P", "-m", "jobs"]


def up(storage: Path, *more: str) -> "subprocess.Popen[str]":
    order, env = [*NIGHTSHIFT, "up", "--job-workers", "2", *more], {**os.environ, "NIGHTSHIFT_STORAGE": str(storage)}
    process = subprocess.Popen(order, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Nightshift is up: 2 job workers, storage ")
    return process


def page_of(process: "subprocess.Popen[str]") -> int:
    """The process that serves the page, once it has printed its address."""
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    return next(pid for pid in children_of(process.pid) if b"ui" in arguments_of(pid))


def test_ctrl_c_ends_all_of_up(storage: Path) -> None:
    with up(storage, "--ui", "--ui-port", "0") as process:
        page_of(process)
        lived = len(processes_in(storage))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()

    assert lived >= 5  # itself, two workers, Redis, the page
    assert process.returncode == 0
    assert processes_in(storage) == []
    assert not (storage / "redis" / "url").exists()


def test_kill_9_of_up_ends_its_children_too(storage: Path) -> None:
    with up(storage, "--ui", "--ui-port", "0") as process:
        page_of(process)
        process.kill()

    assert eventually(lambda: not processes_in(storage))


def test_a_page_that_dies_is_served_again_and_at_last_given_up_while_job_workers_go_on(storage: Path) -> None:
    with up(storage, "--ui", "--ui-port", "0") as process:
        workers = [pid for pid in children_of(process.pid) if b"worker" in arguments_of(pid)]
        for _ in range(3):
            os.kill(page_of(process), signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.readline()
        still = [pid for pid in children_of(process.pid) if b"worker" in arguments_of(pid)]
        process.terminate()

    assert said == (
        "The page ended 3 times, last with exit code -9; job workers go on; `nightshift ui` serves the page again.\n"
    )
    assert len(workers) == 2
    assert still == workers


def test_a_port_of_the_page_that_is_taken_starts_nothing(say: Say) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = say("up", "--ui", "--ui-port", str(port))

    line = f"Error: port {port} cannot be opened for the page (Address already in use); choose another --ui-port\n"
    assert said == (1, "", line)


def test_a_stack_ends_the_server_that_a_plain_command_left_running(storage: Path) -> None:
    embedded_redis.ensure_running(storage)

    with start_stack(Settings(storage=storage), 1, worker_command=FAKE_WORKER):
        pass

    assert embedded_redis.running(storage) is None


def test_when_one_stack_ends_another_on_the_storage_keeps_its_runs_and_its_address(storage: Path) -> None:
    alone = Settings(storage=storage)
    with up(storage) as first, start_stack(alone, 1, worker_command=FAKE_WORKER) as second:
        serving = second.server
        first.send_signal(signal.SIGINT)
        first.wait()
        assert serving is not None
        assert eventually(lambda: not serving.is_alive)
        second.restart_ended()
        run_id = submit(alone, FakeSpec())
        state = reaches(storage, run_id, "succeeded")
        served = embedded_redis.running(storage)

    assert serving.owner == first.pid
    assert served is not None
    assert served.url == serving.url
    assert state.attempt == 1
    assert embedded_redis.running(storage) is None
    assert processes_in(storage) == []


def test_a_second_up_says_who_serves_redis_and_what_it_adds(storage: Path) -> None:
    with up(storage) as first:
        with up(storage) as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            second.terminate()
        still_there = embedded_redis.running(storage) is not None
        first.terminate()

    assert said == (
        f"Process {first.pid}, another `nightshift up` or `demo`, serves the Redis of this storage; this command adds "
        "2 job workers, and serves Redis when that process ends.\n"
    )
    assert still_there
    assert processes_in(storage) == []


def test_a_users_own_jobs_py_and_trainer_py_are_never_run(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("jobs", "trainer", "cluster", "data_shards", "random", "sitecustomize"):
        (project / f"{name}.py").write_text(f"open({str(project / 'ran')!r}, 'a').write(__name__)")
    monkeypatch.chdir(project)
    run_id = submit(settings, FakeSpec())  # the real trainer does not know its options

    with start_stack(settings, 1):
        assert eventually(lambda: state_of(settings.storage, run_id).why is not None)
        state = state_of(settings.storage, run_id)

    assert not (project / "ran").exists()
    assert (state.state, state.losses) == ("queued", 0)
    assert f"Nightshift {VERSION} of the trainer does not know all of the spec" in str(state.why)
    assert ": shards is missing); a newer version wrote it" in str(state.why)


def test_a_job_worker_that_keeps_dying_ends_the_stack_with_the_reason(settings: Settings) -> None:
    dies = (sys.executable, "-c", "import sys; sys.exit(7)")

    def keep_up() -> None:
        with start_stack(settings, 1, worker_command=dies) as stack:
            for _ in range(3):
                stack.workers[0].wait()
                stack.restart_ended()

    with pytest.raises(StackError) as caught:
        keep_up()

    assert str(caught.value) == (
        "job worker 1 ended 3 times within a minute, last with exit code 7; "
        f"see {log_file(settings.storage, 1)}; `nightshift doctor` checks this machine"
    )


def test_a_job_worker_that_is_killed_from_outside_is_restarted_every_time(settings: Settings) -> None:
    with start_stack(settings, 1, worker_command=("sleep", "600")) as stack:
        for _ in range(4):
            stack.workers[0].kill()
            stack.workers[0].wait()
            stack.restart_ended()

        assert stack.workers[0].poll() is None


def test_a_redis_that_cannot_be_started_is_tried_after_a_pause_and_given_up_after_some_tries(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[int]()

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(embedded_redis, "ensure_running", fail)
    ended = EmbeddedRedis(url="redis://127.0.0.1:1", pid=1, started_here=True)
    monkeypatch.setattr(EmbeddedRedis, "is_alive", False)
    stack = Stack(settings.with_storage_ready(), None, FAKE_WORKER, [], ended)

    monkeypatch.setattr(jobs_stack, "REDIS_PAUSE_SECONDS", 600.0)
    for _ in range(3):
        stack.restart_ended(redis_tries=2)
    tries_in_a_pause = len(tries)
    stack._next_redis_try = 0.0
    with pytest.raises(StackError) as caught:
        stack.restart_ended(redis_tries=2)

    assert (tries_in_a_pause, len(tries)) == (1, 2)
    assert str(caught.value) == (
        "Redis (process 1) has ended and cannot be started again: No space left on device; "
        "`nightshift doctor` checks this machine"
    )
