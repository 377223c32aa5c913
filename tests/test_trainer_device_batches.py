"""Batches of images are joined on the device until they are as large as it computes best."""

import pytest
import torch

from trainer.data.device_batches import DeviceBatches

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([3], [3]),
        ([2, 2, 2, 2], [4, 4]),
        ([2, 2, 2, 1], [4, 3]),
        ([3, 3, 1], [6, 1]),
        ([4, 9, 1], [4, 9, 1]),
    ],
)
def test_batches_are_joined_until_they_have_enough_images(given, expected):
    images = torch.arange(sum(given)).reshape(-1, 1)

    found = list(DeviceBatches(CPU, 4)(torch.split(images, given) if given else []))

    assert [len(batch) for batch in found] == expected
    assert torch.equal(torch.cat([*found, images[:0]]), images)


def test_a_batch_that_is_large_enough_is_not_copied():
    batch = torch.zeros(4, 1)

    [found] = DeviceBatches(CPU, 4)([batch])

    assert found is batch
