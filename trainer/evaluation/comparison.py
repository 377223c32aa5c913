"""Comparison of models on the images that all of them have scored: figures, and a non-inferiority test at a margin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trainer.errors import CheckpointError, ModelMismatch, SpecError
from trainer.evaluation.bootstrap import Floats, Labels
from trainer.evaluation.metric_text import metric_name
from trainer.evaluation.paired import ModelScores, PairedFigure, paired_figures
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.temperature import apply_temperature
from trainer.specs.positive import refuse_unknown_positive, refuse_unstated_positive

Verdict = Literal["not worse", "worse", "not shown"]


@dataclass(frozen=True, kw_only=True)
class MarginCheck:
    """Whether a model may be worse than the reference by more than a margin.

    The model passes if it is not worse by more than the margin on these images. Whether that is more than chance is the
    verdict of a non-inferiority test: the whole 95 % confidence interval of the difference lies above minus the margin
    (ICH E9; a one-sided test at 2.5 %).

    Attributes:
        metric: The metric that the check is about.
        margin: Largest difference that is accepted, in the unit of the metric.
        difference: Value of the model minus that of the reference; None if the metric is undefined.
        verdict: "not worse", "worse" (the whole interval lies below minus the margin), or "not shown" (neither).
        worse_in: Other metrics whose whole interval lies below minus the margin; the check fails then too.
    """

    metric: str
    margin: float
    difference: float | None
    verdict: Verdict
    worse_in: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether the model is not worse than the reference by more than the margin, on these images."""
        is_within = self.difference is not None and self.difference >= -self.margin
        return is_within and self.verdict != "worse" and not self.worse_in

    @property
    def is_shown(self) -> bool:
        """Whether the model is shown not to be worse than the reference by more than the margin."""
        return self.verdict == "not worse" and not self.worse_in


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model beside the reference.

    Attributes:
        figures: In the order of `paired.FIGURES`.
        adjusted: The p value of each figure after Holm's correction for several candidates.
        identical: Whether both models gave out the same probabilities and decisions.
        margin: The non-inferiority test.
    """

    figures: tuple[PairedFigure, ...]
    adjusted: tuple[float | None, ...]
    identical: bool
    margin: MarginCheck


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models on the same images; the first is the reference.

    Attributes:
        classes: Class names.
        positive: The class that sensitivity and specificity refer to.
        positive_stated: Whether somebody said that this is the positive class; else it is the first one.
        labels: (N,) true classes of the shared images.
        groups: Number of groups of the shared images; None where each image is its own group.
        scored: How many images each model has scored.
        probabilities: (N, C) of each model, after temperature scaling where the evaluation says the temperature.
        candidates: The models after the first.
    """

    classes: tuple[str, ...]
    positive: str
    positive_stated: bool
    labels: Labels
    groups: int | None
    scored: tuple[int, ...]
    probabilities: tuple[Floats, ...]
    candidates: tuple[Candidate, ...]

    @property
    def images(self) -> int:
        """Number of images that all models have scored."""
        return len(self.labels)

    @property
    def passes(self) -> bool:
        """Whether every candidate passes its margin."""
        return all(candidate.margin.passes for candidate in self.candidates)

    @property
    def is_shown(self) -> bool:
        """Whether every candidate is shown not to be worse than the reference by more than its margin."""
        return all(candidate.margin.is_shown for candidate in self.candidates)


