"""`nightshift show`: read from the run folder, so it works without Redis."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.forecast import Forecasts
from jobs.cli.main import cli
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.option_values import Values, command_line, option_words, values_of_run
from jobs.cli.outcome import CURES, metrics_line
from jobs.cli.terminal import colored_state, terminal_text
from jobs.cli.text_table import output_width, wrapped
from jobs.errors import Refused
from jobs.runs import state as run_state
from jobs.runs.damage import shown_or
from jobs.runs.epoch_text import epoch_rows
from jobs.runs.given_options import GivenOptions
from jobs.runs.progress_text import describe
from jobs.runs.record import JobRecord, model_mismatch, read_record
from jobs.runs.result_text import decision_rows, duration_text, label_lines, timing_of
from trainer.evaluation.training_text import training_lines
from trainer.search.choice_text import choice_lines
from trainer.specs.option_text import option_text

LABEL = 10  # characters of the first column
KIBI = 1024
PLACES = ("shards", "model", "images")  # options that `data` and `model` show
SHOWN = (*PLACES, "priority")  # have rows of their own
COMMAND = click.option("--command", "as_command", is_flag=True, help="Print the command that repeats the run.")
RESULT, METRICS = "result.json", "metrics.jsonl"
Row = tuple[str, str]


@command(example="nightshift show train-20261123-203000-a1b2c3 --json\nnightshift show first-night --command")
@run_argument("run", metavar="ID")
@options(OptionGroup("Output", (json_option("Print the run as JSON."), COMMAND)))
def show(run: str, as_json: bool, as_command: bool) -> None:
    """Show the state, options, attempts, progress, metrics, result and files of a run.

    ID is a run id, a unique prefix of one, or a run's name.
    """
    if as_json and as_command:
        raise click.UsageError("--json and --command exclude each other; give one of them")
    paths = run_state.find(Settings.read().storage, run)
    record = read_record(paths)
    if as_command:
        click.echo(terminal_text(command_line(_command_of(record), _values(record))))
        return
    click.echo(json.dumps(record.to_json(), indent=2) if as_json else _as_text(record, paths.storage))
    if record.damage:
        click.echo(terminal_text(record.damage), err=True)
    if mismatch := model_mismatch(paths):
        raise Refused(mismatch)


def _as_text(record: JobRecord, storage: Path) -> str:
    state = record.state
    sections = [
        [("state", _state_text(record, Forecasts(storage).of(state))),
         ("name", state.name or "-"), *_labels(record), *_time_rows(record)],
        _option_rows(record),
        _result_rows(record),
        [("files", ", ".join(f"{name} {_size(count)}" for name, count in record.files.items()))],
        [("next", CURES[state.state].format(id=state.id))] if state.state in CURES else [],
    ]  # fmt: skip
    width = max(output_width() or sys.maxsize, LABEL + len(state.id))
    shown = [
        wrapped(terminal_text(text), width, first=f"{label:<{LABEL}}", indent=LABEL)
        for rows in sections
        for label, text in rows
    ]
    shown[0] = shown[0].replace(state.state, colored_state(state.state), 1)
    return "\n".join([state.id, *shown])


def _state_text(record: JobRecord, forecast: str) -> str:
    state = record.state
    if state.state == "running":
        return f"running: {describe(state, record.progress)}"
    return f"{state.state}: {forecast}" if forecast else describe(state, record.progress)


def _labels(record: JobRecord) -> list[Row]:
    state = record.state
    rows = [
        ("owner", state.owner or ""),
        ("tags", "  ".join(state.tags)),
        ("note", " ".join((state.note or "").split())),
    ]
    return [(label, text) for label, text in rows if text]


def _time_rows(record: JobRecord) -> list[Row]:
    state = record.state
    times = ", ".join(
        f"{what} {_time(text)}"
        for what, text in (("submitted", state.created), ("started", state.started), ("ended", state.ended))
        if text
    )
    took = f" ({text})" if (text := duration_text(state)) else ""
    losses = f", {state.losses} lost" if state.losses else ""
    rows = [("times", times + took), ("attempt", f"{state.attempt}{losses}, priority {state.priority}")]
    timing = shown_or("", RESULT, [], lambda: timing_of(record))
    return [rows[0], ("timing", timing), rows[1]] if timing else rows


def _option_rows(record: JobRecord) -> list[Row]:
    """Return the data, the options that differ from the defaults, and the defaults."""
    rows = [(name, _listed(record.spec[name])) for name in PLACES if record.spec.get(name)]
    given = {**record.spec, **{key: value for key, value in record.request.items() if value}}
    if given.get("window") and given.get("timezone"):
        rows.append(("window", f"{given['window']} in {given['timezone']}"))
    try:
        words = option_words(_command_of(record), _values(record))
    except (Refused, click.ClickException):  # a damaged spec, or one of another version
        return [*rows, ("spec", _listed([f"{key}={value}" for key, value in record.spec.items()]))]
    options, own = GivenOptions.of(record.spec, record.request), {label for label, _ in rows}
    chosen = [" ".join(words[name]) for name in words if _field_of(name) in options.chosen and name not in own]
    others = [f"{name} {option_text(value)}" for name, value in options.defaults.items() if name not in SHOWN]
    return [*rows, ("options", "  ".join(filter(None, chosen)) or "-"), ("defaults", ", ".join(others))]


def _field_of(option: str) -> str:
    """Return the field of a spec that an option sets."""
    return "form" if option == "as_json" else option


def _result_rows(record: JobRecord) -> list[Row]:
    nothing, warnings, result = list[Row](), list[str](), record.result
    rows: list[Row] = shown_or(nothing, METRICS, warnings, lambda: epoch_rows(record))
    if result:
        rows += shown_or(nothing, RESULT, warnings, lambda: _figure_rows(record, result))
    return [*rows, *(("result", warning) for warning in warnings)]


def _figure_rows(record: JobRecord, result: dict[str, Any]) -> list[Row]:
    metrics = result["metrics"]
    rows = [("model", str(result.get("checkpoint") or "-"))]
    lines = [metrics_line(metrics), *label_lines(metrics)]
    rows += [("result" if at == 0 else "", " ".join(line.split())) for at, line in enumerate(lines) if line]
    rows += [("", line) for line in _confusion_lines(metrics)]
    return [*rows, *choice_lines(result), *training_lines(result), *decision_rows(record)]


def _confusion_lines(metrics: dict[str, Any]) -> list[str]:
    """Return what was predicted for each true class, as one line per class."""
    classes, counts = metrics.get("classes"), metrics.get("confusion_matrix")
    if not isinstance(classes, list) or not isinstance(counts, list) or len(classes) != len(counts):
        return []
    return [
        f"true {name}: " + ", ".join(f"{count} as {other}" for other, count in zip(classes, row, strict=True) if count)
        for name, row in zip(classes, counts, strict=True)
        if isinstance(row, list) and len(row) == len(classes)
    ]


def _command_of(record: JobRecord) -> click.Command:
    found = cli.get_command(click.Context(cli), str(record.spec.get("kind")))
    if found is None:
        raise Refused(f"{record.state.id} has a damaged spec.json: it names no kind of run; restore it from a backup")
    return found


def _values(record: JobRecord) -> Values:
    labels = {"tags": record.state.tags} if record.state.tags else {}
    return values_of_run(_command_of(record), record.spec, {**record.request, **labels}, record.state.id)


def _listed(value: Any) -> str:
    return "  ".join(map(str, value)) if isinstance(value, list) else str(value)


def _time(text: str) -> str:
    return text.replace("T", " ")[:19] + "Z"


def _size(count: int) -> str:
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= KIBI and len(units) > 1:
        number, units = number / KIBI, units[1:]
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"
