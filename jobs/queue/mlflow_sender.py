"""Sends runs to the MLflow server of `MLFLOW_TRACKING_URI`, in a process of its own beside the job workers.

It reads the files of the runs, so a slow or absent server neither delays nor fails a run; what could not be sent is
sent later. One job worker at a time has such a process, and only while there is something to send. Without job workers,
`nightshift reconcile` sends.
"""

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from cluster import guard
from cluster.errors import ClusterError, StorageError, UnknownRun
from cluster.files import is_damage, locked, read_json_object, write_json
from cluster.process_env import mlflow_environment
from cluster.run_paths import RUN_ID, RunPaths
from cluster.settings import Settings
from jobs.runs import promotions
from jobs.runs.promotions import Promotion
from jobs.runs.state import RunState, read_state
from trainer.model.names import CALIBRATION_FILE, HEAD_FILE, MANIFEST_FILE, MODEL_FILE
from trainer.search.trials import Trial, TrialTable, read_trial_events
from trainer.tracking.history import EpochHistory, read_epoch_history
from trainer.tracking.mlflow import (
    MODEL_FOLDER,
    USER_TAG,
    WEIGHTS_TAG,
    MlflowLog,
    MlflowServer,
    NoArtifactStore,
    Status,
    mark_for_mlflow,
    marks,
)

log = logging.getLogger("nightshift.mlflow_sender")

POLL_SECONDS = 2.0
RETRY_SECONDS = 60.0  # after a failure
ONCE_SECONDS = 60.0  # of `nightshift reconcile`
FINISH_SECONDS = 5.0  # how long a job worker that is stopped waits for what is being sent
LAST_SECONDS = 30.0  # how long one that ends by itself waits, as after each run with KEDA
# Without `out_of_fold.safetensors`: predictions for single images stay in the storage.
MODEL_FILES = (MODEL_FILE, HEAD_FILE, MANIFEST_FILE, CALIBRATION_FILE)
STATUS: dict[str, Status] = {"succeeded": "FINISHED", "failed": "FAILED", "lost": "FAILED", "cancelled": "KILLED"}
TRIAL_STATUS: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "paused": "SCHEDULED"}


_started: set[int] = set()


def started_here() -> frozenset[int]:
    """Return the id of the process that this process has started to send runs."""
    return frozenset(_started)


