import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm, t
from sklearn.metrics import roc_auc_score

from trainer.evaluation.bootstrap import weighted_metrics
from trainer.evaluation.intervals import (
    auroc_influence,
    auroc_interval,
    class_intervals,
    confidence_intervals,
    effective_sample_size,
    mean_interval,
    pairs_interval,
    percentile_interval,
    proportion_interval,
    variance_freedom,
)


def successes(count, total):
    return np.arange(total) < count


def own_groups(total):
    return np.arange(total)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 25), (24, 25), (95, 125), (100, 100)])
def test_the_interval_of_a_proportion_is_clopper_pearson(count, total):
    found = proportion_interval(successes(count, total), own_groups(total))

    assert found == pytest.approx(tuple(binomtest(count, total).proportion_ci(0.95, "exact")))


def test_a_hundred_of_a_hundred_correct_leave_room_for_errors():
    low, high = proportion_interval(successes(100, 100), own_groups(100))

    assert (round(low, 3), high) == (0.964, 1.0)


def test_a_proportion_of_no_samples_has_no_interval():
    assert proportion_interval(successes(0, 0), own_groups(0)) is None


def test_groups_of_equal_samples_count_once():
    correct, groups = np.repeat(successes(50, 60), 3), np.repeat(np.arange(60), 3)

    size = effective_sample_size(correct, groups)

    assert size == pytest.approx(59 * (t.ppf(0.975, 179) / t.ppf(0.975, 59)) ** 2)


def test_without_an_error_the_samples_of_a_group_count_as_fully_dependent():
    all_correct, groups = successes(90, 90), np.repeat(np.arange(30), 3)

    assert proportion_interval(all_correct, groups) == proportion_interval(successes(30, 30), own_groups(30))


def test_the_interval_of_a_mean_of_proportions_is_never_of_zero_width():
    low, high = mean_interval([(successes(20, 20), own_groups(20)), (successes(80, 80), own_groups(80))])

    assert 0.8 < low < high == 1.0


def test_recalls_of_distinct_groups_are_independent_in_the_interval_of_their_mean():
    first, second = (successes(15, 20), own_groups(20)), (successes(70, 80), 20 + own_groups(80))
    limits = [binomtest(15, 20).proportion_ci(0.95, "exact"), binomtest(70, 80).proportion_ci(0.95, "exact")]

    low, high = mean_interval([first, second])

    assert low == pytest.approx((0.75 + 0.875) / 2 - np.hypot(0.75 - limits[0].low, 0.875 - limits[1].low) / 2)
    assert high == pytest.approx((0.75 + 0.875) / 2 + np.hypot(limits[0].high - 0.75, limits[1].high - 0.875) / 2)


def test_patients_who_are_wrong_in_both_classes_widen_the_interval_of_the_mean_recall_as_one_proportion():
    correct, patients = successes(60, 80), own_groups(80)

    found = mean_interval([(correct, patients), (correct, patients)])

    assert found == pytest.approx(proportion_interval(correct, patients))


def test_patients_who_are_wrong_in_one_of_both_classes_do_not_narrow_the_interval_of_the_mean_recall():
    correct, patients = successes(40, 80), own_groups(80)

    shared = mean_interval([(correct, patients), (~correct, patients)])

    assert shared == pytest.approx(mean_interval([(correct, patients), (~correct, patients + 80)]))


def test_the_interval_of_the_auroc_is_delong_on_the_logit_scale():
    random = np.random.default_rng(0)
    hits = np.arange(60) < 20
    scores = random.normal(size=60) + hits
    above = (scores[hits][:, None] > scores[~hits]).astype(float)
    area = roc_auc_score(hits, scores)
    error = np.sqrt(above.mean(axis=1).var(ddof=1) / 20 + above.mean(axis=0).var(ddof=1) / 40)
    squares = np.concatenate([(above.mean(axis=1) - area) ** 2 / 20 / 19, (above.mean(axis=0) - area) ** 2 / 40 / 39])
    freedom = 2 / (np.square(squares).sum() / squares.sum() ** 2 - 1 / 60)
    reach = t.ppf(0.975, min(19, freedom)) * error / (area * (1 - area))
    expected = [1 / (1 + np.exp(-(np.log(area / (1 - area)) + sign * reach))) for sign in (-1, 1)]

    assert auroc_interval([(scores, hits)], own_groups(60)) == pytest.approx(expected)


