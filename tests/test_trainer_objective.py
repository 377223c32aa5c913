import numpy as np
import pytest
import torch
from torch.nn import functional

from data_shards.index import Shard, ShardIndex
from trainer.data.batches import DeviceBatch
from trainer.evaluation.objective import MULTI_LABEL, SINGLE_LABEL
from trainer.training.micro_batching import accumulate_gradients

TARGETS = torch.tensor([[1, 0, -1], [0, -1, 1], [-1, -1, -1], [1, 1, 0]])


def index_of(present, unknown, samples=100):
    shard = Shard(
        name="train-0.tar", split="train", samples=samples, per_class=present, unknown=unknown, bytes=1, sha256="0" * 64
    )
    return ShardIndex(classes=tuple("abc"), shards=(shard,), multi_label=True).sealed()


def logits_of(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 3))).float()


def test_the_loss_of_an_image_is_the_sum_over_its_known_targets():
    logits = logits_of()
    each = functional.binary_cross_entropy_with_logits(logits, TARGETS.clamp(min=0).float(), reduction="none")

    losses = MULTI_LABEL.losses(logits, TARGETS, None)

    expected = [each[0, :2].sum(), each[1, [0, 2]].sum(), torch.tensor(0.0), each[3].sum()]
    assert losses.tolist() == pytest.approx([float(value) for value in expected])


def test_an_unknown_target_has_no_gradient():
    logits = logits_of().requires_grad_()

    torch.autograd.backward(MULTI_LABEL.losses(logits, TARGETS, torch.ones(2, 3)).sum())

    assert logits.grad is not None
    assert ((logits.grad != 0) == (TARGETS >= 0)).all()


def test_the_weights_make_the_mean_over_images_the_mean_over_known_targets():
    index = index_of(present=(2, 1, 1), unknown=(1, 2, 2), samples=4)
    logits = logits_of()
    weights = torch.tensor(MULTI_LABEL.loss_weights(index, "train", False))

    mean = MULTI_LABEL.losses(logits, TARGETS, weights).mean()

    known = TARGETS >= 0
    assert float(mean) == pytest.approx(
        float(functional.binary_cross_entropy_with_logits(logits[known], TARGETS[known].float()))
    )


def test_class_weights_give_the_present_and_absent_images_of_a_label_the_same_total():
    index = index_of(present=(10, 40, 5), unknown=(20, 0, 90))

    absent, present = MULTI_LABEL.loss_weights(index, "train", True)

    totals = [(a * (100 - p - u), w * p) for a, w, p, u in zip(absent, present, (10, 40, 5), (20, 0, 90), strict=True)]
    assert [pair[0] for pair in totals] == pytest.approx([pair[1] for pair in totals])
    assert present[0] / absent[0] == pytest.approx(70 / 10)
    assert sum(map(sum, totals)) == pytest.approx(100)  # the mean over the images is that of equal weights


@pytest.mark.parametrize(
    ("present", "is_weighted"), [((50, 40, 60), False), ((50, 20, 60), True), ((90, 50, 50), True)]
)
def test_class_weights_are_chosen_where_a_label_is_rare_or_frequent(present, is_weighted):
    absent, weights = MULTI_LABEL.loss_weights(index_of(present, (0, 0, 0)), "train", None)

    assert (absent != weights) is is_weighted


def test_a_label_that_every_image_has_gets_equal_weights():
    absent, present = MULTI_LABEL.loss_weights(index_of((100, 50, 50), (0, 0, 0)), "train", True)

    assert absent[0] == present[0] == pytest.approx(present[1])


def test_one_class_an_image_has_the_cross_entropy_of_torch_bit_for_bit():
    logits, labels = logits_of(), torch.tensor([0, 2, 1, 1])
    weights = torch.tensor([0.5, 1.0, 2.0])

    losses = SINGLE_LABEL.losses(logits, labels, weights)

    assert torch.equal(losses, functional.cross_entropy(logits, labels, weights, reduction="none"))


def test_gradients_do_not_depend_on_micro_batches_or_on_how_images_are_divided_among_workers():
    torch.manual_seed(0)
    inputs, weights = torch.randn(4, 5), torch.tensor([[0.5, 1.0, 0.7], [2.0, 1.5, 1.1]])

    def gradient(parts, micro_batches=1):
        """The mean over workers of the gradients, as DDP computes it."""
        model = torch.nn.Linear(5, 3)
        torch.nn.init.constant_(model.weight, 0.1)
        torch.nn.init.constant_(model.bias, 0.0)
        for rows in parts:
            accumulate_gradients(
                model,
                DeviceBatch(inputs[rows], TARGETS[rows], torch.arange(len(rows)), 4),
                loss_weight=len(parts) / 4 / len(parts),
                class_weights=weights,
                objective=MULTI_LABEL,
                micro_batches=micro_batches,
            )
        return model.weight.grad

    whole = gradient([[0, 1, 2, 3]])

    assert torch.allclose(gradient([[0, 1, 2, 3]], micro_batches=2), whole)
    assert torch.allclose(gradient([[0, 1], [2, 3]]), whole)
