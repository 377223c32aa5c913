"""Time from submit to the first training step, with a running job worker and cached features.

Nightshift's time ends when the metrics of the head's first epoch are written, which is shortly after its first step.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rq
from redis import Redis
from rq.serializers import JSONSerializer

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.runs.state import read_state
from tests.bench.data import WEIGHTS, XRAYS, xrays_on_a_stack
from tests.bench.measure import Row, in_turn, row
from tests.bench.peers import plain_rq
from tests.stack import eventually
from trainer.specs import TrainSpec, build

PAIRS = 3
GOAL = 10.0
COMMAND = "python -m tests.bench start"


def run(*, pairs: int = PAIRS) -> list[Row]:
    """Compare with a job that imports torch and ray, and with one that trains through Ray."""
    with xrays_on_a_stack() as (folder, stack):
        bench = Bench(stack.settings, folder / "shards")
        with bench.peer_worker() as worker:
            bench.ours()  # fills the feature cache
            rows = [
                bench.beside(plain_rq.first_step, "plain rq worker whose job imports torch and ray", pairs),
                bench.beside(
                    plain_rq.first_step_with_ray, "the same job through a Ray Train worker", max(1, pairs - 1)
                ),
            ]
            worker.terminate()
            worker.wait()
    return rows


@dataclass
class Bench:
    """A running stack, and a plain rq worker on the same Redis."""

    settings: Settings
    shards: Path
    moments: list[dict[str, float]] = field(default_factory=list)

    def beside(self, job: Any, name: str, pairs: int) -> Row:
        """Measure Nightshift and one of the peer's jobs alternately."""
        self.moments.clear()
        ours, peer = in_turn(self.ours, lambda: self.peer(job), pairs=pairs)
        middle = {phase: statistics.median(one[phase] for one in self.moments) for phase in self.moments[0]}
        reported = ", ".join(f"{phase} {moment:.2f} s" for phase, moment in middle.items())
        return row(
            ours, peer, more_is_better=False, what="submit to first training step, stack already running", beside=name,
            unit="s", goal=GOAL, parity="one step of a new head on the same images", command=COMMAND,
            note=f"ours, since submit: {reported}; the fork server of the job worker has imported torch and Ray",
        )  # fmt: skip

    def ours(self) -> float:
        """Return the seconds from submit to the end of the first epoch; record the time of each phase."""
        spec = build(TrainSpec, shards=str(self.shards), weights=str(WEIGHTS), epochs=1)
        began, moments = time.time(), dict[str, float]()
        paths = RunPaths.of(self.settings.storage, submit(self.settings, spec))
        while not read_state(paths).has_ended:
            if paths.progress.exists():
                moments.setdefault(json.loads(paths.progress.read_text())["phase"], time.time() - began)
            if paths.metrics.exists():
                moments.setdefault("first epoch", time.time() - began)
            time.sleep(0.005)
        assert read_state(paths).state == "succeeded", read_state(paths)
        self.moments.append({name: moments[name] for name in ("starting", "features", "first epoch")})
        return moments["first epoch"]

    def peer(self, job: Any) -> float:
        """Return the seconds from submit to the first step."""
        with Redis.from_url(str(self.settings.redis_url)) as connection:
            queue = rq.Queue("plain", connection=connection, serializer=JSONSerializer)
            began = time.time()
            entry = queue.enqueue(job, str(XRAYS), str(WEIGHTS), job_timeout=600, result_ttl=600)
            assert eventually(lambda: entry.get_status() in ("finished", "failed"), 600)
            assert entry.get_status() == "finished", entry.latest_result().exc_string
            return entry.return_value()["stepped"] - began

    def peer_worker(self) -> "subprocess.Popen[bytes]":
        """Start a plain rq worker."""
        program, url = str(Path(sys.executable).parent / "rq"), str(self.settings.redis_url)
        order = [program, "worker", "--url", url, "--serializer", "json", "--quiet", "plain"]
        return subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
