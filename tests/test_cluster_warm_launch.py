"""Attempts that are forked from a fork server have the same fences, and see the same, as those that start cold."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import guard, resources, warm_launch
from cluster.code_version import CodeVersion
from cluster.files import read_json
from cluster.launch import LocalRun
from cluster.lease import Lease, latest_attempt
from cluster.run_paths import RunPaths
from cluster.warm_launch import ForkServer, WarmLauncher, WarmRun
from tests.fake_fork_server import fork_server, launcher
from tests.stack import FakeSpec, eventually, processes_of
from tests.trained import new_run

ROOT = Path(__file__).parent.parent
STEPS = 2000
JOB_WORKER = """
import sys, time
from pathlib import Path
from cluster import guard
from cluster.run_paths import RunPaths
from tests.fake_fork_server import fork_server, launcher

guard.adopt_orphans()
with fork_server(Path(sys.argv[1]), "tests.fake_trainer") as server:
    found = launcher(server, "tests.fake_trainer").start(RunPaths(Path(sys.argv[2])), 1)
    while True:
        found.wait(1)
"""


@pytest.fixture(autouse=True)
def _job_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process be a job worker, which adopts orphans; its children import tests from the checkout."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = set(guard.descendants(os.getpid()))
    monkeypatch.setattr(warm_launch, "OWN_VARIABLES", (*warm_launch.OWN_VARIABLES, "PYTEST_"))
    guard.adopt_orphans()
    yield
    guard.end_descendants(os.getpid(), grace_seconds=0, spare=before)


@pytest.fixture
def warm(storage: Path) -> Iterator[WarmLauncher]:
    """A launcher whose attempts are those of the fake trainer."""
    with fork_server(storage, "tests.fake_trainer") as server:
        yield launcher(server, "tests.fake_trainer")


@pytest.fixture
def run(storage: Path) -> RunPaths:
    """A run of many steps, which a child of the trainer outlives."""
    return new_run(storage, FakeSpec(steps=STEPS, step_seconds=0.05, leaves_child=True), f"long-{os.getpid()}")


def started(warm: WarmLauncher, paths: RunPaths) -> Any:
    """Start the next attempt, and wait until it works."""
    attempt = Lease.claim(paths, after=latest_attempt(paths)).attempt
    found = warm.start(paths, attempt)
    assert found.wait(0.01) is None
    assert eventually(lambda: found.wait(0.01) is None and paths.progress.exists()), paths.log.read_text()
    return found


def code_of(found: WarmRun | LocalRun) -> int:
    code = found.wait(600)
    assert code is not None
    return code


def test_a_forked_trainer_is_given_the_same_as_one_that_starts_cold_and_nothing_of_the_one_before(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [new_run(storage, FakeSpec(), name) for name in ("first", "second", "cold")]
    codes = []
    with fork_server(storage, "tests.shown_process") as server:
        warm = launcher(server, "tests.shown_process")
        for paths, start in zip(runs, (warm.start, warm.start, warm.cold.start), strict=True):
            monkeypatch.setenv("NIGHTSHIFT_HANG_SECONDS", paths.run_id)

            codes.append(code_of(start(paths, 1)))

    assert codes == [0, 0, 0]
    found = [read_json(paths.folder / "shown.json") for paths in runs]
    for paths, shown in zip(runs, found, strict=True):
        assert shown.pop("run") == paths.run_id
        assert shown.pop("shown run") == [f"NIGHTSHIFT_RUN={paths.run_id}"]
        assert shown["environment"].pop("NIGHTSHIFT_HANG_SECONDS") == paths.run_id
        assert shown.pop("set by an import") == (None if paths.run_id == "cold" else "1")
        assert shown.pop("command")[-3:] == [str(paths.folder), "--attempt", "1"]
        assert shown.pop("streams") == ["/dev/null", str(paths.log), str(paths.log)]
    assert len({shown.pop("random") for shown in found}) == 3
    assert found[0] == found[1] == found[2]


def test_an_environment_that_the_imports_did_not_see_starts_cold(
    warm: WarmLauncher, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    paths = new_run(storage, FakeSpec())

    found = warm.start(paths, Lease.claim(paths, after=0).attempt)

    assert isinstance(found, LocalRun)
    assert code_of(found) == 0
    assert paths.log.read_text().startswith(
        "attempt 1 starts cold, which takes some seconds more: the fork server has another value of OMP_NUM_THREADS\n"
    )


def test_a_killed_trainer_takes_all_its_processes_along(warm: WarmLauncher, run: RunPaths) -> None:
    found = started(warm, run)
    trainer = read_json(run.attempts / "1.json")["pid"]

    os.kill(trainer, signal.SIGKILL)

    assert code_of(found) == guard.STATUS_OF_SIGNAL + signal.SIGKILL
    assert processes_of(run.run_id) == []


def test_a_killed_guard_ends_its_trainer(warm: WarmLauncher, run: RunPaths) -> None:
    found = started(warm, run)
    trainer = read_json(run.attempts / "1.json")["pid"]

    os.kill(found.guard_pid, signal.SIGKILL)

    assert code_of(found) == guard.STATUS_OF_SIGNAL + signal.SIGKILL
    assert eventually(lambda: not guard.is_alive(trainer))


@pytest.mark.parametrize("stopped", [False, True])
def test_kill_ends_all_processes_of_an_attempt(
    warm: WarmLauncher, run: RunPaths, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_launch, "KILL_SECONDS", 0.5)
    found = started(warm, run)
    trainer = read_json(run.attempts / "1.json")["pid"]
    if stopped:
        os.kill(found.guard_pid, signal.SIGSTOP)

    found.kill()

    number = signal.SIGKILL if stopped else signal.SIGTERM
    assert code_of(found) == guard.STATUS_OF_SIGNAL + number
    assert eventually(lambda: not guard.is_alive(trainer))
    assert stopped or processes_of(run.run_id) == []


def test_the_stacks_of_a_forked_trainer_are_in_the_log(warm: WarmLauncher, run: RunPaths) -> None:
    found = started(warm, run)

    found.dump_stacks()

    assert 'fake_trainer.py", line ' in run.log.read_text()
    assert found.wait(0.1) is None
    found.kill()


def test_an_attempt_ends_with_its_work_horse(warm: WarmLauncher, run: RunPaths) -> None:
    found = started(warm, run)

    found.connection.close()  # as the kernel does when it ends

    assert eventually(lambda: processes_of(run.run_id) == [])


def test_an_attempt_outlives_its_fork_server_and_the_next_one_starts_cold(warm: WarmLauncher, run: RunPaths) -> None:
    found = started(warm, run)
    steps = len(read_json(run.progress))

    warm.fork_server.process.kill()
    warm.fork_server.process.wait()
    second = new_run(run.storage, FakeSpec(), "second")
    instead = warm.start(second, Lease.claim(second, after=0).attempt)

    assert code_of(instead) == 0
    assert second.log.read_text().startswith("attempt 1 starts cold, which takes some seconds more: the fork server ")
    assert found.wait(0.2) is None
    assert steps
    warm.fork_server.refresh()
    third = new_run(run.storage, FakeSpec(), "third")
    assert code_of(warm.start(third, Lease.claim(third, after=0).attempt)) == 0
    assert "cold" not in third.log.read_text()
    found.kill()


def test_a_fork_server_that_does_not_answer_is_not_waited_for_and_starts_nothing_later(
    warm: WarmLauncher, storage: Path
) -> None:
    paths = new_run(storage, FakeSpec())
    eager = WarmLauncher(warm.fork_server, warm.cold, answer_seconds=0.3)
    assert eventually(lambda: warm.fork_server.is_ready)
    os.kill(warm.fork_server.pids[0], signal.SIGSTOP)

    code = code_of(eager.start(paths, Lease.claim(paths, after=0).attempt))
    os.kill(warm.fork_server.pids[0], signal.SIGCONT)
    other = new_run(storage, FakeSpec(), "other")
    after = code_of(warm.start(other, Lease.claim(other, after=0).attempt))

    assert (code, after) == (0, 0)
    assert "starts cold, which takes some seconds more: the fork server does not answer" in paths.log.read_text()
    assert paths.log.read_text().count("attempt 1 of") == 1
    assert "cold" not in other.log.read_text()


def test_an_attempt_that_is_killed_before_it_starts_never_starts(warm: WarmLauncher, storage: Path) -> None:
    paths = new_run(storage, FakeSpec())
    os.kill(warm.fork_server.pids[0], signal.SIGSTOP)
    found = warm.start(paths, Lease.claim(paths, after=0).attempt)

    found.kill()
    os.kill(warm.fork_server.pids[0], signal.SIGCONT)
    other = new_run(storage, FakeSpec(), "other")

    assert code_of(found) == guard.STATUS_OF_SIGNAL + signal.SIGTERM
    assert code_of(warm.start(other, Lease.claim(other, after=0).attempt)) == 0
    assert "attempt 1 of" not in paths.log.read_text()


def test_a_fork_server_and_its_attempt_end_with_their_job_worker(storage: Path, run: RunPaths) -> None:
    Lease.claim(run, after=0)
    worker = subprocess.Popen([sys.executable, "-c", JOB_WORKER, str(storage), str(run.folder)])
    assert eventually(run.progress.exists)
    below = guard.descendants(worker.pid)

    worker.kill()
    worker.wait()

    assert len(below) >= 3
    assert eventually(lambda: not any(guard.is_alive(pid) for pid in below))
    assert processes_of(run.run_id) == []


@pytest.mark.parametrize("fault", ["--uses-threads", "--fails"])
def test_a_fork_server_that_cannot_fork_safely_is_not_started_again_until_the_code_changes(
    storage: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_launch, "MAX_FAILURES", 1)
    pids = set()
    with fork_server(storage, "tests.fake_trainer", fault) as server:
        for _ in range(warm_launch.MAX_FAILURES + 1):
            if server.process is not None:
                pids.add(server.process.pid)
                assert server.process.wait(600) == 1
            server.refresh()

        assert len(pids) == warm_launch.MAX_FAILURES
        assert server.refusal({}) == "the fork server ended while it started"
        monkeypatch.setattr(CodeVersion, "of_installation", CodeVersion)
        server.refresh()
        assert server.pids


def test_a_fork_server_is_replaced_when_the_code_changes_and_after_many_runs(
    warm: WarmLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pids = warm.fork_server, [warm.fork_server.pids]

    server.refresh()
    pids.append(server.pids)
    with monkeypatch.context() as upgraded:
        upgraded.setattr(CodeVersion, "of_installation", CodeVersion)
        server.refresh()
        pids.append(server.pids)
        for _ in range(warm_launch.MAX_RUNS):
            server.count_run()
        server.refresh()
        pids.append(server.pids)

    assert pids[0] == pids[1]
    assert len(set(pids)) == 3


def test_a_fork_server_that_cannot_be_started_at_all_does_not_end_its_job_worker(storage: Path) -> None:
    with ForkServer(storage, ("/no/such/program",)) as server:
        assert server.refusal({}) == "the fork server cannot be started (No such file or directory)"


def test_no_fork_server_is_started_where_memory_is_short(storage: Path) -> None:
    paths = new_run(storage, FakeSpec())
    with fork_server(storage, "tests.fake_trainer", min_memory_bytes=10**18) as server:
        code = code_of(launcher(server, "tests.fake_trainer").start(paths, Lease.claim(paths, after=0).attempt))

        assert server.pids == ()
    assert code == 0
    assert "GB of memory are available and a fork server is started from 1000000000 GB on" in paths.log.read_text()


@pytest.mark.parametrize(("limit", "expected"), [("3000", 3000 - 2000 + 500), ("max", 7168)])
def test_the_available_memory_is_that_of_the_machine_or_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    files = {
        "meminfo": "MemTotal: 9 kB\nMemAvailable: 7 kB\n",
        "max": limit,
        "now": "2000",
        "memory.stat": "idle 500\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(resources, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(resources, "CGROUP_MEMORY", ((tmp_path, "max", "now", "idle"),))

    assert resources.available_memory() == expected


def test_the_code_is_another_after_a_change_of_a_file_or_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, site = tmp_path / "trainer" / "train.py", tmp_path / "site"
    code.parent.mkdir()
    code.write_text("")
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    found = [CodeVersion.of_installation(tmp_path), CodeVersion.of_installation(tmp_path)]

    code.write_text("import torch")
    found.append(CodeVersion.of_installation(tmp_path))
    (site / "torch-3.0.dist-info").mkdir()
    found.append(CodeVersion.of_installation(tmp_path))

    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_the_log_says_that_an_attempt_waits_for_the_imports_of_its_job_worker(storage: Path) -> None:
    first, second = (new_run(storage, FakeSpec(), name) for name in ("first", "second"))
    with fork_server(storage, "tests.fake_trainer") as server:
        os.kill(server.pids[0], signal.SIGSTOP)  # before it has imported anything
        found = launcher(server, "tests.fake_trainer").start(first, Lease.claim(first, after=0).attempt)
        while_waiting = first.log.read_text()
        os.kill(server.pids[0], signal.SIGCONT)
        codes = [code_of(found)]
        assert server.is_ready
        codes.append(
            code_of(launcher(server, "tests.fake_trainer").start(second, Lease.claim(second, after=0).attempt))
        )

    assert while_waiting == "attempt 1 waits until its job worker has imported torch and Ray, once for all its runs\n"
    assert codes == [0, 0]
    assert "waits" not in second.log.read_text()
