import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from trainer.evaluation.paired import (
    FIGURES,
    ModelScores,
    auroc_test,
    difference_interval,
    mcnemar_test,
    paired_figures,
    tango_interval,
)


def pairs(gained, lost, same):
    """Differences of a paired proportion, and an own group for each."""
    differences = np.array([1.0] * gained + [-1.0] * lost + [0.0] * same)
    return differences, np.arange(len(differences))


def table(gained, lost, same):
    return [[same, lost], [gained, 0]]


def correlated(random, hits, units, cluster):
    """Scores of two models that are equally good, correlated with each other and within a group."""

    def noise():
        own = random.normal(size=len(hits))
        return own if cluster == 1 else 0.6**0.5 * random.normal(size=units.max() + 1)[units] + 0.4**0.5 * own

    shared = noise()
    return [1.5 * hits + 0.5**0.5 * (shared + noise()) for _ in range(2)]


def delong_by_pairs(first, second, hits):
    """The p value of DeLong 1988, from the kernel of every pair of a positive and a negative."""
    kernels = [
        (s[hits][:, None] > s[~hits][None, :]) + 0.5 * (s[hits][:, None] == s[~hits][None, :]) for s in (first, second)
    ]
    positives, negatives = hits.sum(), (~hits).sum()
    covariance = (
        np.cov([k.mean(axis=1) for k in kernels]) / positives + np.cov([k.mean(axis=0) for k in kernels]) / negatives
    )
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return 2 * norm.sf(abs(kernels[1].mean() - kernels[0].mean()) / error)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 5), (8, 3), (12, 12), (20, 4)])
def test_with_few_differing_images_the_test_is_the_exact_mcnemar_test(gained, lost):
    differences, units = pairs(gained, lost, 60)

    p, name = mcnemar_test(differences, units)

    assert p == pytest.approx(mcnemar(table(gained, lost, 60), exact=True).pvalue)
    assert name == "McNemar, exact"


@pytest.mark.parametrize(("gained", "lost"), [(13, 12), (30, 10), (0, 40)])
def test_with_many_differing_images_the_test_is_mcnemar_by_chi_squared(gained, lost):
    differences, units = pairs(gained, lost, 60)

    p, name = mcnemar_test(differences, units)

    assert p == pytest.approx(mcnemar(table(gained, lost, 60), exact=False, correction=False).pvalue)
    assert name == "McNemar"


def test_images_of_one_group_count_as_one_vote_of_their_sum():
    differences, units = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 0, 1, 1, 2])

    p, name = mcnemar_test(differences, units)

    assert (p, name) == (0.5, "McNemar by group, exact")  # both groups with one sign: 2 of 4 sign patterns


@given(sums=st.lists(st.integers(-4, 4).filter(bool), min_size=1, max_size=10))
def test_the_exact_test_by_group_counts_all_patterns_of_signs(sums):
    differences = np.concatenate([np.full(abs(size), np.sign(size), dtype=float) for size in sums])
    units = np.repeat(np.arange(len(sums)), np.abs(sums))
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(sums))).reshape(len(sums), -1)
    expected = np.mean(np.abs(np.abs(sums) @ signs) >= abs(sum(sums)))

    assert mcnemar_test(differences, units)[0] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_test_of_the_auroc_is_that_of_delong(seed):
    random = np.random.default_rng(seed)
    hits, units = np.arange(80) < 25, np.arange(80)
    first, second = (np.round(scores, 1) for scores in correlated(random, hits, units, 1))  # rounding makes ties

    area_first, area_second, interval, p, name = auroc_test([(first, hits)], [(second, hits)], hits.astype(int), units)

    assert (area_first, area_second) == pytest.approx((roc_auc_score(hits, first), roc_auc_score(hits, second)))
    assert p == pytest.approx(delong_by_pairs(first, second, hits))
    assert (interval[0] <= 0 <= interval[1]) == (p >= 0.05)
    assert name == "DeLong"


