"""Which metrics of a result come first, and how texts name them. Pure text: the command line imports it.

With a stated positive class: its sensitivity and specificity. Without one, no class is the one to find: the recall of
both classes, or for more than two classes accuracy, balanced accuracy and the class with the lowest recall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METRIC_NAMES = {  # in a sentence, by key; the other keys of a result are names themselves
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "calibration_intercept": "calibration intercept",
    "calibration_slope": "calibration slope",
    "ece": "calibration error (ECE)",
}
NEEDED = ("accuracy", "balanced_accuracy", "auroc", "positive", "sensitivity", "specificity")
RATES = ("sensitivity", "specificity")
NO_IMAGES = "this split has no such images"
ROUNDING = 1e-12  # what the sums of an exact 0 or 1 may differ from it
UNBOUNDED = ("loss", "slope", "intercept", "temperature")  # ends of the names of metrics for which 1 is no limit
MEANS = "macro: mean of the labels, micro: all known targets"


@dataclass(frozen=True, kw_only=True)
class HeadlineMetric:
    """One of the first metrics of a result.

    Attributes:
        name: Name of the metric, in lower case: `accuracy`, `recall`.
        of: What it is about, such as `"covid"` in quotes; "" if it is about all images.
        value: None if it is undefined.
        interval: 95 % confidence interval; None where no method gives one.
        key: Key of the metric in the result.
        note: What limits it; "" for nothing.
    """

    name: str
    value: float | None
    interval: Sequence[float] | None = None
    of: str = ""
    key: str = ""
    note: str = ""


def figure_text(value: float, places: int = 4, *, of: str = "") -> str:
    """Return a figure with that many decimal places; only 0 and 1 are shown as such, and 0.99998 as `>0.9999`.

    Args:
        value: The figure.
        places: Number of decimal places.
        of: Name or key of the metric: for a loss and others of `UNBOUNDED`, 1 is a number like any other.
    """
    return _rounded(value, f"z.{places}f", 10.0**-places, of=of)


def digits_text(value: float, digits: int = 4, *, of: str = "") -> str:
    """Return a figure with that many significant digits, by the rule of `figure_text`."""
    return _rounded(value, f".{digits}g", 10.0**-digits, of=of)


def share_text(value: float) -> str:
    """Return a share in percent with one decimal place, without the unit, by the rule of `figure_text`."""
    return _rounded(value, "z.1f", 0.1, one=100)


def _rounded(value: float, form: str, least: float, *, one: int = 1, of: str = "") -> str:
    """Return a value in units of 1 / `one`; one that only rounding makes 0 or 1 is more or less than it by `least`."""
    text = format(one * value, form)
    if float(text) == one and value < 1 - ROUNDING and not of.endswith(UNBOUNDED):
        return f">{format(one - least, form)}"
    return f"<{format(least, form)}" if float(text) == 0 and value > ROUNDING else text


def interval_text(low_high: Sequence[float] | None, places: int = 4, *, of: str = "") -> str:
    """Return an interval in brackets, behind a space; "" for none."""
    return " ({} to {})".format(*(figure_text(end, places, of=of) for end in low_high)) if low_high else ""


def metric_name(key: str) -> str:
    """Return the name of a metric as it stands in a sentence."""
    return METRIC_NAMES.get(key, key)


def metric_title(key: str) -> str:
    """Return the name of a metric as it stands at the beginning of a line."""
    name = metric_name(key)
    return name[0].upper() + name[1:]


def quoted(name: object) -> str:
    """Return the name of a class as it stands in a sentence."""
    return f'"{name}"'


def is_positive_stated(metrics: Mapping[str, Any]) -> bool:
    """Whether somebody said which class is the positive one; results of version 0.1.0 do not tell and count as such."""
    return bool(metrics.get("positive_stated", True)) and metrics.get("positive") is not None


def is_binary(classes: Sequence[str]) -> bool:
    """Whether there are two classes; a model of one class per image has two or more."""
    return len(classes) == 2  # noqa: PLR2004


def has_headline(metrics: Mapping[str, Any]) -> bool:
    """Whether a result has what `headline_metrics` needs: it is of one class per image, and not damaged."""
    classes, rows = metrics.get("classes"), metrics.get("per_class")
    return (
        isinstance(classes, list)
        and isinstance(rows, Mapping)
        and all(isinstance(rows.get(name), Mapping) and "recall" in rows[name] for name in classes)
        and all(key in metrics for key in NEEDED)
    )


def headline_metrics(metrics: Mapping[str, Any]) -> list[HeadlineMetric]:
    """Return the first metrics of a result of one class per image, the most important first."""
    of_all = {key: _of_all(metrics, key) for key in ("accuracy", "balanced_accuracy", "auroc")}
    is_stated = is_positive_stated(metrics)
    if is_binary(metrics["classes"]):
        first = _of_positive(metrics) if is_stated else [_recall(metrics, name) for name in metrics["classes"]]
        return [*first, of_all["auroc"], of_all["accuracy"]]
    lowest = lowest_recall(metrics)
    return [
        of_all["accuracy"],
        of_all["balanced_accuracy"],
        *([] if lowest is None else [lowest]),
        of_all["auroc"],
        *(_of_positive(metrics) if is_stated else []),
    ]


def lowest_recall(metrics: Mapping[str, Any]) -> HeadlineMetric | None:
    """Return the recall of the class whose recall is lowest, None if no class has images."""
    defined = [name for name, row in metrics["per_class"].items() if row["recall"] is not None]
    if not defined:
        return None
    found = _recall(metrics, min(defined, key=lambda name: float(metrics["per_class"][name]["recall"])))
    note = f"the lowest of {len(defined)} classes, partly by chance"
    return HeadlineMetric(name="lowest recall", value=found.value, interval=found.interval, of=found.of, key="recall",
                          note=note)  # fmt: skip


def label_headline(metrics: Mapping[str, Any]) -> list[HeadlineMetric]:
    """Return the first metrics of a result of several labels per image, and what each is a mean of.

    Macro is the mean of the labels, micro that of all known targets together. With a positive label, sensitivity and
    specificity are its own.
    """
    label, intervals = metrics.get("positive"), metrics.get("intervals") or {}
    counts, labels = (metrics.get("macro") or {}).get("labels") or {}, len(metrics.get("classes") or ())
    names = {"accuracy": "micro accuracy", "auroc": "macro AUROC"}
    names |= {key: key if label else f"macro {key}" for key in RATES} | {"loss": "micro loss"}
    found = []
    for key, name in names.items():
        is_left_out = name.startswith("macro") and key in counts and counts[key] < labels
        note = f"mean of {counts[key]} of {labels} labels" if is_left_out else ""
        of = f"of {quoted(label)}" if label and key in RATES else ""
        found.append(
            HeadlineMetric(name=name, of=of, value=metrics.get(key), interval=intervals.get(key), key=key, note=note)
        )
    return [one for one in found if one.key in metrics]


def prevalence_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return what an evaluation says about the predictive values at another prevalence."""
    found = metrics.get("at_prevalence")
    if not isinstance(found, Mapping):
        return []
    values = ", ".join(f"{name.upper()} {_with_interval(found, name)}" for name in ("ppv", "npv"))
    where = f"at a prevalence of {found['prevalence']:g} of {quoted(found['positive'])}"
    return [f"{where}: {values}, if sensitivity and specificity are the same there"]