def test_a_single_misranked_positive_leaves_the_auroc_as_high_as_the_pairs_of_images_allow():
    hits = successes(25, 125)
    scores = np.where(hits, 1000 - own_groups(125), -own_groups(125))
    scores[0] = -70  # below 45 negatives of 100: it carries the whole variance
    area = roc_auc_score(hits, scores)

    low, high = auroc_interval([(scores, hits)], own_groups(125))

    assert area == pytest.approx(1 - 0.45 / 25, abs=0.001)
    assert low == pytest.approx(beta.ppf(0.025, 25 * area, 25 * (1 - area) + 1))
    assert area < high < 1


def test_the_pairs_of_images_of_unequal_groups_are_their_effective_number():
    hits, groups = successes(25, 125), own_groups(125)
    groups[:10] = 0  # 10 positives of one patient, 15 of their own

    found = pairs_interval(0.9, hits, groups)

    count = 25**2 / (10**2 + 15)
    assert found == pytest.approx(
        (beta.ppf(0.025, 0.9 * count, 0.1 * count + 1), beta.ppf(0.975, 0.9 * count + 1, 0.1 * count))
    )


def test_a_patient_with_most_of_the_images_leaves_few_independent_ones_however_well_they_fit_the_others():
    groups = np.concatenate([np.zeros(60), np.arange(1, 41)]).astype(int)
    right = np.concatenate([successes(48, 60), successes(32, 40)])  # the rate is 0.8 in both parts

    found = effective_sample_size(right, groups)

    assert 1 <= found < 20


def test_the_auroc_of_a_patient_with_most_of_the_negatives_is_less_certain_than_without_a_bias():
    random, hits = np.random.default_rng(0), successes(25, 125)
    scores, groups = random.normal(size=125) + 1.5 * hits, own_groups(125)
    groups[65:] = 65  # 60 of 100 negatives

    (area, influence), own = (
        auroc_influence([(scores, hits)], groups),
        auroc_influence([(scores, hits)], own_groups(125)),
    )

    below = (scores[hits][:, None] > scores[65:]).mean()
    shares = np.array([0.6] + [0.01] * 40)
    factor = 1 / np.sqrt(1 - 2 * 0.6 + np.square(shares).sum())
    assert area == own[0]
    assert influence[65] == pytest.approx(0.6 * (below - area) * factor)


def test_a_wider_bootstrap_replaces_the_interval_of_the_auroc():
    hits = successes(50, 100)
    scores = np.random.default_rng(0).normal(size=100) + 1.4 * hits

    found = auroc_interval([(scores, hits)], own_groups(100), np.repeat([0.73, 0.93], 9))

    assert found == (0.73, 0.93)


def test_perfect_separation_gives_an_exact_lower_bound():
    scores, hits = np.arange(50) / 50, np.arange(50) >= 30

    assert auroc_interval([(scores, hits)], own_groups(50), np.ones(9)) == pytest.approx((0.025 ** (1 / 20), 1.0))


def test_groups_widen_every_interval_of_correlated_images():
    random = np.random.default_rng(3)
    patients = np.repeat(np.arange(60), 3)
    labels = (patients % 2).astype(np.int64)
    scores = norm.cdf(random.normal(size=60)[patients] + 0.2 * random.normal(size=180) + (labels == 0) - 0.5)
    probabilities = np.stack([scores, 1 - scores], axis=1)
    predicted = probabilities.argmax(axis=1)

    single = confidence_intervals(probabilities, labels, predicted, positive=0)
    grouped = confidence_intervals(probabilities, labels, predicted, positive=0, groups=[f"p{p}" for p in patients])

    assert all(np.ptp(grouped[name]) > np.ptp(single[name]) for name in single)


@pytest.mark.parametrize(("classes", "highest"), [(2, 1.0), (3, 2.0)])
def test_the_interval_of_the_brier_score_of_two_images_ends_at_the_highest_score(classes, highest):
    probabilities, labels = np.full((2, classes), 0.1 / (classes - 1)), np.array([0, 1])
    probabilities[:, 0] = 0.9

    low, high = confidence_intervals(probabilities, labels, np.zeros(2, dtype=np.int64), positive=0)["brier"]

    assert (low, high) == (0.0, highest)


def test_what_the_split_leaves_undefined_has_no_interval():
    probabilities, labels = np.array([[0.9, 0.1], [0.8, 0.2]]), np.zeros(2, dtype=np.int64)

    found = confidence_intervals(probabilities, labels, labels, positive=0)

    assert (found["specificity"], found["auroc"]) == (None, None)
    assert found["sensitivity"] == pytest.approx([0.025**0.5, 1.0])


