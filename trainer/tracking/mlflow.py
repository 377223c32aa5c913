"""A run as MLflow shows it: its wish, its curves, its final figures; for teams that have a tracking server.

What it said is found again by the tag `nightshift.run`, so that the attempts at a run are one run there too.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cluster.process_env import set_mlflow_defaults
from trainer.tracking.history import EpochHistory

NAME = "nightshift"
TAG = "nightshift.run"
MOST_AT_ONCE = 1000  # metrics that the server takes in one request
LONGEST_PARAMETER = 500  # characters; newer servers take more


@dataclass
class MlflowRun:
    """One run on a tracking server. Every method may raise whatever the network has in store.

    Attributes:
        uri: The server, with what it asks for; never shown.
        run_id: Ours.
        wish: The spec, as JSON.
    """

    uri: str = field(repr=False)
    run_id: str
    wish: dict[str, Any] = field(repr=False)
    _client: Any = None
    _there: str = ""
    _told: dict[str, int] = field(default_factory=dict)

    def show(self, curves: EpochHistory) -> None:
        """Send what the server does not have yet."""
        from mlflow.entities import Metric  # noqa: PLC0415

        self._begin()
        metrics = []
        for series, points in curves.items():
            told = self._epochs_told(series, points[0].figures)
            metrics += [
                Metric(_key(series, name), value, round(point.moment * 1000), point.epoch)
                for point in points
                if point.epoch > told
                for name, value in point.figures.items()
            ]
        for start in range(0, len(metrics), MOST_AT_ONCE):
            self._client.log_batch(self._there, metrics=metrics[start : start + MOST_AT_ONCE])
        self._told |= {series: points[-1].epoch for series, points in curves.items()}

    def end(self, status: str, figures: dict[str, Any]) -> None:
        """Send the final figures, and whether it FINISHED, FAILED or was KILLED."""
        self._begin()
        for name, value in figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._client.log_metric(self._there, f"final/{name}", float(value))
        self._client.set_terminated(self._there, status)

    def _begin(self) -> None:
        if self._there:
            return
        set_mlflow_defaults()
        from mlflow.entities import Param  # noqa: PLC0415
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 -- it takes seconds, and few have such a server

        self._client = MlflowClient(tracking_uri=self.uri)
        known = self._client.get_experiment_by_name(NAME)
        experiment = known.experiment_id if known else self._client.create_experiment(NAME)
        mine = self._client.search_runs([experiment], filter_string=f"tags.`{TAG}` = '{self.run_id}'", max_results=1)
        run = mine[0] if mine else self._client.create_run(experiment, tags={TAG: self.run_id}, run_name=self.run_id)
        self._client.update_run(run.info.run_id, status="RUNNING")
        if not mine:
            parameters = [Param(name, _shown(value)) for name, value in self.wish.items() if value is not None]
            self._client.log_batch(run.info.run_id, params=parameters)
        self._there = run.info.run_id

    def _epochs_told(self, series: str, figures: Any) -> int:
        """Return the last epoch that the server has, from an earlier attempt too."""
        if series not in self._told:
            history = self._client.get_metric_history(self._there, _key(series, next(iter(figures))))
            self._told[series] = max((metric.step for metric in history), default=0)
        return self._told[series]


def _key(series: str, name: str) -> str:
    return f"{series}/{name}" if series else name


def _shown(value: Any) -> str:
    """Return a value of the spec; of an address neither its password nor its query."""
    text = str(value)
    if "://" in text:
        parts = urlsplit(text)
        text = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return text[:LONGEST_PARAMETER]