def compare_predictions(
    predictions: Sequence[Predictions], *, positive: str | None, metric: str, margin: float
) -> Comparison:
    """Compare the predictions of models, the first of which is the reference.

    Multi-label models are compared on one label, the positive class, and on the images where it is known.

    Args:
        predictions: Of each model, all about the same split.
        positive: The class that sensitivity and specificity refer to; None takes that of the evaluations.
        metric: The metric that `margin` is about.
        margin: Largest accepted difference.

    Raises:
        ModelMismatch: The models have different classes.
        SpecError: `positive` is not one of them, or the evaluations have different positive classes.
        CheckpointError: The models share no image, or the predictions contradict each other.
    """
    label = _stated_label(predictions) if positive is None else positive
    predictions = [_of_one_label(one, label) for one in predictions]
    classes = _classes_of(predictions)
    name, is_stated = _positive_of(predictions, classes, positive)
    if not is_stated:
        refuse_unstated_positive(metric, classes)
    rows = _shared_rows(predictions)
    labels = predictions[0].labels[rows[0]]
    for one, at in zip(predictions, rows, strict=True):
        if (one.labels[at] != labels).any():
            raise CheckpointError("the evaluations give the same images different classes; evaluate the models again")
    first = predictions[0]
    known = np.arange(len(first.labels)) if first.groups is None else first.groups
    units = np.unique(known[rows[0]], return_inverse=True)[1].astype(np.int64)
    scores = [_scores(one, at) for one, at in zip(predictions, rows, strict=True)]
    found = [paired_figures(scores[0], other, labels, units, positive=classes.index(name)) for other in scores[1:]]
    adjusted = [holm([figures[at].p for figures in found]) for at in range(len(found[0]))]
    candidates = []
    for number, (figures, other) in enumerate(zip(found, scores[1:], strict=True)):
        identical = _is_identical(scores[0], other)
        candidates.append(
            Candidate(
                figures=figures,
                adjusted=tuple(column[number] for column in adjusted),
                identical=identical,
                margin=check_margin(figures, metric=metric, margin=margin, identical=identical),
            )
        )
    groups = len(np.unique(units))
    return Comparison(
        classes=classes,
        positive=name,
        positive_stated=is_stated,
        labels=labels,
        groups=None if groups == len(labels) else groups,
        scored=tuple(len(one.labels) for one in predictions),
        probabilities=tuple(one.probabilities for one in scores),
        candidates=tuple(candidates),
    )


def _stated_label(predictions: Sequence[Predictions]) -> str | None:
    """Return the positive class of the evaluations of multi-label models, None if they state no common one."""
    about = [one.about for one in predictions if one.about is not None]
    found = {one.positive for one in about if one.multi_label and one.positive_stated}
    label = found.pop() if len(found) == 1 else None
    return label if all(label in one.classes for one in about) else None


def _of_one_label(predictions: Predictions, label: str | None) -> Predictions:
    about = predictions.about
    if about is None or not about.multi_label:
        return predictions
    if label not in about.classes:
        given = "" if label is None else f"; {label!r} is not one of them"
        raise SpecError(
            f"multi-label models are compared on one label; choose the positive class (--positive): "
            f"{', '.join(about.classes)}{given}"
        )
    return predictions.of_label(label)


def check_margin(figures: Sequence[PairedFigure], *, metric: str, margin: float, identical: bool) -> MarginCheck:
    """Return the non-inferiority test of a model.

    Identical outputs are not worse at any margin: their difference is 0 by construction, not by estimate.
    """
    by_name = {figure.name: figure for figure in figures}
    worse = tuple(name for name, figure in by_name.items() if _is_worse(figure, margin))
    interval = by_name[metric].interval
    verdict: Verdict = "not shown"
    if identical or (interval is not None and interval[0] > -margin):
        verdict = "not worse"
    elif metric in worse:
        verdict = "worse"
    return MarginCheck(
        metric=metric,
        margin=margin,
        difference=0.0 if identical else by_name[metric].difference,
        verdict=verdict,
        worse_in=tuple(name for name in worse if name != metric),
    )


