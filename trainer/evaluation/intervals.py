"""95 % confidence intervals of classification metrics; they account for groups (several images of one patient).

- Proportions (accuracy, sensitivity, specificity, precision, recall): Clopper-Pearson. With groups, the number of
  images is reduced to an effective sample size (Korn & Graubard 1998).
- Balanced accuracy: the recalls' intervals combined by MOVER (Zou & Donner 2008), with their correlation where a group
  has images of several classes.
- AUROC: DeLong et al. 1988 on the logit scale, with groups Obuchowski 1997, or the bootstrap, whichever is wider, but
  within the Clopper-Pearson interval of independent pairs. If every positive image has a higher score than every
  negative one, or a lower one: an exact bound.
- Average precision: the bootstrap standard error on the logit scale, or the bootstrap, whichever is wider.
- Loss, Brier score: the bootstrap standard error with Student's t for the number of groups, or the bootstrap, whichever
  is wider.

An interval is None if no method applies: it is never of zero width. `python -m tests.bench coverage` measures how often
the intervals contain the true value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta, rankdata, t

from trainer.evaluation.bootstrap import (
    Floats,
    Labels,
    Mask,
    bootstrap_metrics,
    highest_brier,
    ranked_classes,
    weighted_metrics,
)

TAIL = 0.025  # probability on each side of a 95 % interval
NO_RESAMPLES: Floats = np.empty(0)
FEWEST_GROUPS = 2  # a variance between groups needs two of them
NO_SPREAD = 1e-9  # standard error of a loss below which images differ by rounding alone

Interval = tuple[float, float]
Intervals = dict[str, list[float] | None]


def confidence_intervals(
    probabilities: Floats,
    labels: Labels,
    predicted: Labels,
    *,
    positive: int,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Intervals:
    """Return the interval of each metric as [low, high], or None.

    Args:
        probabilities: (N, C) float64.
        labels: (N,) int64.
        predicted: (N,) int64, the predicted classes.
        positive: Index of the class that sensitivity and specificity refer to.
        groups: Patient or case of each sample, "" where unknown: such a sample is its own group.
        seed: Random seed of the bootstrap.
    """
    units = group_ids(groups, len(labels))
    correct, is_positive = predicted == labels, labels == positive
    recalls = [(correct[labels == c], units[labels == c]) for c in np.unique(labels)]
    resampled = bootstrap_metrics(probabilities, labels, units, positive=positive, seed=seed)
    once = weighted_metrics(np.ones((1, len(labels))), probabilities, labels, positive=positive)
    scored = [(probabilities[:, c], labels == c) for c in ranked_classes(probabilities.shape[1], positive)]
    freedom = ranking_freedom([(hits, units) for _, hits in scored])
    found: dict[str, Interval | None] = {
        "loss": loss_interval(once["loss"][0], resampled["loss"], units),
        "accuracy": proportion_interval(correct, units),
        "balanced_accuracy": mean_interval(recalls),
        "sensitivity": proportion_interval((predicted == positive)[is_positive], units[is_positive]),
        "specificity": proportion_interval((predicted != positive)[~is_positive], units[~is_positive]),
        "auroc": auroc_interval(scored, units, resampled["auroc"]),
        "average_precision": standard_error_interval(
            once["average_precision"][0], resampled["average_precision"], freedom
        ),
        "brier": loss_interval(once["brier"][0], resampled["brier"], units, most=highest_brier(probabilities.shape[1])),
    }
    return {name: interval_json(interval) for name, interval in found.items()}


def class_intervals(labels: Labels, predicted: Labels, count: int, groups: Sequence[str] | None) -> list[Intervals]:
    """Return the intervals of recall and precision of each of `count` classes."""
    units, correct = group_ids(groups, len(labels)), predicted == labels
    members = [{"recall": labels == c, "precision": predicted == c} for c in range(count)]
    return [
        {name: interval_json(proportion_interval(correct[mask], units[mask])) for name, mask in masks.items()}
        for masks in members
    ]


def group_ids(groups: Sequence[str] | None, count: int) -> Labels:
    """Return the index of each sample's group (N,); a sample without a group is its own group."""
    if groups is None or not any(groups):
        return np.arange(count, dtype=np.int64)
    names = [group or f"\0{index}" for index, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def proportion_interval(successes: Mask, units: Labels, *, tail: float = TAIL) -> Interval | None:
    """Return the interval of the share of `successes` (n,), with group indices `units` (n,); None if n is 0.

    Clopper-Pearson for independent samples. With groups: the same with the effective sample size, but an end is never
    nearer to the rate than without any error (or any success), where samples of a group count as fully dependent: a few
    errors say too little about the design effect to make the interval narrower than none does. `tail` is the
    probability on each side.
    """
    if not len(successes):
        return None
    count, dependent = effective_sample_size(successes, units), dependent_sample_size(units)
    low, high = clopper_pearson(float(successes.mean()) * count, count, tail=tail)
    if dependent == len(units):
        return low, high
    without_error, without_success = (clopper_pearson(n, dependent, tail=tail) for n in (dependent, 0.0))
    return min(low, without_error[0]), max(high, without_success[1])


def clopper_pearson(successes: float, count: float, *, tail: float = TAIL) -> Interval:
    """Return the exact binomial interval (Clopper & Pearson 1934); both numbers may be fractions."""
    failures = count - successes
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, failures + 1))
    high = 1.0 if failures <= 0 else float(beta.ppf(1 - tail, successes + 1, failures))
    return low, high