def _of_positive(metrics: Mapping[str, Any]) -> list[HeadlineMetric]:
    name, intervals = quoted(metrics["positive"]), metrics.get("intervals") or {}
    about = {"sensitivity": f"of {name}", "specificity": f"of all but {name}"}
    return [
        HeadlineMetric(
            name=key,
            value=metrics[key],
            interval=intervals.get(key),
            of=of,
            key=key,
            note=_without_images(metrics[key]),
        )
        for key, of in about.items()
    ]


def _recall(metrics: Mapping[str, Any], name: str) -> HeadlineMetric:
    row = metrics["per_class"][name]
    interval = (row.get("intervals") or {}).get("recall")
    return HeadlineMetric(
        name="recall",
        value=row["recall"],
        interval=interval,
        of=f"of {quoted(name)}",
        key="recall",
        note=_without_images(row["recall"]),
    )


def _without_images(value: float | None) -> str:
    return NO_IMAGES if value is None else ""


def _of_all(metrics: Mapping[str, Any], key: str) -> HeadlineMetric:
    is_mean = key == "auroc" and not is_binary(metrics["classes"])
    return HeadlineMetric(
        name="mean AUROC" if is_mean else metric_name(key),
        value=metrics[key],
        interval=(metrics.get("intervals") or {}).get(key),
        key=key,
        note=(metrics.get("undefined") or {}).get(key) or ("mean of one class against the rest" if is_mean else ""),
    )


def _with_interval(values: Mapping[str, Any], name: str) -> str:
    value, interval = values[name], (values.get("intervals") or {}).get(name)
    if value is None:
        return "undefined"
    ends = "" if not interval else " to ".join(map(figure_text, interval))
    return figure_text(value) + (f" (95 % interval {ends})" if ends else "")
