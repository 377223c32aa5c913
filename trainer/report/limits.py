"""What limits the metrics of a result, in sentences. Imports neither torch nor scikit-learn: model cards need it."""

from collections.abc import Mapping
from typing import Any

from data_shards.index import ShardIndex
from trainer.evaluation.decision_text import choice_of, is_out_of_fold
from trainer.evaluation.metric_text import is_binary, is_positive_stated, quoted
from trainer.evaluation.seen_images import evaluation_lines

FEW = 30  # images of a class; with fewer, one error changes recall by more than 3 percentage points


def limits(index: ShardIndex, metrics: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    """Return what limits the metrics of a result, a sentence each."""
    split, counts = metrics["split"], dict(zip(index.classes, index.per_class_in(metrics["split"]), strict=True))
    few = [f"{count} {quoted(name)}" for name, count in counts.items() if count < FEW]
    return [
        *(
            [f"The {split} split has only {' and '.join(few)} images: the metrics are imprecise, see their intervals."]
            if few
            else []
        ),
        *_positive_warning(index, metrics),
        *(
            ["The threshold was chosen on this split: the metrics at the threshold are optimistic."]
            if split == "valid" and _has_threshold_of_valid(metrics)
            else []
        ),
        *(f"{line[0].upper()}{line[1:]}." for line in evaluation_lines(details, split) if _is_warning(line)),
        *(
            ["The best epoch was selected on this split: its metrics are optimistic. Evaluate on a test split."]
            if _selected_epoch(metrics, details)
            else []
        ),
        *(
            ["The data set was packed with --allow-leakage: an image or group may be in more than one split."]
            if index.options.get("allow_leakage")
            else []
        ),
    ]


def _positive_warning(index: ShardIndex, metrics: Mapping[str, Any]) -> list[str]:
    """Return a note if nobody said which of two classes is the one to find."""
    if index.multi_label or is_positive_stated(metrics) or not is_binary(index.classes):
        return []
    return [
        "No positive class was stated, so both classes are treated alike. With --positive CLASS, train and evaluate "
        "report sensitivity, specificity, operating points and a decision curve for the class that is to be found."
    ]


def _has_threshold_of_valid(metrics: Mapping[str, Any]) -> bool:
    """Whether a threshold was chosen on the model's own predictions of the valid split, not on those out of fold."""
    if "labels" in metrics:
        chosen = [name for name, row in metrics["labels"].items() if row.get("min_sensitivity")]
    else:
        chosen = [] if metrics["threshold"] is None else [metrics["positive"]]
    return any(not is_out_of_fold(choice_of(metrics, name)) for name in chosen)


def _is_warning(line: str) -> bool:
    return line.startswith(("warning", "the test split"))


def _selected_epoch(metrics: Mapping[str, Any], details: Mapping[str, Any]) -> bool:
    return metrics["split"] == "valid" and "best_epoch" in details


def leakage_text(index: ShardIndex) -> str:
    """Return whether packing found or allowed images or groups in more than one split."""
    allowed = index.options.get("allow_leakage")
    if allowed is None:
        return "not checked"
    return "allowed when packing (--allow-leakage)" if allowed else "none: no image or group is in two splits"