def effective_sample_size(successes: Mask | Floats, units: Labels, *, variance: float | None = None) -> float:
    """Return the number of independent samples that estimate a proportion as precisely as these n samples do.

    `variance` is that of one sample; None means that of a proportion.

    n divided by the design effect, the cluster-robust variance over the binomial variance (Rao & Scott 1992, eq. 2),
    times the ratio of squared t quantiles for the degrees of freedom of samples and of groups (Korn & Graubard 1998,
    Survey Methodology 24). Groups of unequal sizes have one degree of freedom less than their effective number. At most
    n, and not less than where samples of a group are fully dependent. If all samples are equal, the design effect
    cannot be estimated, and they count as that.
    """
    members, sizes = np.unique(units, return_inverse=True, return_counts=True)[1:]
    count, number, dependent = len(units), len(sizes), dependent_sample_size(units)
    if number == count:
        return float(count)
    rate = float(successes.mean())
    binomial = (rate * (1 - rate) if variance is None else variance) / count
    if binomial == 0 or number < FEWEST_GROUPS:
        return dependent
    sums = np.bincount(members, weights=successes - rate) * _residual_factor(sizes)
    robust = float(np.square(sums).sum()) / count**2
    of_groups, of_effective = t.ppf(1 - TAIL, count - 1) / t.ppf(1 - TAIL, [number - 1, max(1.0, dependent - 1)])
    least = max(1.0, float((dependent - 1) * of_groups**2))
    return min(float(count), max(least, float(count * binomial / max(robust, binomial) * of_effective**2)))


def _residual_factor(sizes: NDArray[Any]) -> Floats:
    """Return the factor of each group's sum of deviations from the mean, (groups,), whose square has no bias with it.

    A group pulls the mean to itself, a large one most: a share w of all samples leaves 1 - 2w + sum of all squared
    shares of the square, if samples of a group are fully dependent. For equal groups that is (groups - 1) / groups.
    """
    shares = sizes / sizes.sum()
    left: Floats = 1 - 2 * shares + np.square(shares).sum()
    return 1 / np.sqrt(left) if len(sizes) > 1 else np.ones(1)


def dependent_sample_size(units: Labels) -> float:
    """Return the effective number of samples if those of a group all equal each other (Kish 1965)."""
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return len(units) ** 2 / float(np.square(sizes).sum())


def mean_interval(proportions: Sequence[tuple[Mask, Labels]]) -> Interval:
    """Return the interval of the mean of proportions by MOVER, without those that have no samples.

    Proportions are correlated where a group has samples of several: patients with images of two classes.
    """
    found = [(successes, units, proportion_interval(successes, units)) for successes, units in proportions]
    known = [(float(successes.mean()), interval) for successes, _, interval in found if interval is not None]
    present = [(successes, units) for successes, units in proportions if len(successes)]
    return mover_interval(known, correlation=rate_correlation(present))


