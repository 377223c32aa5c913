"""Time a frozen search on the chest X-rays; the peers are Tuner over TorchTrainer, a tuned script and `train` jobs.

Each runs in a separate process with a cold cache. The time is that of the whole process and includes Ray's startup.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.files import read_json
from cluster.run_paths import RunPaths
from data_shards.pack.options import PackOptions
from data_shards.pack.packing import pack
from tests.bench.data import WEIGHTS, XRAYS, require_xrays
from tests.bench.measure import Row, in_turn, row, seconds
from tests.trained import new_run, trainer_process
from trainer.specs import EvaluateSpec, SearchSpec, Spec, TrainSpec, build

FEW, MANY, EPOCHS = 8, 64, 20
MEASURED = {"trials": 2, "epochs": 2}  # of the plain peer; the full search would take an hour
PLAIN_GOAL, STRONG_GOAL = 40.0, 4.0
TRAININGS, TRAININGS_GOAL, PAIRS = 3, 1.0, 3  # a search must take less time than this many trainings
COMMAND = "python -m tests.bench search"


def run(*, few: int = FEW, many: int = MANY, epochs: int = EPOCHS, pairs: int = PAIRS) -> list[Row]:
    """Measure searches of both sizes and `train` jobs; measure both peers once each, because they take minutes."""
    require_xrays()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), epochs)
        pack(XRAYS, bench.folder / "shards", PackOptions(shard_bytes=1_500_000))
        eight, _ = in_turn(lambda: bench.ours(few), bench.plain, pairs=1)
        sixty, strong = in_turn(lambda: bench.ours(many), lambda: bench.peer("strong", many, epochs), pairs=1)
        auroc, trainings = in_turn(
            lambda: bench.ours(many, seed=len(bench.tested), best_by="auroc"), bench.trainings, pairs=pairs
        )
        words = {"unit": "s", "command": COMMAND, "more_is_better": False}
        plain = {"beside": "Tuner over one TorchTrainer per trial, backbone in every epoch", "goal": PLAIN_GOAL}
        told = {
            "parity": "same space, head and weights; the peer's loss is from 2 epochs",
            "note": bench.note,
        }
        return [
            row(eight, [bench.extrapolated(few)], what=f"{few} trials x {epochs} epochs", **plain, **told, **words),
            row(sixty, [bench.extrapolated(many)], what=f"{many} trials x {epochs} epochs", **plain, **told, **words),
            row(
                sixty, strong, what=f"{many} trials x {epochs} epochs",
                beside="features cached by hand, reuse_actors, Optuna, ASHA, one process and one CPU per trial",
                goal=STRONG_GOAL, parity=f"best validation loss {bench.losses}", note=bench.cost, **words,
            ),
            row(
                auroc, trainings, what=f"{many} trials x {epochs} epochs, ranked by AUROC",
                beside=f"{TRAININGS} `train` jobs with their defaults", goal=TRAININGS_GOAL,
                parity=f"test AUROC {bench.aurocs}, median over the seeds", **words,
            ),
        ]  # fmt: skip


@dataclass
class Bench:
    """The packed images and the results of each search."""

    folder: Path
    epochs: int
    runs: int = 0
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    tested: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)

    @property
    def shards(self) -> str:
        """The folder of packed images."""
        return str(self.folder / "shards")

    def ours(self, trials: int, **options: Any) -> float:
        """Search with an empty feature cache, from the start of the trainer to its end."""
        spec = build(
            SearchSpec,
            shards=self.shards,
            weights=str(WEIGHTS),
            trials=trials,
            epochs=self.epochs,
            patience=0,
            **options,
        )
        paths = self._run("search", spec)
        took = seconds(lambda: self._end_of(paths))
        if options:
            self.tested.append(read_json(paths.result)["metrics"]["auroc"])
        else:
            self.found["ours"] = read_json(paths.result)
        return took

    def trainings(self) -> float:
        """Train with an empty feature cache and return the time of `TRAININGS` such jobs."""
        spec = build(TrainSpec, shards=self.shards, weights=str(WEIGHTS), seed=len(self.trained))
        paths = self._run("train", spec)
        took = seconds(lambda: self._end_of(paths))
        test = self._run("evaluate", build(EvaluateSpec, model=str(paths.best), shards=self.shards))
        self._end_of(test)
        self.trained.append(read_json(test.result)["metrics"]["auroc"])
        return TRAININGS * took

    def plain(self) -> float:
        """Measure a small search of the plain peer."""
        took = self.peer("plain", **MEASURED)
        told = self.found["plain"]
        epoch = statistics.mean(told["epoch_seconds"])
        trial = statistics.mean(told["time_total_s"]) - MEASURED["epochs"] * epoch
        told |= {"start": took - sum(told["time_total_s"]), "trial": trial, "epoch": epoch}
        return took

    def extrapolated(self, trials: int) -> float:
        """Return the estimated seconds of the plain peer."""
        told = self.found["plain"]
        return told["start"] + trials * (told["trial"] + self.epochs * told["epoch"])

    def peer(self, name: str, trials: int, epochs: int) -> float:
        """Run a peer in a separate process."""
        self.runs += 1
        places = [str(XRAYS), str(WEIGHTS), str(self.folder / f"peer-{self.runs}")]
        order = [sys.executable, "-m", "tests.bench.peers.search_alone", name, *places, str(trials), str(epochs)]
        return seconds(lambda: self._remember(name, subprocess.run(order, check=True, stdout=subprocess.PIPE)))

    @property
    def note(self) -> str:
        """How the peer's time was estimated."""
        told = self.found["plain"]
        return (
            "the peer's time is extrapolated from a search of {trials} trials x {epochs} epochs: ".format(**MEASURED)
            + f"startup and shutdown {told['start']:.1f} s, each trial {told['trial']:.1f} s, "
            + f"each epoch {told['epoch']:.1f} s"
        )

    @property
    def losses(self) -> str:
        """The best validation losses; Nightshift uses class weights on these unbalanced data, the peer does not."""
        return f"{self.found['ours']['best']['value']:.3f} and {self.found['strong']['loss']:.3f}"

    @property
    def cost(self) -> str:
        """How the time of the large searches is divided."""
        ours = self.found["ours"]["cost"]["training_hours"] * 3600
        theirs = sum(self.found["strong"]["time_total_s"])
        return f"the epochs of all trials took {ours:.1f} s, the peer's trials {theirs:.1f} s; the rest is startup"

    @property
    def aurocs(self) -> str:
        """The AUROC on the test split, of the best trials and of the trainings."""
        return f"{statistics.median(self.tested):.4f} and {statistics.median(self.trained):.4f}"

    def _run(self, kind: str, spec: Spec) -> RunPaths:
        """Return the paths of a new run in a new storage folder."""
        self.runs += 1
        return new_run(self.folder / f"storage-{self.runs}", spec, f"{kind}-20261123-000000-abcdef")

    def _end_of(self, paths: RunPaths) -> None:
        if trainer_process(paths).wait(1200):
            raise SystemExit(paths.log.read_text()[-3000:])

    def _remember(self, name: str, ended: "subprocess.CompletedProcess[bytes]") -> None:
        self.found[name] = json.loads(ended.stdout.splitlines()[-1])
