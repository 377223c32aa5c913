"""A frozen search on the chest X-rays, start-up of Ray included, beside Tuner over TorchTrainer and a strong peer."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.files import read_json
from cluster.run_paths import RunPaths
from data_shards.options import PackOptions
from data_shards.pack import pack
from tests.bench.measure import Row, in_turn, row, seconds
from tests.trained import trainer_process
from trainer.specs import SearchSpec, build

SHARED = Path(__file__).resolve().parents[3] / "shared"
IMAGES = SHARED / "data" / "chest_xray"
WEIGHTS = SHARED / "weights" / "efficientnet-b0-standin.pth"
PLAIN_TRIALS, EPOCHS = 8, 20
STRONG_TRIALS = 64
PLAIN_GOAL, STRONG_GOAL = 40.0, 5.0
COMMAND = "python -m tests.bench search"


def run() -> list[Row]:
    """Measure ours and both peers, each in a process of its own, so that each pays its own start."""
    if not IMAGES.exists():
        raise SystemExit(f"the images of {IMAGES} are absent; this benchmark needs them")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        words = {"unit": "s", "command": COMMAND, "more_is_better": False}
        eight, plain = in_turn(lambda: bench.ours(PLAIN_TRIALS), bench.plain, pairs=1)
        many, strong = in_turn(lambda: bench.ours(STRONG_TRIALS), lambda: bench.peer("strong", STRONG_TRIALS), pairs=1)
        return [
            row(
                eight, plain, what=f"{PLAIN_TRIALS} trials x {EPOCHS} epochs, cache cold",
                beside="Tuner over one TorchTrainer per trial, backbone every epoch", goal=PLAIN_GOAL,
                parity="same space and head; the peer's few epochs say nothing of its loss", **words,
                note="the peer's time is extrapolated from searches of 1 trial x 1 epoch, 1 x 3 and 2 x 1",
            ),
            row(
                many, strong, what=f"{STRONG_TRIALS} trials x {EPOCHS} epochs, cache cold",
                beside="features cached by hand, reuse_actors, Optuna, ASHA, one trial a CPU", goal=STRONG_GOAL,
                parity=bench.parity("strong"), **words,
                note="both pay Ray's start and one pass of the backbone, which are most of ours",
            ),
        ]  # fmt: skip


class Bench:
    """The packed images, and what each run came to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self.losses: dict[str, float] = {}
        pack(IMAGES, folder / "shards", PackOptions(shard_bytes=1_500_000))

    def ours(self, trials: int) -> float:
        """Search in a storage that has no features yet, from the start of the process to its end."""
        self.runs += 1
        paths = RunPaths(self.folder / f"storage-{self.runs}" / "runs" / "search-20261123-000000-abcdef")
        paths.folder.mkdir(parents=True)
        spec = build(SearchSpec, shards=str(self.folder / "shards"), weights=str(WEIGHTS), trials=trials, epochs=EPOCHS)
        paths.spec.write_text(json.dumps(spec.to_json()))
        return seconds(lambda: self._finish(paths, trials))

    def plain(self) -> float:
        """Extrapolate the plain peer, which would take an hour, from its start, a trial's start and an epoch."""
        first = self.peer("plain", 1, epochs=1)
        epoch = (self.peer("plain", 1, epochs=3) - first) / 2
        trial = self.peer("plain", 2, epochs=1) - first - epoch
        return first + (PLAIN_TRIALS - 1) * trial + (PLAIN_TRIALS * EPOCHS - 1) * epoch

    def peer(self, name: str, trials: int, epochs: int = EPOCHS) -> float:
        """Run a peer in a process of its own."""
        self.runs += 1
        command = [sys.executable, "-m", "tests.bench.peers.search_alone", name, str(trials), str(epochs)]
        folders = [str(IMAGES), str(WEIGHTS), str(self.folder / f"peer-{self.runs}")]
        return seconds(
            lambda: self._remember(name, subprocess.run([*command, *folders], check=True, capture_output=True))
        )

    def parity(self, peer: str) -> str:
        """Return the best validation losses of both, the peer's without class weights as ours is reported."""
        return f"best validation loss {self.losses[f'ours-{peer}']:.3f} and {self.losses[peer]:.3f}"

    def _finish(self, paths: RunPaths, trials: int) -> None:
        if trainer_process(paths).wait(1200):
            raise SystemExit(paths.log.read_text()[-3000:])
        peer = "plain" if trials == PLAIN_TRIALS else "strong"
        self.losses[f"ours-{peer}"] = float(read_json(paths.result)["best"]["value"])

    def _remember(self, name: str, command: list[str]) -> None:
        done = subprocess.run(command, check=True, capture_output=True)
        self.losses[name] = float(done.stdout.split()[-1])
