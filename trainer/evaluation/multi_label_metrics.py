"""Metrics of a multi-label model: of each label on the images where it is known, with macro and micro means.

A label is a binary problem of its own. The macro mean is over the labels, each with the same weight; the micro mean is
over all known entries, which are pairs of an image and a label. An image's entries are not independent, so images, or
groups of them, are the units of every interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn import metrics as sk

from trainer.errors import ModelMismatch, TrainerError
from trainer.evaluation.bootstrap import (
    Floats,
    Labels,
    Mask,
    MetricValues,
    mean_of_defined,
    resample_count,
    resample_weights,
    weighted_metrics,
)
from trainer.evaluation.calibration import Calibration, LabelCalibration
from trainer.evaluation.intervals import (
    Interval,
    Intervals,
    group_ids,
    interval_json,
    loss_interval,
    mover_interval,
    proportion_interval,
    ranking_freedom,
    standard_error_interval,
    wider,
)
from trainer.evaluation.metrics import classification_metrics, position_of
from trainer.evaluation.multi_label_calibration import (
    DEFAULT_THRESHOLD,
    apply_temperatures,
    label_calibration,
    label_decisions,
    two_columns,
)

STATES = ("absent", "present")  # the two classes of a label
RANKING = ("auroc", "average_precision")
RATES = ("sensitivity", "specificity", "balanced_accuracy", "accuracy")
LIKELIHOOD = ("loss", "brier", "ece")
RECALIBRATION = ("calibration_slope", "calibration_intercept")
AVERAGED = (*RANKING, *RATES, *LIKELIHOOD)
COMBINED = ("auroc", *RATES)  # labels without errors have intervals


def multi_label_metrics(
    probabilities: Floats,
    targets: Labels,
    *,
    classes: tuple[str, ...],
    calibration: Calibration,
    positive: str | None = None,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the metrics of one split as JSON values.

    `labels` has the metrics of each label, `macro` and `micro` their means. At the top level, `loss`, `brier` and
    `accuracy` are micro means; `auroc`, `average_precision`, `balanced_accuracy`, `sensitivity` and `specificity` are
    macro means; the counts of false negatives and positives are sums over the labels. With `positive`, sensitivity,
    specificity and these counts are those of that label.

    Args:
        probabilities: (N, C) float64, before temperature scaling.
        targets: (N, C) int64: 1 present, 0 absent, -1 unknown.
        classes: Names of the C labels.
        calibration: Temperature and threshold of each label. The metrics are those of the probabilities after
            temperature scaling, which `predict` returns.
        positive: The label whose sensitivity is reported at the top level; None means all.
        groups: Patient or case of each image; the intervals account for them.
        seed: Random seed of the bootstrap.

    Returns:
        A metric that is undefined for these images is None, and `undefined` gives the reason.

    Raises:
        TrainerError: There are no images or no known targets, or a probability is not finite.
        ModelMismatch: `positive` is not one of the labels, or the shapes do not match.
    """
    if positive is not None:
        position_of(positive, classes)
    _check(probabilities, targets, classes)
    labels = {
        name: _label_metrics(
            probabilities[:, c], targets[:, c], name=name, calibration=calibration, groups=groups, seed=seed
        )
        for c, name in enumerate(classes)
    }
    calibrated = apply_temperatures(probabilities, calibration, classes)
    decisions = label_decisions(calibrated, calibration, classes)
    units = group_ids(groups, len(targets))
    macro, micro = _macro(labels), _micro(calibrated, targets, decisions)
    resampled = _bootstrap(calibrated, targets, decisions, units, seed)
    macro["intervals"] = _macro_intervals(macro, labels, targets, resampled, units)
    micro["intervals"] = _micro_intervals(micro, targets, decisions, resampled, units)
    return {
        "n": len(targets),
        "known": int((targets >= 0).sum()),
        "multi_label": True,
        "classes": list(classes),
        "positive": positive,
        **_headline(labels, macro, micro, positive),
        "labels": labels,
        "macro": macro,
        "micro": micro,
        "undefined": {name: row["undefined"] for name, row in labels.items() if row["undefined"]},
    }


