"""Measure what open pages cost a running job: its steps per second with 0 and 50 open pages in turn.

The job uses all cores and reports its progress every second, so each page loads again every second, as the script of
the page does. Every second page shows the list of runs, the others show the run. The clients are threads of this
process and compete with the job for the cores (`client_cores`); on other machines they do not. The CPU time of the
server (`server_cores`) is its own cost, which a loaded machine changes little. `python -m tests.bench.page_load` prints
a JSON object; `loss` counts only on a machine that is idle otherwise.
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
LOG_LINES, EPOCHS = 400, 30  # of the run
LEAST_BYTES = 5_000  # of a page
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
        row = {"attempt": 1, "phase": "train", "epoch": 1, "epochs": 9, "step": steps, "steps": 10**9}
        write_json(file, {**row, "at": time.monotonic()})
"""


class OpenPage(threading.Thread):
    """A page in a browser: the list of runs, or that of one run."""

    def __init__(self, address: str, run_id: str | None) -> None:
        super().__init__(daemon=True)
        self.place = f"/runs/{run_id}" if run_id else "/"
        self.events = f"{self.place.rstrip('/')}/changes"
        parts = urlsplit(address)
        self.host, self.headers = parts.netloc, {"authorization": f"Bearer {parts.query.removeprefix('token=')}"}
        self.is_closed, self.loads = threading.Event(), 0
        self.connection = http.client.HTTPConnection(self.host, timeout=60)

    def run(self) -> None:
        stream = http.client.HTTPConnection(self.host, timeout=60)
        stream.request("GET", self.events, headers=self.headers)
        answer, allowed_at = stream.getresponse(), 0.0
        while not self.is_closed.is_set():
            if answer.readline().startswith(b"data:") and time.monotonic() >= allowed_at:
                allowed_at = time.monotonic() + WAIT_FACTOR * self.load()
        stream.close()
        self.connection.close()

    def load(self) -> float:
        """Load the page and return the seconds that it took."""
        start = time.monotonic()
        try:
            self.get()
        except ConnectionError:  # the server has closed a connection that was idle for some seconds
            self.connection.close()
            self.get()
        self.loads += 1
        return time.monotonic() - start

    def get(self) -> None:
        """Load the page over the connection that a browser would use again."""
        self.connection.request("GET", self.place, headers=self.headers | {"accept": "text/html"})
        answer = self.connection.getresponse()
        assert len(answer.read()) > LEAST_BYTES, (self.place, answer.status)


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
        write_json(paths.spec, {"kind": "train", "epochs": EPOCHS})
    paths.log.write_text("INFO a line of the log\n" * LOG_LINES)
    paths.metrics.write_text("".join(json.dumps(epoch_line(epoch)) + "\n" for epoch in range(1, EPOCHS + 1)))
    assert settings.runs.is_dir()
    return paths


def epoch_line(epoch: int) -> dict[str, float | bool]:
    """Return a line of `metrics.jsonl`."""
    values = dict.fromkeys(("train_loss", "valid_loss", "valid_accuracy", "valid_auroc"), 1 / epoch)
    return {"epoch": epoch, "epochs": EPOCHS, **values, "lr": 1e-3, "best": True, "seconds": 1.0}


def measured(server: psutil.Process, run: RunPaths, pages: int, address: str, seconds: float) -> dict[str, float]:
    """Return steps per second of the job and cores that the server used, with this many open pages."""
    opened = [OpenPage(address, run.run_id if number % 2 else None) for number in range(pages)]
    client = psutil.Process()
    for page in opened:
        page.start()
    time.sleep(2.5)  # until all are connected
    start, (steps, at) = time.monotonic(), steps_of(run.progress)
    before = [cpu_seconds(one) for one in (server, client)]
    loads = sum(page.loads for page in opened)
    time.sleep(seconds)
    took, (steps_after, at_after) = time.monotonic() - start, steps_of(run.progress)
    used = [cpu_seconds(one) - seconds for one, seconds in zip((server, client), before, strict=True)]
    found = {
        "pages": pages,
        "steps_per_s": (steps_after - steps) / (at_after - at),
        "server_cores": used[0] / took,
        "client_cores": used[1] / took,
        "loads_per_s": (sum(page.loads for page in opened) - loads) / took,
    }
    for page in opened:
        page.is_closed.set()
    for page in opened:
        page.join(timeout=5)
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process so far."""
    return float(sum(process.cpu_times()[:2]))


def steps_of(progress: Path) -> tuple[int, float]:
    """Return how many steps the job had made when it said so, and when that was: up to a second ago."""
    found = json.loads(progress.read_text())
    return int(found["step"]), float(found["at"])


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
            rows = [measured(process, run, n, line[0], seconds) for n in (0, PAGES) * PAIRS]
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
