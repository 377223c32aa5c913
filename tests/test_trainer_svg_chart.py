import math
import re

import pytest

from trainer.report.svg_chart import Axis, Line, chart

UNIT = Axis(name="x", low=0, high=1)


@pytest.mark.parametrize(
    ("ys", "moves", "lines"),
    [
        ((0.1, 0.2, 0.3, 0.4), 1, 3),
        ((0.1, 0.2, math.nan, 0.4, 0.5), 2, 2),
        ((math.nan, 0.2, 0.3, math.inf), 1, 1),
        ((0.1, 0.2, math.nan, 0.4, math.nan), 2, 1),
        ((math.nan, math.nan), 0, 0),
    ],
)
def test_a_line_has_a_gap_where_a_value_is_not_finite(ys, moves, lines):
    xs = [number / len(ys) for number in range(len(ys))]

    drawn = chart([Line(name="one", xs=xs, ys=ys)], x=UNIT, y=UNIT, description="a chart")

    (path,) = re.findall(r'<path class="line "[^>]* d="([^"]*)"', str(drawn.svg))
    assert (path.count("M"), path.count("L")) == (moves, lines)


def test_a_single_value_between_gaps_is_a_dot():
    drawn = chart([Line(name="one", xs=(0.2, 0.5, 0.8), ys=(math.nan, 0.5, math.nan))], x=UNIT, y=UNIT, description="")

    assert re.search(r' d="M[0-9.]+ [0-9.]+h0"', str(drawn.svg))


@pytest.mark.parametrize(("name", "text"), [("auroc", ">0.9999"), ("loss", "1")])
def test_a_point_whose_value_is_almost_one_says_so_unless_it_is_a_loss(name, text):
    axis = Axis(name=name, low=0, high=1)

    drawn = chart([Line(name="one", xs=(0.5,), ys=(0.99998,), dots=True)], x=UNIT, y=axis, description="")

    assert f"<title>one: {text.replace('>', '&gt;')} at x 0.5</title>" in str(drawn.svg)