@pytest.mark.parametrize(("gained", "lost", "count"), [(0, 0, 125), (5, 0, 44), (40, 20, 160), (1, 7, 30), (10, 0, 10)])
def test_the_interval_of_paired_proportions_inverts_the_score_test(gained, lost, count):
    def likelihood_variance(difference):
        """n times the variance at the maximum of the likelihood under an assumed true difference, by search."""

        def loss(share):
            both = 1 - 2 * share - difference
            parts = ((gained, share + difference), (lost, share), (count - gained - lost, both))
            return -sum(n * np.log(max(chance, 1e-300)) for n, chance in parts if n)

        bounds = max(0.0, -difference), (1 - difference) / 2
        share = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
        return count * (2 * share + difference * (1 - difference))

    low, high = tango_interval(gained, lost, count)

    for end in {low, high} - {1.0}:
        statistic = (gained - lost - count * end) / np.sqrt(likelihood_variance(end))
        assert abs(statistic) == pytest.approx(norm.ppf(0.975), rel=1e-3)
    assert low < (gained - lost) / count <= high


def test_models_that_never_differ_still_have_an_interval():
    low, high = difference_interval(*pairs(0, 0, 100))

    assert (low, high) == pytest.approx((-0.037, 0.037), abs=5e-4)


def test_groups_widen_the_interval_of_a_difference():
    differences = np.repeat([1.0, -1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0] * 3, 3)

    single = difference_interval(differences, np.arange(90))
    grouped = difference_interval(differences, np.repeat(np.arange(30), 3))

    assert np.ptp(grouped) > 1.4 * np.ptp(single)


def random_models(seed, classes=2, count=90):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    models = []
    for strength in (1.0, 1.2):
        logits = random.normal(size=(count, classes)) + strength * np.eye(classes)[labels]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        models.append(ModelScores(probabilities=probabilities, predicted=probabilities.argmax(axis=1)))
    return models, labels


@pytest.mark.parametrize("classes", [2, 4])
def test_the_figures_are_those_of_scikit_learn_for_each_model(classes):
    (first, second), labels = random_models(1, classes)

    figures = {f.name: f for f in paired_figures(first, second, labels, np.arange(90), positive=1)}

    assert tuple(figures) == FIGURES
    assert figures["accuracy"].second == pytest.approx((second.predicted == labels).mean())
    assert figures["balanced_accuracy"].first == pytest.approx(balanced_accuracy_score(labels, first.predicted))
    assert figures["sensitivity"].first == pytest.approx((first.predicted == 1)[labels == 1].mean())
    assert figures["specificity"].second == pytest.approx((second.predicted != 1)[labels != 1].mean())
    area = (
        roc_auc_score(labels == 1, second.probabilities[:, 1])
        if classes == 2
        else roc_auc_score(labels, second.probabilities, multi_class="ovr")
    )
    assert figures["auroc"].second == pytest.approx(area)
    for figure in figures.values():
        low, high = figure.interval
        assert low < figure.difference < high


def test_swapping_the_models_mirrors_every_difference():
    (first, second), labels = random_models(2)

    there = paired_figures(first, second, labels, np.arange(90), positive=0)
    back = paired_figures(second, first, labels, np.arange(90), positive=0)

    assert [f.difference for f in there] == pytest.approx([-f.difference for f in back])
    assert [f.p for f in there] == pytest.approx([f.p for f in back], nan_ok=True)
    assert [f.interval[0] for f in there] == pytest.approx([-f.interval[1] for f in back], abs=1e-9)


def test_two_perfect_models_may_differ_as_far_as_the_images_allow():
    labels = np.repeat([0, 1], 20)
    models = [np.stack([1 - s, s], axis=1) for s in (np.linspace(0, 1, 40), np.linspace(0.1, 0.9, 40))]
    first, second = (ModelScores(probabilities=p, predicted=p.argmax(axis=1)) for p in models)

    auroc = paired_figures(first, second, labels, np.arange(40), positive=1)[-1]

    assert (auroc.difference, auroc.p) == (0.0, 1.0)
    assert auroc.interval == pytest.approx((0.025 ** (1 / 20) - 1, 1 - 0.025 ** (1 / 20)))


