"""Time short jobs from submit to `succeeded` on a running stack, `predict --now`, and the first page of `ui`.

The stack is warm: the fork server of its job worker has imported everything, and all features are cached.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.queue.submit import submit
from jobs.runs.state import read_state
from tests.bench.command import NIGHTSHIFT
from tests.bench.data import WEIGHTS, XRAYS, xrays_on_a_stack
from tests.bench.measure import Absent, Row, in_turn, row, seconds
from tests.bench.training import EPOCHS
from tests.stack import eventually
from trainer.phase_times import timing_text
from trainer.specs import EvaluateSpec, Spec, TrainSpec, build

PAIRS = 3
PREDICTED = 25  # images of `predict --now`
TWO_WORKERS_GOAL, EVALUATE_GOAL, PREDICT_GOAL = 1 / 1.5, 2.0, 0.5
COMMAND = "python -m tests.bench standing"
TENSORBOARD = str(Path(sys.executable).parent / "tensorboard")
ADDRESS = re.compile(r"http://\S+")


def run(*, pairs: int = PAIRS) -> list[Row]:
    """Measure each job and its peer in turn."""
    with xrays_on_a_stack() as (folder, stack):
        bench = Standing(folder, stack.settings, pairs)
        bench.warm_up()
        return [*bench.two_workers(), bench.evaluate(), bench.predict(), bench.page()]


@dataclass
class Standing:
    """A running stack, and the trained model that evaluation and prediction use."""

    folder: Path
    settings: Settings
    pairs: int
    timings: list[str] = field(default_factory=list)

    def warm_up(self) -> None:
        """Wait for the fork server, and fill the feature cache.

        Raises:
            Absent: Runs start cold on this machine.
        """
        log = self._submitted(self._training()).log.read_text()
        if "starts cold" in log:
            raise Absent(f"runs are not forked here: {log.splitlines()[0]}")

    def two_workers(self) -> list[Row]:
        """Compare two workers with one: of a frozen training, which starts none, and of one that trains all layers."""
        works = {
            "frozen, cache warm": {},
            "all layers, 1 epoch": {"freeze": "none", "epochs": 1, "image_size": 64, "cache": False},
        }
        return [
            self._row(
                lambda options=options: self._seconds_of(self._training(workers=2, **options)),
                lambda options=options: self._seconds_of(self._training(**options), is_ours=False),
                what=f"submit to succeeded, {work}, 2 workers", beside="the same with 1 worker",
                goal=TWO_WORKERS_GOAL, parity="the same steps of the same global batch size",
            )
            for work, options in works.items()
        ]  # fmt: skip

    def evaluate(self) -> Row:
        """Compare with what a process takes to import torch and Ray."""
        spec = build(EvaluateSpec, model=str(self._model), shards=str(self.folder / "shards"))
        self._submitted(spec)  # computes the features of the test split
        return self._row(
            lambda: self._seconds_of(spec), _importing("torch, ray.train, ray.tune"),
            what="submit to succeeded, evaluate, cache warm", beside="a process that imports torch and Ray",
            goal=EVALUATE_GOAL, parity="the peer does nothing else",
        )  # fmt: skip

    def predict(self) -> Row:
        """Compare with what a process takes to import torch."""
        images = sorted((XRAYS / "test").rglob("*.jpg"))[:PREDICTED]
        order = [NIGHTSHIFT, "predict", str(self._model), *map(str, images), "--now"]
        return self._row(
            lambda: seconds(lambda: _say(order, self.settings)), _importing("torch"),
            what=f"predict --now, {PREDICTED} images", beside="a process that imports torch", goal=PREDICT_GOAL,
            parity="the peer does nothing else",
        )  # fmt: skip

    def page(self) -> Row:
        """Compare with TensorBoard on the same runs."""
        ours = [NIGHTSHIFT, "ui", "--port", "0", "--read-only"]
        peer = [TENSORBOARD, "--logdir", str(self.settings.storage / "runs"), "--port", "0", "--host", "127.0.0.1"]
        return self._row(
            lambda: self._first_page(ours), lambda: self._first_page(peer),
            what="start of ui to its first page", beside="TensorBoard on the same runs", goal=None,
            parity="both answer with status 200",
        )  # fmt: skip

    def _row(self, ours: Callable[[], float], peer: Callable[[], float], **words: object) -> Row:
        self.timings.clear()
        mine, theirs = in_turn(ours, peer, pairs=self.pairs)
        note = f"timing of the last run: {self.timings[-1]}" if self.timings else ""
        return row(mine, theirs, more_is_better=False, unit="s", command=COMMAND, note=note, **words)

    def _training(self, **options: object) -> TrainSpec:
        given = {"epochs": EPOCHS, "patience": 0, "weights": str(WEIGHTS), **options}
        return build(TrainSpec, shards=str(self.folder / "shards"), **given)

    def _seconds_of(self, spec: Spec, *, is_ours: bool = True) -> float:
        began = time.time()
        paths = self._submitted(spec)
        taken = time.time() - began
        if is_ours:
            self.timings.append(timing_text(json.loads(paths.result.read_text())["timing"], taken))
        return taken

    def _submitted(self, spec: Spec) -> RunPaths:
        """Submit a run and wait until its state is succeeded."""
        paths = RunPaths.of(self.settings.storage, submit(self.settings, spec))
        assert eventually(lambda: read_state(paths).has_ended, 600)
        assert read_state(paths).state == "succeeded", read_state(paths)
        return paths

    @property
    def _model(self) -> Path:
        return next(iter(sorted(self.settings.storage.glob("runs/train-*/best"))))

    def _first_page(self, order: list[str]) -> float:
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())  # the token becomes a cookie
        began = time.perf_counter()
        with _serving(order, self.settings) as address, browser.open(address, timeout=60) as answer:
            assert answer.status == 200
            answer.read()
            return time.perf_counter() - began


@contextmanager
def _serving(order: list[str], settings: Settings) -> Iterator[str]:
    """Run a server, and yield the address that it prints."""
    with subprocess.Popen(
        order, env=_environment(settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            yield next(found[0] for line in server.stdout if (found := ADDRESS.search(line)))
        finally:
            server.terminate()


def _importing(modules: str) -> Callable[[], float]:
    return lambda: seconds(lambda: _say([sys.executable, "-c", f"import {modules}"]))


def _say(order: list[str], settings: Settings | None = None) -> None:
    subprocess.run(order, check=True, stdout=subprocess.PIPE, env=settings and _environment(settings))


def _environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, "NIGHTSHIFT_STORAGE": str(settings.storage), "PYTHONUNBUFFERED": "1"}
