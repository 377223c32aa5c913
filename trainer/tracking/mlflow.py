"""Runs, trials and models on an MLflow tracking server. The trainer only marks its run; job workers send it.

The tag `nightshift.run` identifies a run, so that all its attempts log to one MLflow run. Each trial of a search is a
child run. A promoted model is a version of a registered model, and the alias `champion` is the one in use.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from cluster.process_env import set_mlflow_defaults
from trainer.errors import TrainerError
from trainer.tracking.history import LoggedEpoch

EXPERIMENT = "nightshift"
RUN_TAG = "nightshift.run"
TRIAL_TAG = "nightshift.trial"
WEIGHTS_TAG = "nightshift.weights"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own, as is the next
USER_TAG = "mlflow.user"
ALIAS = "champion"
MODEL_FOLDER = "model"  # of the artifacts
METRICS_PER_REQUEST = 1000  # the server's limit
MAX_PARAMETER_LENGTH = 500  # characters; newer servers take more
RUNS_PER_PAGE = 1000

Status: TypeAlias = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
FINAL: tuple[Status, ...] = ("FINISHED", "FAILED", "KILLED")
UNCHANGING: tuple[Status, ...] = ("FINISHED", "FAILED")  # a search that is resumed continues the trials it had to end


class NoArtifactStore(TrainerError):
    """The server expects its clients to write artifacts into its own file system."""


def mark_for_mlflow(storage: Path, run_id: str) -> None:
    """Mark a run that job workers send to the tracking server until it has ended and all of it has arrived.

    Raises:
        OSError: The storage cannot be written.
    """
    folder = marks(storage)
    folder.mkdir(exist_ok=True)
    (folder / run_id).touch()


def marks(storage: Path) -> Path:
    """Return the folder with a file for each run that `mark_for_mlflow` marked."""
    return storage / "mlflow"


@dataclass(frozen=True, kw_only=True)
class MlflowLog:
    """What MLflow shows of a run or of a trial.

    Attributes:
        name: Its name in lists.
        tags: Tags by name.
        parameters: Options by name; None is left out.
        epochs: In order.
        metrics: At the end; what is no number is left out.
        status: In MLflow's words.
        started: Unix time in milliseconds; None is the time at which it is sent.
        ended: The same; None while it runs.
    """

    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, Any] = field(repr=False)
    epochs: tuple[LoggedEpoch, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "RUNNING"
    started: int | None = None
    ended: int | None = None


@dataclass
class _Sent:
    """An MLflow run, and what the server has of it.

    Attributes:
        last_epoch: None where the server was not asked yet.
    """

    id: str
    status: str
    last_epoch: int | None = None


@dataclass
class MlflowServer:
    """A tracking server. Every method may raise any error of the client or the network.

    Attributes:
        uri: Its address, with its credentials; never logged.
    """

    uri: str = field(repr=False)
    _client: Any = None
    _experiment: str = ""
    _runs: dict[str, _Sent] = field(default_factory=dict)
    _trials: dict[str, dict[str, Any]] = field(default_factory=dict)  # each as `_Sent`, or as the server returned it

    def forget(self) -> None:
        """Forget what the server has, so that it is asked again: somebody may have deleted a run there."""
        self._client = None
        self._runs.clear()
        self._trials.clear()

    def begin_run(self, run_id: str, log: MlflowLog) -> str:
        """Create a run unless the server has it; return its id in MLflow."""
        self._connect()
        if run_id not in self._runs:
            known = self._search(RUN_TAG, run_id)
            self._runs[run_id] = self._found(known[0], log) if known else self._create({RUN_TAG: run_id}, log)
        return self._runs[run_id].id

    def log_run(self, run_id: str, log: MlflowLog) -> None:
        """Send what the server lacks of a run that `begin_run` has created."""
        self._send(self._runs[run_id], log)

    def log_trial(self, parent: str, number: int, log: MlflowLog) -> None:
        """Send what the server lacks of a trial of the search whose id in MLflow is `parent`."""
        if parent not in self._trials:
            known = self._search(PARENT_TAG, parent)
            self._trials[parent] = {str(run.data.tags.get(TRIAL_TAG)): run for run in known}
        trials, key = self._trials[parent], str(number)
        if key not in trials:
            trials[key] = self._create({PARENT_TAG: parent, TRIAL_TAG: key}, log)
        elif not isinstance(trials[key], _Sent):
            trials[key] = self._found(trials[key], log)
        if trials[key].status != log.status or log.status not in UNCHANGING:
            self._send(trials[key], log)

    def upload(self, mlflow_id: str, files: Sequence[tuple[Path, str | None]]) -> None:
        """Upload files, each into a folder of the run's artifacts.

        Raises:
            NoArtifactStore: The server takes no uploads.
        """
        place = urlsplit(self._client.get_run(mlflow_id).info.artifact_uri).scheme
        if urlsplit(self.uri).scheme in ("http", "https") and place in ("", "file"):
            raise NoArtifactStore("the server takes no uploads; start it with --serve-artifacts, or with a bucket")
        for file, folder in files:
            self._client.log_artifact(mlflow_id, str(file), folder)

    def register(self, name: str, mlflow_id: str, tags: Mapping[str, str]) -> None:
        """Make the uploaded model of a run the version of a registered model that has the alias `champion`.

        Args:
            name: Of the registered model.
            mlflow_id: Id of the run in MLflow.
            tags: Of the version. A version with the same tag `nightshift.weights` is used again.
        """
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name='{name}'")
        same = [each for each in versions if each.tags.get(WEIGHTS_TAG) == tags[WEIGHTS_TAG]]
        if not same:
            source = f"{self._client.get_run(mlflow_id).info.artifact_uri}/{MODEL_FOLDER}"
            created = self._client.create_model_version(
                name, source, run_id=mlflow_id, tags=dict(tags), await_creation_for=None
            )
            same = [created]
        self._client.set_registered_model_alias(name, ALIAS, same[0].version)

    def _connect(self) -> None:
        if self._client is not None:
            return
        set_mlflow_defaults()
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- takes seconds, and few users have a server

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its lines can contain the address with the password
        client = MlflowClient(tracking_uri=self.uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        self._experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
        self._client = client

    def _search(self, tag: str, value: str) -> list[Any]:
        found, token = list[Any](), None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{tag}` = '{value}'", max_results=RUNS_PER_PAGE, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, tags: Mapping[str, str], log: MlflowLog) -> _Sent:
        run = self._client.create_run(
            self._experiment, start_time=log.started, tags={**log.tags, **tags}, run_name=log.name
        )
        self._log_parameters(run, log)
        return _Sent(run.info.run_id, run.info.status, last_epoch=0)

    def _found(self, run: Any, log: MlflowLog) -> _Sent:
        if not run.data.params:  # the server went away after it had created the run
            self._log_parameters(run, log)
        return _Sent(run.info.run_id, run.info.status)

    def _log_parameters(self, run: Any, log: MlflowLog) -> None:
        from mlflow.entities import Param  # noqa: PLC0415

        parameters = [Param(name, _parameter(value)) for name, value in log.parameters.items() if value is not None]
        self._client.log_batch(run.info.run_id, params=parameters)

    def _send(self, sent: _Sent, log: MlflowLog) -> None:
        """Send new epochs; then, at the end, the final metrics; and the status last, when all of it is there."""
        metrics = self._new_epochs(sent, log)
        if log.status in FINAL and sent.status not in FINAL:
            metrics += _metrics({f"final/{name}": value for name, value in log.metrics.items()}, log.ended or 0, 0)
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(sent.id, metrics=metrics[start : start + METRICS_PER_REQUEST])
        if log.epochs:
            sent.last_epoch = log.epochs[-1].epoch
        if log.status != sent.status:
            if log.status in FINAL:
                self._client.set_terminated(sent.id, log.status, end_time=log.ended)
            else:
                self._client.update_run(sent.id, status=log.status)
            sent.status = log.status

    def _new_epochs(self, sent: _Sent, log: MlflowLog) -> list[Any]:
        if not log.epochs:
            return []
        if sent.last_epoch is None:
            logged = self._client.get_metric_history(sent.id, next(iter(log.epochs[0].metrics)))
            sent.last_epoch = max((metric.step for metric in logged), default=0)
        new = [epoch for epoch in log.epochs if epoch.epoch > sent.last_epoch]
        return [
            metric for epoch in new for metric in _metrics(epoch.metrics, round(epoch.timestamp * 1000), epoch.epoch)
        ]


def _metrics(values: Mapping[str, Any], milliseconds: int, step: int) -> list[Any]:
    from mlflow.entities import Metric  # noqa: PLC0415

    return [
        Metric(name, float(value), milliseconds, step)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _parameter(value: Any) -> str:
    """Return a value of the spec as text; a URL without its credentials and its query."""
    text = str(value)
    if "://" in text:
        parts = urlsplit(text)
        text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return text[:MAX_PARAMETER_LENGTH]