def test_a_model_that_ranks_all_images_wrong_is_worse_than_one_that_ranks_them_right():
    labels, right = np.repeat([0, 1], 20), np.linspace(0, 1, 40)
    models = [np.stack([1 - s, s], axis=1) for s in (right, right[::-1])]
    first, second = (ModelScores(probabilities=p, predicted=p.argmax(axis=1)) for p in models)

    auroc = paired_figures(first, second, labels, np.arange(40), positive=1)[-1]

    assert auroc.difference == -1.0
    assert auroc.interval == pytest.approx((-1.0, 1 - 2 * 0.025 ** (1 / 20)))


def test_a_split_of_one_class_leaves_the_other_figures_undefined():
    (first, second), _ = random_models(3)

    figures = {f.name: f for f in paired_figures(first, second, np.zeros(90, dtype=int), np.arange(90), positive=0)}

    assert (figures["specificity"].first, figures["auroc"].difference, figures["auroc"].interval) == (None, None, None)
    assert figures["sensitivity"].interval is not None


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [1, 3])
def test_equally_good_models_differ_significantly_in_5_percent_of_simulations(cluster):
    random = np.random.default_rng(cluster)
    hits = np.arange(600) < 150
    units = np.arange(600) // cluster
    found = {"accuracy": 0, "auroc": 0}
    for _ in range(1000):
        first, second = correlated(random, hits, units, cluster)
        right = [((scores >= 0.75) == hits).astype(float) for scores in (first, second)]
        found["accuracy"] += mcnemar_test(right[1] - right[0], units)[0] < 0.05
        found["auroc"] += auroc_test([(first, hits)], [(second, hits)], hits.astype(int), units)[3] < 0.05

    assert all(35 <= count <= 65 for count in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        ([1] * 10, [1] * 40),
        ([3] * 8, [3] * 32),
        ([20] + [1] * 30, [1] * 150),  # one patient has 40 % of the positives
        ([1] * 25, [60] + [1] * 40),  # one has 60 % of the negatives
    ],
)
def test_equally_good_models_differ_significantly_in_at_most_6_5_percent_of_small_and_unequal_groups(
    positives, negatives
):
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(len(positives) + len(negatives)), positives + negatives)
    hits = units < len(positives)
    found = dict.fromkeys(("accuracy", "accuracy interval", "specificity interval", "auroc"), 0)
    for _ in range(1000):
        first, second = correlated(random, hits, units, 2)
        right = [((scores >= 0.75) == hits).astype(float) for scores in (first, second)]
        differences = right[1] - right[0]
        low, high = difference_interval(differences, units)
        low_negatives, high_negatives = difference_interval(differences[~hits], units[~hits])
        found["accuracy"] += mcnemar_test(differences, units)[0] < 0.05
        found["accuracy interval"] += not low <= 0 <= high
        found["specificity interval"] += not low_negatives <= 0 <= high_negatives
        found["auroc"] += (auroc_test([(first, hits)], [(second, hits)], hits.astype(int), units)[3] or 1) < 0.05

    assert all(count <= 65 for count in found.values()), found


def test_a_single_positive_image_gives_no_interval_of_the_difference_of_aurocs():
    (first, second), _ = random_models(3)
    labels = (np.arange(90) > 0).astype(np.int64)

    auroc = paired_figures(first, second, labels, np.arange(90), positive=0)[-1]

    assert auroc.difference is not None
    assert (auroc.interval, auroc.p, auroc.test) == (None, None, None)


def test_patients_with_images_of_both_classes_do_not_count_twice_in_the_balanced_accuracy():
    gains = np.repeat([1.0, -1.0, 0.0], [3, 1, 8])  # of each of 12 patients, the same in both classes
    labels, units = np.repeat([0, 1], 12), np.tile(np.arange(12), 2)
    first, second = (np.where(np.tile(gains == lost, 2), 1 - labels, labels) for lost in (1.0, -1.0))
    scores = [ModelScores(probabilities=np.eye(2)[predicted], predicted=predicted) for predicted in (first, second)]

    figures = {figure.name: figure for figure in paired_figures(*scores, labels, units, positive=0)}

    low, high = difference_interval(gains, np.arange(12))
    found = figures["balanced_accuracy"].interval
    assert found[1] - found[0] >= high - low - 1e-9
