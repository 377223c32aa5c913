"""A run on an MLflow tracking server: the spec as parameters, the metrics of each epoch, the final metrics.

The tag `nightshift.run` identifies the run, so that all attempts of a run log to one MLflow run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cluster.process_env import set_mlflow_defaults
from trainer.tracking.history import EpochHistory

EXPERIMENT = "nightshift"
RUN_TAG = "nightshift.run"
METRICS_PER_REQUEST = 1000  # the server's limit
MAX_PARAMETER_LENGTH = 500  # characters; newer servers take more


@dataclass
class MlflowRun:
    """One run on a tracking server. Every method may raise any error of the client or the network.

    Attributes:
        uri: Tracking server, with its credentials; never logged.
        run_id: Id of the run in nightshift.
        spec: The spec of the run as JSON.
    """

    uri: str = field(repr=False)
    run_id: str
    spec: dict[str, Any] = field(repr=False)
    _client: Any = None
    _mlflow_run_id: str = ""
    _last_logged: dict[str, int] = field(default_factory=dict)

    def log_epochs(self, history: EpochHistory) -> None:
        """Send the epochs that the server does not have yet."""
        from mlflow.entities import Metric  # noqa: PLC0415

        self._begin()
        metrics = []
        for series, epochs in history.items():
            last_logged = self._last_logged_epoch(series, epochs[0].metrics)
            metrics += [
                Metric(_key(series, name), value, round(epoch.timestamp * 1000), epoch.epoch)
                for epoch in epochs
                if epoch.epoch > last_logged
                for name, value in epoch.metrics.items()
            ]
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(self._mlflow_run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
        self._last_logged |= {series: epochs[-1].epoch for series, epochs in history.items()}

    def finish(self, status: str, metrics: dict[str, Any]) -> None:
        """Send the final metrics and the status: FINISHED, FAILED or KILLED."""
        self._begin()
        for name, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._client.log_metric(self._mlflow_run_id, f"final/{name}", float(value))
        self._client.set_terminated(self._mlflow_run_id, status)

    def _begin(self) -> None:
        """Find the MLflow run of an earlier attempt, or create it."""
        if self._mlflow_run_id:
            return
        set_mlflow_defaults()
        from mlflow.entities import Param  # noqa: PLC0415
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- takes seconds, and few users have a server

        self._client = MlflowClient(tracking_uri=self.uri)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        same_run = f"tags.`{RUN_TAG}` = '{self.run_id}'"
        earlier = self._client.search_runs([experiment], filter_string=same_run, max_results=1)
        tags = {RUN_TAG: self.run_id}
        run = earlier[0] if earlier else self._client.create_run(experiment, tags=tags, run_name=self.run_id)
        self._client.update_run(run.info.run_id, status="RUNNING")
        if not earlier:
            parameters = [Param(name, _parameter(value)) for name, value in self.spec.items() if value is not None]
            self._client.log_batch(run.info.run_id, params=parameters)
        self._mlflow_run_id = run.info.run_id

    def _last_logged_epoch(self, series: str, metrics: Mapping[str, float]) -> int:
        """Return the last epoch that the server has, also from an earlier attempt."""
        if series not in self._last_logged:
            logged = self._client.get_metric_history(self._mlflow_run_id, _key(series, next(iter(metrics))))
            self._last_logged[series] = max((metric.step for metric in logged), default=0)
        return self._last_logged[series]


def _key(series: str, name: str) -> str:
    return f"{series}/{name}" if series else name


def _parameter(value: Any) -> str:
    """Return a value of the spec as text; a URL without its credentials and its query."""
    text = str(value)
    if "://" in text:
        parts = urlsplit(text)
        text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return text[:MAX_PARAMETER_LENGTH]
