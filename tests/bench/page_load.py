"""Measure what open pages cost a running job: its steps per second with 0 and 50 open pages in turn.

The job uses all cores and reports its progress every second, so each page loads again every second, as the script of
the page does. The clients are threads of this process and compete with the job for the cores; on other machines they
do not. The CPU time of the server is its own cost. `python -m tests.bench.page_load` prints a JSON object.
"""

import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.runs import state as run_state
from jobs.runs.state import RunState

PAGES = 50
ENDED_RUNS = 60
PAIRS = 3
WAIT_FACTOR = 4  # of the page's script: it waits this many times as long as its last load took
GOAL = 0.05
JOB = """
import json, os, sys, time, torch
from pathlib import Path
from cluster.files import write_json
file, steps, said = Path(sys.argv[1]), 0, 0.0
a = torch.randn(256, 256)
while True:
    for _ in range(20):
        a = torch.tanh(a @ a)
    steps += 20
    if time.time() - said > 1:
        said = time.time()
        write_json(file, {"attempt": 1, "phase": "train", "epoch": 1, "epochs": 9, "step": steps, "steps": 10**9})
"""


class OpenPage(threading.Thread):
    """A page of the list of runs in a browser."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(address)
        self.host, self.headers = parts.netloc, {"authorization": f"Bearer {parts.query.removeprefix('token=')}"}
        self.is_closed, self.loads = threading.Event(), 0

    def run(self) -> None:
        stream = http.client.HTTPConnection(self.host, timeout=60)
        stream.request("GET", "/changes", headers=self.headers)
        answer, allowed_at = stream.getresponse(), 0.0
        while not self.is_closed.is_set():
            if answer.readline().startswith(b"data:") and time.monotonic() >= allowed_at:
                allowed_at = time.monotonic() + WAIT_FACTOR * self.load()
        stream.close()

    def load(self) -> float:
        """Load the page and return the seconds that it took."""
        start, connection = time.monotonic(), http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", "/", headers=self.headers | {"accept": "text/html"})
        assert len(connection.getresponse().read()) > 10_000
        connection.close()
        self.loads += 1
        return time.monotonic() - start


def storage_with_runs(storage: Path) -> RunPaths:
    """Write runs that have ended and one that runs; return the latter."""
    settings = Settings(storage=storage).with_storage_ready()
    states = ["succeeded"] * ENDED_RUNS + ["running"]
    for number, state in enumerate(states):
        paths = RunPaths.of(storage, f"train-20261123-{100000 + number}-a1b2c3")
        paths.folder.mkdir(parents=True)
        found = RunState(
            id=paths.run_id, kind="train", state=state, created=run_state.now(), started=run_state.now(), attempt=1
        )
        run_state.write_state(paths, found)
        write_json(paths.spec, {"kind": "train", "epochs": 9})
    assert settings.runs.is_dir()
    return paths


def measured(server: psutil.Process, progress: Path, pages: int, address: str, seconds: float) -> dict[str, float]:
    """Return steps per second of the job and cores that the server used, with this many open pages."""
    opened = [OpenPage(address) for _ in range(pages)]
    for page in opened:
        page.start()
    time.sleep(2.5)  # until all are connected
    before, steps, start = sum(server.cpu_times()[:2]), steps_of(progress), time.monotonic()
    loads = sum(page.loads for page in opened)
    time.sleep(seconds)
    took = time.monotonic() - start
    found = {
        "pages": pages,
        "steps_per_s": (steps_of(progress) - steps) / took,
        "server_cores": (sum(server.cpu_times()[:2]) - before) / took,
        "loads_per_s": (sum(page.loads for page in opened) - loads) / took,
    }
    for page in opened:
        page.is_closed.set()
    for page in opened:
        page.join(timeout=5)
    return found


def steps_of(progress: Path) -> int:
    """Return how many steps the job has made."""
    return int(json.loads(progress.read_text())["step"])


def main(seconds: float = 20.0) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        run = storage_with_runs(Path(folder))
        env = os.environ | {"NIGHTSHIFT_STORAGE": folder}
        job = subprocess.Popen([sys.executable, "-c", JOB, run.progress], env=env)
        ui = [sys.executable, "-P", "-m", "jobs", "ui", "--port", "0", "--read-only"]
        server = subprocess.Popen(ui, env=env, stdout=subprocess.PIPE, text=True)
        try:
            line = next(found for text in server.stdout or () if (found := re.search(r"http://\S+", text)))
            while not run.progress.exists():
                time.sleep(0.1)
            process = psutil.Process(server.pid)
            rows = [measured(process, run.progress, n, line[0], seconds) for n in (0, PAGES) * PAIRS]
        finally:
            for one in (job, server):
                one.terminate()
                one.wait()
    ratios = [busy["steps_per_s"] / idle["steps_per_s"] for idle, busy in zip(rows[::2], rows[1::2], strict=True)]
    loss = 1 - statistics.median(ratios)
    cores = statistics.median(row["server_cores"] for row in rows[1::2])
    print(json.dumps({"rows": rows, "loss": loss, "goal": GOAL, "server_cores": cores}, indent=1))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
