"""Every file name of a run, in one place."""

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UnknownRun

RUN_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[a-z0-9]{6}")


@dataclass(frozen=True)
class TrainingPaths:
    """The files that one training reads and writes. Building one touches no disk."""

    folder: Path

    @property
    def stop(self) -> Path:
        """Present while somebody asks the running attempt to checkpoint and stop."""
        return self.folder / "stop.json"

    @property
    def metrics(self) -> Path:
        """A line of JSON an epoch."""
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """What the running attempt is doing right now, rewritten about once a second."""
        return self.folder / "progress.json"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run goes on from."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The published model: `model.safetensors`, `head.json`, `manifest.json`."""
        return self.folder / "best"

    @property
    def scratch(self) -> Path:
        """Files of Ray and other passing things; safe to delete when no attempt runs."""
        return self.folder / "scratch"


@dataclass(frozen=True)
class TrialPaths(TrainingPaths):
    """The files of one training inside a search: a trial, one of its repeats, or the refit."""


@dataclass(frozen=True)
class RunPaths(TrainingPaths):
    """The files of one run, below `STORAGE/runs/ID`."""

    @classmethod
    def of(cls, storage: Path, run_id: str) -> "RunPaths":
        """Return the paths of a run by its full id.

        Raises:
            UnknownRun: The id has not the form of one, so that no id can leave the storage.
        """
        if not RUN_ID.fullmatch(run_id):
            raise UnknownRun(f"{run_id!r} is no run id; `nightshift list` shows them")
        return cls(storage / "runs" / run_id)

    @property
    def storage(self) -> Path:
        """The storage that the run's folder is in."""
        return self.folder.parent.parent

    @property
    def run_id(self) -> str:
        """The folder's name: run id, RQ job id and Ray submission id alike."""
        return self.folder.name

    @property
    def spec(self) -> Path:
        """The wish, written once by the submitter before the run is queued."""
        return self.folder / "spec.json"

    @property
    def job(self) -> Path:
        """How and when the run was to be queued: name, priority, retries; written once beside the spec."""
        return self.folder / "job.json"

    @property
    def state(self) -> Path:
        """Where the run stands: state, attempt, times, error; rewritten whole by the run's owner of the moment."""
        return self.folder / "state.json"

    @property
    def lock(self) -> Path:
        """Held while `state` is read and rewritten, so that two people or machines cannot both change it."""
        return self.folder / ".lock"

    @property
    def attempts(self) -> Path:
        """A file per attempt; the highest number owns the run."""
        return self.folder / "attempts"

    @property
    def log(self) -> Path:
        """All that the trainer printed, over all attempts."""
        return self.folder / "log.txt"

    @property
    def chosen(self) -> Path:
        """The model of a search's best trial, where one refitted on more data is the published one."""
        return self.folder / "chosen"

    @property
    def result(self) -> Path:
        """Present if and only if the run succeeded."""
        return self.folder / "result.json"

    @property
    def error(self) -> Path:
        """The one line that says why the last attempt failed, written by the trainer."""
        return self.folder / "error.json"

    @property
    def report(self) -> Path:
        """Curves, confusion matrix, ROC and errors in one self-contained page."""
        return self.folder / "report.html"

    @property
    def events(self) -> Path:
        """TensorBoard's event files: the curves of the run, in a folder of its own for each trial of a search."""
        return self.folder / "tensorboard"

    @property
    def predictions(self) -> Path:
        """What the model said of each image of the split that was scored."""
        return self.folder / "predictions.safetensors"

    def predicted(self, form: str) -> Path:
        """The table that `predict` writes; `form` is csv or json."""
        return self.folder / f"predictions.{form}"

    def exported(self, ending: str) -> Path:
        """The model that `export` writes for other programs; `ending` is onnx or pt."""
        return self.folder / f"model.{ending}"

    @property
    def trials(self) -> Path:
        """The ledger of a search: a line an event of a trial, append-only."""
        return self.folder / "trials.jsonl"
