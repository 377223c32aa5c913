import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from trainer.errors import SpecError
from trainer.training.cross_validation import median_repeat
from trainer.training.fold_assignment import assign_folds

CLASSES = ("covid", "normal")


def grouped(images, *, group_size=3, seed=0):
    labels = np.repeat(np.random.default_rng(seed).integers(0, 2, images // group_size), group_size)
    return labels, [f"patient-{number // group_size}" for number in range(len(labels))]


def test_folds_are_those_of_stratified_group_k_fold():
    labels, groups = grouped(120)

    found = assign_folds(labels, groups, folds=4, seed=7, classes=CLASSES)

    expected = StratifiedGroupKFold(4, shuffle=True, random_state=7).split(labels, labels, groups)
    for fold, (_, scored) in enumerate(expected):
        assert np.flatnonzero(found == fold).tolist() == scored.tolist()


def test_all_images_of_a_group_are_in_one_fold():
    labels, groups = grouped(120)

    found = assign_folds(labels, groups, folds=4, seed=0, classes=CLASSES)

    assert all(len(set(found[np.array(groups) == group])) == 1 for group in set(groups))
    assert set(found) == {0, 1, 2, 3}


def test_another_seed_divides_the_images_anew():
    labels, groups = grouped(120)

    first, second = (assign_folds(labels, groups, folds=4, seed=seed, classes=CLASSES) for seed in (0, 1))

    assert (first != second).any()


def test_folds_of_several_labels_share_out_the_rarest_label():
    targets = np.zeros((60, 3), dtype=np.int64)
    targets[:, 0], targets[:6, 1], targets[50:, 2] = 1, 1, -1

    found = assign_folds(targets, [""] * 60, folds=3, seed=0, classes=("a", "b", "c"))

    assert np.bincount(found[:6]).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], "aabbcdef", "3 groups of each class, .* 2 groups of covid; use --folds 2 or less"),
        ([0, 0, 1, 1, 1, 1], "aabcde", "1 group of covid; pack more, or leave out --folds"),
        ([[0, 1]] * 4, "aabb", "--folds 3 needs 3 groups, and train and valid have 2"),
    ],
)  # fmt: skip
def test_too_few_groups_are_refused_with_their_number(labels, groups, message):
    with pytest.raises(SpecError, match=message):
        assign_folds(np.array(labels), list(groups), folds=3, seed=0, classes=CLASSES)


@pytest.mark.parametrize(("losses", "position"), [([0.3], 0), ([0.3, 0.1], 0), ([0.3, 0.1, 0.2], 2), ([4, 1, 2, 3], 3)])
def test_the_repeat_with_the_median_loss_is_shown(losses, position):
    assert median_repeat(losses) == position
