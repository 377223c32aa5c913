"""The images that the linear baselines of a training are fitted on."""

import numpy as np
import pytest
import torch

from data_shards.targets import ABSENT, PRESENT, UNKNOWN
from trainer.training.baselines import sample_rows

MOST = 100


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_has_the_same_share_of_each_class_and_no_class_vanishes(seed):
    labels = torch.tensor([0] * 7_000 + [1] * 2_998 + [2] * 2)

    rows = sample_rows(labels, seed, most=MOST)

    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.bincount(labels[rows]).tolist() == [69, 30, 1]


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_of_several_labels_an_image_has_images_of_the_rarest_label(seed):
    targets = np.full((5_000, 3), ABSENT)
    targets[:2_500, 0] = PRESENT
    targets[[7, 4_000], 1] = PRESENT  # one of them has another label too
    targets[2_500:3_000, 2] = UNKNOWN

    found = targets[sample_rows(torch.from_numpy(targets), seed, most=MOST)]

    assert len(found) == MOST
    assert (found[:, 1] == PRESENT).sum() == 1
    assert 49 <= (found[:, 0] == PRESENT).sum() <= 51


def test_a_sample_of_few_images_is_all_of_them():
    assert sample_rows(torch.zeros(MOST, dtype=torch.int64), 0, most=MOST).tolist() == list(range(MOST))


def test_a_sample_depends_on_the_seed_alone():
    labels = torch.arange(3).repeat(1_000)

    one, same, other = (sample_rows(labels, seed, most=MOST) for seed in (1, 1, 2))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)
