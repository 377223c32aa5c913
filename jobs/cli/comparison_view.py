"""The text that `nightshift compare` prints."""

from typing import Any

from jobs.cli.text_table import Column, output_width, table_text, wrapped
from jobs.runs.comparison import ComparisonView
from trainer.evaluation.comparison import Candidate
from trainer.evaluation.metric_text import figure_text, metric_name


def comparison_text(view: ComparisonView) -> str:
    """Return what the command prints."""
    width = output_width()
    parts = [view.headline(), *(f"{letter}  {name}" for letter, name in view.models())]
    for letter, candidate in view.candidates():
        parts += ["", _figures(view, letter, candidate), "", wrapped(view.sentence(letter, candidate), width, indent=0)]
    parts += ["", _options_table(view), *(wrapped(note, width, indent=6) for note in view.notes())]
    return "\n".join(part for part in parts if part is not None)


def _figures(view: ComparisonView, letter: str, candidate: Candidate) -> str:
    several = len(view.comparison.candidates) > 1
    titles = [
        "metric",
        "A",
        letter,
        f"{letter} - A",
        "95 % interval",
        "p",
        *(["p (Holm)"] if several else []),
        "test",
    ]
    rows = []
    for figure, adjusted in zip(candidate.figures, candidate.adjusted, strict=True):
        of_class = f" of {view.comparison.positive}" if figure.name == "sensitivity" else ""
        interval = "-" if figure.interval is None else " to ".join(f"{end:+.4f}" for end in figure.interval)
        rows.append(
            [
                metric_name(figure.name) + of_class,
                _number(figure.first),
                _number(figure.second),
                "-" if figure.difference is None else f"{figure.difference:+.4f}",
                interval,
                p_text(figure.p),
                *([p_text(adjusted)] if several else []),
                figure.test or "-",
            ]
        )
    columns = [Column(title=title, importance=1 if title == "test" else None) for title in titles]
    return table_text(columns, rows, output_width())


def _options_table(view: ComparisonView) -> str:
    if not view.options:
        return "options that differ: none known"
    rows = [[name, *(_shown(value) for value in values)] for name, values in view.options.items()]
    columns = [Column(title="options that differ"), *(Column(title=letter, least=12) for letter in view.letters)]
    return table_text(columns, rows, output_width())


def p_text(p: float | None) -> str:
    """Return a p value with three places."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"  # noqa: PLR2004


def _number(value: float | None) -> str:
    return "-" if value is None else figure_text(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)
