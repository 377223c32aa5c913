"""The lines that say which decision rule a result used, and what is known about its threshold. Pure text."""

import math
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.metric_text import figure_text, interval_text, quoted

ALPHA = 0.05  # one-sided: the lower bound of the sensitivity has 95 % confidence


def decision_line(values: Mapping[str, Any]) -> str:
    """Return the decision rule of a result, from the metrics of an evaluation or the details of a prediction."""
    threshold, name = values.get("threshold"), values.get("threshold_name")
    if isinstance(values.get("labels"), Mapping):
        return (
            f"each label at its threshold: {name}" if name else "each label whose probability is at least 0.5 (default)"
        )
    if not isinstance(threshold, int | float):
        return "the most probable class (default)"
    return f"{quoted(values.get('positive'))} if its probability is at least {threshold:.4g}" + (
        f": {name}" if name else ""
    )


def threshold_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return what an evaluation says about its thresholds: price, supported sensitivity, and whether it was reached."""
    choices = metrics.get("threshold_choices")
    if not isinstance(choices, list):
        return []
    lines = [line for choice in choices for line in (_price(choice), _support(choice), _reached(choice))]
    return [line for line in lines if line]


def chosen_on(choice: Mapping[str, Any]) -> str:
    """Return the images that a threshold was chosen on, in words."""
    images = "the predictions out of fold" if is_out_of_fold(choice) else "the valid split"
    return images if is_of_judged_data(choice) else f"{images} of another data set"


def is_of_judged_data(choice: Mapping[str, Any]) -> bool:
    """Whether a threshold was chosen on images of the evaluated data set; results that do not say it count as such."""
    return choice.get("of_judged_data") is not False


def is_out_of_fold(choice: Mapping[str, Any]) -> bool:
    """Whether a threshold was chosen on predictions out of fold."""
    return choice.get("chosen_on") == "out of fold"


def may_have_chosen(choice: Mapping[str, Any], split: str) -> bool:
    """Whether the threshold may have been chosen on images of a split; out of fold they are of train and valid."""
    return is_of_judged_data(choice) and split in (("train", "valid") if is_out_of_fold(choice) else ("valid",))


def choice_of(metrics: Mapping[str, Any], positive: str) -> Mapping[str, Any]:
    """Return what is known about the threshold of a class or label; nothing where the result does not say it."""
    choices = metrics.get("threshold_choices") or ()
    return next((choice for choice in choices if choice["positive"] == positive), {})


def supported_text(bound: float | None) -> str:
    """Return the sensitivity that positives support, a dash if it is not known.

    It is rounded down: rounding up would promise more.
    """
    if bound is None:
        return "–"
    return f"{math.floor(1000 * bound) / 1000:.3f}"


def positives_needed(min_sensitivity: float) -> int | None:
    """Return how many positives support a sensitivity with 95 % confidence, one-sided; None for 1.

    They are independent, and the threshold is chosen to miss none of them: with `--min-sensitivity 1`.
    """
    return None if min_sensitivity >= 1 else math.ceil(math.log(ALPHA) / math.log(min_sensitivity))


def _price(choice: Mapping[str, Any]) -> str:
    if choice.get("false_positives") is None:
        return ""
    return (
        f"{quoted(choice['positive'])}: on {chosen_on(choice)} the threshold gives {choice['false_positives']} false "
        f"positives of {choice['negatives']} at a sensitivity of {figure_text(choice['sensitivity'])}; the default "
        f"decision gives {choice['default_false_positives']} at {figure_text(choice['default_sensitivity'])}"
    )


def _support(choice: Mapping[str, Any]) -> str:
    wanted, bound, positives = (choice.get(key) for key in ("min_sensitivity", "lower_bound", "positives"))
    if wanted is None or bound is None or positives is None:
        return ""
    groups = choice.get("groups")
    of_groups = "" if groups is None or groups >= positives else f" of {groups} groups"
    can = f"{quoted(choice['positive'])}: {positives} positives{of_groups} of {chosen_on(choice)}"
    shown = supported_text(bound)
    confidence = "95 % confidence (one-sided)"
    if bound >= wanted:
        return f"{can} support a sensitivity of at least {shown} with {confidence}"
    needed = positives_needed(wanted)
    cure = (
        "no number of images supports it"
        if needed is None
        else f"that takes {needed} independent positives without a miss, chosen with --min-sensitivity 1"
    )
    return f"{can} support a sensitivity of only {shown} at this threshold with {confidence}, not {wanted:.6g}; {cure}"


def _reached(choice: Mapping[str, Any]) -> str:
    reached = choice.get("reached")
    if reached is None:
        return ""
    split, wanted, judged = choice["judged_split"], choice["min_sensitivity"], choice["judged_sensitivity"]
    verb = "reaches" if reached else "does not reach"
    is_own = is_of_judged_data(choice) and split == choice.get("chosen_on", "valid")
    chosen = ", on which the threshold was chosen," if is_own else ""
    found = figure_text(judged) + interval_text(choice.get("judged_interval"))
    return f"{quoted(choice['positive'])}: the {split} split{chosen} {verb} {wanted:.6g}: its sensitivity is {found}"