def multi_label_epoch_metrics(logits: Floats, targets: Labels) -> dict[str, Any]:
    """Return loss, accuracy, balanced accuracy and AUROC as `multi_label_metrics`, without the rest.

    Non-finite logits give a NaN loss.
    """
    known = targets >= 0
    if not np.isfinite(logits).all() or not known.any():
        return {"loss": float("nan"), "accuracy": 0.0, "balanced_accuracy": None, "auroc": None}
    hits, found = targets == 1, logits >= 0
    losses = np.logaddexp(0, np.where(hits, -logits, logits))
    areas = [_auroc(hits[known[:, c], c], logits[known[:, c], c]) for c in range(targets.shape[1])]
    return {
        "loss": float(losses[known].mean()),
        "accuracy": float((hits == found)[known].mean()),
        "balanced_accuracy": _mean([_balanced(hits[k, c], found[k, c]) for c, k in enumerate(known.T)]),
        "auroc": _mean(areas),
    }


def _check(probabilities: Floats, targets: Labels, classes: tuple[str, ...]) -> None:
    if not len(targets):
        raise TrainerError("no samples to evaluate; choose a split that has images")
    if probabilities.shape != targets.shape or targets.shape[1] != len(classes):
        raise ModelMismatch(
            f"probabilities {probabilities.shape} do not match targets {targets.shape} of {len(classes)} labels; "
            "use data with the model's labels"
        )
    if not np.isfinite(probabilities).all():
        raise TrainerError(
            "a probability is not finite (NaN or inf): the model has diverged; train it with a lower --lr"
        )
    if not (targets >= 0).any():
        raise TrainerError("all targets of this split are unknown; choose a split with known targets")


