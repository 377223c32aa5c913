"""A Ray cluster on this machine, whose machines are processes."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.stack import PATIENCE_SECONDS, free_port


class Cluster:
    """A head, without CPUs by default, and machines that can be added and killed.

    Attributes:
        folder: Ray's files.
        token: The environment variables of Ray's token.
        address: Address of the head.
        jobs_url: Address of the Jobs API, None without a dashboard.
    """

    def __init__(self, *, head_cpus: int = 0, with_jobs: bool = False) -> None:
        self.folder = Path(f"/tmp/ns-ray-{secrets.token_hex(3)}")  # Ray's own sockets allow no long path
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        self.address = f"127.0.0.1:{free_port()}"
        self.head_cpus = head_cpus
        self.jobs_url = f"http://127.0.0.1:{free_port()}" if with_jobs else None
        self.start_head()

    def start_head(self) -> None:
        """Start the head."""
        order = ["--head", f"--num-cpus={self.head_cpus}", "--num-gpus=0", f"--port={self.address.rpartition(':')[2]}"]
        order += [f"--temp-dir={self.folder}", f"--include-dashboard={self.jobs_url is not None}"]
        if self.jobs_url is not None:  # the agent's usual port may not be free again so soon
            port = self.jobs_url.rpartition(":")[2]
            order += [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
        self._start(*order)

    def add_machine(self, cpus: int, *, gpu: str | None = None) -> psutil.Process:
        """Add a machine, with the GPU of a UUID; return its raylet, the process without which it is gone."""
        before = set(self.raylets())
        shown = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={len(shown)}", **shown)
        (added,) = set(self.raylets()) - before
        return added

    def _start(self, *order: str, **shown: str) -> None:
        """Run `ray start` until it succeeds: on a busy machine, it gives up after time limits of its own."""
        before, until = set(self.processes()), time.monotonic() + PATIENCE_SECONDS
        while not self._started("start", *order, **shown):
            assert time.monotonic() < until, order
            end(process for process in self.processes() if process not in before)

    def _started(self, *order: str, **shown: str) -> bool:
        try:
            self.ray(*order, **shown)
        except subprocess.CalledProcessError:
            return False
        return True

    def ray(self, *order: str, **shown: str) -> str:
        """Run a command of Ray and return its output."""
        return self.run(sys.executable, "-m", "ray.scripts.scripts", *order, **shown)

    def run(self, *order: str, **variables: str) -> str:
        """Run a command that may use the cluster, with more environment variables, and return its output."""
        environment = {**os.environ, **self.token, "RAY_USAGE_STATS_ENABLED": "0", **variables}
        return subprocess.run(order, env=environment, check=True, capture_output=True, text=True).stdout

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets of all machines."""
        return [process for process in self.processes() if process.name() == "raylet"]

    def processes(self) -> list[psutil.Process]:
        """Return every process that knows the token or Ray's folder, except for job workers of the tests."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                knows = process.environ().get("RAY_AUTH_TOKEN") == self.token["RAY_AUTH_TOKEN"]
                if (knows or str(self.folder) in command) and "tests.fake_worker" not in command:
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
        """End every process of it at once."""
        end(self.processes())

    def remove(self) -> None:
        """End it and delete its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes and wait until they have ended."""
    killed = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
            killed.append(process)
    psutil.wait_procs(killed)
