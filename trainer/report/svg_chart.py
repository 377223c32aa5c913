"""Charts as inline SVG that takes its colours and fonts from the page, so one drawing serves light and dark.

Knows nothing of runs or models: numbers in, markup out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 520.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 24.0, 46.0  # room for tick labels, axis names and a guide's name
TICKS = 5
POINTS_SHOWN = 24  # more points than this on one line are a smear; the line alone says it
COLOURS = 8  # of the page's palette, `--c0` to `--c7`


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve. `colour` is a number of the palette; a quiet line is a reference, not a result."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int = 0
    reference: bool = False
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point that matters, with its name beside it, or at the head of a guide through the whole height."""

    name: str
    x: float
    y: float
    colour: int = 0
    guide: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A name and the least and greatest value shown."""

    name: str
    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing and what its legend says."""

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
    bars: Sequence[tuple[float, float, float]] = (),
) -> Chart:
    """Draw lines, marks and bars (from, to, height in y) on two axes, equally long when `square`.

    `description` is the text for screen readers.
    """
    frame = _Frame(x, y, (HEIGHT if square else WIDTH), HEIGHT)
    body = Markup("").join(
        [
            frame.grid(),
            *(frame.bar(*bar) for bar in bars),
            *(frame.line(line) for line in lines),
            *(frame.mark(mark) for mark in marks),
        ]
    )
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _short(frame.width), _short(frame.height), description, body
    )
    return Chart(svg=svg, legend=tuple((line.name, line.colour) for line in lines if not line.reference and line.name))


def span(values: Sequence[float], *, least: float | None = None) -> tuple[float, float]:
    """Return a range that holds all finite values with a little air, never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low - air if least is None else min(least, low)), high + air


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Return about `TICKS` round values from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Where values land on the drawing."""

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
            ).format(LEFT, _short(self.y(v)), self.width - RIGHT, LEFT - 8, _short(self.y(v) + 4), f"{v:.6g}")
            for v in ticks(up.low, up.high, whole=up.whole)
        ]
        parts += [
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                _short(self.x(v)), self.height - BOTTOM + 18, f"{v:.6g}"
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
        path = "M" + "L".join(f"{_short(self.x(x))} {_short(self.y(y))}" for x, y in points) if points else ""
        drawn = Markup('<path class="line {}" style="--c:var(--c{})" d="{}"/>').format(
            "quiet" if line.reference else "", line.colour % COLOURS, path
        )
        if not line.dots or len(points) > POINTS_SHOWN:
            return drawn
        return Markup("").join([drawn, *(self._dot(line, x, y) for x, y in points)])

    def mark(self, mark: Mark) -> Markup:
        x, y = self.x(mark.x), self.y(mark.y)
        left, above = x < (LEFT + self.width) / 2, y > self.height / 2
        name_x, name_y = x + (12 if left else -12), y + (-10 if above else 20)
        anchor = "start" if left else "end"
        guide = Markup("")
        if mark.guide:
            name_x, name_y, anchor = min(max(x, LEFT + 60), self.width - RIGHT - 60), TOP - 10, "middle"
            guide = Markup('<path class="line quiet" d="M{} {}V{}"/>').format(_short(x), TOP - 4, self.height - BOTTOM)
        return Markup(
            '<g class="mark" style="--c:var(--c{})">{}<circle cx="{}" cy="{}" r="6"/>'
            '<text x="{}" y="{}" text-anchor="{}">{}</text></g>'
        ).format(mark.colour % COLOURS, guide, _short(x), _short(y), _short(name_x), _short(name_y), anchor, mark.name)

    def bar(self, start: float, end: float, height: float) -> Markup:
        top, foot = self.y(height), self.y(self.y_axis.low)
        return Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
            _short(self.x(start) + 1),
            _short(top),
            _short(self.x(end) - self.x(start) - 2),
            _short(max(0.0, foot - top)),
        )

    def _dot(self, line: Line, x: float, y: float) -> Markup:
        tip = f"{line.name}: {y:.4g} at {self.x_axis.name} {x:.4g}"
        return Markup(
            '<circle class="dot" style="--c:var(--c{})" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>'
        ).format(line.colour % COLOURS, _short(self.x(x)), _short(self.y(y)), escape(tip))


def _short(value: float) -> str:
    """Return a coordinate with a tenth of a pixel: a page of curves stays small."""
    return f"{value:.1f}".removesuffix(".0")
