"""`nightshift trials` and `best`: the leaderboard of a search. Imports neither torch nor ray."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cluster.errors import StorageError
from cluster.files import read_json_object
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.command import command
from jobs.cli.completion import complete_path
from jobs.cli.option_groups import OptionGroup, json_option, options, run_argument
from jobs.cli.outcome import metrics_text
from jobs.cli.predict import output_file
from jobs.cli.terminal import echo, terminal_text
from jobs.cli.text_table import Column, output_width, table_text, wrapped
from jobs.errors import InvalidOption, Refused
from jobs.runs import state as run_state
from jobs.runs.damage import refused_if_damaged
from jobs.runs.record import model_mismatch
from jobs.runs.trial_rows import cell, columns_of, ranking_metric, rows_of
from trainer.evaluation.metric_text import digits_text
from trainer.evaluation.training_text import judged_on
from trainer.model.names import MANIFEST_FILE
from trainer.search.choice_text import choice_lines
from trainer.search.trials import TrialTable, read_trial_events
from trainer.specs import SearchSpec, read_spec

# Of the columns, by the key of their values: what is left out first on a narrow terminal; None: never.
IMPORTANCE = {
    "trial": None, "metric": None, "state": None, "why": 5, "spread": 3, "best_epoch": 2, "epochs": 2, "seconds": 1,
}  # fmt: skip
OF_OPTIONS = 4
LEAST = {"why": 8}  # width to which a column may be cut
ENOUGH = {"why": 14}  # width to which it may be cut before others are left out: "ran all epochs"


@command(example="nightshift trials search-20261123-203000-a1b2c3 --sort seconds")
@run_argument("search_id", metavar="SEARCH")
@options(
    OptionGroup(
        "Output",
        (
            click.option("--sort", default="metric", show_default=True, metavar="COLUMN",
                         help="Column to sort by; metric lists the best trial first."),
            click.option("--optuna", metavar="FILE", shell_complete=complete_path,
                         help="Also write the trials to a new Optuna journal, which optuna-dashboard FILE shows."),
            json_option("Print the trials as JSON."),
        ),
    )
)  # fmt: skip
def trials(search_id: str, sort: str, optuna: str | None, as_json: bool) -> None:
    """Show the leaderboard of a running or finished search.

    "(default)" marks the default trial: it has the defaults of `train` in all options that vary. "stopped (ASHA)"
    is a trial that was stopped because it was not among the best third after the same epoch.

    SEARCH is a run id, a unique prefix of one, or a run's name.
    """
    paths = run_state.find(Settings.read().storage, search_id)
    target = output_file(optuna, "--optuna")
    table = table_of(paths)
    with refused_if_damaged("trials.jsonl", paths.run_id):
        rows, metric = rows_of(paths, table), table.metric
    if sort != "metric":
        if rows and sort not in rows[0]:
            raise InvalidOption(f"{sort!r} is not a column; sort by {', '.join(rows[0])}")
        rows.sort(key=lambda row: (row[sort] is None, row[sort]))
    if target is not None:
        _write_optuna_file(Path(target), paths, table)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(f"no trial has begun; `nightshift logs -f {paths.run_id}` follows the search", err=True)
        return
    click.echo(leaderboard_text(rows, metric, output_width()))


def _write_optuna_file(target: Path, paths: RunPaths, table: TrialTable) -> None:
    from trainer.search.optuna_file import write_optuna_file  # noqa: PLC0415 -- Optuna takes a second to load

    spec, state = read_spec(paths.spec), run_state.read_state(paths)
    if not isinstance(spec, SearchSpec):
        raise Refused(f"{paths.spec} is not the spec of a search")
    submitted = datetime.fromisoformat(state.created)
    write_optuna_file(target, paths, spec, table, submitted=submitted, has_ended=state.has_ended)
    count = len(table.trials)
    echo(
        f"{target} has {count} {'trial' if count == 1 else 'trials'}; `optuna-dashboard {target}` shows them", err=True
    )


@command(example="nightshift best search-20261123-203000-a1b2c3")
@run_argument("search_id", metavar="SEARCH")
@options(OptionGroup("Output", (json_option("Print the trial as JSON."),)))
def best(search_id: str, as_json: bool) -> None:
    """Show the trial that a search has published: the best so far, or the one that it chose at its end, and why.

    SEARCH is a run id, a unique prefix of one, or a run's name.
    """
    paths = run_state.find(Settings.read().storage, search_id)
    metric, published = table_of(paths).metric, published_best(paths)
    if published is None:
        raise Refused(f"{paths.run_id} has published no model yet; `nightshift trials {paths.run_id}` shows its trials")
    if mismatch := model_mismatch(paths):
        raise Refused(mismatch)
    result = read_json_object(paths.result) if paths.result.is_file() else None
    with refused_if_damaged("best/manifest.json or result.json", paths.run_id):
        found = {
            "search": paths.run_id,
            **{name: published[name] for name in ("trial", "epoch", "config")},
            "metric": {"name": metric, "value": published["value"]},
            "refit": published.get("refit"),
            "cross_validation": published.get("cross_validation"),
            "checkpoint": str(paths.best),
            "choice": None if result is None else result.get("choice"),
            "result": None if result is None else result.get("metrics"),
        }
        text = json.dumps(found, indent=2) if as_json else _fitted(terminal_text(_best_as_text(found)))
    click.echo(text)


def table_of(paths: RunPaths, *, said: set[str] | None = None) -> TrialTable:
    """Return the trials of a search, and print once which lines of its journal are damaged.

    Args:
        paths: The search.
        said: The lines that were printed before; the new one is added. None: nothing was printed.

    Raises:
        Refused: The run is not a search.
        NewerVersion: This version does not know the metric that ranks the trials.
        StorageError: Its `spec.json` is damaged.
    """
    spec = read_json_object(paths.spec)
    if spec.get("kind") != "search":
        raise Refused(
            f"{paths.run_id} is of kind {spec.get('kind')}, not a search; "
            "`nightshift list --kind search` shows the searches"
        )
    found = read_trial_events(paths.trials)
    if found.warning and found.warning not in (said or ()):
        echo(found.warning, err=True)
        if said is not None:
            said.add(found.warning)
    with refused_if_damaged("spec.json", paths.run_id):
        metric = ranking_metric(paths, spec)
    return TrialTable.fold(found.lines, metric)


def published_best(paths: RunPaths) -> dict[str, Any] | None:
    """Return the manifest of the published model, None if no model is published."""
    try:
        return dict(read_json_object(paths.best / MANIFEST_FILE))
    except StorageError:
        return None


def leaderboard_text(rows: list[dict[str, Any]], metric: str, width: int | None) -> str:
    """Return the rows as a table without the options that are equal in all trials."""
    shown = columns_of(rows, metric)
    columns = [
        Column(
            title=heading.upper(),
            importance=IMPORTANCE.get(key, OF_OPTIONS),
            least=LEAST.get(key),
            enough=ENOUGH.get(key),
            cuts_words=key != "why",
        )
        for heading, key in shown
    ]
    return table_text(columns, [tuple(cell(row, key) for _, key in shown) for row in rows], width)


def _best_as_text(found: dict[str, Any]) -> str:
    metric = found["metric"]
    value = digits_text(metric["value"], 5, of=metric["name"])
    lines = [
        f"trial {found['trial']}, epoch {found['epoch']}: {metric['name']} {value} {_ranked_on(found)}",
        "  ".join(f"{name} {digits_text(value)}" if isinstance(value, float) else f"{name} {value}"
                  for name, value in found["config"].items()),
        f"model {found['checkpoint']}",
    ]  # fmt: skip
    if found["refit"]:
        trained, epochs = "refitted", found["refit"].get("epochs")
        if found["cross_validation"]:
            trained, epochs = "trained", found["epoch"]
        lines.append(f"{trained} on {' and '.join(found['refit']['splits'])}, {epochs} epochs")
    if found["result"]:
        metrics = found["result"]
        where = judged_on(metrics) if "out_of_fold" in metrics else metrics["split"]
        lines.append(f"{where}: {metrics_text(metrics)}")
    lines += [f"warning: {text}" if label == "warning" else text for label, text in choice_lines(found)]
    return "\n".join(lines)


def _fitted(text: str) -> str:
    """Return lines that fit the terminal; that of the model stays whole, so that its path can be copied."""
    width = output_width()
    return "\n".join(line if line.startswith("model ") else wrapped(line, width, indent=2) for line in text.split("\n"))


def _ranked_on(found: dict[str, Any]) -> str:
    validation = found["cross_validation"]
    if not validation:
        return "on the valid split"
    over = "" if validation["repeats"] == 1 else f", mean over {validation['repeats']} repeats"
    return f"out of fold, {validation['folds']} folds{over}"
