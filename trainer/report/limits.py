"""What limits the metrics of a result, in sentences. Imports neither torch nor scikit-learn: model cards need it."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_shards.index import BOTH, ShardIndex
from data_shards.pack.group_counts import GroupCounts
from trainer.evaluation.decision_text import choice_of, is_of_judged_data, is_out_of_fold
from trainer.evaluation.metric_text import is_binary, is_positive_stated, quoted
from trainer.evaluation.seen_images import evaluation_lines

FEW = 30  # images or groups of a class; with fewer, one error changes recall by more than 3 percentage points


def limits(
    index: ShardIndex, metrics: Mapping[str, Any], details: Mapping[str, Any], groups: GroupCounts | None = None
) -> list[str]:
    """Return what limits the metrics of a result, a sentence each.

    Args:
        index: Of the data set.
        metrics: Of the result.
        details: The other parts of the result.
        groups: Of the images that the metrics are about; None if they are not known.
    """
    split = metrics["split"]
    return [
        *_few_images(index, split, groups),
        *_positive_warning(index, metrics),
        *(
            ["The threshold was chosen on this split: the metrics at the threshold are optimistic."]
            if split == "valid" and _has_threshold_of_valid(metrics)
            else []
        ),
        *(f"{line[0].upper()}{line[1:]}." for line in evaluation_lines(details, split) if _is_warning(line)),
        *_chosen_on_these_images(metrics, details),
        *(
            ["The data set was packed with --allow-leakage: an image or group may be in more than one split."]
            if index.options.get("allow_leakage")
            else []
        ),
    ]


def _few_images(index: ShardIndex, split: str, groups: GroupCounts | None) -> list[str]:
    """Return a note on the classes, or of several labels the states of a label, with few images or groups."""
    names = list(map(quoted, index.classes))
    present, absent = (groups.present, groups.absent) if groups else (None, None)
    if index.multi_label:
        targets = index.targets_in(split)
        found = _few([f"with {name}" for name in names], [n.present for n in targets], present)
        found += _few([f"without {name}" for name in names], [n.absent for n in targets], absent)
    else:
        found = _few([f"{name} images" for name in names], index.per_class_in(split), present)
    if not found:
        return []
    splits = split.split(BOTH)
    where = f"{' and '.join(splits)} {'splits have' if len(splits) > 1 else 'split has'}"
    if index.multi_label:
        text = f"The {where} few images for some labels: {', '.join(found)}"
        return [f"{text}. The metrics of these labels are imprecise, see their intervals."]
    return [f"The {where} only {' and '.join(found)}: the metrics are imprecise, see their intervals."]


def _few(names: Sequence[str], images: Sequence[int], groups: Sequence[int] | None) -> list[str]:
    """Return the count and the name of what has few images or groups; images of one group are not independent."""
    return [
        f"{count} {name}" + ("" if of_groups == count else f" of {of_groups} group{'' if of_groups == 1 else 's'}")
        for name, count, of_groups in zip(names, images, groups or images, strict=True)
        if min(count, of_groups) < FEW
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
    """Whether a threshold was chosen on the model's own predictions of this valid split, not on those out of fold."""
    if "labels" in metrics:
        chosen = [name for name, row in metrics["labels"].items() if row.get("min_sensitivity")]
    else:
        chosen = [] if metrics["threshold"] is None else [metrics["positive"]]
    choices = [choice_of(metrics, name) for name in chosen]
    return any(is_of_judged_data(choice) and not is_out_of_fold(choice) for choice in choices)


def _is_warning(line: str) -> bool:
    return line.startswith(("warning", "the test split", "it is not known"))


def _chosen_on_these_images(metrics: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    """Return what a training or a search chose on the images that its metrics are about."""
    is_own = "precision" in details or "choice" in details  # of a training or a search; an evaluation says what it saw
    out_of_fold = "out_of_fold" in metrics
    if not (out_of_fold or (metrics["split"] == "valid" and (is_own or "best_epoch" in details))):
        return []
    where = "the predictions out of fold" if out_of_fold else "this split"
    trials = _number_of_trials(details)
    has_epoch = not out_of_fold and (trials > 0 or "best_epoch" in details)
    chosen = [
        *([f"the trial was chosen among {trials}"] if trials > 1 else []),
        *(["the best epoch was selected"] if has_epoch else []),
    ]
    what = " and ".join(chosen)
    return [
        *(
            [f"{what[0].upper()}{what[1:]} on {where}: its metrics are optimistic. Evaluate on a test split."]
            if what
            else []
        ),
        f"The temperature was fitted on {where}: loss, Brier score and calibration are optimistic.",
    ]


def _number_of_trials(details: Mapping[str, Any]) -> int:
    """Return how many trials a search chose among; 0 for a result of another kind."""
    choice = details.get("choice")
    return int(choice.get("trials", 1)) if isinstance(choice, Mapping) else 0


def leakage_text(index: ShardIndex) -> str:
    """Return whether packing found or allowed images or groups in more than one split."""
    allowed = index.options.get("allow_leakage")
    if allowed is None:
        return "not checked"
    if allowed:
        return "allowed when packing (--allow-leakage)"
    if index.grouped:
        return "none: no image or group is in two splits"
    return "no image is in two splits; groups are unknown: a patient with several images may be in two"
