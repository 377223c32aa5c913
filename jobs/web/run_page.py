"""What the page shows of one run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster import logs
from cluster.run_paths import RunPaths
from jobs.runs.progress_text import duration
from jobs.runs.record import JobRecord, model_mismatch, read_record
from jobs.runs.result_text import decision_rows
from jobs.web.charts import training_charts
from jobs.web.overview import RunRow, run_row
from jobs.web.search_page import Leaderboard, leaderboard_of
from trainer.evaluation.metric_text import HeadlineMetric, has_headline, headline_metrics
from trainer.evaluation.training_text import judged_on, training_lines
from trainer.phase_times import timing_text
from trainer.report.charts import ReportChart

LOG_LINES = 200
COLOR_CODES = re.compile(r"\x1b\[[0-9;]*m")  # Ray colors its log
PLAIN_METRICS = ("accuracy", "auroc", "loss")  # of a result without a headline: several labels an image, or damaged
OF_PERSONS = ("name", "note", "tags", "kind")  # shown elsewhere
RETRIED = ("failed", "lost", "cancelled")


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """One run.

    Attributes:
        row: The run as in the list.
        record: All that is known about it.
        search: The trials of a search; None for any other run.
        metrics: The first metrics of its result.
        charts: Curves by epoch.
        log: The end of its log.
        has_report: Whether it has a report.
        warnings: Damaged files of the run, in a line each.
    """

    row: RunRow
    record: JobRecord
    search: Leaderboard | None
    metrics: tuple[HeadlineMetric, ...]
    charts: tuple[ReportChart, ...]
    log: str
    has_report: bool
    warnings: tuple[str, ...]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Owner, tags, note, times and attempts, in words."""
        state, result = self.row.state, self.record.result or {}
        seconds = result.get("seconds")
        rows = [
            ("owner", state.owner or ""),
            ("tags", ", ".join(state.tags)),
            ("note", " ".join((state.note or "").split())),
            ("submitted", _moment(state.created)),
            ("started", _moment(state.started)),
            ("ended", _moment(state.ended)),
            ("duration", duration(seconds) if isinstance(seconds, int | float) else ""),
            ("timing", timing_text(result.get("timing"))),
            ("attempt", f"{state.attempt}" + (f", {state.losses} lost" if state.losses else "")),
            ("priority", state.priority),
            ("job worker", state.job_worker or ""),
            ("model", str(result.get("checkpoint") or "")),
        ]
        return [(name, value) for name, value in rows if value]

    @property
    def judged_on(self) -> str:
        """The images that the first metrics are about, "" without metrics."""
        return judged_on(self.record.result["metrics"]) if self.record.result and self.metrics else ""

    @property
    def limits(self) -> list[tuple[str, str]]:
        """What limits the figures of the result: folds, baselines, the decision rule, images that were seen before."""
        if self.record.result is None:
            return []
        return [*training_lines(self.record.result), *decision_rows(self.record)]

    @property
    def options(self) -> list[tuple[str, str]]:
        """The spec, an option a row."""
        values = {**self.record.spec, **{key: value for key, value in self.record.request.items() if value}}
        return [
            (name, _option_text(value))
            for name, value in values.items()
            if name not in OF_PERSONS and value is not None
        ]

    @property
    def can_be_cancelled(self) -> bool:
        """Whether cancel makes sense."""
        return not self.row.state.has_ended

    @property
    def can_be_retried(self) -> bool:
        """Whether retry makes sense."""
        return self.row.state.state in RETRIED

    def to_json(self) -> dict[str, Any]:
        """Return the run as `nightshift show --json` prints it, with the trials of a search and the end of the log."""
        trials = {} if self.search is None else {"trials": list(self.search.rows)}
        return {**self.record.to_json(), **trials, "log": self.log}


def run_page(paths: RunPaths) -> RunPage:
    """Return what the page shows of a run.

    Raises:
        UnknownRun: It does not exist.
        StorageError: Its `state.json` is damaged.
    """
    record = read_record(paths)
    is_search = record.spec.get("kind") == "search" and isinstance(record.spec.get("best_by"), str)
    folds = record.spec.get("folds")
    search = leaderboard_of(paths, str(record.spec["best_by"]), folds=folds) if is_search else None
    found = (record.damage, model_mismatch(paths), search.warning if search else None)
    return RunPage(
        row=run_row(paths.storage, record.state),
        record=record,
        search=search,
        metrics=tuple(_metrics(record.result)),
        charts=() if is_search else training_charts(record.metrics, str(record.spec.get("best_by", "loss"))),
        log=COLOR_CODES.sub("", logs.tail(paths.log, LOG_LINES)[0]),
        has_report=paths.report.is_file(),
        warnings=tuple(text for text in found if text),
    )


def _metrics(result: Mapping[str, Any] | None) -> list[HeadlineMetric]:
    metrics = (result or {}).get("metrics") or {}
    if has_headline(metrics):
        return headline_metrics(metrics)
    intervals = metrics.get("intervals") or {}
    return [
        HeadlineMetric(name=name, value=metrics[name], interval=intervals.get(name), key=name)
        for name in PLAIN_METRICS
        if isinstance(metrics.get(name), int | float)
    ]


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _moment(text: str | None) -> str:
    return "" if text is None else text.replace("T", " ")[:19] + " UTC"
