"""What the page shows of one run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import logs
from cluster.run_paths import RunPaths
from cluster.stop_request import CANCEL, StopRequest
from data_shards.counted import counted
from jobs.runs.damage import shown_or
from jobs.runs.given_options import GivenOptions
from jobs.runs.record import JobRecord, model_mismatch, read_record, result_files
from jobs.runs.result_text import LABEL_HEADINGS, decision_rows, duration_text, label_rows, timing_of
from jobs.runs.start_forecast import WAITING
from jobs.runs.state import RunState
from jobs.web.charts import training_charts
from jobs.web.overview import RunRow, run_row
from jobs.web.search_page import Leaderboard, leaderboard_of
from trainer.evaluation.metric_text import (
    MEANS,
    HeadlineMetric,
    has_headline,
    headline_metrics,
    label_headline,
)
from trainer.evaluation.training_text import judged_on, training_lines
from trainer.model.names import HEAD_FILE
from trainer.report.charts import ReportChart
from trainer.report.environment import moment_text
from trainer.search.choice_text import choice_lines
from trainer.specs.option_text import option_text

LOG_LINES, LOG_BYTES = 200, 65_536  # of the end of the log that is shown
PLAIN_METRICS = ("accuracy", "auroc", "loss")  # of a result without a headline: one of an earlier version
RETRIED = ("failed", "lost", "cancelled")
WITH_CHECKPOINTS = ("train", "search")  # kinds that go on from a checkpoint
Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a result.

    Attributes:
        metrics: The first ones.
        judged_on: The images that they are about.
        lines: What limits them: folds, baselines, the decision rule, images seen before.
        labels: The cells of a row for each label of a multi-label model, with their headings first.
    """

    metrics: Sequence[HeadlineMetric] = ()
    judged_on: str = ""
    lines: Sequence[Row] = ()
    labels: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """One run.

    Attributes:
        row: The run as in the list.
        record: All that is known about it.
        search: The trials of a search; None for any other run.
        figures: Of its result; empty unless it succeeded.
        charts: Curves by epoch.
        facts: Owner, tags, note, times and attempts, in words.
        options: The options that differ from their defaults, one a row.
        defaults: The other options.
        stopping: That a cancel was requested, in words; "" if none was.
        log: The end of its log.
        has_report: Whether it has a report.
        has_model: Whether it has published a model.
        warnings: Damaged files of the run, in a line each.
    """

    row: RunRow
    record: JobRecord
    search: Leaderboard | None
    figures: Figures
    charts: tuple[ReportChart, ...]
    facts: Sequence[Row]
    options: Sequence[Row]
    defaults: Sequence[Row]
    stopping: str
    log: str
    has_report: bool
    has_model: bool
    warnings: Sequence[str]

    @property
    def buttons(self) -> list[tuple[str, str, str]]:
        """What can be done: the last part of the address, the text, and a question to ask before ("" for none)."""
        state, goes_on = self.row.state, self.row.state.kind in WITH_CHECKPOINTS
        if state.state in RETRIED:
            return [("retry", "Retry from the last checkpoint" if goes_on else "Retry", "")]
        if state.has_ended:
            return []
        if state.state != "running":
            return [("cancel", "Cancel", "")]
        cancel = [] if self.stopping else [("cancel", "Cancel after the next checkpoint" if goes_on else "Cancel", "")]
        lost = "since its last checkpoint" if goes_on else "so far"
        return [*cancel, ("kill", "Kill", f"Kill the run? What it did {lost} is lost.")]

    def to_json(self) -> dict[str, Any]:
        """Return the run as `nightshift show --json` prints it, with the trials of a search and the end of the log."""
        trials = {} if self.search is None else {"trials": list(self.search.rows)}
        return {**self.record.to_json(), **trials, "log": self.log, "warnings": list(self.warnings)}


