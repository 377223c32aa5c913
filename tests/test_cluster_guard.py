"""The guard: a process and all its descendants end together, whatever sessions they are in."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import guard
from tests.stack import eventually

GUARD = [sys.executable, "-I", "-S", guard.__file__]
# A child in a session of its own whose parent has gone, and one that will hear of no SIGTERM.
RUNAWAYS = "setsid sleep 611 & setsid bash -c 'trap : TERM; while :; do sleep 612; done' & "


def guarded(script: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*GUARD, str(os.getpid()), "bash", "-c", script])


def sleepers() -> list[str]:
    found = subprocess.run(["pgrep", "-f", "sleep 61[12]"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_it_ends_with_the_exit_code_of_its_command() -> None:
    assert guarded("exit 3").wait(timeout=600) == 3


def test_it_tells_a_signal_from_an_exit_code() -> None:
    assert guarded("kill -9 $$").wait(timeout=600) == guard.STATUS_OF_SIGNAL + signal.SIGKILL


def test_a_command_that_does_not_exist_is_127() -> None:
    order = [*GUARD, str(os.getpid()), "/no/such/program"]

    said = subprocess.run(order, capture_output=True, text=True, check=False)

    assert said.returncode == 127
    assert said.stderr.startswith("/no/such/program cannot be started: ")


def test_what_the_command_leaves_behind_ends_with_it() -> None:
    leash = guarded(RUNAWAYS + "sleep 0.3")
    assert eventually(lambda: len(sleepers()) >= 2)

    code = leash.wait(timeout=600)

    assert code == 0
    assert sleepers() == []


def test_sigterm_ends_all_of_it_at_once() -> None:
    leash = guarded(RUNAWAYS + "sleep 613")
    assert eventually(lambda: len(sleepers()) >= 2)

    leash.terminate()

    assert leash.wait(timeout=600) == guard.STATUS_OF_SIGNAL + signal.SIGTERM
    assert sleepers() == []


def test_it_does_not_outlive_its_starter() -> None:
    code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([*{GUARD!r}, str(os.getpid()), 'bash', '-c', {RUNAWAYS + 'sleep 613'!r}])\n"
        "while len(subprocess.run(['pgrep', '-fx', 'sleep 61[12]'], capture_output=True).stdout.split()) < 2:\n"
        "    time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)"
    )

    subprocess.run([sys.executable, "-c", code], check=False)

    assert eventually(lambda: not sleepers())


def test_a_starter_that_is_already_gone_starts_nothing() -> None:
    order = [*GUARD, "1", "bash", "-c", "sleep 611"]

    assert subprocess.run(order, check=False).returncode == guard.STATUS_OF_SIGNAL + signal.SIGTERM
    assert sleepers() == []


def test_both_ways_of_finding_descendants_agree() -> None:
    with subprocess.Popen(["bash", "-c", "sleep 30 & sleep 30 & wait"]) as shell:
        assert eventually(lambda: len(guard.descendants(shell.pid)) == 2)
        by_lists = guard.descendants(shell.pid)
        by_parents = guard._parents_inverted()[shell.pid]
        guard.end_descendants(shell.pid, grace_seconds=1)
        shell.wait(timeout=600)

    assert sorted(by_lists) == sorted(by_parents)


def test_a_process_that_ends_while_its_children_are_listed_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(Path, "is_dir", lambda _: True)  # as seen a moment before

    assert guard._children(ended.pid) == []
