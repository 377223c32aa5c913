"""The section of a report that shows a head beside linear heads on the same features, and repeats of folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.training_text import BEFORE_SCALING, HEADS, judged_on


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """Content of the section.

    Attributes:
        judged_on: The images that all figures are about.
        rows: The published head, then the baselines: name, `FIGURES` before temperature scaling, and `intervals`.
        repeats: `FIGURES` of each repeat of a cross-validation; empty for fewer than two.
        shown_repeat: The repeat (from 1) that the report is about; None without folds.
        images: Images that the published head was trained on; None without folds.
        epoch_was_chosen: Whether the epoch of the published head was selected on the images that it is judged on.
    """

    judged_on: str
    rows: Sequence[Mapping[str, Any]]
    repeats: Sequence[Mapping[str, Any]] = ()
    shown_repeat: int | None = None
    images: int | None = None
    epoch_was_chosen: bool = False


def head_comparison(
    spec: Mapping[str, Any], metrics: Mapping[str, Any], details: Mapping[str, Any]
) -> HeadComparison | None:
    """Return the section's content from a training's spec and result; None if it has neither baselines nor folds."""
    validation = details.get("cross_validation") or {}
    baselines = details.get("baselines") or []
    if not (validation or baselines):
        return None
    own = {"head": spec.get("head", "mlp"), **_before_scaling(metrics)}
    repeats = validation.get("by_repeat") or []
    return HeadComparison(
        judged_on=judged_on(metrics),
        rows=[{**row, "name": HEADS.get(row["head"], row["head"])} for row in (own, *baselines)],
        repeats=repeats if len(repeats) > 1 else (),
        shown_repeat=validation.get("shown_repeat"),
        images=validation.get("images"),
        epoch_was_chosen="best_epoch" in details,
    )


def _before_scaling(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the published head's figures before temperature scaling; None where an older result does not say one.

    The temperature of one class per image changes the loss, the AUROC of more than two classes, and no accuracy.
    """
    if BEFORE_SCALING in metrics:
        found: Mapping[str, Any] = metrics[BEFORE_SCALING]
        return found
    loss, interval = (metrics.get("uncalibrated") or {}).get("loss"), (metrics.get("intervals") or {}).get("accuracy")
    return {"auroc": None, "accuracy": metrics.get("accuracy"), "loss": loss, "intervals": {"accuracy": interval}}