def test_each_class_has_intervals_of_recall_and_precision():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])

    first, second, absent = class_intervals(labels, predicted, 3, None)

    assert first["recall"] == pytest.approx(list(binomtest(2, 3).proportion_ci(0.95, "exact")))
    assert second["precision"] == pytest.approx(list(binomtest(1, 2).proportion_ci(0.95, "exact")))
    assert absent == {"recall": None, "precision": None}


def test_equal_bootstrap_values_give_no_interval():
    assert percentile_interval(np.full(200, 0.5)) is None


def test_a_resample_without_images_has_no_loss():
    found = weighted_metrics(np.zeros((1, 2)), np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 0]), positive=1)

    assert np.isnan(found["loss"]).all()
    assert np.isnan(found["brier"]).all()


@pytest.mark.parametrize("errors", [1, 2, 3])
def test_an_error_never_makes_the_interval_of_grouped_images_start_higher(errors):
    groups, correct = np.repeat(np.arange(12), 2), np.ones(24, dtype=bool)
    without = proportion_interval(correct, groups)
    correct[: 2 * errors : 2] = False

    low, high = proportion_interval(correct, groups)
    wrong_low, wrong_high = proportion_interval(~correct, groups)

    assert effective_sample_size(correct, groups) > 12  # one error a group tells nothing of a design effect
    assert low <= without[0] == pytest.approx(0.025 ** (1 / 12))
    assert high < 1
    assert (wrong_low, wrong_high) == pytest.approx((1 - high, 1 - low))


def test_a_reversed_order_gives_an_exact_upper_bound():
    scores, hits = np.arange(50) / 50, np.arange(50) < 20

    assert auroc_interval([(scores, hits)], own_groups(50)) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_a_separated_class_with_few_images_widens_the_interval_of_the_mean_auroc():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [3, 60, 60])
    scores = random.normal(size=(123, 3)) + 2 * np.eye(3)[labels]
    scores[:, 0] = labels == 0
    ranked = [(scores[:, c], labels == c) for c in range(3)]

    low, high = auroc_interval(ranked, own_groups(123))

    reach = 1 - 0.025 ** (1 / 3)  # of three images in the right order
    mean = np.mean([roc_auc_score(hits, scored) for scored, hits in ranked])
    assert mean - low > reach / 3
    assert high < 1


def test_equal_scores_give_no_interval_of_the_auroc():
    hits = np.arange(20) < 10

    assert auroc_interval([(np.zeros(20), hits), (np.zeros(20), ~hits)], own_groups(20)) is None


@pytest.mark.parametrize("negatives", [100, 10_000])
def test_a_single_positive_image_leaves_the_auroc_open_however_many_negatives_there_are(negatives):
    scores = np.append(np.arange(negatives), 0.9 * negatives - 0.5)
    hits = np.arange(negatives + 1) == negatives

    found = auroc_interval([(scores, hits)], own_groups(negatives + 1), np.full(9, 0.9))

    assert found == pytest.approx((0.025 * 0.9, 1 - 0.025 * 0.1))


def test_a_single_positive_image_gives_no_interval_of_the_average_precision():
    probabilities = np.column_stack([np.linspace(0.9, 0.1, 50), np.linspace(0.1, 0.9, 50)])
    labels = (np.arange(50) == 45).astype(np.int64)

    found = confidence_intervals(probabilities, labels, probabilities.argmax(axis=1), positive=1)

    assert found["average_precision"] is None


def test_the_interval_of_the_loss_of_few_images_is_that_of_student():
    losses = np.array([0.1, 0.2, 0.9])
    probabilities = np.column_stack([np.exp(-losses), 1 - np.exp(-losses)])
    labels = np.zeros(3, dtype=np.int64)

    low, high = confidence_intervals(probabilities, labels, labels, positive=0)["loss"]

    reach = t.ppf(0.975, 2) * losses.std(ddof=1) / 3**0.5
    assert (low, high) == pytest.approx((0, losses.mean() + reach), rel=0.1)


def test_a_variance_that_few_groups_carry_has_few_degrees_of_freedom():
    normal, carried = np.random.default_rng(0).normal(size=20_000), np.zeros(1000)
    carried[:3] = 1

    assert variance_freedom(normal) == pytest.approx(20_000, rel=0.1)
    assert variance_freedom(carried) == pytest.approx(6, rel=0.01)
    assert variance_freedom(np.ones(5)) == float("inf")


def test_losses_that_differ_by_rounding_alone_have_no_interval():
    probabilities, labels = np.tile([0.3, 0.7], (20, 1)), np.zeros(20, dtype=np.int64)

    assert confidence_intervals(probabilities, labels, labels, positive=0)["loss"] is None
