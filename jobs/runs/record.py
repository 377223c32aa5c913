"""One run as `nightshift show` prints it, read from the files of its folder."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from jobs.runs.state import RunState, read_state
from trainer.model.names import MANIFEST_FILE, MODEL_FILE
from trainer.result import result_mismatch
from trainer.tracking.history import epoch_lines, is_number, read_metrics

LARGEST_NUMBER = 1e15  # a larger one is damage; NaN fails the comparison too
PROGRESS_NUMBERS = frozenset({"epoch", "epochs", "done", "total", "images_per_second", "eta_seconds", "gpus"})

ALWAYS_SHOWN = ("epoch", "epochs", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """All that is known about a run.

    Attributes:
        state: Where it stands.
        spec: The spec, as submitted.
        request: How and when it was submitted to start; `notify` is "set" instead of an address, which can be secret.
        progress: The newest attempt's last progress report.
        metrics: One dict per epoch, the newest last.
        result: The outcome, if and only if it succeeded.
        files: Name of each file or folder of the run, and its bytes.
        damage: Which lines of the metrics are damaged and left out, None if none are.
    """

    state: RunState
    spec: dict[str, Any]
    request: dict[str, Any]
    progress: dict[str, Any]
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None
    files: dict[str, int]
    damage: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `nightshift show --json` prints."""
        hidden = ("why", "job_worker", "changed", "notify")
        state = {key: value for key, value in self.state.to_json().items() if key not in hidden}
        failed = self.state.state in ("failed", "lost")
        return {
            **state,
            "error": self.state.why if failed else None,
            "why": self.state.why,
            "job_worker": self.state.job_worker,
            "spec": self.spec,
            "request": self.request,
            "progress": self.progress_json(),
            "metrics": self.metrics,
            "result": self.result if self.state.state == "succeeded" else None,
            "files": self.files,
        }

    def progress_json(self) -> dict[str, Any]:
        """Return the progress with `epoch`, `epochs` and `images_per_second` always, which scripts rely on.

        A phase of a training without epochs, such as the report, leaves the last epoch in place. Of a search they count
        trials: those that ended, and all; after its end they are those of its result.
        """
        last = self.metrics[-1] if self.metrics else {}
        progress = dict.fromkeys(ALWAYS_SHOWN, 0) | self.progress
        if not progress["epochs"]:
            progress |= {name: last[name] for name in ("epoch", "epochs") if _is_usable(last.get(name))}
        return progress | self._ended_trials()

    def _ended_trials(self) -> dict[str, Any]:
        """Return `epoch` and `epochs` of a search that succeeded, empty for any other run."""
        trials = (self.result or {}).get("trials")
        if self.state.state != "succeeded" or not isinstance(trials, dict):
            return {}
        counts: list[Any] = [trials.get(name) for name in ("finished", "failed", "asked")]
        return {"epoch": counts[0] + counts[1], "epochs": counts[2]} if all(map(_is_usable, counts)) else {}


def read_record(paths: RunPaths, *, with_files: bool = True) -> JobRecord:
    """Return all that is known about a run.

    Args:
        paths: The run.
        with_files: Add up the sizes of its files, which takes long for a large search.

    Raises:
        UnknownRun: It does not exist.
    """
    state, metrics = read_state(paths), read_metrics(paths.metrics)
    return JobRecord(
        state=state,
        spec=_object(paths.spec) or {},
        request=_request(paths),
        progress=read_progress(paths),
        metrics=epoch_lines(metrics),
        result=_result(paths),
        files=_files(paths.folder) if with_files else {},
        damage=metrics.warning,
    )


def result_files(paths: RunPaths, record: JobRecord) -> list[tuple[str, Path]]:
    """Return the files of a result that people take away, with a label each: tables, exported models, and copies."""
    found = [("table", paths.predicted(form)) for form in ("csv", "json")]
    found += [("file", paths.exported(ending)) for ending in ("onnx", "pt")]
    found = [(label, file) for label, file in found if file.exists()]
    if record.spec.get("output"):
        copy = Path(record.spec["output"])
        with contextlib.suppress(OSError):  # it may be in a folder of another user, or on a disk that does not answer
            found += [("copy", copy)] if copy.exists() else []
    return found


def model_mismatch(paths: RunPaths) -> str | None:
    """Return why the published model of a run is not the one that its result names; None if it is, or is not there."""
    files = (_object(paths.best / MANIFEST_FILE) or {}).get("files")
    weights = files.get(MODEL_FILE) if isinstance(files, dict) else None
    return result_mismatch(paths.best, weights) if isinstance(weights, str) else None


def read_progress(paths: RunPaths) -> dict[str, Any]:
    """Return the newest attempt's last progress report, an empty dict before the first."""
    progress = _object(paths.progress) or {}
    return {name: value for name, value in progress.items() if name not in PROGRESS_NUMBERS or _is_usable(value)}


def running_progress(storage: Path, state: RunState) -> dict[str, Any]:
    """Return the last progress report of a running run, an empty dict for any other."""
    return read_progress(RunPaths.of(storage, state.id)) if state.state == "running" else {}


def entry_json(state: RunState, progress: dict[str, Any]) -> dict[str, Any]:
    """Return a run as `nightshift list --json` prints it."""
    return {key: value for key, value in state.to_json().items() if key != "notify"} | {"progress": progress}


def _object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file, None if the file is absent or damaged."""
    try:
        return read_json_object(path)
    except StorageError:
        return None


def _request(paths: RunPaths) -> dict[str, Any]:
    request = _object(paths.job) or {}
    return {**request, "notify": "set" if request.get("notify") or paths.webhook.exists() else None}


def _result(paths: RunPaths) -> dict[str, Any] | None:
    result = _object(paths.result)
    return result if result is not None and isinstance(result.get("metrics"), dict) else None


def _is_usable(value: Any) -> bool:
    return is_number(value) and abs(value) < LARGEST_NUMBER


def _files(folder: Path) -> dict[str, int]:
    names = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return {entry.name + ("/" if entry.is_dir() else ""): _bytes(entry) for entry in names}


def _bytes(path: Path) -> int:
    """Return the bytes of a file or folder without what its links point to, which may be a loop."""
    try:
        is_folder = path.is_dir() and not path.is_symlink()
        return sum(_bytes(entry) for entry in path.iterdir()) if is_folder else path.lstat().st_size
    except FileNotFoundError:  # removed meanwhile
        return 0
