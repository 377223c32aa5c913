"""The search's part of a report: trial leaderboard, charts, hyperparameter importance and cost."""

import math
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.metric_text import digits_text
from trainer.report.charts import ReportChart
from trainer.report.page import SearchSection
from trainer.report.svg_chart import Axis, Chart, Line, Mark, chart, padded_range
from trainer.search.choice_text import choice_lines
from trainer.search.importance import complete_trials
from trainer.search.leaderboard import leaderboard
from trainer.search.trial_charts import importance_bars, parallel_coordinates, range_shown
from trainer.search.trials import EpochRecord, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER, is_better
from trainer.specs.search_space import LOGARITHMIC, Range

DOTS = "one dot per trial, orange if ASHA stopped it early; the worst tenth is drawn at the edge"
TRIALS_SHOWN = 15  # the best; `nightshift trials` shows all
COLUMNS = ("trial", "metric", "spread", "lr", "dropout", "head_width", "epochs", "seconds", "state")


def search_section(
    table: TrialTable, spec: SearchSpec, shares: Mapping[str, float], choice: Mapping[str, Any]
) -> SearchSection:
    """Return the search's part of its report.

    Args:
        table: The trials.
        spec: The search.
        shares: The importance of each option.
        choice: Which trial was chosen, and why, as `result.json` has it.
    """
    return SearchSection(
        notes=[*(f"{text[0].upper()}{text[1:]}." for _, text in choice_lines({"choice": choice})), *_left_out(table)],
        leaderboard=_leaderboard(table, spec),
        charts=search_charts(table, spec, shares),
    )


def _leaderboard(table: TrialTable, spec: SearchSpec) -> list[dict[str, Any]]:
    rows = [_marked(row) for row in leaderboard(table, is_default=spec.is_default)[:TRIALS_SHOWN]]
    reported = [column for column in COLUMNS if any(row.get(column) is not None for row in rows)]
    varied = [name for name in spec.space.dimensions if name not in reported]
    reported[-3:-3] = varied  # before epochs, seconds and state
    over = "repeats" if spec.folds is None else "folds"
    titles = {"metric": _ranked_by(spec), "spread": f"standard deviation over {over}"}
    return [{titles.get(column, column): row.get(column) for column in reported} for row in rows]


def _left_out(table: TrialTable) -> list[str]:
    """Return how many trials the leaderboard of the report leaves out, if it does."""
    count = len(table.ranked())
    return [f"Shown are the best {TRIALS_SHOWN} of {count} trials."] if count > TRIALS_SHOWN else []


def _ranked_by(spec: SearchSpec) -> str:
    """Return the metric that ranks trials, and the images that it is about."""
    return f"{'valid' if spec.folds is None else 'out-of-fold'} {spec.best_by}"


