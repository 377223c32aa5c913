"""Time frozen training for 10 epochs with and without Nightshift: from submit to the end, and training alone."""

import json
import logging
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.run_paths import RunPaths
from data_shards.index import read_index
from jobs.queue.stack import Stack
from jobs.queue.submit import submit
from jobs.runs.state import read_state
from tests.bench.data import WEIGHTS, XRAYS, xrays_on_a_stack
from tests.bench.measure import Row, in_turn, row, seconds
from tests.stack import eventually
from tests.trained import done, evaluated
from trainer.phase_times import timing_text
from trainer.specs import TrainSpec, build

EPOCHS = 10
PAIRS = 3
SUBMIT_COLD_GOAL, SUBMIT_WARM_GOAL, COLD_GOAL, WARM_GOAL = 25.0, 60.0, 8.0, 40.0
COMMAND = "python -m tests.bench training"
PEER = "the tutorial's training loop with its errors corrected: ImageFolder, eager float32, backbone in eval mode"


def run(*, epochs: int = EPOCHS, pairs: int = PAIRS) -> list[Row]:
    """Measure Nightshift in four ways and compare each with the same runs of the peer."""
    logging.disable(logging.INFO)
    with xrays_on_a_stack() as (folder, stack):
        bench = Bench(folder, stack, epochs)
        bench.submitted(seed=0)
        bench.in_this_process("first", seed=0)  # warm-up: imports and page cache
        in_turn(bench.ours, bench.peer, pairs=pairs)
        return bench.rows()


@dataclass
class Bench:
    """The runs of one measurement; each pair has its own seed."""

    folder: Path
    stack: Stack
    epochs: int
    taken: dict[str, list[float]] = field(default_factory=dict)
    timings: list[str] = field(default_factory=list)

    def ours(self) -> float:
        """Train with and without cached features: through the queue from submit, and in this process."""
        seed = len(self.taken.get("cold", []))
        shutil.rmtree(self.stack.settings.storage / "features")
        self._note("submit, cold", self.submitted(seed))
        self._note("submit, warm", self.submitted(seed))
        self._note("cold", self.in_this_process(f"own-{seed}", seed))
        self._note("warm", self.in_this_process(f"own-{seed}", seed, "again"))
        storage = self.folder / f"own-{seed}"
        judged = evaluated(storage, storage / "runs" / "run" / "best", self.folder / "shards")
        self._note("accuracy", judged.metrics["accuracy"])
        return 0.0

    def submitted(self, seed: int) -> float:
        """Return the seconds from submit until the run succeeded; the stack is already running."""
        settings, began = self.stack.settings, time.time()
        paths = RunPaths.of(settings.storage, submit(settings, self._spec(seed)))
        assert eventually(lambda: read_state(paths).has_ended, 600)
        assert read_state(paths).state == "succeeded", read_state(paths)
        taken = time.time() - began
        self.timings.append(timing_text(json.loads(paths.result.read_text())["timing"], taken))
        return taken

    def in_this_process(self, storage: str, seed: int, name: str = "run") -> float:
        """Return the seconds of a whole run, report included; torch and ray are already imported."""
        return seconds(lambda: done(self.folder / storage, self._spec(seed), name))

    def peer(self) -> float:
        """Train in a separate process, from its start to the saved model; it reports how long training alone took."""
        seed, began = len(self.taken.get("peer's work", [])), time.time()
        places = [str(XRAYS), str(WEIGHTS), str(self.folder / "peer.pt")]
        order = [sys.executable, "-m", "tests.bench.peers.training", *places, str(self.epochs), str(seed)]
        found = json.loads(subprocess.run(order, check=True, stdout=subprocess.PIPE).stdout)
        self._note("peer's whole", found["saved"] - began)
        self._note("peer's work", found["work"])
        self._note("peer's accuracy", found["accuracy"])
        return 0.0

    def rows(self) -> list[Row]:
        """Return the rows of the table."""
        index = read_index(str(self.folder / "shards"))
        images = f"{index.samples_in('train')} + {index.samples_in('valid')} images, {self.epochs} epochs"
        accuracies = [statistics.median(self.taken[name]) for name in ("accuracy", "peer's accuracy")]
        parity = "test accuracy {:.3f} and {:.3f}, median over the seeds".format(*accuracies)
        words = {"beside": PEER, "unit": "s", "parity": parity, "command": COMMAND, "more_is_better": False}
        whole = "submit to succeeded, stack already running"
        work = "training without startup, report included"
        apart = "the peer runs as a separate process"
        lines = (
            ("submit, cold", "peer's whole", f"{whole}, cache cold", SUBMIT_COLD_GOAL, f"{images}; {apart}"),
            (
                "submit, warm",
                "peer's whole",
                f"{whole}, cache warm",
                SUBMIT_WARM_GOAL,
                f"timing of the last run: {self.timings[-1]}",
            ),
            ("cold", "peer's work", f"{work}, cache cold", COLD_GOAL, "both sides have all modules imported"),
            ("warm", "peer's work", f"{work}, cache warm", WARM_GOAL, ""),
        )
        return [
            row(self.taken[mine], self.taken[theirs], what=what, goal=goal, note=note, **words)
            for mine, theirs, what, goal, note in lines
        ]

    def _spec(self, seed: int) -> TrainSpec:
        shards = str(self.folder / "shards")
        return build(TrainSpec, shards=shards, weights=str(WEIGHTS), epochs=self.epochs, patience=0, seed=seed)

    def _note(self, name: str, value: float) -> None:
        self.taken.setdefault(name, []).append(value)
