"""Measure how often 95 % confidence intervals contain the true value; the peer is the percentile cluster bootstrap.

Scores are normal, N(d, 1) for positives and N(0, 1) for negatives, so the true values are known. Scores of one cluster
have the correlation 0.6. For the proportions, d gives `value` as sensitivity, specificity and accuracy at the threshold
d / 2; for the AUROC, another d gives `value` as AUROC.
"""

import numpy as np
from scipy.stats import norm

from tests.bench.measure import Row
from trainer.evaluation.bootstrap import bootstrap_metrics
from trainer.evaluation.intervals import auroc_interval, mean_interval, percentile_interval, proportion_interval

SIZES = ((25, 100), (200, 800))
VALUES = (0.84, 0.90, 0.95, 0.98)
CORRELATION = 0.6
SIMULATIONS = 2000  # of each cell: a standard error of 0.5 % at 95 %
RESAMPLES = 200  # of the bootstrap
GOAL = (93.0, 99.0)  # percent
COMMAND = "python -m tests.bench coverage"


def run() -> list[Row]:
    """Return a row for each metric, size, cluster size and true value."""
    random = np.random.default_rng(0)
    rows = []
    for positives, negatives in SIZES:
        for cluster in (1, 3):
            for value in VALUES:
                found = proportions(random, positives, negatives, cluster, value)
                found["AUROC"] = areas(random, positives, negatives, cluster, value)
                where = f"{positives} positives, {negatives} negatives, " + (
                    "independent" if cluster == 1 else f"clusters of {cluster}"
                )
                rows += [_row(f"{name} {value:.2f}, {where}", *numbers) for name, numbers in found.items()]
                print(
                    *(f"{row.what}: {row.ours:.1f} ({row.peer:.1f})" for row in rows[-len(found) :]),
                    sep="\n",
                    flush=True,
                )
    return rows


def proportions(random, positives, negatives, cluster, value):
    """Return by metric: coverage of ours and of the bootstrap in %, number of intervals, number of simulations."""
    shift = 2 * norm.ppf(value)
    hits, units = _labels(positives, negatives, cluster)
    ours = {name: [] for name in ("sensitivity", "specificity", "accuracy", "balanced accuracy")}
    peer = {name: [] for name in ours}
    for _ in range(SIMULATIONS):
        right = (_scores(random, hits, units, shift, cluster) >= shift / 2) == hits
        found = {
            "sensitivity": proportion_interval(right[hits], units[hits]),
            "specificity": proportion_interval(right[~hits], units[~hits]),
            "accuracy": proportion_interval(right, units),
            "balanced accuracy": mean_interval([(right[hits], units[hits]), (right[~hits], units[~hits])]),
        }
        boot = _bootstrap(random, right, hits, units)
        for name, interval in found.items():
            ours[name].append(interval[0] <= value <= interval[1])
            low, high = np.percentile(boot[name], (2.5, 97.5))
            peer[name].append(low <= value <= high)
    return {name: (100 * np.mean(ours[name]), 100 * np.mean(peer[name]), SIMULATIONS, SIMULATIONS) for name in ours}


def areas(random, positives, negatives, cluster, value):
    """Return the same values for the AUROC."""
    hits, units = _labels(positives, negatives, cluster)
    labels, ours, peer = np.where(hits, 0, 1), [], []
    for _ in range(SIMULATIONS):
        scores = norm.cdf(_scores(random, hits, units, np.sqrt(2) * norm.ppf(value), cluster) / 4)
        probabilities = np.stack([scores, 1 - scores], axis=1)
        seed = int(random.integers(2**31))
        found = bootstrap_metrics(probabilities, labels, units, positive=0, seed=seed, resamples=RESAMPLES)
        resampled = found["auroc"]
        interval, percentile = auroc_interval([(scores, hits)], units, resampled), percentile_interval(resampled)
        if interval is not None:
            ours.append(interval[0] <= value <= interval[1])
        peer.append(percentile is not None and percentile[0] <= value <= percentile[1])
    return 100 * np.mean(ours), 100 * np.mean(peer), len(ours), SIMULATIONS


def _labels(positives, negatives, cluster):
    """Return which samples are positive and the cluster of each; a cluster has one class."""
    hits = np.arange(positives + negatives) < positives
    units = np.where(hits, np.arange(len(hits)), np.arange(len(hits)) - positives) // cluster
    return hits, np.where(hits, units, units + positives)


def _scores(random, hits, units, shift, cluster):
    noise = random.normal(size=len(hits))
    if cluster > 1:
        shared = random.normal(size=int(units.max()) + 1)[units]
        noise = CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * noise
    return shift * hits + noise


def _bootstrap(random, right, hits, units):
    """Return each metric under resamples of whole clusters, (R,)."""
    known, index = np.unique(units, return_inverse=True)
    drawn = random.multinomial(len(known), np.full(len(known), 1 / len(known)), size=RESAMPLES).astype(float)[:, index]
    rates = {}
    for name, mask in (("sensitivity", hits), ("specificity", ~hits), ("accuracy", np.ones_like(hits))):
        rates[name] = drawn[:, mask] @ right[mask] / np.maximum(drawn[:, mask].sum(axis=1), 1)
    return {**rates, "balanced accuracy": (rates["sensitivity"] + rates["specificity"]) / 2}


def _row(what, ours, peer, given, simulations):
    met = "met" if GOAL[0] <= ours <= GOAL[1] else "missed"
    return Row(
        what=what,
        beside="percentile bootstrap",
        ours=float(ours),
        peer=float(peer),
        unit="% covered",
        ratio=float(ours / max(peer, 0.1)),
        spread=(float(ours / max(peer, 0.1)),) * 2,
        pairs=simulations,
        goal=None,
        parity=f"goal 93 to 99 %: {met}; an interval in {100 * given / simulations:.0f} % of simulations",
        command=COMMAND,
    )
