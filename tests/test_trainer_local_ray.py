"""What a Ray of one run starts, and what it leaves out."""

import json
import subprocess
import sys

from ray._private.node import Node

from trainer.distributed.local_ray import without_cluster_processes

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
    before = Node.start_api_server, Node.start_monitor

    with without_cluster_processes():
        during = Node.start_api_server, Node.start_monitor

    assert (Node.start_api_server, Node.start_monitor) == before
    assert not set(during) & set(before)
