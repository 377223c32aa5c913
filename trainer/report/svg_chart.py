"""Line charts as inline SVG. Colours and fonts come from the page's CSS, so one chart fits light and dark themes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from trainer.evaluation.metric_text import digits_text

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 520.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 24.0, 46.0  # margins for tick labels, axis names and the name of a guide
TICKS = 5
CURVE_POINTS = 400  # more points than pixels across the chart change nothing
POINTS_SHOWN = 24  # lines with more points are drawn without dots
COLOURS = 8  # of the page's palette, `--c0` to `--c7`


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `colour` is an index into the palette; a reference line is dashed and not in the legend.

    It has a gap at values that are not finite.
    `ranges` are the ends of a vertical error bar at each point.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    reference: bool = False
    dots: bool = False
    ranges: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Band:
    """A filled area behind the curves: its outline, in the first colour of the palette."""

    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Note:
    """A small text, centred above a point."""

    text: str
    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A highlighted point with a label; with `guide`, a vertical line with the label on top."""

    name: str
    x: float
    y: float
    colour: int = 0
    guide: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Name and range of an axis; `whole` restricts ticks to integers."""

    name: str
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The SVG and its legend: (name, colour index) of each line."""

    svg: Markup
    legend: tuple[tuple[str, int], ...] = field(default=())


def chart(
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    description: str,
    marks: Sequence[Mark] = (),
    square: bool = False,
    bands: Sequence[Band] = (),
    notes: Sequence[Note] = (),
) -> Chart:
    """Draw lines, marks, bands and notes on two axes, equally long when `square`.

    `description` is the text for screen readers.
    """
    frame = _Frame(x, y, (HEIGHT if square else WIDTH), HEIGHT)
    body = Markup("").join(
        [
            frame.grid(),
            *(frame.band(band) for band in bands),
            *(frame.line(line) for line in lines),
            *(frame.note(note) for note in notes),
            *(frame.mark(mark) for mark in marks),
        ]
    )
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        coordinate(frame.width), coordinate(frame.height), description, body
    )
    return Chart(svg=svg, legend=tuple((line.name, line.colour) for line in lines if not line.reference and line.name))


def downsampled(name: str, xs: Floats, ys: Floats, colour: int) -> Line:
    """Return a curve with at most `CURVE_POINTS` of its points."""
    kept = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), CURVE_POINTS)).round().astype(int))
    return Line(name=name, xs=xs[kept].tolist(), ys=ys[kept].tolist(), colour=colour)


def padded_range(values: Sequence[float], *, least: float | None = None) -> tuple[float, float]:
    """Return a range with padding that holds all finite values, never empty; with `least`, it starts there or below."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    padding = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low - padding if least is None else min(least, low)), high + padding


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about `TICKS` round tick values from `low` to `high`, spaced 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Maps values to SVG coordinates and draws the parts of a chart."""

    x_axis: Axis
    y_axis: Axis
    width: float
    height: float

    def x(self, value: float) -> float:
        room = self.width - LEFT - RIGHT
        return LEFT + room * (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low)

    def y(self, value: float) -> float:
        room = self.height - TOP - BOTTOM
        return self.height - BOTTOM - room * (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low)

    def grid(self) -> Markup:
        across, up = self.x_axis, self.y_axis
        parts = [
            Markup(
                '<path class="grid" d="M{} {}H{}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
            ).format(LEFT, coordinate(self.y(v)), self.width - RIGHT, LEFT - 8, coordinate(self.y(v) + 4), f"{v:.6g}")
            for v in ticks(up.low, up.high, whole=up.whole)
        ]
        parts += [
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                coordinate(self.x(v)), self.height - BOTTOM + 18, f"{v:.6g}"
            )
            for v in ticks(across.low, across.high, whole=across.whole)
        ]
        middle_x, middle_y = (LEFT + self.width - RIGHT) / 2, (TOP + self.height - BOTTOM) / 2
        names = Markup(
            '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
            '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(middle_x, self.height - 8, across.name, middle_y, up.name)
        return Markup("").join([*parts, names])

    def line(self, line: Line) -> Markup:
        points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        path = "".join(self._path(part) for part in _unbroken(line))
        drawn = Markup('<path class="line {}" style="--c:var(--c{})" d="{}"/>').format(
            "quiet" if line.reference else "", line.colour % COLOURS, path
        )
        if not line.dots or len(points) > POINTS_SHOWN:
            return drawn
        bars = [self._error_bar(line, x, *ends) for x, ends in zip(line.xs, line.ranges, strict=False)]
        return Markup("").join([drawn, *bars, *(self._dot(line, x, y) for x, y in points)])

    def band(self, band: Band) -> Markup:
        path = "L".join(f"{coordinate(self.x(x))} {coordinate(self.y(y))}" for x, y in band.points)
        return Markup('<path class="band" style="--c:var(--c0)" d="M{}Z"/>').format(path)

    def note(self, note: Note) -> Markup:
        return Markup('<text class="small" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            coordinate(self.x(note.x)), coordinate(self.y(note.y) - 4), note.text
        )

    def mark(self, mark: Mark) -> Markup:
        x, y = self.x(mark.x), self.y(mark.y)
        left, above = x < (LEFT + self.width) / 2, y > self.height / 2
        name_x, name_y = x + (12 if left else -12), y + (-10 if above else 20)
        anchor = "start" if left else "end"
        guide = Markup("")
        if mark.guide:
            name_x, name_y, anchor = min(max(x, LEFT + 60), self.width - RIGHT - 60), TOP - 10, "middle"
            guide = Markup('<path class="line quiet" d="M{} {}V{}"/>').format(
                coordinate(x), TOP - 4, self.height - BOTTOM
            )
        return Markup(
            '<g class="mark" style="--c:var(--c{})">{}<circle cx="{}" cy="{}" r="6"/>'
            '<text x="{}" y="{}" text-anchor="{}">{}</text></g>'
        ).format(
            mark.colour % COLOURS,
            guide,
            coordinate(x),
            coordinate(y),
            coordinate(name_x),
            coordinate(name_y),
            anchor,
            mark.name,
        )

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return the path through points; of a single one a line of no length, whose round caps are a dot."""
        path = "M" + "L".join(f"{coordinate(self.x(x))} {coordinate(self.y(y))}" for x, y in points)
        return path if len(points) > 1 else path + "h0"

    def _error_bar(self, line: Line, x: float, low: float, high: float) -> Markup:
        return Markup('<path class="error" style="--c:var(--c{})" d="M{} {}V{}"/>').format(
            line.colour % COLOURS, coordinate(self.x(x)), coordinate(self.y(low)), coordinate(self.y(high))
        )

    def _dot(self, line: Line, x: float, y: float) -> Markup:
        tip = f"{line.name}: {digits_text(y, of=self.y_axis.name)} at {self.x_axis.name} {digits_text(x)}"
        return Markup(
            '<circle class="dot" style="--c:var(--c{})" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>'
        ).format(line.colour % COLOURS, coordinate(self.x(x)), coordinate(self.y(y)), escape(tip))


def _unbroken(line: Line) -> list[list[tuple[float, float]]]:
    """Return the parts of a line between values that are not finite: a line across them would show what is not so."""
    points = zip(line.xs, line.ys, strict=True)
    parts = groupby(points, key=lambda point: math.isfinite(point[0]) and math.isfinite(point[1]))
    return [list(part) for is_finite, part in parts if is_finite]


def coordinate(value: float) -> str:
    """Return a coordinate rounded to a tenth of a pixel, to keep the page small."""
    return f"{value:.1f}".removesuffix(".0")
