"""Two charts of a search as inline SVG: parallel coordinates and hyperparameter importance.

Drawn by hand and not by Optuna's matplotlib plots, whose SVG has fixed colours (this page has a dark theme) and is
many times larger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from trainer.evaluation.metric_text import digits_text
from trainer.report.svg_chart import Chart, coordinate
from trainer.search.trials import Trial, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER
from trainer.specs.search_space import Dimension, Range

WIDTH, TOP, FOOT, SIDE = 1040.0, 44.0, 24.0, 70.0
HEIGHT = 320.0
HALO = "paint-order:stroke;stroke:var(--surface);stroke-width:4px"  # keeps a number readable on top of lines
ROW, NAME = 34.0, 150.0  # height of a bar; width of the option's name to the left of it


@dataclass(frozen=True)
class _Axis:
    """The axis of one option from `low` to `high`, or with its choices one above the other.

    Attributes:
        flipped: Low values are at the top: for a loss they are the better ones.
    """

    name: str
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] = ()
    flipped: bool = False

    def position(self, value: Any) -> float:
        """Return the height of a value, from 0 to 1."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        up = 0.5 if high == low else min(1.0, max(0.0, (at - low) / (high - low)))
        return 1 - up if self.flipped else up

    def ticks(self) -> list[tuple[str, float]]:
        """Return the tick labels and their heights, from 0 to 1."""
        if self.choices:
            return [(choice, self.position(choice)) for choice in self.choices]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(f"{value:.3g}", self.position(value)) for value in (self.low, middle, self.high)]


def parallel_coordinates(table: TrialTable, spec: SearchSpec, *, most: int | None = None) -> Chart:
    """Draw each trial as a line through its options to its best value; better trials are higher and stronger.

    With `most`, only so many of the best are drawn.
    """
    varied = spec.space.dimensions
    trials = [t for t in table.ranked() if t.best(table.metric) and all(name in t.config for name in varied)][:most]
    values = [top.value for trial in trials if (top := trial.best(table.metric))]
    axes = [_axis(name, dimension, trials) for name, dimension in varied.items()]
    low, high = range_shown(values)
    axes.append(_Axis(table.metric, low, high, flipped=not HIGHER_IS_BETTER[table.metric]))
    worst_first = [
        _line(trial, axes, [*(trial.config[name] for name in varied), value], place / max(1, len(trials) - 1))
        for place, (trial, value) in enumerate(zip(trials, values, strict=True))
    ][::-1]
    body = Markup("").join([*worst_first, *(_drawn_axis(axis, _x(axes, at)) for at, axis in enumerate(axes))])
    says = f"{len(trials)} trials over {', '.join(axis.name for axis in axes)}"
    return _chart(body, HEIGHT, says)


def range_shown(ranked: Sequence[float]) -> tuple[float, float]:
    """Return the low and high end of an axis for values sorted from the best to the worst.

    The axis leaves out the worst tenth, which is drawn at its edge: a single diverged trial would squeeze the others.
    """
    low, high = sorted((ranked[0], ranked[math.ceil(0.9 * (len(ranked) - 1))]))
    return low, high


def importance_bars(shares: Mapping[str, float]) -> Chart:
    """Draw the importance of each option as a bar, the largest on top."""
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    room, half = WIDTH / 2 - NAME - SIDE, WIDTH / 2
    rows = [
        Markup(
            '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
            '<rect x="{}" y="{}" width="{}" height="18" rx="3" fill="var(--c0)"/><text x="{}" y="{}">{}</text>'
        ).format(NAME - 10, y + 14, _named(name), NAME, y, coordinate(max(2, room * share)),
                 coordinate(NAME + 8 + max(2, room * share)), y + 14, f"{100 * share:.0f} %")
        for y, (name, share) in ((10 + ROW * at, pair) for at, pair in enumerate(ranked))
    ]  # fmt: skip
    says = ", ".join(f"{name} {100 * share:.0f} percent" for name, share in ranked)
    return _chart(Markup("").join(rows), 10 + ROW * len(ranked), says, width=half)


def _axis(name: str, dimension: Dimension, trials: list[Trial]) -> _Axis:
    found = [trial.config[name] for trial in trials]  # an extended search may have trials outside of its space
    if isinstance(dimension, Range):
        numbers = [float(value) for value in found]
        return _Axis(name, min(dimension.low, *numbers), max(dimension.high, *numbers), log=dimension.log)
    return _Axis(name, 0, 1, choices=tuple(dict.fromkeys(str(value) for value in sorted({*dimension, *found}))))


def _line(trial: Trial, axes: list[_Axis], values: list[Any], rank: float) -> Markup:
    points = [f"{coordinate(_x(axes, at))} {coordinate(_y(axis.position(value)))}"
              for at, (axis, value) in enumerate(zip(axes, values, strict=True))]  # fmt: skip
    pairs = zip(axes, values, strict=True)
    tip = ", ".join(
        f"{_named(axis.name)} {digits_text(v, of=axis.name) if isinstance(v, float) else v}" for axis, v in pairs
    )
    return Markup(
        '<path class="line" style="--c:color-mix(in srgb, var(--c0) {}%, var(--track));stroke-width:{}" d="M{}">'
        "<title>{}</title></path>"
    ).format(round(100 * (1 - rank)), 3.5 if rank == 0 else 1.6, "L".join(points), f"trial {trial.number}: {tip}")


def _drawn_axis(axis: _Axis, x: float) -> Markup:
    head = Markup(
        '<path d="M{0} {1}V{2}" stroke="var(--muted)"/>'
        '<text class="axis" x="{0}" y="{3}" text-anchor="middle">{4}</text>'
    ).format(coordinate(x), TOP, HEIGHT - FOOT, TOP - 22, _named(axis.name))
    return head + Markup("").join(
        Markup('<text class="tick" x="{}" y="{}" style="{}">{}</text>').format(
            coordinate(x + 7), coordinate(_y(place) + 4), HALO, text
        )
        for text, place in axis.ticks()
    )


def _chart(body: Markup, height: float, says: str, width: float = WIDTH) -> Chart:
    return Chart(
        svg=Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            coordinate(width), coordinate(height), says, body
        )
    )


def _x(axes: list[_Axis], at: int) -> float:
    return SIDE + (WIDTH - 2 * SIDE) * at / (len(axes) - 1)


def _y(place: float) -> float:
    return HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * place


def _named(name: str) -> str:
    return name.replace("_", " ")