def margin_sentence(candidate: Candidate, reference: str, name: str) -> str:
    """Return in one sentence whether the model `name` passes its margin against `reference`, and why."""
    check = candidate.margin
    claim = f"worse than {reference} by more than {check.margin:g} in {metric_name(check.metric)}"
    others = " and ".join(metric_name(other) for other in check.worse_in)
    also = f" {name} is worse than {reference} by more than {check.margin:g} in {others}." if others else ""
    if candidate.identical:
        return f"{name} gives the same probabilities and decisions as {reference} for every image."
    interval = next(figure.interval for figure in candidate.figures if figure.name == check.metric)
    if interval is None:
        return f"It is not shown that {name} is not {claim}: these images allow no interval; use more images.{also}"
    ends = f"the 95 % interval of the difference is {interval[0]:+.4f} to {interval[1]:+.4f}"
    if check.verdict == "not worse":
        return f"{name} is not {claim}: {ends}.{also}"
    if check.verdict == "worse":
        return f"{name} is {claim}: {ends}.{also}"
    if check.difference is not None and check.difference < -check.margin:
        return f"{name} is {claim} on these images, but this can be chance: {ends}; use more images.{also}"
    return f"It is not shown that {name} is not {claim}: {ends}; use more images.{also}"


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p values after Holm's step-down correction (Holm 1979); None stays None and does not count."""
    known = sorted((p, at) for at, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        found[at] = largest
    return found


def comparison_json(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the candidates as JSON values."""
    return [
        {
            "identical_outputs": candidate.identical,
            "figures": [
                _figure_json(figure, adjusted)
                for figure, adjusted in zip(candidate.figures, candidate.adjusted, strict=True)
            ],
            "margin": {
                "metric": candidate.margin.metric,
                "margin": candidate.margin.margin,
                "verdict": candidate.margin.verdict,
                "worse_in": list(candidate.margin.worse_in),
                "passes": candidate.margin.passes,
                "shown": candidate.margin.is_shown,
            },
        }
        for candidate in comparison.candidates
    ]


def _figure_json(figure: PairedFigure, adjusted: float | None) -> dict[str, Any]:
    interval = None if figure.interval is None else list(figure.interval)
    return {
        "name": figure.name,
        "a": figure.first,
        "b": figure.second,
        "difference": figure.difference,
        "interval": interval,
        "p": figure.p,
        "p_holm": adjusted,
        "test": figure.test,
    }


def _is_worse(figure: PairedFigure, margin: float) -> bool:
    return figure.interval is not None and figure.interval[1] < -margin


def _classes_of(predictions: Sequence[Predictions]) -> tuple[str, ...]:
    named = [one.about.classes for one in predictions if one.about is not None]
    for classes in named[1:]:
        if classes != named[0]:
            raise ModelMismatch(
                f"the models have different classes, {', '.join(named[0])} and {', '.join(classes)}; "
                "compare models of the same classes"
            )
    return named[0]


def _positive_of(
    predictions: Sequence[Predictions], classes: tuple[str, ...], positive: str | None
) -> tuple[str, bool]:
    """Return the positive class, and whether somebody said that it is."""
    if positive is not None:
        refuse_unknown_positive(positive, classes)
        return positive, True
    about = [one.about for one in predictions if one.about is not None]
    stated = [one for one in about if one.positive_stated]
    found = list(dict.fromkeys(one.positive for one in stated or about))
    if len(found) > 1:
        raise SpecError(f"the evaluations have different positive classes, {', '.join(found)}; choose with --positive")
    return found[0], bool(stated)


def _shared_rows(predictions: Sequence[Predictions]) -> list[Labels]:
    """Return for each model the rows of the images that all models have scored, in one order.

    Raises:
        CheckpointError: There is none.
    """
    ids = [[bytes(row) for row in one.samples] if one.samples is not None else [] for one in predictions]
    shared = set(ids[0]).intersection(*ids[1:])
    if not shared:
        raise CheckpointError(
            "the evaluations have no image in common; evaluate all models on the same split of the same shards"
        )
    order = [sample for sample in ids[0] if sample in shared]
    places = [{sample: row for row, sample in enumerate(of_model)} for of_model in ids]
    return [np.array([place[sample] for sample in order], dtype=np.int64) for place in places]


def _scores(predictions: Predictions, rows: Labels) -> ModelScores:
    decisions = predictions.probabilities.argmax(axis=1) if predictions.decisions is None else predictions.decisions
    temperature = None if predictions.about is None else predictions.about.temperature
    probabilities = apply_temperature(predictions.probabilities[rows], 1.0 if temperature is None else temperature)
    return ModelScores(probabilities=probabilities, predicted=decisions[rows].astype(np.int64))


def _is_identical(first: ModelScores, second: ModelScores) -> bool:
    return bool(
        (first.predicted == second.predicted).all() and np.array_equal(first.probabilities, second.probabilities)
    )