def rate_correlation(proportions: Sequence[tuple[Mask | Floats, Labels]]) -> Floats:
    """Return the correlations of proportions whose samples may be of the same groups, (P, P).

    From the sums of each group's errors, as in the cluster-robust variance. A negative one counts as 0: the few groups
    that two proportions share say too little to make an interval narrower.
    """
    number = 1 + max(int(units.max()) for _, units in proportions)
    sums = np.stack(
        [np.bincount(units, weights=successes - successes.mean(), minlength=number) for successes, units in proportions]
    )
    lengths = np.linalg.norm(sums, axis=1)
    directions = np.divide(sums, lengths[:, None], out=np.zeros_like(sums), where=lengths[:, None] > 0)
    found: Floats = np.clip(directions @ directions.T, 0.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return found


def mover_interval(known: Sequence[tuple[float, Interval]], *, correlation: Floats | None = None) -> Interval:
    """Return the interval of the mean of shares by MOVER, from each share and its interval.

    Zou & Donner 2008, Stat Med 27, with the correlations (P, P) of the shares; None means that they are independent.
    """
    of_each = np.eye(len(known)) if correlation is None else correlation
    shares, low, high = np.array([(share, *interval) for share, interval in known]).T
    below, above = (float(np.sqrt(reach @ of_each @ reach)) / len(known) for reach in (shares - low, high - shares))
    mean = float(shares.mean())
    return max(0.0, mean - below), min(1.0, mean + above)


def auroc_interval(
    scored: Sequence[tuple[Floats, Mask]], units: Labels, resampled: Floats = NO_RESAMPLES
) -> Interval | None:
    """Return the interval of the mean AUROC over `scored`: (scores, whether positive) of each class, each (N,).

    DeLong's variance, with groups Obuchowski's (Biometrics 53, 1997), on the logit scale with Student's t for the
    number of groups and for how few of them carry the variance; or the percentiles of `resampled`, whichever is wider.
    Of one class, it never reaches beyond the Clopper-Pearson interval of independent pairs: see `pairs_interval`.
    A class that separates all images, or has images of one group alone, has no variance by either: it has an exact
    bound, which a mean takes by MOVER.
    """
    known = [(scores, hits) for scores, hits in scored if 0 < hits.sum() < len(hits)]
    if not known:
        return None
    area, influence = auroc_influence(known, units)
    pairs = min(independent_pairs(hits, units) for _, hits in known)
    # Distinct groups give that many independent pairs of a positive and a negative, all in the same order.
    bound = float(TAIL ** (1 / pairs))
    if area in (0, 1):
        return (bound, 1.0) if area == 1 else (0.0, 1 - bound)
    is_exact = [_has_no_variance(one, units) for one in known]
    if is_exact == [True]:  # the area is a single draw of a share whose mean is the AUROC (Markov's inequality)
        return TAIL * area, 1 - TAIL * (1 - area)
    error = float(np.sqrt(np.square(influence).sum()))
    freedom = max(1.0, min(pairs - 1, variance_freedom(influence)))
    found = wider(logit_interval(area, error, freedom), percentile_interval(resampled))
    if found is not None and len(known) == 1:
        low, high = pairs_interval(area, known[0][1], units)
        return max(low, found[0]), min(high, found[1])
    return wider(found, _mean_auroc_interval(known, units)) if any(is_exact) else found


def pairs_interval(area: float, hits: Mask, units: Labels) -> Interval:
    """Return the Clopper-Pearson interval of an AUROC as the share of ordered pairs of a single way to form pairs.

    Each pair is a positive and a negative, all of distinct groups. The AUROC is the mean over all ways to form them, so
    it varies less than this share (Hoeffding 1963, section 5). Images of unequal groups count as their effective
    number. The coverage is measured, not proven.
    """
    effective = (dependent_sample_size(units[mask]) for mask in (hits, ~hits))
    pairs = min(float(independent_pairs(hits, units)), *effective)
    return clopper_pearson(area * pairs, pairs)


def _has_no_variance(scored: tuple[Floats, Mask], units: Labels) -> bool:
    """Whether a class has positives or negatives of one group alone, or separates all images."""
    return fewest_groups(scored[1], units) < FEWEST_GROUPS or auroc_influence([scored], units)[0] in (0, 1)


def _mean_auroc_interval(scored: Sequence[tuple[Floats, Mask]], units: Labels) -> Interval:
    """Return the interval of the mean AUROC from the intervals of its classes (MOVER)."""
    areas = [auroc_influence([one], units)[0] for one in scored]
    own = [auroc_interval([one], units) for one in scored]
    return mover_interval([(area, found or (area, area)) for area, found in zip(areas, own, strict=True)])


def fewest_groups(hits: Mask, units: Labels) -> int:
    """Return the number of groups of the positives, or of the negatives if that is lower."""
    return min(len(np.unique(units[hits])), len(np.unique(units[~hits])))


def auroc_influence(scored: Sequence[tuple[Floats, Mask]], units: Labels) -> tuple[float, Floats]:
    """Return the mean AUROC over `scored` and each group's contribution to its error, (groups,).

    The squares of the contributions sum to the variance: DeLong et al. 1988, with groups Obuchowski 1997. Each class in
    `scored` has positives and negatives.
    """
    areas = [_placements(scores, hits) for scores, hits in scored]
    area = float(np.mean([values[hits].mean() for values, (_, hits) in zip(areas, scored, strict=True)]))
    influences = [_influence(values, hits, units) for values, (_, hits) in zip(areas, scored, strict=True)]
    return area, np.mean(influences, axis=0)


def variance_freedom(influence: Floats) -> float:
    """Return the degrees of freedom of a variance that is the sum of squared contributions of groups, (groups,).

    Twice its square over its own variance (Satterthwaite 1946), which the fourth moments of the contributions estimate:
    of normal ones the number of groups, and few where a few groups carry the variance, as the misranked ones do if the
    AUROC is near 1.
    """
    squares = np.square(influence)
    excess = float(np.square(squares).sum() / max(squares.sum() ** 2, np.finfo(np.float64).tiny)) - 1 / len(squares)
    return 2 / excess if excess > 0 else float("inf")


def logit_interval(value: float, error: float, freedom: float) -> Interval | None:
    """Return the t interval of `value` with standard error `error` on the logit scale; None at 0 and 1."""
    if not 0 < value < 1 or not error > 0:
        return None
    reach = float(t.ppf(1 - TAIL, freedom)) * error / (value * (1 - value))
    return float(expit(logit(value) - reach)), float(expit(logit(value) + reach))


def percentile_interval(resampled: Floats) -> Interval | None:
    """Return the 2.5th and 97.5th percentile of bootstrap values; None if all are equal or undefined."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, (100 * TAIL, 100 * (1 - TAIL)))
    return (float(low), float(high)) if low < high else None


def standard_error_interval(value: float, resampled: Floats, freedom: int) -> Interval | None:
    """Return the interval from the bootstrap's standard error on the logit scale, or its percentiles: the wider one.

    None without a degree of freedom.
    """
    if freedom < 1:
        return None
    defined = resampled[~np.isnan(resampled)]
    error = float(defined.std(ddof=1)) if len(defined) > 1 else 0.0
    return wider(logit_interval(value, error, freedom), percentile_interval(resampled))


def loss_interval(value: float, resampled: Floats, units: Labels, *, most: float = float("inf")) -> Interval | None:
    """Return the interval of a mean loss: of Student's t with the bootstrap's standard error, or its percentiles.

    The wider one is taken: the percentiles of few groups are too near to each other. `units` are the group indices,
    `most` is the highest value that the loss can have.
    """
    defined, groups = resampled[~np.isnan(resampled)], len(np.unique(units))
    if groups < FEWEST_GROUPS or len(defined) < 2:  # noqa: PLR2004 -- a standard deviation needs two
        return None
    error = float(defined.std(ddof=1)) * (groups / (groups - 1)) ** 0.5
    if error < NO_SPREAD:
        return None
    reach = float(t.ppf(1 - TAIL, groups - 1)) * error
    return wider((max(0.0, value - reach), min(most, value + reach)), percentile_interval(resampled))


def ranking_freedom(classes: Sequence[tuple[Mask, Labels]]) -> int:
    """Return the degrees of freedom of a mean over classes of what ranks positives and negatives: groups minus 1.

    The groups are those of the positives or of the negatives of the class that has the fewest. `classes` has for each
    which images (n,) are positive and their group indices (n,); one without positives or negatives does not count.
    """
    return min((fewest_groups(hits, units) for hits, units in classes if 0 < hits.sum() < len(hits)), default=1) - 1


def wider(first: Interval | None, second: Interval | None) -> Interval | None:
    """Return the interval with the greater width; None if neither has any."""
    known = [interval for interval in (first, second) if interval is not None and interval[0] < interval[1]]
    return max(known, key=lambda interval: interval[1] - interval[0], default=None)


def _placements(scores: Floats, hits: Mask) -> Floats:
    """Return for each positive the share of negatives with a lower score, for each negative of positives above it."""
    ranks, values = rankdata(scores), np.empty(len(scores))
    values[hits] = (ranks[hits] - rankdata(scores[hits])) / (~hits).sum()
    values[~hits] = 1 - (ranks[~hits] - rankdata(scores[~hits])) / hits.sum()
    return values


def _influence(values: Floats, hits: Mask, units: Labels) -> Floats:
    """Return each group's contribution to the error of the AUROC, (groups,): the squares sum to the variance."""
    number, area = int(units.max()) + 1, float(values[hits].mean())
    total = np.zeros(number)
    for mask in (hits, ~hits):
        present, members, sizes = np.unique(units[mask], return_inverse=True, return_counts=True)
        sums = np.bincount(members, weights=values[mask] - area)
        total[present] += sums / mask.sum() * _residual_factor(sizes)
    return total


def independent_pairs(hits: Mask, units: Labels) -> int:
    """Return how many pairs of a positive and a negative, all of distinct groups, there are."""
    positives, negatives = np.unique(units[hits]), np.unique(units[~hits])
    return max(1, min(len(positives), len(negatives), len(np.union1d(positives, negatives)) // 2))


def interval_json(interval: Interval | None) -> list[float] | None:
    """Return an interval as JSON values."""
    return None if interval is None else list(interval)
