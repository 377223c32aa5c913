"""What a campaign of kills left behind: lost runs, second publications, torn files, processes, and other models."""

import json
import re
from collections import Counter
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cluster.files import sha256_of
from cluster.run_paths import RunPaths
from jobs.runs.state import read_state
from tests.stack import processes_in

CLEAN = ("runs lost", "published twice", "torn files", "processes left", "models that differ")
PUBLISHED = re.compile(r" done in [0-9.]+ s$", re.MULTILINE)  # the trainer's last line after it published its result
DRAFT = re.compile(r"^\..+\.\d+\.[0-9a-f]{8}(\.old)?$")


def verdict(storage: Path, runs: dict[str, str]) -> dict[str, object]:
    """Return the figures; the storage's stack has ended."""
    states = {run_id: read_state(RunPaths.of(storage, run_id)) for run_id in runs}
    return {
        "runs": dict(Counter(runs.values())),
        "attempts": sum(state.attempt for state in states.values()),
        "runs lost": [
            f"{run_id}: {state.state}, {state.why}" for run_id, state in states.items() if is_lost(state.state)
        ],
        "published twice": [run_id for run_id in runs if publications(storage, run_id) > 1],
        "torn files": [str(file) for file in storage.rglob("*") if file.is_file() and is_torn(file)],
        "processes left": processes_in(storage),
        "models that differ": different_models(storage, runs),
    }


def is_clean(figures: dict[str, object]) -> bool:
    """Whether nothing was lost, torn, left or different."""
    return not any(figures[name] for name in CLEAN)


def is_lost(state: str) -> bool:
    return state != "succeeded"


def publications(storage: Path, run_id: str) -> int:
    """Return how many attempts say in the log that they published the result."""
    log = RunPaths.of(storage, run_id).log
    return len(PUBLISHED.findall(log.read_text(errors="replace"))) if log.exists() else 0


def is_torn(file: Path) -> bool:
    """Whether a published file is incomplete. Drafts, and files of Ray and Redis, are not published."""
    parts = file.parts
    if any(
        DRAFT.match(part) or part.endswith((".drafts", ".revoked")) or part in ("scratch", "redis") for part in parts
    ):
        return False
    try:
        if file.suffix == ".json":
            json.loads(file.read_text())
            return file.name == "manifest.json" and not is_manifest_true(file)
        if file.suffix == ".jsonl":
            [json.loads(line) for line in file.read_text().splitlines()]
        if file.suffix == ".safetensors":
            with safe_open(file, "np") as tensors:
                list(tensors.keys())
    except (ValueError, OSError, SafetensorError):
        return True
    return False


def is_manifest_true(manifest: Path) -> bool:
    """Whether each file of a checkpoint or model has the sha256 that its manifest names."""
    files = json.loads(manifest.read_text())["files"]
    return all(
        (manifest.parent / name).is_file() and sha256_of(manifest.parent / name) == sha for name, sha in files.items()
    )


def different_models(storage: Path, runs: dict[str, str]) -> list[str]:
    """Return the trainings whose model is not that of the first run of the same kind, which nothing interrupted."""
    first: dict[str, str] = {}
    found = []
    for run_id, kind in runs.items():
        model = RunPaths.of(storage, run_id).best / "model.safetensors"
        if kind in ("search", "export") or not model.exists():
            continue
        digest = sha256_of(model)
        if first.setdefault(kind, digest) != digest:
            found.append(f"{run_id} ({kind})")
    return found
