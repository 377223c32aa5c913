"""What a Ray of one run starts, and what it leaves out."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ray._private.node import Node
from ray.exceptions import RpcError

from trainer.distributed.local_ray import session_folder, starting_for_one_run

PROGRAM = """
import json, os, tempfile
from pathlib import Path

from cluster.guard import descendants
from cluster.process_env import set_local_ray_environment
from trainer.distributed.ray_fork_server import start_fork_server

set_local_ray_environment()  # before ray is imported
start_fork_server(lambda: None)

import ray
import ray.train

from cluster.resources import Machine
from trainer.distributed.local_ray import LocalTorchTrainer
from trainer.distributed.ray_train import _start_ray

def work(config):
    return [command_of(pid) for pid in descendants(config["trainer"])]

def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\\0", " ")
    except OSError:  # it has ended
        return ""

with tempfile.TemporaryDirectory(prefix="ns-") as folder:
    _start_ray(Machine(cpus=2, gpus=0), folder)  # tries again on a busy machine
    result = LocalTorchTrainer(
        work,
        train_loop_config={"trainer": os.getpid()},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=f"{folder}/results"),
    ).fit()
    ray.shutdown()
print(json.dumps(result.return_value))
"""


def test_a_ray_of_one_run_has_its_workers_and_no_processes_for_clusters():
    ended = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout.splitlines()[-1])
    running = "\n".join(shown)
    assert all(name in running for name in ("gcs_server", "raylet", "log_monitor.py", "ray::TrainController"))
    assert running.count("ray::RayTrainWorker") == 2
    assert "dashboard/dashboard.py" not in running
    assert "autoscaler/_private/monitor.py" not in running
    assert [title for title in shown if title.startswith(("ray::_Auto", "ray::Placement", "ray::Data"))] == []


def test_ray_starts_everything_again_after_the_block():
    before = Node.start_api_server, Node.start_monitor, Node.start_ray_processes

    with starting_for_one_run():
        during = Node.start_api_server, Node.start_monitor, Node.start_ray_processes

    assert (Node.start_api_server, Node.start_monitor, Node.start_ray_processes) == before
    assert not set(during) & set(before)


def test_ray_looks_for_its_node_only_when_the_raylet_has_registered(monkeypatch):
    answers = [{}, {}, {"node": "its addresses"}]
    monkeypatch.setattr(Node, "start_ray_processes", lambda node: node.calls.append("start"))
    node = FakeNode(lambda: answers.pop(0))

    with starting_for_one_run():
        Node.start_ray_processes(node)

    assert node.calls == ["start", "ask", "ask", "ask"]
    assert answers == []


def test_a_gcs_that_does_not_answer_is_left_to_ray(monkeypatch):
    def fail():
        raise RpcError("Deadline Exceeded")

    monkeypatch.setattr(Node, "start_ray_processes", lambda node: node.calls.append("start"))
    node = FakeNode(fail)

    with starting_for_one_run():
        Node.start_ray_processes(node)

    assert node.calls == ["start", "ask"]


class FakeNode:
    """A node of Ray, and the client of its GCS."""

    def __init__(self, answer) -> None:
        self.answer, self.calls = answer, []

    def get_gcs_client(self) -> "FakeNode":
        return self

    def get_all_node_info(self, *, timeout: float) -> dict:
        assert timeout > 0
        self.calls.append("ask")
        return self.answer()


HOLDER = """
import sys
from pathlib import Path

from trainer.distributed.local_ray import session_folder

with session_folder() as folder:
    Path(folder, "session_latest").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    """Start a process that has a folder for a Ray until its stdin is closed."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )


def test_the_folder_of_a_killed_trainer_is_deleted_by_the_next_and_that_of_a_living_one_stays(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "ns-of-something-else").mkdir()
    (tmp_path / "ns-of-something-else" / "lock").touch()
    with holder(tmp_path) as living, holder(tmp_path) as killed:
        kept, left = (Path(process.stdout.readline().strip()) for process in (living, killed))
        killed.kill()
        killed.wait()
        before = kept.is_dir(), left.is_dir()

        with session_folder() as own:
            during = sorted(path.name for path in tmp_path.iterdir())

    assert before == (True, True)
    assert during == sorted([Path(own).name, kept.name, "ns-of-something-else"])
    assert [path.name for path in tmp_path.iterdir()] == ["ns-of-something-else"]
    assert caplog.messages == [f"deletes {left}, which a Ray of a run that was killed has left"]


def test_a_file_system_without_locks_gives_a_folder_that_no_other_run_deletes(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        without_locks = session_folder()
        own = without_locks.__enter__()

    with session_folder():
        stayed = Path(own).is_dir()
    without_locks.__exit__(None, None, None)

    assert stayed
    assert list(tmp_path.iterdir()) == []
