"""Which trial a search publishes, and what the best trial's value is worth: a bootstrap over the outputs of all trials.

The best of many trials is best partly by chance on the images that rank them. So the default trial is kept unless the
best trial is better by more than one standard error of their paired difference: the one-standard-error rule (Breiman,
Friedman, Olshen & Stone 1984, Classification and Regression Trees, section 3.4.3), with the defaults as the simple
model.

The value of the best trial is corrected for the choice as BBC-CV does (Tsamardinos, Greasidou & Borboudakis 2018,
Machine Learning 107, algorithm 2): in each resample of the images the best trial on the images that are drawn is
chosen, and its value is taken on those that are not drawn. The mean of these values is the corrected value. Groups are
drawn whole. The choice of each trial's epoch is not corrected. Where that mean is better than the best value itself,
which is noise of the resamples, the best value stays: choosing makes nothing better.

The 2.5 and 97.5 percentiles of these values say too little where few images are wrong: of a trial that is right on all
images they are equal. So the corrected interval also contains that of the best trial's value on all images, as an
evaluation gives it, whose worse end is moved by the correction.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data_shards.index import ShardIndex
from data_shards.pack.group_counts import GroupCounts
from trainer.errors import TrainerError
from trainer.evaluation.bootstrap import FEWEST_RESAMPLES, RESAMPLES, Floats, Labels, resample_weights
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.intervals import Interval
from trainer.evaluation.trial_outputs import TrialOutputs
from trainer.evaluation.weighted_ranking import weighted_values
from trainer.search.choice_text import choice_sentence, correction_sentence, excluded_text, few_images_sentence
from trainer.search.trials import EpochRecord, TrialTable
from trainer.specs import SearchSpec
from trainer.specs.metric import HIGHER_IS_BETTER, Metric, loss_of

WORK_LIMIT = 400_000_000  # logits of all trials x resamples: about half a minute on one core
ENOUGH = 100  # images or groups of the positive class; with fewer, the ranking of trials is mostly chance
TWO = 2


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The value of the best trial, corrected for the choice among `trials`, with its interval or None."""

    value: float
    low: float | None
    high: float | None
    trials: int
    resamples: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The trial that a search publishes, and why.

    Attributes:
        best: Best epoch of all trials.
        default: Best epoch of the default trial; None if there is none that was trained to its end.
        reason: Why there is no `default`, or why it was not compared with `best`; "" if it was.
        difference: By how much `best` is better than `default`, in the unit of the metric; None if not compared.
        standard_error: Of the difference; None if it is undefined.
        keeps_default: Whether `default` is published.
        correction: Of the value of `best`; None if there is nothing to correct, or it cannot be.
        uncorrected: Why it cannot be corrected; "" if it was, or of a single trial.
        trials: Number of trials with a value.
    """

    best: EpochRecord
    default: EpochRecord | None = None
    reason: str = ""
    difference: float | None = None
    standard_error: float | None = None
    keeps_default: bool = False
    correction: Correction | None = None
    uncorrected: str = ""
    trials: int = 1

    @property
    def chosen(self) -> EpochRecord:
        """The epoch that is published."""
        return self.default if self.keeps_default and self.default is not None else self.best

    def without_default_model(self, best: EpochRecord) -> "Choice":
        """Return the choice of the best epoch where the model of the default trial is not there."""
        why = "its model was not kept"
        return replace(self, best=best, reason=why, difference=None, standard_error=None, keeps_default=False)

    def to_json(
        self, spec: SearchSpec, index: ShardIndex, split: str, groups: GroupCounts | None = None
    ) -> dict[str, Any]:
        """Return the choice as `result.json` has it, with the sentences that say it.

        Args:
            spec: The search.
            index: Of the data set.
            split: The images that rank the trials.
            groups: Of these images; None if they are not known.
        """
        found = {
            "choose": spec.choose,
            "trial": self.chosen.trial,
            "best_trial": self.best.trial,
            "best_value": self.best.value,
            "default_trial": None if self.default is None else self.default.trial,
            "default_value": None if self.default is None else self.default.value,
            "difference": self.difference,
            "standard_error": self.standard_error,
            "keeps_default": self.keeps_default,
            "reason": self.reason,
            "trials": self.trials,
            "uncorrected": self.uncorrected,
            "corrected": None if self.correction is None else asdict(self.correction),
        }
        ranked_by = f"{'validation' if spec.folds is None else 'out-of-fold'} {spec.best_by}"
        return found | {
            "sentence": choice_sentence(found, ranked_by),
            "correction": correction_sentence(found, ranked_by),
            "warning": few_images(spec, index, split, groups),
        }


def choose(
    table: TrialTable,
    spec: SearchSpec,
    outputs_of: Callable[[EpochRecord], TrialOutputs | None],
    groups: Callable[[], Labels],
    on_step: Callable[[], None] = lambda: None,
) -> Choice | None:
    """Return which trial is published; None if none has a value. The same journal and outputs give the same choice.

    Args:
        table: The trials.
        spec: The search.
        outputs_of: Returns the outputs of an epoch, None if they were not kept.
        groups: Returns the index of each image's group, (N,), for outputs without groups.
        on_step: Called when some resamples of a trial are done.
    """
    records = {number: record for number, trial in table.trials.items() if (record := trial.best(table.metric))}
    best = table.best()
    if best is None:
        return None
    default, reason = _default_of(table, spec)
    if default is not None and default.value == best.value and spec.choose == "default":
        best = default  # of equals, it needs no reason
    kept = {number: found for number, record in records.items() if (found := outputs_of(record)) is not None}
    needs_all = len(records) > 1 and len(kept) == len(records)
    is_compared = default is not None and default.trial != best.trial and spec.choose == "default"
    pair = [best.trial, default.trial] if is_compared and default is not None else []
    used = kept if needs_all else {number: kept[number] for number in pair if number in kept}
    is_pair_known = bool(pair) and all(number in used for number in pair)
    if pair and not is_pair_known:
        reason = "the predictions of one of them were not kept"
    values = _resampled(used, spec, groups, on_step) if (needs_all or is_pair_known) and _fit_together(used) else None
    if values is None and is_pair_known:
        reason = "their predictions are not about the same images"
    correction = None
    if values is not None and needs_all:
        own = _own_interval(used[best.trial], groups, spec)
        correction = _correction(values, best.value, own, spec.best_by)
    choice = Choice(
        best=best,
        default=default,
        reason=reason,
        correction=correction,
        uncorrected=_uncorrected(correction, trials=len(records), kept=len(kept), is_sampled=values is not None),
        trials=len(records),
    )
    if values is None or not is_pair_known or default is None:
        return choice
    differences = values[best.trial].inside - values[default.trial].inside
    differences = differences[np.isfinite(differences)]
    error = float(differences.std(ddof=1)) if len(differences) >= TWO else None
    difference = loss_of(default.value, spec.best_by) - loss_of(best.value, spec.best_by)
    keeps_default = error is None or difference <= error
    return replace(choice, difference=difference, standard_error=error, keeps_default=keeps_default)


def few_images(spec: SearchSpec, index: ShardIndex, split: str, groups: GroupCounts | None = None) -> str:
    """Return a warning if the positive or the smallest class has too few images or, if known, groups; else ""."""
    images = [n.present for n in index.targets_in(split)] if index.multi_label else index.per_class_in(split)
    counts = dict(zip(index.classes, groups.present if groups else images, strict=True))
    name = spec.positive if spec.positive in counts else min(counts, key=lambda one: counts[one])
    if counts[name] >= ENOUGH:
        return ""
    count = images[index.classes.index(name)]
    return few_images_sentence(name, count, split, ENOUGH, groups=counts[name] if groups else None)


def _uncorrected(correction: Correction | None, *, trials: int, kept: int, is_sampled: bool) -> str:
    """Return why the value of the best of several trials is not corrected, "" if it is."""
    if correction is not None or trials < TWO:
        return ""
    if kept < trials:
        return f"the predictions of {trials - kept} of {trials} trials were not kept"
    return "too few images or groups to leave some out" if is_sampled else "the predictions are about other images"


def _default_of(table: TrialTable, spec: SearchSpec) -> tuple[EpochRecord | None, str]:
    """Return the best epoch of the default trial; or None, and why there is none to compare with."""
    if excluded := spec.excluded_defaults:
        return None, excluded_text(excluded, spec.algorithm)
    found = [trial for trial in table.trials.values() if spec.is_default(trial.config)]
    ended = [trial for trial in found if trial.state == "finished" and not trial.was_stopped_early]
    record = ended[0].best(table.metric) if ended else None
    if record is not None:
        return record, ""
    failed = [trial for trial in found if trial.state == "failed"]
    return None, f"trial {failed[0].number} with them failed" if failed else "no trial with them was trained to its end"


@dataclass(frozen=True, kw_only=True)
class _Resampled:
    """A trial's values on the images that are drawn and on those that are not, each (R,)."""

    inside: Floats
    outside: Floats


