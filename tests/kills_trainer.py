"""A trainer for the campaign of kills: `python -m tests.kills_trainer RUN_FOLDER --attempt N`.

For a `ChainSpec` it "trains" in a tenth of a second, without torch: each step hashes the state, saves a checkpoint and
logs a line, and the last state is the model, so that a resumed run equals an uninterrupted one only if no step is lost
or done twice. It publishes with the lease as the real trainer does. Every other spec goes to the real trainer.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Literal

from cluster.errors import LeaseLost
from cluster.exit_codes import ExitCode
from cluster.files import read_json, sha256_of, write_json
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from cluster.stop_request import StopRequest
from trainer.result import RunResult
from trainer.specs import Spec

MODEL, STATE, MANIFEST = "model.safetensors", "state.json", "manifest.json"


class ChainSpec(Spec):
    """What this trainer runs."""

    kind: Literal["train"] = "train"
    chain: int
    step_seconds: float = 0.05


def main(folder: str, attempt: int) -> int:
    paths = RunPaths(Path(folder))
    spec = read_json(paths.spec)
    if "chain" not in spec:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "trainer", folder, "--attempt", str(attempt)])
    try:
        return train(paths, Lease.join(paths, attempt), spec["chain"], spec["step_seconds"])
    except LeaseLost as error:
        print(error, flush=True)
        return ExitCode.USAGE


def train(paths: RunPaths, lease: Lease, steps: int, step_seconds: float) -> int:
    step, state = restored(paths)
    while step < steps:
        if StopRequest.read(paths.stop, lease.attempt):
            return ExitCode.STOPPED
        time.sleep(step_seconds)
        step, state = step + 1, hashlib.sha256(bytes.fromhex(state)).hexdigest()
        lease.append_line(paths.metrics, {"epoch": step})
        publish(lease, paths.checkpoints / f"step-{step:09d}", {STATE: json.dumps({"step": step, "state": state})})
        lease.write_json(paths.progress, {"phase": "train", "epoch": step, "epochs": steps, "attempt": lease.attempt})
        if step > 1:
            lease.remove(paths.checkpoints / f"step-{step - 1:09d}")
    publish(lease, paths.best, {MODEL: model_of(state)})
    metrics = {"accuracy": 0.5, "n": 1}
    sha256 = sha256_of(paths.best / MODEL)
    result = RunResult(kind="train", checkpoint=str(paths.best), metrics=metrics, seconds=0.1, model_sha256=sha256)
    result.publish(lease)
    print("the run is done in 0.1 s", flush=True)
    return ExitCode.SUCCEEDED


def restored(paths: RunPaths) -> tuple[int, str]:
    """Return the step and state of the newest checkpoint."""
    for folder in sorted(paths.checkpoints.glob("step-*"), reverse=True):
        found = read_json(folder / STATE)
        return found["step"], found["state"]
    return 0, hashlib.sha256(b"seed").hexdigest()


def publish(lease: Lease, folder: Path, files: dict[str, str]) -> None:
    """Publish a folder with a manifest, as checkpoints and models are."""
    with lease.atomic_folder(folder) as draft:
        for name, text in files.items():
            (draft / name).write_text(text)
        shas = {name: sha256_of(draft / name) for name in files}
        write_json(draft / MANIFEST, {"version": 1, "files": shas})


def model_of(state: str) -> str:
    """Return a file of 256 kB that depends on the state."""
    header = json.dumps(
        {"state": {"dtype": "U8", "shape": [len(state) * 4096], "data_offsets": [0, len(state) * 4096]}}
    )
    return len(header).to_bytes(8, "little").decode("latin-1") + header + state * 4096


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[3])))