def run_page(paths: RunPaths, *, with_files: bool, are_paused: Callable[[], bool] = bool) -> RunPage:
    """Return what the page shows of a run.

    Args:
        paths: The run.
        with_files: Add the sizes of its files, which takes long for a large search.
        are_paused: Says whether the queues are paused; asked only if the run waits.

    Raises:
        UnknownRun: It does not exist.
        StorageError: Its `state.json` is damaged.
    """
    record, warnings = read_record(paths, with_files=with_files), list[str]()
    if record.damage:
        warnings.append(record.damage)
    if mismatch := shown_or(None, "best/manifest.json", warnings, lambda: model_mismatch(paths)):
        warnings.append(mismatch)
    spec, state, is_search = record.spec, record.state, record.state.kind == "search"
    search = None
    if is_search:
        search = shown_or(None, "trials.jsonl", warnings, lambda: leaderboard_of(paths, spec))
        warnings += search.warnings if search else []
    charts: tuple[ReportChart, ...] = ()
    if not is_search:
        charts = shown_or(charts, "metrics.jsonl", warnings, lambda: training_charts(record.metrics, spec))
    options = GivenOptions.of(spec, record.request)
    return RunPage(
        row=run_row(paths.storage, state, paused=state.state in WAITING and are_paused()),
        record=record,
        search=search,
        figures=shown_or(Figures(), "result.json", warnings, lambda: _figures(record)),
        charts=charts,
        facts=shown_or([], "result.json", warnings, lambda: _facts(paths, record)),
        options=_rows(options.chosen),
        defaults=_rows(options.defaults),
        stopping=_stopping(paths, state),
        log=logs.shown_end(paths.log, lines=LOG_LINES, most_bytes=LOG_BYTES),
        has_report=paths.report.is_file(),
        has_model=state.state == "succeeded" and (paths.best / HEAD_FILE).is_file(),
        warnings=list(dict.fromkeys(warnings)),
    )


def _figures(record: JobRecord) -> Figures:
    if record.result is None or record.state.state != "succeeded":
        return Figures()
    metrics = record.result["metrics"]
    found = _metrics(metrics)
    judged = f"{judged_on(metrics)}, {counted(metrics['n'], 'image')}" if metrics.get("n") else judged_on(metrics)
    if metrics.get("multi_label"):
        judged += f", {counted(metrics['known'], 'known target')}; {MEANS}"
    lines = [*choice_lines(record.result), *training_lines(record.result), *decision_rows(record)]
    labels = label_rows(metrics)
    return Figures(
        metrics=found,
        judged_on=judged if found else "",
        lines=lines,
        labels=[LABEL_HEADINGS, *labels] if labels else [],
    )


def _metrics(metrics: Mapping[str, Any]) -> list[HeadlineMetric]:
    if has_headline(metrics):
        found = headline_metrics(metrics)
    elif metrics.get("multi_label"):
        found = label_headline(metrics)
    else:
        intervals = metrics.get("intervals") or {}
        found = [
            HeadlineMetric(
                name="AUROC" if name == "auroc" else name, value=metrics[name], interval=intervals.get(name), key=name
            )
            for name in PLAIN_METRICS
            if metrics.get(name) is not None
        ]
    for one in found:
        numbers = [*([] if one.value is None else [one.value]), *(one.interval or ())]
        if not all(math.isfinite(number) for number in numbers) or len(one.interval or (0, 0)) != 2:  # noqa: PLR2004
            raise ValueError(f"{one.name} is no number with an interval")
    return found


def _facts(paths: RunPaths, record: JobRecord) -> list[Row]:
    state, result = record.state, record.result or {}
    rows = [
        ("owner", state.owner or ""),
        ("tags", ", ".join(state.tags)),
        ("note", " ".join((state.note or "").split())),
        ("submitted", moment_text(state.created)),
        ("started", moment_text(state.started)),
        ("ended", moment_text(state.ended)),
        ("duration", duration_text(state)),
        ("timing", timing_of(record)),
        ("attempt", f"{state.attempt}" + (f", {state.losses} lost" if state.losses else "")),
        ("priority", state.priority),
        ("job worker", state.job_worker or ""),
        ("model", str(result.get("checkpoint") or "")),
        *((label, str(file)) for label, file in (result_files(paths, record) if result else ())),
    ]
    return [(name, value) for name, value in rows if value]


def _rows(options: Mapping[str, Any]) -> list[Row]:
    return [(name, option_text(value)) for name, value in options.items()]


def _stopping(paths: RunPaths, state: RunState) -> str:
    request = StopRequest.read(paths.stop, state.attempt) if state.state == "running" else None
    if request is None or request.reason != CANCEL:
        return ""
    if request.now:
        return "Kill requested."
    if state.kind in WITH_CHECKPOINTS:
        return "Cancel requested: the run stops after its next checkpoint."
    return "Cancel requested."


def wall_clock(text: str) -> str:
    """Return a time of a schedule, such as 2026-11-27T20:00+01:00, as people read it."""
    return text.replace("T", " ").replace("+00:00", " UTC")
