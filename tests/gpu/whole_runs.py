"""`python -m tests.gpu.whole_runs [NAME...]`: whole runs of each kind, one after another, as a job worker starts them.

For a GPU that is available for a few minutes only. Each run is a trainer on this machine, from its start to the end
of its process. A line says how it ended, how long it took and where the time went; the warnings of its log follow. A
run that does not end in time is killed after it has written its stacks into its log, whose end is printed, and the
next one starts. The first run starts cold, the others as forks of a fork server. Without a GPU they compute on CPUs.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import guard
from cluster.files import read_json
from cluster.gpus import ask_torch
from cluster.launch import Launcher, LocalLauncher
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from cluster.warm_launch import ForkServer, WarmLauncher
from tests.datasets import packed_digits
from tests.trained import new_run
from trainer.phase_times import timing_text
from trainer.specs import EvaluateSpec, PredictSpec, SearchSpec, Spec, TrainSpec, build

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 150.0
LOG_LINES = 60  # of a run that did not succeed
LOUD = (" WARNING ", " ERROR ", "Traceback", "starts cold")
COLD = "cold-head"
QUICK: dict[str, Any] = {"weights": "none", "image_size": 32, "batch_size": 64, "epochs": 3}
SPACE = {"head_width": (64, 128, 256, 512)}
WholeRun = tuple[str, Callable[[str, Path], Spec]]  # its name, and its spec from the shards and the folder of all runs


def _train(shards: str, **options: Any) -> Spec:
    return build(TrainSpec, shards=shards, **QUICK, **options)


def _search(shards: str, **options: Any) -> Spec:
    return build(SearchSpec, shards=shards, **QUICK, space=SPACE, **options)


RUNS: Sequence[WholeRun] = (
    (COLD, lambda shards, _: _train(shards)),
    ("fine-tuning", lambda shards, _: _train(shards, freeze="none")),
    ("two-phases", lambda shards, _: _train(shards, freeze="none", head_epochs=1, augment=True, ema=0.9)),
    ("evaluate", lambda shards, runs: build(EvaluateSpec, model=str(runs / "fine-tuning" / "best"), shards=shards)),
    (
        "predict",
        lambda shards, runs: build(PredictSpec, model=str(runs / "fine-tuning" / "best"), images=(shards,)),
    ),
    ("folds", lambda shards, _: _train(shards, folds=3)),
    ("head-search", lambda shards, _: _search(shards, trials=8)),
    ("folds-on-cpus", lambda shards, _: _train(shards, folds=3, seed=1, gpus_per_worker=0)),
    ("head-search-on-cpus", lambda shards, _: _search(shards, trials=4, seed=1, gpus_per_worker=0)),
    ("fine-tuning-search", lambda shards, _: _search(shards, trials=2, freeze="none")),
)


def main(arguments: list[str]) -> int:
    """Run what the arguments name, by default all; return 1 if a run did not succeed."""
    names = [name for name, _ in RUNS]
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.whole_runs", description="Whole runs of each kind.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds of each run (%(default)g)")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(names)):
        parser.error(f"there is no run {unknown[0]!r}")
    # Trainers do not look for modules in their working directory.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    guard.adopt_orphans()  # as a job worker does
    devices = ask_torch()
    _say(f"torch {devices.torch}: {', '.join(one.name for one in devices.devices) or devices.fault}")
    with tempfile.TemporaryDirectory(prefix="whole-runs-") as place:
        storage = Path(place) / "storage"
        shards = str(packed_digits(Path(place)))
        storage.mkdir()
        with ForkServer(storage) as fork_server:
            chosen = [(name, spec) for name, spec in RUNS if name in (options.names or names)]
            ended = [
                run_whole(
                    LocalLauncher() if name == COLD else WarmLauncher(fork_server),
                    new_run(storage, spec(shards, storage / "runs"), name),
                    options.limit,
                )
                for name, spec in chosen
            ]
    _say(f"{sum(ended)} of {len(ended)} runs succeeded")
    return int(not all(ended))


def run_whole(launcher: Launcher, paths: RunPaths, limit_seconds: float) -> bool:
    """Make an attempt at a run and say how it ended; return whether it succeeded."""
    began = time.monotonic()
    running = launcher.start(paths, Lease.claim(paths, after=0).attempt)
    code = running.wait(limit_seconds)
    if code is None:
        running.dump_stacks()
        running.kill()
    lines, seconds = paths.log.read_text(errors="replace").splitlines(), time.monotonic() - began
    if code == 0:
        _say(f"{paths.run_id}: succeeded after {seconds:.1f} s: {timing_text(read_json(paths.result)['timing'])}")
        shown = [line for line in lines if any(word in line for word in LOUD)]
    else:
        why = f"did not end within {limit_seconds:g} s" if code is None else f"ended with exit code {code}"
        _say(f"{paths.run_id}: {why}; the end of its log:")
        shown = lines[-LOG_LINES:]
    for line in shown:
        _say(f"    {line}")
    return code == 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
