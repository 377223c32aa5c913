"""What a person reads when a followed run has ended, and the exit code: result or reason, then the next command."""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from cluster.errors import StorageError, UnknownRun
from cluster.run_paths import RUN_ID, RunPaths
from data_shards.counted import counted
from jobs.cli.command import INTERRUPTED
from jobs.cli.terminal import terminal_text, waits_for_storage
from jobs.cli.text_table import error_width, wrapped
from jobs.runs.damage import shown_or
from jobs.runs.record import JobRecord, read_record, result_files
from jobs.runs.result_text import decision_rows, label_lines, metric_with_interval, with_interval
from jobs.runs.start_forecast import run_label
from jobs.runs.state import RunState, read_state
from trainer.evaluation.metric_text import (
    MEANS,
    HeadlineMetric,
    has_headline,
    headline_metrics,
    label_headline,
)
from trainer.evaluation.training_text import training_lines
from trainer.search.choice_text import choice_lines

SHOWN_METRICS = ("accuracy", "sensitivity", "auroc", "loss")
CURES = {
    "failed": "after fixing the cause: nightshift retry {id}   (the log: nightshift logs {id})",
    "lost": "try again: nightshift retry {id}   (the log: nightshift logs {id})",
    "cancelled": "continue from the last checkpoint: nightshift retry {id}",
}
SHOW = "nightshift show {id}"
LABEL = 9  # characters of the first column
WHOLE = ("model ", "table ", "file ", "copy ", "report ", "next ")  # lines with a path or a command, to copy
NEXT = {
    "train": "nightshift evaluate {id} {shards}",
    "evaluate": "nightshift predict {model} IMAGES",
    "search": "nightshift predict {id} IMAGES",  # its leaderboard stands above
}


def follow_to_end(
    storage: Path,
    run_id: str,
    follow: Callable[[Path, str], RunState],
    *,
    as_json: bool = False,
    until: float = float("inf"),
) -> NoReturn:
    """Follow a run, print how it ended, and exit with 0 if it succeeded, else 1; Ctrl-C stops only the watching.

    Args:
        storage: The storage.
        run_id: The run.
        follow: Shows progress until the run ends and returns its last state.
        as_json: Print the result as JSON on stdout.
        until: When to wait no longer for the storage, as a time of the monotonic clock.
    """
    try:
        state = follow(storage, run_id)
    except KeyboardInterrupt:
        click.echo(f"\nstopped watching; the run goes on: nightshift wait {run_id}", err=True)
        sys.exit(INTERRUPTED)
    paths, width = RunPaths.of(storage, run_id), error_width()
    lines, result = waits_for_storage().call(lambda: _end_of(paths, as_json=as_json), until=until)
    for line in lines:
        is_whole = line.startswith((*WHOLE, run_id)) or " nightshift " in line
        click.echo(terminal_text(line) if is_whole else wrapped(terminal_text(line), width, indent=LABEL), err=True)
    if as_json:
        click.echo(result)
    sys.exit(0 if state.state == "succeeded" else 1)


def _end_of(paths: RunPaths, *, as_json: bool) -> tuple[list[str], str]:
    """Return the lines of `end_lines`, and the result as JSON if it is asked for."""
    record = read_record(paths)
    return end_lines(paths, record), _result_json(paths, record) if as_json else ""


def end_lines(paths: RunPaths, record: JobRecord) -> list[str]:
    """Return the lines that say how a run ended and what to type next."""
    state = record.state
    if not state.has_ended:
        return [f"stopped waiting; the run goes on: nightshift wait {state.id}"]
    if state.state != "succeeded" or record.result is None:
        reason = f": {' '.join(state.reason.split())}" if state.reason else ""
        return [f"{state.id} {state.state}{reason}", CURES.get(state.state, "").format(id=state.id)]
    result, metrics = record.result, record.result.get("metrics") or {}
    nothing, warnings = list[str](), list[str]()
    lines = shown_or(nothing, "result.json", warnings, lambda: _figure_lines(record, result, metrics)) + warnings
    if record.result.get("checkpoint"):
        lines.append(f"model    {record.result['checkpoint']}")
    files = [*result_files(paths, record), *([("report", paths.report)] if paths.report.exists() else [])]
    lines += [f"{label:<8} {file}" for label, file in files]
    given: dict[str, str] = {
        name: shlex.quote(str(record.spec[name])) for name in ("shards", "model") if name in record.spec
    }
    if "model" in given:
        given["model"] = _called(paths.storage, given["model"])
    known = {"shards": "SHARDS", "model": "MODEL", **given, "id": run_label(state)}
    name = metrics.get("threshold_name") if state.kind == "evaluate" else None
    after = f" --threshold {name}" if name else ""
    return [line for line in (*lines, f"next     {NEXT.get(state.kind, SHOW).format_map(known)}{after}") if line]


def _figure_lines(record: JobRecord, result: Mapping[str, Any], metrics: dict[str, Any]) -> list[str]:
    details = (*choice_lines(result), *training_lines(result), *decision_rows(record))
    return [metrics_line(metrics), *label_lines(metrics), *(f"{label:<8} {line}" for label, line in details)]


def metrics_line(metrics: dict[str, Any]) -> str:
    """Return the split of a result and its first metrics with their intervals, "" without metrics."""
    label = "folds" if "out_of_fold" in metrics else metrics.get("split", "metrics")
    text = metrics_text(metrics)
    return f"{label:<8} {text}" if text else ""


def metrics_text(metrics: dict[str, Any]) -> str:
    """Return the first metrics of a result with their intervals, and what they are of; "" without metrics."""
    if has_headline(metrics):
        loss = [HeadlineMetric(name="loss", value=metrics["loss"])] if "loss" in metrics else []
        values = [_headline_text(metric) for metric in (*headline_metrics(metrics), *loss)]
    elif metrics.get("multi_label"):
        values = [_headline_text(metric) for metric in label_headline(metrics)]
    else:
        names = [name for name in SHOWN_METRICS if isinstance(metrics.get(name), int | float)]
        values = [metric_with_interval(metrics, name) for name in names]
    if not values:
        return ""
    about = [counted(metrics["n"], "image")] if metrics.get("n") else []
    if metrics.get("multi_label"):
        about = [f"{counted(metrics['n'], 'image')}, {counted(metrics['known'], 'known target')}", MEANS]
    about += ["95 % intervals in brackets"] if any((metrics.get("intervals") or {}).values()) else []
    return ", ".join(values) + (f" ({'; '.join(about)})" if about else "")


def _headline_text(metric: HeadlineMetric) -> str:
    name = metric.name.replace("AUROC", "auroc")
    text = with_interval(f"{name} {metric.of}".strip(), metric.value, metric.interval)
    return f"{text} [{metric.note.removeprefix('undefined: ')}]" if metric.note else text


def _called(storage: Path, model: str) -> str:
    """Return how to call a model: the name of its run if it has one."""
    try:
        return run_label(read_state(RunPaths.of(storage, model))) if RUN_ID.fullmatch(model) else model
    except (StorageError, UnknownRun):  # the run is damaged or was deleted
        return model


def _result_json(paths: RunPaths, record: JobRecord) -> str:
    """Return the table of a prediction, or the record of any other run."""
    table = paths.predicted("json")
    if record.state.kind == "predict" and record.state.state == "succeeded" and table.exists():
        return table.read_text(encoding="utf-8").rstrip("\n")
    return json.dumps(record.to_json(), indent=2)
