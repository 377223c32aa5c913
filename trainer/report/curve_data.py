"""What the curves of a report show: bands, bins of the reliability diagram, and net benefit, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn import metrics as sk

from trainer.evaluation.bootstrap import Floats, Labels, Mask
from trainer.evaluation.intervals import Interval, proportion_interval
from trainer.evaluation.predictive_values import JOINT_TAIL

BINS = 10  # of the reliability diagram
BAND_POINTS = 60  # thresholds at which the band of a curve is computed
Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The images whose predicted probability lies in one bin.

    Attributes:
        low: Start of the bin; `high` is its end.
        predicted: Mean predicted probability.
        observed: Share of images where the event happened.
        interval: 95 % confidence interval of `observed`.
        count: Number of images.
    """

    low: float
    high: float
    predicted: float
    observed: float
    interval: Interval
    count: int


def reliability_bins(scores: Floats, hits: Mask, units: Labels) -> list[ReliabilityBin]:
    """Return the bins of equal width that have images, from (N,) probabilities and whether the event happened."""
    edges = np.linspace(0, 1, BINS + 1)
    of_image = np.searchsorted(edges[1:-1], scores)  # as the calibration error: a bin includes its end
    found = []
    for number in np.unique(of_image):
        mask = of_image == number
        interval = proportion_interval(hits[mask], units[mask])
        assert interval is not None  # noqa: S101 -- the bin has images
        found.append(
            ReliabilityBin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                predicted=float(scores[mask].mean()),
                observed=float(hits[mask].mean()),
                interval=interval,
                count=int(mask.sum()),
            )
        )
    return found


def roc_band(scores: Floats, hits: Mask, units: Labels) -> Points:
    """Return the outline of the band around a ROC curve.

    At each threshold the true and the false positive rate lie with 95 % confidence in the rectangle of their exact
    intervals at 97.5 % each. The band goes through the best and the worst corners of these rectangles.
    """
    best, worst = [(0.0, 0.0)], [(0.0, 0.0)]
    for threshold in _thresholds(scores):
        found = scores >= threshold
        true = proportion_interval(found[hits], units[hits], tail=JOINT_TAIL) or (0.0, 1.0)
        false = proportion_interval(found[~hits], units[~hits], tail=JOINT_TAIL) or (0.0, 1.0)
        best.append((false[0], true[1]))
        worst.append((false[1], true[0]))
    return [*_rising(best), (1.0, 1.0), *reversed(_rising(worst))]


def precision_recall_band(scores: Floats, hits: Mask, units: Labels) -> Points:
    """Return the outline of the band around a precision-recall curve.

    At each threshold recall and precision lie with 95 % confidence in the rectangle of their exact intervals at 97.5 %
    each. At each recall, the band goes from the lowest to the highest end of the rectangles that contain this recall.
    The one of the highest threshold reaches to recall 0, as the curve does.
    """
    boxes = np.array(
        [
            (
                *(proportion_interval(found[hits], units[hits], tail=JOINT_TAIL) or (0.0, 1.0)),
                *(proportion_interval(hits[found], units[found], tail=JOINT_TAIL) or (0.0, 1.0)),
            )
            for found in (scores >= threshold for threshold in _thresholds(scores))
        ]
    )
    boxes[0, 0] = 0.0
    ends = np.unique(boxes[:, :2])
    highest, lowest = list[tuple[float, float]](), list[tuple[float, float]]()
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        inside = boxes[(boxes[:, 0] <= start) & (boxes[:, 1] >= end)]
        if len(inside):  # else the thresholds lie far apart, and a straight line connects their rectangles
            low, high = float(inside[:, 2].min()), float(inside[:, 3].max())
            highest += [(start, high), (end, high)]
            lowest += [(start, low), (end, low)]
    return [*highest, *reversed(lowest)]


def net_benefit(scores: Floats, hits: Mask, thresholds: Floats, prevalence: float) -> tuple[Floats, Floats]:
    """Return the net benefit of a model and of calling every image positive, at each threshold, both (T,).

    Net benefit: true positives minus false positives weighted by the odds of the threshold, per image (Vickers & Elkin
    2006, Medical Decision Making 26). Calling no image positive has a net benefit of 0.
    """
    odds = thresholds / (1 - thresholds)
    found = scores[None, :] >= thresholds[:, None]
    true, false = found[:, hits].mean(axis=1), found[:, ~hits].mean(axis=1)
    model = true * prevalence - false * (1 - prevalence) * odds
    everyone = prevalence - (1 - prevalence) * odds
    return model, everyone


def precision_recall_steps(hits: Mask, scores: Floats) -> tuple[Floats, Floats]:
    """Return recall and precision of the steps whose area is the average precision, both (T,).

    Between two thresholds nothing is known of the precision, so it is not interpolated: a straight line would show what
    no threshold reaches (Davis & Goadrich 2006, ICML), above all where many scores are equal.
    """
    precision, recall, _ = sk.precision_recall_curve(hits, scores, drop_intermediate=True)
    return np.repeat(recall[::-1], 2)[1:-1], np.repeat(precision[-2::-1], 2)


def micro_average(probabilities: Floats, labels: Labels) -> tuple[Floats, Mask]:
    """Return the pooled scores and hits of all pairs of an image and a class, (N x C,) each."""
    hits = labels[:, None] == np.arange(probabilities.shape[1])
    return probabilities.ravel(), hits.ravel()


def _thresholds(scores: Floats) -> Sequence[float]:
    """Return up to `BAND_POINTS` scores, from the highest to the lowest, evenly by rank."""
    ordered = np.unique(scores)[::-1]
    kept = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), BAND_POINTS)).round().astype(int))
    return [float(score) for score in ordered[kept]]


def _rising(points: Points) -> Points:
    """Return points whose coordinates never fall: an interval from few groups may be wider than its neighbours'."""
    return [(float(x), float(y)) for x, y in np.maximum.accumulate(np.array(points), axis=0)]