def _fit_together(outputs: Mapping[int, TrialOutputs]) -> bool:
    first, *others = outputs.values()
    return all(
        one.logits.shape == first.logits.shape and np.array_equal(one.labels, first.labels) for one in others
    )  # fmt: skip


def _resampled(
    outputs: Mapping[int, TrialOutputs], spec: SearchSpec, groups: Callable[[], Labels], on_step: Callable[[], None]
) -> dict[int, _Resampled]:
    first = next(iter(outputs.values()))
    units = groups() if first.units is None else first.units
    count = int(np.clip(WORK_LIMIT // (first.logits.size * len(outputs)), FEWEST_RESAMPLES, RESAMPLES))
    inside, outside = ({number: list[Floats]() for number in outputs} for _ in range(2))
    for weights in resample_weights(units, count, np.random.default_rng(spec.seed)):
        left_out = (weights == 0).astype(np.float64)
        for number, one in outputs.items():
            for found, rows in ((inside, weights), (outside, left_out)):
                of_trainings = [weighted_values(rows, logits, one.labels, spec.best_by) for logits in one.logits]
                found[number].append(np.mean(of_trainings, axis=0))
            on_step()
    return {
        number: _Resampled(inside=np.concatenate(inside[number]), outside=np.concatenate(outside[number]))
        for number in outputs
    }


def _own_interval(outputs: TrialOutputs, groups: Callable[[], Labels], spec: SearchSpec) -> Interval | None:
    """Return the interval of a trial's value on all images, the mean of those of its trainings, or None."""
    from trainer.evaluation.objective import objective_of  # noqa: PLC0415 -- it imports torch

    units = groups() if outputs.units is None else outputs.units
    objective = objective_of(outputs.labels.ndim > 1)
    found = []
    for logits in outputs.logits:
        try:
            metrics = objective.metrics(
                objective.probabilities(logits),
                outputs.labels,
                classes=tuple(map(str, range(logits.shape[1]))),
                calibration=Calibration(),
                positive=None,
                groups=tuple(map(str, units)),
                seed=spec.seed,
            )
        except TrainerError:  # a logit is not finite, or there is no label
            return None
        found.append(metrics["intervals"].get(spec.best_by))
    if any(interval is None for interval in found):
        return None
    low, high = np.mean(found, axis=0)
    return float(low), float(high)


def _correction(
    values: Mapping[int, _Resampled], claim: float, own: Interval | None, metric: Metric
) -> Correction | None:
    """Return the corrected value: of equal trials in a resample, the one of the lower number is chosen.

    `claim` is the best value on all images, `own` its interval.
    """
    inside, outside = (
        np.stack([getattr(values[number], part) for number in sorted(values)]) for part in ("inside", "outside")
    )
    losses = np.where(np.isfinite(inside), -inside if HIGHER_IS_BETTER[metric] else inside, np.inf)
    chosen = outside[losses.argmin(axis=0), np.arange(inside.shape[1])]
    found = chosen[np.isfinite(chosen) & np.isfinite(losses.min(axis=0))]
    if len(found) < FEWEST_RESAMPLES // TWO:
        return None
    worse = min if HIGHER_IS_BETTER[metric] else max
    value, (low, high) = worse(float(found.mean()), claim), np.percentile(found, [2.5, 97.5])
    if own is not None:
        low, high = min(low, own[0] + min(0.0, value - claim)), max(high, own[1] + max(0.0, value - claim))
    low, high = max(0.0, float(low)), float(high) if metric == "loss" else min(1.0, float(high))
    is_interval = low < high
    return Correction(
        value=value,
        low=low if is_interval else None,
        high=high if is_interval else None,
        trials=len(values),
        resamples=len(found),
    )