def _label_metrics(
    probabilities: Floats,
    targets: Labels,
    *,
    name: str,
    calibration: Calibration,
    groups: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the metrics of one label on the images where it is known."""
    known, own = targets >= 0, label_calibration(calibration, name)
    counts = {"n": int(known.sum()), "positives": int((targets == 1).sum()), "unknown": int((~known).sum())}
    decision = {
        "temperature": own.temperature,
        "threshold": DEFAULT_THRESHOLD if own.threshold is None else own.threshold,
    }
    if not known.any():
        reason = f"undefined: {name} is unknown of every image of this split"
        return {
            **counts,
            **decision,
            **dict.fromkeys((*AVERAGED, *RECALIBRATION, "precision", "f1")),
            **_counts(),
            "intervals": {},
            "undefined": dict.fromkeys(AVERAGED, reason),
        }
    found = classification_metrics(
        two_columns(probabilities[known]),
        targets[known],
        classes=STATES,
        positive=STATES[1],
        threshold=decision["threshold"],
        temperature=own.temperature,
        groups=None if not groups else [group for group, k in zip(groups, known, strict=True) if k],
        seed=seed,
    )
    if None in (found["sensitivity"], found["specificity"]):
        found["balanced_accuracy"] = found["intervals"]["balanced_accuracy"] = None
    of_present = found["per_class"][STATES[1]]
    return {
        **counts,
        **decision,
        **{metric: found[metric] for metric in (*AVERAGED, *RECALIBRATION)},
        "precision": of_present["precision"],
        "f1": of_present["f1"],
        **_counts(found["confusion_matrix"]),
        **_chosen(own, found),
        **({"uncalibrated": found["uncalibrated"]} if "uncalibrated" in found else {}),
        "intervals": {**found["intervals"], "precision": of_present["intervals"]["precision"]},
        "undefined": {key: _reason(text, counts, name) for key, text in found["undefined"].items()},
    }


def _chosen(own: LabelCalibration, found: dict[str, Any]) -> dict[str, Any]:
    """Return what only a label with a chosen threshold has."""
    if own.threshold is None:
        return {}
    at_default = {metric: found["at_default"][metric] for metric in ("sensitivity", "specificity", "accuracy")}
    return {"min_sensitivity": own.min_sensitivity, "at_default": at_default}


def _reason(text: str, counts: dict[str, int], name: str) -> str:
    """Return why a metric of a label is limited; `text` says it where the label has both states."""
    if 0 < counts["positives"] < counts["n"]:
        return text
    state = "has" if counts["positives"] else "lacks"
    return f"undefined: every image of this split where {name} is known {state} it"


def _counts(matrix: Sequence[Sequence[int]] = ((0, 0), (0, 0))) -> dict[str, int]:
    (true_negatives, false_positives), (false_negatives, true_positives) = matrix
    return {
        "true_positives": true_positives,
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "true_negatives": true_negatives,
    }


def _macro(labels: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each metric over the labels where it is defined, and the number of those labels."""
    defined = {metric: [row[metric] for row in labels.values() if row[metric] is not None] for metric in AVERAGED}
    return {
        **{metric: _mean(values) for metric, values in defined.items()},
        "labels": {metric: len(values) for metric, values in defined.items()},
    }


def _micro(probabilities: Floats, targets: Labels, decisions: Labels) -> dict[str, Any]:
    known = targets >= 0
    scores, hits, found = probabilities[known], targets[known] == 1, decisions[known] == 1
    has_both = 0 < hits.sum() < len(hits)
    return {
        "n": int(known.sum()),
        "auroc": float(sk.roc_auc_score(hits, scores)) if has_both else None,
        "average_precision": float(sk.average_precision_score(hits, scores)) if has_both else None,
        "sensitivity": _share(found[hits]),
        "specificity": _share(~found[~hits]),
        "accuracy": _share(found == hits),
        "loss": float(sk.log_loss(hits, two_columns(scores), labels=[False, True])),
        "brier": float(np.square(scores - hits).mean()),
        **_counts(sk.confusion_matrix(hits, found, labels=[False, True]).tolist()),
    }


def _headline(
    labels: dict[str, dict[str, Any]], macro: dict[str, Any], micro: dict[str, Any], positive: str | None
) -> dict[str, Any]:
    """Return the metrics of the top level with their intervals."""
    of_rates = labels[positive] if positive else macro
    counts = labels[positive] if positive else micro
    sources = {
        **dict.fromkeys(("loss", "brier", "accuracy"), micro),
        **dict.fromkeys(("auroc", "average_precision", "balanced_accuracy"), macro),
        **dict.fromkeys(("sensitivity", "specificity"), of_rates),
    }
    return {
        **{metric: source[metric] for metric, source in sources.items()},
        "false_negatives": counts["false_negatives"],
        "false_positives": counts["false_positives"],
        "intervals": {metric: source["intervals"].get(metric) for metric, source in sources.items()},
    }


def _bootstrap(
    probabilities: Floats, targets: Labels, decisions: Labels, units: Labels, seed: int
) -> dict[str, MetricValues]:
    """Return macro and micro means of each resample of the groups, (R,) each; NaN where undefined."""
    entries = 2 * int((targets >= 0).sum())
    chunks = resample_weights(units, resample_count(entries), np.random.default_rng(seed), cells=entries)
    parts = [_weighted_means(weights, probabilities, targets, decisions) for weights in chunks]
    return {
        kind: {metric: np.concatenate([part[kind][metric] for part in parts]) for metric in parts[0][kind]}
        for kind in ("macro", "micro")
    }


def _weighted_means(
    weights: Floats, probabilities: Floats, targets: Labels, decisions: Labels
) -> dict[str, MetricValues]:
    """Return macro and micro means under each row of `weights` (R, N)."""
    of_labels = [
        _weighted_label(weights[:, k], probabilities[k, c], targets[k, c] == 1, decisions[k, c] == 1)
        for c, k in enumerate((targets >= 0).T)
        if k.any()
    ]
    macro = {metric: mean_of_defined(np.stack([row[metric] for row in of_labels])) for metric in of_labels[0]}
    images, columns = np.nonzero(targets >= 0)
    micro = weighted_metrics(
        weights[:, images], two_columns(probabilities[images, columns]), targets[images, columns], positive=1
    )
    return {"macro": macro, "micro": micro}


def _weighted_label(weights: Floats, scores: Floats, hits: Mask, found: Mask) -> MetricValues:
    ranking = weighted_metrics(weights, two_columns(scores), hits.astype(np.int64), positive=1)
    sensitivity, specificity = _weighted_share(weights, found, hits), _weighted_share(weights, ~found, ~hits)
    return {
        "auroc": ranking["auroc"],
        "average_precision": ranking["average_precision"],
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": _weighted_share(weights, found == hits, np.ones_like(hits)),
    }


def _weighted_share(weights: Floats, found: Mask, among: Mask) -> Floats:
    total = weights @ among
    share: Floats = np.divide(weights @ (found & among), total, out=np.full(len(weights), np.nan), where=total > 0)
    return share


def _macro_intervals(
    macro: dict[str, Any],
    labels: dict[str, dict[str, Any]],
    targets: Labels,
    resampled: dict[str, MetricValues],
    units: Labels,
) -> Intervals:
    """Return the intervals of the macro means: from the bootstrap's standard error, or its percentiles.

    Of shares and AUROC, the labels' own intervals are combined too (MOVER), and the wider interval is taken: in the
    bootstrap a label without an error does not vary.
    """
    of_labels = ranking_freedom([(targets[k, c] == 1, units[k]) for c, k in enumerate((targets >= 0).T)])
    found: dict[str, Interval | None] = {}
    for metric, values in resampled["macro"].items():
        freedom = of_labels if metric == "average_precision" else len(np.unique(units)) - 1
        bootstrap = None if macro[metric] is None else standard_error_interval(macro[metric], values, freedom)
        rows = [row for row in labels.values() if row[metric] is not None]
        own = [(row[metric], row["intervals"].get(metric) or (row[metric],) * 2) for row in rows]
        is_combined = own and metric in COMBINED
        found[metric] = wider(bootstrap, mover_interval(own)) if is_combined else bootstrap
    return {metric: interval_json(interval) for metric, interval in found.items()}


def _micro_intervals(
    micro: dict[str, Any], targets: Labels, decisions: Labels, resampled: dict[str, MetricValues], units: Labels
) -> Intervals:
    images, columns = np.nonzero(targets >= 0)
    hits, found, unit_of = targets[images, columns] == 1, decisions[images, columns] == 1, units[images]
    freedom = ranking_freedom([(hits, unit_of)])
    ranking = {
        metric: None if micro[metric] is None else standard_error_interval(micro[metric], values, freedom)
        for metric, values in resampled["micro"].items()
        if metric in RANKING
    }
    found_intervals = {
        **ranking,
        "loss": loss_interval(micro["loss"], resampled["micro"]["loss"], unit_of),
        "brier": loss_interval(micro["brier"], resampled["micro"]["brier"], unit_of, most=1.0),
        "accuracy": proportion_interval(found == hits, unit_of),
        "sensitivity": proportion_interval(found[hits], unit_of[hits]),
        "specificity": proportion_interval(~found[~hits], unit_of[~hits]),
    }
    return {metric: interval_json(interval) for metric, interval in found_intervals.items()}


def _auroc(hits: Mask, scores: Floats) -> float | None:
    return float(sk.roc_auc_score(hits, expit(scores))) if 0 < hits.sum() < len(hits) else None


def _balanced(hits: Mask, found: Mask) -> float | None:
    if not 0 < hits.sum() < len(hits):
        return None
    return float(found[hits].mean() + (~found[~hits]).mean()) / 2


def _share(mask: Mask) -> float | None:
    return float(mask.mean()) if len(mask) else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
