"""A small trainer that the launcher starts in tests: its spec sets its duration, its faults and whether it stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster import stack_dumps
from cluster.files import append_line, write_json
from cluster.lease import Lease
from cluster.run_paths import RunPaths


def main(folder: str, attempt: int) -> int:
    stack_dumps.enable()
    paths = RunPaths(Path(folder))
    spec = json.loads(paths.spec.read_text())
    lease = Lease.join(paths, attempt)
    print(f"attempt {attempt} of {paths.run_id}", flush=True)
    if spec["leaves_child"]:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    for step in range(steps_done(paths), spec["steps"]):
        while spec.get("holds") and step > 0 and not (paths.folder / "go").exists():
            lease.heartbeat()
            time.sleep(0.02)
        if paths.stop.exists() and not spec["stubborn"]:
            return 3
        lease.heartbeat()
        time.sleep(spec["step_seconds"])
        append_line(paths.folder / "steps.jsonl", {"step": step, "attempt": attempt})
        progress = {"phase": "train", "epoch": step + 1, "epochs": spec["steps"], "done": 1, "total": 1}
        write_json(paths.progress, {**progress, "images_per_second": 10.0, "eta_seconds": 1.0, "attempt": attempt})
    return end(spec["ending"], paths, lease)


def steps_done(paths: RunPaths) -> int:
    """Return the step that a real trainer would read from its checkpoint."""
    file = paths.folder / "steps.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def end(ending: str, paths: RunPaths, lease: Lease) -> int:
    if ending == "fail":
        write_json(paths.error, {"attempt": lease.attempt, "error": "the images are all black"})
        return 1
    if ending == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "exit":  # as Ray's library does
        return 1
    if ending == "newer":
        write_json(paths.error, {"attempt": lease.attempt, "error": "a newer version wrote it"})
        return 76
    if ending == "nothing":
        return 0
    lease.check()
    metrics = {"accuracy": 0.5, "auroc": 0.75}
    write_json(paths.result, {"kind": "train", "checkpoint": None, "metrics": metrics, "seconds": 0.1})
    append_line(paths.folder / "published.jsonl", {"attempt": lease.attempt})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[3])))