def _marked(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the leaderboard that says whether it is the default trial."""
    return {**row, "trial": f"{row['trial']} (default)" if row["default"] else row["trial"]}


def search_charts(table: TrialTable, spec: SearchSpec, shares: Mapping[str, float]) -> tuple[ReportChart, ...]:
    """Return the charts of a search; `shares` is the importance of each option, empty for too few trials."""
    if not table.reports():
        return ()
    better = "higher" if HIGHER_IS_BETTER[table.metric] else "lower"
    ranked_by = _ranked_by(spec)
    caption = f"best {ranked_by} so far; {better} is better"
    history = _optimization_history(table, ranked_by)
    found = [ReportChart(chart=history, title="Optimization history", caption=caption)]
    if shares:
        complete = len(complete_trials(table, spec))
        caption = (
            f"share of the variance between the {complete} trials that ran all their epochs which each option alone "
            "explains; the rest is of their combinations; an estimate by a random forest, which counts chance between "
            "trials too, rough below 30 trials"
        )
        title = "Hyperparameter importance (fANOVA)"
        found.append(ReportChart(chart=importance_bars(shares), title=title, caption=caption))
    caption = "one line per trial, stronger for better ones; the better end of the last axis is at the top"
    lines = parallel_coordinates(table, spec)
    found.append(ReportChart(chart=lines, title="Parallel coordinates", caption=caption, wide=True))
    for name, dimension in spec.space.dimensions.items():
        numbers = isinstance(dimension, Range) or all(isinstance(value, int | float) for value in dimension)
        if numbers:
            title = f"Slice plot: {name.replace('_', ' ')}"
            found.append(ReportChart(chart=_slice(table, name, ranked_by), title=title, caption=DOTS))
    return tuple(found)


def cost(table: TrialTable, spec: SearchSpec, images: int) -> dict[str, Any]:
    """Return the cost of the search, and what the feature cache and early stopping saved.

    Args:
        table: The trials; those copied from an earlier search cost nothing.
        spec: The search.
        images: Number of images that one epoch of one training sends through the backbone: those of the train and valid
            splits, with folds those of all but one fold.
    """
    own = [trial for trial in table.trials.values() if trial.extended_from is None]
    epochs = sum(trial.epochs for trial in own) * spec.trainings_per_trial
    seconds = sum(trial.seconds for trial in own)
    saved = sum(spec.epochs - trial.epochs for trial in own if trial.why == "rung") * spec.trainings_per_trial
    return {
        "epochs": epochs,
        "training_hours": round(seconds / 3600, 4),
        "backbone_passes": 1 if spec.reads_features else epochs,
        "images_spared_by_cache": images * max(0, epochs - 1) if spec.reads_features else 0,
        "epochs_spared_by_early_stopping": saved,
        "hours_spared_by_early_stopping": round(saved * seconds / max(1, epochs) / 3600, 4),
    }


def _optimization_history(table: TrialTable, ranked_by: str) -> Chart:
    reports = table.reports()
    best, began = reports[0], _minutes(reports[0])
    xs, ys = [0.0], [best.value]
    for report in reports:
        if is_better(report.value, best.value, table.metric):
            xs += [_minutes(report) - began] * 2  # a step: level up to here, then straight to the better value
            ys += [best.value, report.value]
            best = report
    xs, ys = [*xs, _minutes(reports[-1]) - began], [*ys, best.value]
    mark = Mark(name=f"trial {best.trial}", x=_minutes(best) - began, y=best.value)
    return chart(
        [Line(name="best so far", xs=xs, ys=ys)],
        x=_axis("minutes", xs, least=0.0),
        y=_axis(ranked_by, ys),
        description=f"best {table.metric} so far over time, final value {digits_text(best.value, of=table.metric)}",
        marks=[mark],
    )


def _slice(table: TrialTable, name: str, ranked_by: str) -> Chart:
    log = name in LOGARITHMIC
    tops = [(trial, trial.best(table.metric)) for trial in table.ranked()]
    points = [
        (float(trial.config[name]), top.value, trial) for trial, top in tops if top is not None and name in trial.config
    ]
    low, high = range_shown([y for _, y, _ in points])
    shown = [(math.log10(x) if log and x > 0 else x, min(high, max(low, y)), trial) for x, y, trial in points]
    lines = [
        Line(name=f"trial {trial.number}", xs=[x], ys=[y], colour=int(trial.why == "rung"), reference=True, dots=True)
        for x, y, trial in shown
    ]
    label = f"log10 of {name}" if log else name.replace("_", " ")
    return chart(
        lines,
        x=_axis(label, [x for x, _, _ in shown]),
        y=_axis(f"best {ranked_by}", [y for _, y, _ in shown]),
        description=f"best {table.metric} of each trial over {label}",
    )


def _axis(name: str, values: list[float], least: float | None = None) -> Axis:
    low, high = padded_range(values, least=least)
    return Axis(name=name, low=low, high=high)


def _minutes(record: EpochRecord) -> float:
    return 0.0 if record.recorded_at is None else record.recorded_at.timestamp() / 60
