"""The path of every file of a run."""

import re
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import UnknownRun

RUN_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[a-z0-9]{6}")


@dataclass(frozen=True)
class TrainingPaths:
    """The files of one training. Creating this object does not access the disk."""

    folder: Path

    @property
    def stop(self) -> Path:
        """Exists while the running attempt is asked to save a checkpoint and stop."""
        return self.folder / "stop.json"

    @property
    def metrics(self) -> Path:
        """One line of JSON per epoch."""
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """What the running attempt is doing, rewritten about once a second."""
        return self.folder / "progress.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints from which an interrupted run resumes."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The published model: `model.safetensors`, `head.json`, `manifest.json`."""
        return self.folder / "best"

    @property
    def predictions(self) -> Path:
        """The predictions for each image of the split that was evaluated."""
        return self.folder / "predictions.safetensors"

    @property
    def scratch(self) -> Path:
        """Temporary files, such as Ray's; safe to delete while no attempt runs."""
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
            UnknownRun: The text does not have the form of a run id. So no id can lead outside the storage.
        """
        if not RUN_ID.fullmatch(run_id):
            raise UnknownRun(f"{run_id!r} is not a run id; `nightshift list` shows the ids")
        return cls(storage / "runs" / run_id)

    @property
    def storage(self) -> Path:
        """The storage that the run's folder is in."""
        return self.folder.parent.parent

    @property
    def run_id(self) -> str:
        """The folder's name, which is also the RQ job id and the start of the Ray submission id."""
        return self.folder.name

    @property
    def spec(self) -> Path:
        """The spec, written once before the run is queued."""
        return self.folder / "spec.json"

    @property
    def precision(self) -> Path:
        """The precision of the backbone that the first workers decided on."""
        return self.folder / "precision.json"

    @property
    def job(self) -> Path:
        """How and when to queue the run: name, priority, retries. Written once with the spec."""
        return self.folder / "job.json"

    @property
    def state(self) -> Path:
        """The run state: state, attempt, times, error. It is replaced as a whole, under `lock`."""
        return self.folder / "state.json"

    @property
    def lock(self) -> Path:
        """Lock file, held while `state` is read and rewritten, so that two processes cannot change it at once."""
        return self.folder / ".lock"

    @property
    def attempts(self) -> Path:
        """One file per attempt; the attempt with the highest number owns the run."""
        return self.folder / "attempts"

    @property
    def log(self) -> Path:
        """Output of the trainer, of all attempts."""
        return self.folder / "log.txt"

    @property
    def chosen(self) -> Path:
        """The model of a search's best trial, if the published model is a refit of it on more data."""
        return self.folder / "chosen"

    @property
    def data(self) -> Path:
        """Which version of the data set the run started with."""
        return self.folder / "data.json"

    @property
    def webhook(self) -> Path:
        """Where a message goes when the run ends; only its owner can read it. Absent without `--notify`."""
        return self.folder / "webhook.json"

    @property
    def result(self) -> Path:
        """Exists if and only if the run succeeded."""
        return self.folder / "result.json"

    @property
    def error(self) -> Path:
        """Why the last attempt failed, in one line, written by the trainer."""
        return self.folder / "error.json"

    @property
    def report(self) -> Path:
        """Learning curves, confusion matrix, ROC curve and misclassified images in one self-contained page."""
        return self.folder / "report.html"

    @property
    def events(self) -> Path:
        """TensorBoard event files; each trial of a search has its own folder in it."""
        return self.folder / "tensorboard"

    def predicted(self, form: str) -> Path:
        """The table that `predict` (`form` "csv" or "json") or an evaluation ("csv") writes: one row per image."""
        return self.folder / f"predictions.{form}"

    def exported(self, ending: str) -> Path:
        """The model that `export` writes for other programs; `ending` is "onnx" or "pt"."""
        return self.folder / f"model.{ending}"

    @property
    def trials(self) -> Path:
        """The trial journal of a search: one line per event of a trial, append-only."""
        return self.folder / "trials.jsonl"

    def progress_of_trials(self) -> list[Path]:
        """Return the progress files of the trainings of a search's trials, none if this is no search."""
        if not self.trials.exists():
            return []
        return sorted([*self.checkpoints.glob("*/progress.json"), *self.checkpoints.glob("*/*/progress.json")])
