"""Charts that grow while a run trains or searches."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.metric_text import digits_text
from trainer.report.charts import ReportChart, best_epoch, loss_curves, validation_curves
from trainer.report.svg_chart import COLOURS, Axis, Line, Mark, chart, padded_range
from trainer.search.trials import TrialTable
from trainer.specs.metric import loss_of

TRIALS_DRAWN = 100  # more curves or lines than this cannot be told apart


def training_charts(epochs: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> tuple[ReportChart, ...]:
    """Return the curves of a training with this spec, none before the first epoch."""
    if not epochs:
        return ()
    best = best_epoch(epochs, str(spec.get("best_by", "loss")))
    return (
        ReportChart(chart=loss_curves(epochs, best), title="Loss", caption="by epoch"),
        ReportChart(chart=validation_curves(epochs, best), title="Validation", caption="accuracy and AUROC by epoch"),
    )


def search_charts(table: TrialTable, *, folds: int | None = None) -> tuple[ReportChart, ...]:
    """Return the best value so far, and the curve of each trial; none before the first epoch of a trial.

    Trials of `folds` report once, so they have no curves.
    """
    records = table.reports()
    if not records:
        return ()
    bests = list(
        itertools.accumulate(
            (record.value for record in records),
            lambda *pair: min(pair, key=lambda value: loss_of(value, table.metric)),
        )
    )
    counts = list(range(1, len(bests) + 1))
    so_far = chart(
        [Line(name="best so far", xs=counts, ys=bests)],
        x=Axis(name="epochs of all trials" if folds is None else "trials", low=0, high=max(2, len(bests)), whole=True),
        y=_axis(table.metric, bests),
        description=f"best {table.metric} so far, by {'epochs of all trials' if folds is None else 'trials'}",
        marks=[Mark(name=digits_text(bests[-1], of=table.metric), x=counts[-1], y=bests[-1])],
    )
    where = "on the valid split" if folds is None else f"out of fold, {folds} folds"
    best = ReportChart(chart=so_far, title="Best so far", caption=f"{table.metric} {where}")
    return (best, _trial_curves(table)) if folds is None else (best,)


def _trial_curves(table: TrialTable) -> ReportChart:
    """Return a curve a trial. The axis holds the best value of each trial, and not what a bad learning rate gave."""
    every = [trial for trial in table.trials.values() if trial.reports]
    drawn = every[-TRIALS_DRAWN:]
    axis = _axis(table.metric, [best.value for trial in drawn if (best := trial.best(table.metric)) is not None])
    outside, lines = 0, list[Line]()
    for trial in drawn:
        points = [(epoch, trial.reports[epoch].value) for epoch in sorted(trial.reports)]
        outside += sum(not axis.low <= value <= axis.high for _, value in points)
        lines += _parts(points, axis, name=f"trial {trial.number}", colour=trial.number % COLOURS)
    last = max(trial.epochs for trial in drawn)
    curves = chart(
        lines,
        x=Axis(name="epoch", low=1, high=max(2, last), whole=True),
        y=axis,
        description=f"{table.metric} of each trial by epoch",
    )
    parts = [f"{table.metric} by epoch"]
    parts += [f"the newest {TRIALS_DRAWN} of {len(every)} trials"] if len(every) > TRIALS_DRAWN else []
    parts += [f"{outside} worse values are outside the axis"] if outside else []
    return ReportChart(chart=curves, title="Trials", caption=", ".join(parts))


def _parts(points: Sequence[tuple[int, float]], axis: Axis, *, name: str, colour: int) -> list[Line]:
    """Return the parts of a curve that are inside an axis, each as a line; only the first is in the legend."""
    parts = list[Line]()
    for is_inside, group in itertools.groupby(points, lambda point: axis.low <= point[1] <= axis.high):
        if is_inside:
            xs, ys = zip(*group, strict=True)
            parts.append(Line(name="" if parts else name, xs=xs, ys=ys, colour=colour, dots=True))
    return parts


def _axis(metric: str, values: Sequence[float]) -> Axis:
    low, high = padded_range(values)
    return Axis(name=metric, low=low, high=high)
