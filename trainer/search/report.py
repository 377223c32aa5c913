"""What a search's report shows beside its best model: the way there, what mattered, what the night cost."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna

from trainer.report.page import ReportChart, SearchSection
from trainer.report.svg_chart import Axis, Chart, Line, Mark, chart, padded_range
from trainer.search.sampler import study_of_trials
from trainer.search.trial_charts import importance_bars, parallel_coordinates, worst_shown
from trainer.search.trials import Report, TrialTable, leaderboard
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER, is_better
from trainer.specs.search_space import LOGARITHMIC, Range

DOTS = "a dot is a trial, orange where it was ended early; the worst tenth stands at the edge"
TRIALS_SHOWN = 15  # of a search; `nightshift trials` shows all
COLUMNS = ("trial", "metric", "spread", "lr", "dropout", "head_width", "epochs", "seconds", "state")
ENOUGH = 4  # trials that ran to their end; the importance of fewer is noise


def search_section(table: TrialTable, spec: SearchSpec, shares: Mapping[str, float]) -> SearchSection:
    """Return what the report of a search has beside that of a training; `shares` is the importance of each option."""
    return SearchSection(leaderboard=_leaderboard(table, spec), charts=drawings(table, spec, shares))


def _leaderboard(table: TrialTable, spec: SearchSpec) -> list[dict[str, Any]]:
    rows = leaderboard(table)[:TRIALS_SHOWN]
    reported = [column for column in COLUMNS if any(row.get(column) is not None for row in rows)]
    varied = [name for name in spec.space.dimensions if name not in reported]
    reported[-3:-3] = varied  # before epochs, seconds and state
    return [{column: row.get(column) for column in reported} for row in rows]


def drawings(table: TrialTable, spec: SearchSpec, shares: Mapping[str, float]) -> tuple[ReportChart, ...]:
    """Return the best value over time, what mattered by `importance`, and the trials along the options that varied."""
    if not table.reports():
        return ()
    better = "higher" if HIGHER_IS_BETTER[table.metric] else "lower"
    found = [ReportChart(chart=_best_so_far(table), title="Best so far", caption=f"{better} is better")]
    if shares:
        caption = "share in what makes trials differ (fANOVA)"
        found.append(ReportChart(chart=importance_bars(shares), title="What mattered", caption=caption))
    caption = "a line is a trial, the stronger the better; the good end of the last axis is at the top"
    found.append(ReportChart(chart=parallel_coordinates(table, spec), title="All trials", caption=caption, wide=True))
    for name, dimension in spec.space.dimensions.items():
        numbers = isinstance(dimension, Range) or all(isinstance(value, int | float) for value in dimension)
        if numbers:
            found.append(ReportChart(chart=_slice(table, name), title=name.replace("_", " "), caption=DOTS))
    return tuple(found)


def importance(table: TrialTable, spec: SearchSpec) -> dict[str, float]:
    """Return how much of the difference between trials each option explains, by fANOVA; empty for too few trials."""
    whole = [trial for trial in table.ended if trial.state == "finished" and trial.why not in ("rung", "paused")]
    if len(whole) < ENOUGH or len(spec.space.dimensions) < 2:  # noqa: PLR2004 -- of one option it is all
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=spec.seed)
    shares = optuna.importance.get_param_importances(study_of_trials(spec, table), evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in shares.items()}


def cost(table: TrialTable, spec: SearchSpec, images: int) -> dict[str, Any]:
    """Return what the search has cost, and what the cache and early stopping have spared.

    Args:
        table: The trials.
        spec: The wish.
        images: Of the train and valid splits: one pass of the backbone.
    """
    own = [trial for trial in table.trials.values() if not trial.is_taken_over]
    epochs = sum(len(trial.reports) for trial in own) * spec.repeats
    seconds = sum(trial.seconds for trial in own)
    spared = sum(spec.epochs - trial.epochs for trial in own if trial.why == "rung") * spec.repeats
    return {
        "epochs": epochs,
        "training_hours": round(seconds / 3600, 4),
        "backbone_passes": 1 if spec.reads_features else epochs,
        "images_spared_by_cache": images * max(0, epochs - 1) if spec.reads_features else 0,
        "epochs_spared_by_early_stopping": spared,
        "hours_spared_by_early_stopping": round(spared * seconds / max(1, epochs) / 3600, 4),
    }


def _best_so_far(table: TrialTable) -> Chart:
    reports = table.reports()
    began = _minutes(reports[0])
    xs, ys, best = list[float](), list[float](), reports[0]
    for report in reports:
        if report is best or is_better(report.value, best.value, table.metric):
            best = report
            xs, ys = [*xs, *([] if not xs else [_minutes(report) - began])], [*ys, *([] if not ys else [ys[-1]])]
            xs, ys = [*xs, _minutes(report) - began], [*ys, report.value]
    xs, ys = [*xs, _minutes(reports[-1]) - began], [*ys, ys[-1]]
    mark = Mark(name=f"trial {best.trial}", x=_minutes(best) - began, y=best.value)
    return chart(
        [Line(name="best so far", xs=xs, ys=ys)],
        x=_axis("minutes", xs, least=0.0),
        y=_axis(f"valid {table.metric}", ys),
        description=f"best {table.metric} so far over time, at last {best.value:.4g}",
        marks=[mark],
    )


def _slice(table: TrialTable, name: str) -> Chart:
    log = name in LOGARITHMIC
    tops = [(trial, trial.best(table.metric)) for trial in table.trials.values()]
    points = [
        (float(trial.config[name]), top.value, trial) for trial, top in tops if top is not None and name in trial.config
    ]
    values = sorted((y for _, y, _ in points), reverse=HIGHER_IS_BETTER[table.metric])
    low, high = sorted((values[0], worst_shown(values)))
    shown = [(math.log10(x) if log and x > 0 else x, min(high, max(low, y)), trial) for x, y, trial in points]
    lines = [
        Line(name=f"trial {trial.number}", xs=[x], ys=[y], colour=int(trial.why == "rung"), reference=True, dots=True)
        for x, y, trial in shown
    ]
    words = f"log10 of {name}" if log else name.replace("_", " ")
    return chart(
        lines,
        x=_axis(words, [x for x, _, _ in shown]),
        y=_axis(f"best valid {table.metric}", [y for _, y, _ in shown]),
        description=f"best {table.metric} of each trial over {words}",
    )


def _axis(name: str, values: list[float], least: float | None = None) -> Axis:
    low, high = padded_range(values, least=least)
    return Axis(name=name, low=low, high=high)


def _minutes(report: Report) -> float:
    return datetime.fromisoformat(report.figures["time"]).timestamp() / 60
