"""The lines that say which images a training is judged on, and what baselines reach there. Pure text."""

from collections.abc import Mapping
from typing import Any

from trainer.evaluation.metric_text import figure_text, interval_text, is_binary

HEADS = {
    "mlp": "three-layer head (mlp)",
    "lda": "linear discriminant analysis (lda)",
    "logistic": "logistic regression (logistic)",
}
SHOWN = ("accuracy", "auroc")
FIGURES = ("auroc", "accuracy", "loss")  # that heads and repeats of folds are compared by, before temperature scaling
BEFORE_SCALING = "before_scaling"  # key of the published head's `FIGURES`, and their intervals, in the metrics


def judged_on(metrics: Mapping[str, Any]) -> str:
    """Return the images that metrics are about: `valid split`, or `out of fold, 5 folds x 1 repeat, train+valid`."""
    found = metrics.get("out_of_fold")
    if not isinstance(found, Mapping):
        return f"{metrics.get('split')} split"
    repeats = "1 repeat" if found["repeats"] == 1 else f"{found['repeats']} repeats"
    return f"out of fold, {found['folds']} folds x {repeats}, {metrics.get('split')}"


def training_lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the result of a training says about its figures, as label and text of each line."""
    metrics = result.get("metrics")
    if not isinstance(metrics, Mapping):
        return []
    lines = [("metrics", judged_on(metrics))] if "out_of_fold" in metrics else []
    names = _names(metrics)
    lines += [("repeats", text) for text in _range_over_repeats(result, names)]
    baselines = [one for one in result.get("baselines") or () if isinstance(one, Mapping)]
    lines += [("unscaled", text) for text in _published_head(metrics, names)] if baselines else []
    return lines + [("baseline", _baseline(one, names)) for one in baselines]


def _names(metrics: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the names of `SHOWN` for the kind of labels: what they are means of."""
    if metrics.get("multi_label"):
        return {"accuracy": "micro accuracy", "auroc": "macro auroc"}
    classes = metrics.get("classes") or ()
    return {"accuracy": "accuracy", "auroc": "mean auroc" if classes and not is_binary(classes) else "auroc"}


def _range_over_repeats(result: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    rows = (result.get("cross_validation") or {}).get("by_repeat") or []
    if len(rows) < 2:  # noqa: PLR2004 -- a range needs two
        return []
    ranges = []
    for name in SHOWN:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            low, high = (figure_text(end, of=name) for end in (min(values), max(values)))
            ranges.append(f"{names[name]} {low} to {high}")
    return [f"{', '.join(ranges)} over {len(rows)} repeats"]


def _published_head(metrics: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Return the published head's figures where temperature scaling has changed what the baselines' lines show."""
    row = metrics.get(BEFORE_SCALING)
    if not isinstance(row, Mapping) or all(_is_same(row, metrics, name) for name in SHOWN):
        return []
    return [f"published head before temperature scaling, as the baselines: {_figures(row, names)}"]


def _baseline(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return f"{HEADS.get(str(row.get('head')), row.get('head'))} on the same features: {_figures(row, names)}"


def _figures(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return ", ".join(_with_interval(row, name, names[name]) for name in SHOWN if name in row)


def _is_same(row: Mapping[str, Any], metrics: Mapping[str, Any], name: str) -> bool:
    """Whether both have a figure of the same four decimal places, or neither has it."""
    texts = [None if one.get(name) is None else figure_text(one[name], of=name) for one in (row, metrics)]
    return texts[0] == texts[1]


def _with_interval(row: Mapping[str, Any], name: str, title: str) -> str:
    if row[name] is None:
        return f"{title} undefined"
    low_high = (row.get("intervals") or {}).get(name)
    return f"{title} {figure_text(row[name], of=name)}{interval_text(low_high, of=name)}"
