"""The page of `compare --html`: figures with paired differences, ROC curves over each other, options that differ.

Self-contained like the report of a run, and without scikit-learn, because the command line renders it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from trainer.evaluation.comparison import Comparison
from trainer.evaluation.metric_text import figure_text, metric_title
from trainer.evaluation.paired import PairedFigure
from trainer.report.environment import number_text, page_environment
from trainer.report.svg_chart import Axis, Chart, Line, chart, downsampled


@dataclass(frozen=True, kw_only=True)
class ComparisonPage:
    """Content of the page.

    Attributes:
        comparison: The figures.
        headline: Split and number of images.
        models: Letter and name of each model, the reference first.
        sentences: Of each candidate: whether it passes its margin, and why.
        options: Value of each model, by option.
        notes: What limits the figures.
    """

    comparison: Comparison
    headline: str
    models: Sequence[tuple[str, str]]
    sentences: Sequence[str]
    options: Mapping[str, Sequence[Any]]
    notes: Sequence[str]


def render_comparison(page: ComparisonPage) -> str:
    """Return the page as HTML."""
    return _rendered("comparison.html.j2", page)


def comparison_body(page: ComparisonPage) -> Markup:
    """Return the content of the page, for another page around it that has `report.css` and `comparison.css`."""
    return Markup(_rendered("comparison_body.html.j2", page))  # noqa: S704 -- by a template that escapes


def _rendered(template: str, page: ComparisonPage) -> str:
    environment = page_environment(
        filters={"number": number_text, "shown": _shown, "signed": _signed, "p": _p, "metric_title": metric_title}
    )
    reach = _reach(page.comparison)
    return environment.get_template(template).render(
        page=page,
        comparison=page.comparison,
        roc=roc_curves(page.comparison, [letter for letter, _ in page.models]),
        percent=lambda difference: 50 + 50 * difference / reach,
    )


def roc_curves(comparison: Comparison, letters: Sequence[str]) -> Chart | None:
    """Return the ROC curve of the positive class of each model in one chart; None without positives or negatives."""
    positive = comparison.classes.index(comparison.positive)
    hits = comparison.labels == positive
    if hits.all() or not hits.any():
        return None
    lines = [Line(name="chance", xs=(0, 1), ys=(0, 1), reference=True)]
    for colour, (letter, probabilities) in enumerate(zip(letters, comparison.probabilities, strict=True)):
        scores = probabilities[:, positive]
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # equal scores are one point of the curve
        true, false = (np.append(0, np.cumsum(mask[order])[ends] / mask.sum()) for mask in (hits, ~hits))
        lines.append(downsampled(letter, false, true, colour))
    return chart(
        lines,
        x=Axis(name="false positive rate (1 − specificity)", low=0, high=1),
        y=Axis(name="true positive rate (sensitivity)", low=0, high=1),
        description=f"ROC curves of {', '.join(letters)}",
        square=True,
    )


def _reach(comparison: Comparison) -> float:
    """Return the largest difference that the bars of the page show."""
    ends = [abs(end) for candidate in comparison.candidates for f in candidate.figures for end in _ends(f)]
    margins = [candidate.margin.margin for candidate in comparison.candidates]
    return 1.1 * max([0.01, *ends, *margins])


def _ends(figure: PairedFigure) -> tuple[float, ...]:
    return figure.interval or (0.0 if figure.difference is None else figure.difference,)


def _shown(value: float | None) -> str:
    return "–" if value is None else figure_text(value)  # as many places as its difference has


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}".replace("-", "−")


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004
