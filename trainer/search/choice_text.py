"""The sentences that say which trial a search published, why, and what its value is worth. Pure text."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from trainer.evaluation.metric_text import digits_text, quoted


def choice_sentence(choice: Mapping[str, Any], ranked_by: str) -> str:
    """Return in a sentence which trial is published, from the choice as JSON.

    Args:
        choice: What `Choice.to_json` returns, without sentences.
        ranked_by: The metric that ranks, such as `validation loss`.
    """
    best, default, reason = choice["best_trial"], choice["default_trial"], choice["reason"]
    is_best = f"trial {best} is published, the best in {ranked_by}"
    if choice["choose"] == "best":
        return f"{is_best}, as --choose best asks"
    if default is None:
        return f"{is_best}; it was not compared with the defaults of train: {reason}"
    if best == default:
        return f"trial {default} is published, the default trial: no other is better in {ranked_by}"
    if reason:
        return f"{is_best}; it was not compared with the default trial {default}: {reason}"
    return _compared(choice, ranked_by)


def _compared(choice: Mapping[str, Any], ranked_by: str) -> str:
    best, default, error = choice["best_trial"], choice["default_trial"], choice["standard_error"]
    by = f"better by {choice['difference']:.4g} in {ranked_by}"
    of_error = "one standard error of the difference" + ("" if error is None else f" ({error:.4g})")
    if not choice["keeps_default"]:
        return f"trial {best} is published: compared with the default trial {default}, it is {by}, more than {of_error}"
    why = f"but {of_error} is undefined on these images" if error is None else f"not more than {of_error}"
    return f"trial {default} is published, the default trial: trial {best} is {by}, {why}; --choose best publishes it"


def excluded_text(excluded: Mapping[str, Any], algorithm: str) -> str:
    """Return why no trial can have the defaults of `train`: those that the search space excludes, by option."""
    what = "no point of the grid has" if algorithm == "grid" else "the search space excludes"
    return f"{what} " + ", ".join(f"{name} {value}" for name, value in excluded.items())


def correction_sentence(choice: Mapping[str, Any], ranked_by: str) -> str:
    """Return what the value of the best trial is worth after the choice among all, "" if there was no choice."""
    trials, corrected = choice["trials"], choice["corrected"]
    if trials < 2:  # noqa: PLR2004
        return ""
    shown = partial(digits_text, of=ranked_by)
    claim = f"{ranked_by} {shown(choice['best_value'])} of trial {choice['best_trial']}, the best of {trials} trials"
    if corrected is None:
        return f"{claim}; not corrected for the choice: {choice['uncorrected']}"
    low, high = corrected["low"], corrected["high"]
    interval = "too few images for an interval" if low is None else f"95 % interval {shown(low)} to {shown(high)}"
    return (
        f"{claim}; corrected for choosing among {corrected['trials']} trials {shown(corrected['value'])} ({interval})"
    )


def few_images_sentence(name: str, count: int, split: str, enough: int, *, groups: int | None = None) -> str:
    """Return the warning that the images that rank the trials, or their groups, are too few."""
    images, where = "image" if count == 1 else "images", split.replace("+", " and ")
    where += " have" if where != split else " has"
    found, least = f"{count} {images} of {quoted(name)}", f"fewer than {enough}"
    if groups is not None and groups != count:
        found, least = f"{found} in {groups} group{'' if groups == 1 else 's'}", f"{least} groups"
    return f"{where} {found}, {least}: which trial is best may be mostly chance"


def choice_lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the result of a search says about its choice, as label and text of each line."""
    choice = result.get("choice")
    if not isinstance(choice, Mapping):
        return []
    texts = (("chosen", "sentence"), ("best", "correction"), ("warning", "warning"))
    return [(label, str(choice[key])) for label, key in texts if choice.get(key)]
