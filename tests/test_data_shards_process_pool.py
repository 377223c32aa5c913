"""Tasks in a pool of processes."""

import multiprocessing.connection
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_shards.errors import ShardError
from data_shards.process_pool import map_in_processes

ROOT = Path(__file__).parents[1]
SCRIPT = """
from data_shards.process_pool import map_in_processes
{guard}print(sorted(map_in_processes(abs, [(-1,), (-2,)], processes=2)))
"""


@pytest.fixture
def script(tmp_path):
    """Run a script that uses a pool; return its stdout and stderr."""

    def run(guard):
        file = tmp_path / "script.py"
        file.write_text(SCRIPT.format(guard=guard))
        ended = subprocess.run(
            [sys.executable, file],
            check=False,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        return ended.stdout, ended.stderr

    return run


@pytest.mark.parametrize("processes", [1, 2])
def test_each_result_comes_with_the_number_of_its_task(processes):
    found = map_in_processes(abs, [(-1,), (-2,), (-3,)], processes=processes)

    assert sorted(found) == [(0, 1), (1, 2), (2, 3)]


def test_a_killed_process_is_named_with_the_cure():
    tasks = [(signal.SIGKILL,), (signal.SIGKILL,)]

    with pytest.raises(ShardError, match=r"^one of 2 processes was killed, perhaps out of memory; .* --processes 1$"):
        list(map_in_processes(signal.raise_signal, tasks, processes=2))


class EndlessTasks(Sequence):
    """Tasks that kill their processes; after the first two, the others come when a process has ended."""

    def __len__(self):
        return 1_000_000

    def __getitem__(self, number):
        if number == 2:
            multiprocessing.connection.wait([process.sentinel for process in multiprocessing.active_children()])
        if number > 2:
            time.sleep(0.01)
        return (signal.SIGKILL,)


def test_a_process_that_is_killed_while_tasks_are_submitted_is_named_with_the_number_of_processes():
    with pytest.raises(ShardError, match=r"^one of 2 processes was killed, perhaps out of memory; .* --processes 1$"):
        list(map_in_processes(signal.raise_signal, EndlessTasks(), processes=2))


def test_a_script_without_a_guard_is_told_to_have_one(script):
    out, err = script("")

    assert out == ""
    assert "processes could not start, with the error above" in err
    assert 'put the calls of a script under `if __name__ == "__main__":`' in err
    assert "out of memory" not in err


def test_a_script_with_a_guard_uses_the_pool(script):
    out, err = script('if __name__ == "__main__": ')

    assert (out, err) == ("[(0, 1), (1, 2)]\n", "")
