"""A Ray cluster on this machine, whose machines are processes."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tests.stack import free_port


class Cluster:
    """A head without CPUs, and machines that can be added and killed."""

    def __init__(self) -> None:
        self.folder = Path(f"/tmp/ns-ray-{secrets.token_hex(3)}")  # Ray's own sockets allow no long path
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rpartition(":")[2]
        self.ray(
            "start", "--head", "--num-cpus=0", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=0"
        )

    def ray(self, *order: str) -> str:
        """Run a command of Ray and return its output."""
        return self.run(str(Path(sys.executable).parent / "ray"), *order)

    def run(self, *order: str) -> str:
        """Run a command that may use the cluster, and return its output."""
        environment = {**os.environ, **self.token, "RAY_USAGE_STATS_ENABLED": "0"}
        return subprocess.run(order, env=environment, check=True, capture_output=True, text=True).stdout

    def add_machine(self, cpus: int) -> psutil.Process:
        """Add a machine and return its raylet, the process without which it is gone."""
        before = set(self.raylets())
        self.ray("start", f"--address={self.address}", f"--num-cpus={cpus}")
        (added,) = set(self.raylets()) - before
        return added

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets of all machines."""
        return [process for process in self.processes() if process.name() == "raylet"]

    def processes(self) -> list[psutil.Process]:
        """Return every process that knows the token."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RAY_AUTH_TOKEN") == self.token["RAY_AUTH_TOKEN"]:
                    found.append(process)
        return found

    def machine_with_cpus(self) -> str:
        """Return the id of the newest machine with CPUs."""
        ask = (
            f"import ray; ray.init('{self.address}', logging_level='ERROR'); print(*(n['NodeID'] for n in ray.nodes() "
        )
        return self.run(sys.executable, "-c", ask + "if n['Resources'].get('CPU')))").split()[-1]

    def drain(self, machine: str) -> None:
        """Tell the cluster, as a cloud does, that a machine goes in two minutes."""
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=120")
        self.ray("drain-node", f"--address={self.address}", f"--node-id={machine}", *reason)

    def kill(self) -> None:
        """End every process that knows the token."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
