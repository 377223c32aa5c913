"""The Python processes of a Ray on this machine are forks of the trainer's fork server, and end as Ray's own do."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray

from tests.processes import is_alive
from tests.stack import eventually
from trainer.distributed import ray_fork_client
from trainer.distributed.ray_fork_imports import AGENT_MODULES
from trainer.distributed.ray_fork_server import SCRIPTS, WORKER

LOG_MONITOR = str(Path(ray.__file__).parent / "_private" / "log_monitor.py")
SERVER = """
import sys
from trainer.distributed.ray_fork_server import forking_python, start_fork_server

start_fork_server(lambda: None)
with forking_python(sys.argv[1]):
    print(sys.executable, flush=True)
sys.stdin.read()
"""
RAY = """
import json, os, resource, sys, tempfile
from cluster.process_env import set_local_ray_environment
from trainer.distributed.ray_fork_server import forking_python, start_fork_server

set_local_ray_environment()
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
start_fork_server(lambda: None)
import psutil, ray

os.environ["CUDA_VISIBLE_DEVICES"] = "GPU-2,GPU-3"  # what the run leases is known when the fork server exists
(server,) = [child.pid for child in psutil.Process().children()]

class Worker:
    def about(self):
        process = psutil.Process()
        return {
            "parents": [parent.pid for parent in process.parents()], "variable": os.environ["VARIABLE"],
            "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "niceness": process.nice(), "title": process.cmdline()[0],
            "task": ray.get_runtime_context().get_task_id(),
        }

with tempfile.TemporaryDirectory(prefix="ns-") as folder:
    with forking_python(folder):
        ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    workers = [
        ray.remote(Worker).options(num_gpus=1, runtime_env={"env_vars": {"VARIABLE": str(number)}}).remote()
        for number in (0, 1)
    ]
    about = ray.get([worker.about.remote() for worker in workers])
    ours = [child.pid for child in psutil.Process().children(recursive=True)]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(json.dumps({"workers": about, "server": server, "processes": ours, "files": files}), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A process with a fork server, which lives until its stdin ends; its `python` stands for Python."""
    folder = tmp_path_factory.mktemp("ray")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        trainer.python = trainer.stdout.readline().strip()
        yield trainer
        trainer.kill()


def test_workers_of_ray_are_forks_with_an_environment_gpu_and_identifiers_of_their_own_and_end_with_the_trainer():
    shown = json.loads(_output_of(RAY, expected=-signal.SIGKILL))

    first, second = shown["workers"]
    assert all(shown["server"] in worker["parents"] for worker in (first, second))
    assert (first["variable"], second["variable"]) == ("0", "1")
    assert {first["gpu"], second["gpu"]} == {"GPU-2", "GPU-3"}
    assert first["task"] != second["task"]
    assert first["title"].strip() == "ray::Worker.about"  # as `ps` shows it
    assert first["niceness"] == min(19, psutil.Process().nice() + 15)  # what Ray adds for its workers
    assert first["files"] == shown["files"] > [1000, 0]  # Ray raises the limit when it starts
    assert len(shown["processes"]) > 5
    assert eventually(lambda: not _living(shown["processes"]))


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--no-such-option"], 2)])
def test_a_process_ends_with_the_exit_code_and_the_output_of_its_fork(trainer, arguments, code):
    ended = subprocess.run([trainer.python, "-u", LOG_MONITOR, *arguments], capture_output=True, check=False, text=True)

    assert ended.returncode == code
    assert "usage: log_monitor.py" in ended.stdout + ended.stderr


def test_what_is_not_on_the_list_of_scripts_runs_in_python_itself(trainer):
    ended = subprocess.run(
        [trainer.python, "-c", "import os; print(os.getppid())"], capture_output=True, check=False, text=True
    )

    assert ended.stdout == f"{os.getpid()}\n"


def test_a_fork_ends_when_the_process_that_asked_for_it_is_killed_and_as_the_fork_does(trainer, tmp_path):
    waiting = _waiting_fork(trainer, tmp_path / "asked")
    waiting.asked.kill()
    assert waiting.asked.wait() == -signal.SIGKILL
    assert eventually(lambda: not _living([waiting.fork]))

    waiting = _waiting_fork(trainer, tmp_path / "ended")
    os.kill(waiting.fork, signal.SIGTERM)
    assert waiting.asked.wait() == -signal.SIGTERM


def test_the_scripts_that_are_forked_exist_in_the_installed_ray():
    assert [script for script in (*SCRIPTS, WORKER) if not (Path(ray.__file__).parent / script).exists()] == []


def test_the_modules_that_agents_import_exist_in_the_installed_ray():
    assert [module for module in AGENT_MODULES if importlib.util.find_spec(module) is None] == []


def test_without_a_fork_server_the_client_becomes_python(tmp_path):
    client = [sys.executable, "-I", "-S", ray_fork_client.__file__, str(tmp_path / "none"), sys.executable]
    ended = subprocess.run(
        [*client, "-c", "import os; print(os.getppid())"], capture_output=True, check=False, text=True
    )

    assert ended.stdout == f"{os.getpid()}\n"


def test_python_stays_python_where_no_program_can_be_started(tmp_path):
    shown = _output_of(
        "import os\nos.access = lambda *_: False  # as below a mount with noexec\n" + SERVER, str(tmp_path), text=""
    )

    assert shown.strip() == sys.executable


def test_a_process_that_has_imported_ray_before_starts_no_fork_server(tmp_path):
    shown = _output_of("import ray\n" + SERVER, str(tmp_path), text="")

    assert shown.strip() == sys.executable


def test_a_fork_server_whose_imports_have_drawn_identifiers_of_ray_forks_nothing(tmp_path):
    program = SERVER.replace(
        "lambda: None", "lambda: __import__('ray').TaskID.for_fake_task(__import__('ray').JobID.from_int(1))"
    ).replace("sys.stdin.read()", "import subprocess; subprocess.run([sys.executable_of_ray, '-u', LOG, '--help'])")
    program = program.replace("    print(sys.executable, flush=True)", "    sys.executable_of_ray = sys.executable")

    ended = subprocess.run(
        [sys.executable, "-c", program.replace("LOG", repr(LOG_MONITOR)), str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True,
    )  # fmt: skip

    assert "an import has used Ray's random numbers" in ended.stderr
    assert "usage: log_monitor.py" in ended.stdout


def _output_of(program: str, *arguments: str, expected: int = 0, text: str | None = None) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, check=False, text=True, input=text
    )
    assert ended.returncode == expected, ended.stderr
    return ended.stdout


def _living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A process that asked for a fork, and the fork, which waits for a cluster that does not exist."""

    asked: subprocess.Popen
    fork: int


def _waiting_fork(trainer, logs: Path) -> Waiting:
    logs.mkdir()
    server = psutil.Process(trainer.pid).children()[0]
    command = [trainer.python, LOG_MONITOR, "--gcs-address", "127.0.0.1:1", "--logs-dir", logs, "--session-dir", logs]
    command += ["--logging-rotate-bytes", "1000", "--logging-rotate-backup-count", "1"]
    asked = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert eventually(lambda: any(logs.iterdir()))  # it runs
    (fork,) = server.children()
    return Waiting(asked=asked, fork=fork.pid)