class MlflowSender:
    """A thread of a job worker that starts the process while there is something to send.

    Attributes:
        settings: The settings.
        sends_last: Whether it sends what is due before it ends: the job worker ends when its queues are empty.
    """

    def __init__(self, settings: Settings, *, sends_last: bool = False) -> None:
        """Prepare the thread; entering the context starts it."""
        self.settings, self.sends_last = settings, sends_last
        self.finish_seconds = LAST_SECONDS if sends_last else FINISH_SECONDS
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)

    def __enter__(self) -> Self:
        if self.settings.mlflow_uri is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2 * self.finish_seconds)

    def _run(self) -> None:
        pause, is_last = POLL_SECONDS, False
        while not is_last:
            is_last = self._end.wait(pause)
            pause = POLL_SECONDS
            if is_last and not self.sends_last:
                return
            with contextlib.suppress(ClusterError, OSError):  # such as: another job worker has the process
                if is_due(self.settings):
                    marks(self.settings.storage).mkdir(exist_ok=True)
                    with locked(marks(self.settings.storage) / ".lock", patience=0):
                        pause = POLL_SECONDS if self._serve() == 0 else RETRY_SECONDS

    def _serve(self) -> int:
        """Start the process and wait for it; return its exit code."""
        command = (sys.executable, "-P", "-m", "jobs.queue.mlflow_sender", str(os.getpid()))
        environment, nothing = mlflow_environment(self.settings), subprocess.DEVNULL
        with subprocess.Popen(command, stdin=nothing, stdout=nothing, env=environment) as process:
            _started.add(process.pid)
            try:
                while process.poll() is None and not self._end.wait(0.2):
                    pass
                return process.wait(self.finish_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()
            finally:
                _started.discard(process.pid)


def is_due(settings: Settings) -> bool:
    """Whether there is a run or a promoted model to send."""
    return bool(_marked(settings.storage) or promotions_due(settings))


def send_once(settings: Settings) -> None:
    """Send what is due, in this process, unless a job worker does."""
    if settings.mlflow_uri is None or not is_due(settings):
        return
    marks(settings.storage).mkdir(exist_ok=True)
    with contextlib.suppress(StorageError), locked(marks(settings.storage) / ".lock", patience=0):
        Sending(settings, MlflowServer(settings.mlflow_uri)).send_due(seconds=ONCE_SECONDS)


def promotions_due(settings: Settings) -> dict[str, Promotion]:
    """Return the newest promotion of each name that is not registered on the server yet."""
    if "model" not in settings.mlflow_artifacts:
        return {}
    registered = _registered(settings.storage)
    newest, _ = promotions.models_in_use(settings.storage)
    return {name: each for name, each in newest.items() if registered.get(name) != each.when}


def main(arguments: list[str]) -> int:
    """Send until nothing is left, or until the process with this id, the job worker, ends."""
    guard.die_with_parent(int(arguments[0]), signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; the job worker decides
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = Settings.read()
    if settings.mlflow_uri is None:
        return 0
    sending = Sending(settings, MlflowServer(settings.mlflow_uri))
    while sending.send_due():
        time.sleep(POLL_SECONDS)
    return 0


@dataclass
class Sending:
    """Sends what is due and tries again later what fails."""

    settings: Settings
    server: MlflowServer
    _failed_at: dict[str, float] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def send_due(self, *, seconds: float = math.inf) -> bool:
        """Send the marked runs and the promoted models; return whether something is left.

        Args:
            seconds: Begin nothing more after this time.
        """
        until = time.monotonic() + seconds
        due = {run_id: partial(self._send_marked, run_id) for run_id in _marked(self.settings.storage)}
        for name, promotion in promotions_due(self.settings).items():
            due[f"model {name}"] = partial(self._send_promotion, name, promotion)
        for what, send in due.items():
            if time.monotonic() < until:
                self._attempt(what, send)
        return is_due(self.settings)

    def _attempt(self, what: str, send: Callable[[], None]) -> None:
        failed_at = self._failed_at.get(what)
        if failed_at is not None and time.monotonic() - failed_at < RETRY_SECONDS:
            return
        try:
            send()
        except Exception as error:  # of any kind: one run must not keep the others from being sent
            self._failed_at[what] = time.monotonic()
            self.server.forget()
            # Without the error's text, which may hold an address with a password.
            cure = "install nightshift[mlflow]" if isinstance(error, ImportError) else "it is tried again"
            self._warn(f"{_shown(self.settings)} did not take {what} ({type(error).__name__}); {cure}")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)

    def _send_marked(self, run_id: str) -> None:
        paths, mark = RunPaths.of(self.settings.storage, run_id), marks(self.settings.storage) / run_id
        try:
            state = read_state(paths)
            self._send_run(paths, state)
            if state.has_ended:
                mark.unlink(missing_ok=True)
                if read_state(paths).attempt != state.attempt:  # somebody retried it at this moment
                    mark_for_mlflow(self.settings.storage, run_id)
        except UnknownRun:  # deleted
            mark.unlink(missing_ok=True)
        except StorageError as error:
            if paths.state.exists() and not is_damage(error):
                raise
            self._warn(f"{run_id} is not sent to MLflow: {error}")
            mark.unlink(missing_ok=True)

    def _send_run(self, paths: RunPaths, state: RunState) -> str:
        """Send a run, its trials, and its artifacts; its last status comes last. Return its id in MLflow."""
        spec = read_json_object(paths.spec)
        events = read_trial_events(paths.trials).lines  # before the epochs: no trial ends before its last epoch is read
        history = read_epoch_history(paths)
        found = _run_log(paths, state, spec, history)
        mlflow_id = self.server.begin_run(paths.run_id, found)
        for number, trial in sorted(TrialTable.fold(events, str(spec.get("best_by", "loss"))).trials.items()):
            self.server.log_trial(mlflow_id, number, _trial_log(trial, history, has_ended=state.has_ended))
        if state.state == "succeeded":
            self._upload(mlflow_id, [*self._model_files(paths.best), *self._report(paths)])
        self.server.log_run(paths.run_id, found)
        return mlflow_id

    def _send_promotion(self, name: str, promotion: Promotion) -> None:
        if RUN_ID.fullmatch(promotion.model):
            try:
                paths = RunPaths.of(self.settings.storage, promotion.model)
                mlflow_id = self._send_run(paths, read_state(paths))
                if self._upload(mlflow_id, list(self._model_files(Path(promotion.folder)))):
                    tags = {WEIGHTS_TAG: promotion.weights, "nightshift.promoted_by": promotion.who}
                    self.server.register(name, mlflow_id, tags)
            except UnknownRun:
                self._warn(f"model {name} is not registered in MLflow: its run {promotion.model} was deleted")
        else:
            self._warn(f"model {name} is not registered in MLflow: {promotion.folder} is not the model of a run")
        registered = _registered(self.settings.storage) | {name: promotion.when}
        write_json(_registered_file(self.settings.storage), registered)

    def _upload(self, mlflow_id: str, files: list[tuple[Path, str | None]]) -> bool:
        try:
            if files:
                self.server.upload(mlflow_id, files)
        except NoArtifactStore as error:
            self._warn(f"{_shown(self.settings)} gets no model and no report: {error}")
            return False
        return bool(files)

    def _model_files(self, folder: Path) -> Iterator[tuple[Path, str | None]]:
        if "model" in self.settings.mlflow_artifacts:
            yield from ((folder / name, MODEL_FOLDER) for name in MODEL_FILES if (folder / name).is_file())
            thresholds = f"{MODEL_FOLDER}/thresholds"
            yield from ((file, thresholds) for file in sorted((folder / "thresholds").glob("*.json")))

    def _report(self, paths: RunPaths) -> Iterator[tuple[Path, str | None]]:
        if "report" in self.settings.mlflow_artifacts and paths.report.is_file():
            yield paths.report, None


def _run_log(paths: RunPaths, state: RunState, spec: dict[str, Any], history: EpochHistory) -> MlflowLog:
    metrics: dict[str, Any] = {}
    if state.state == "succeeded":
        found = read_json_object(paths.result).get("metrics")
        metrics = found if isinstance(found, dict) else {}
    return MlflowLog(
        name=state.name or paths.run_id,
        tags={USER_TAG: state.owner} if state.owner else {},
        parameters=spec,
        epochs=history.get("", ()),
        metrics=metrics,
        status=STATUS.get(state.state, "RUNNING" if state.state == "running" else "SCHEDULED"),
        started=_milliseconds(state.started or state.created),
        ended=_milliseconds(state.ended),
    )


def _trial_log(trial: Trial, history: EpochHistory, *, has_ended: bool) -> MlflowLog:
    """Return a trial; one that its search left unfinished is KILLED, unless the search runs again."""
    status = TRIAL_STATUS.get(trial.state, "RUNNING")
    return MlflowLog(
        name=f"trial {trial.number}",
        tags={},
        parameters=trial.config,
        epochs=history.get(f"trial-{trial.number:03d}", ()),
        status="KILLED" if has_ended and trial.ended is None else status,
        started=None if trial.started_at is None else round(trial.started_at.timestamp() * 1000),
        ended=None if trial.ended_at is None else round(trial.ended_at.timestamp() * 1000),
    )


def _milliseconds(time_text: str | None) -> int | None:
    return None if time_text is None else round(datetime.fromisoformat(time_text).timestamp() * 1000)


def _marked(storage: Path) -> list[str]:
    folder = marks(storage)
    return sorted(file.name for file in folder.iterdir() if RUN_ID.fullmatch(file.name)) if folder.is_dir() else []


def _registered_file(storage: Path) -> Path:
    return marks(storage) / "registered.json"


def _registered(storage: Path) -> dict[str, Any]:
    try:
        return read_json_object(_registered_file(storage))
    except StorageError:
        return {}


def _shown(settings: Settings) -> str:
    return f"MLflow at {urlsplit(settings.mlflow_uri or '').hostname or 'its storage'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
