"""Heads that train at once give what each gives alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from trainer.errors import SpecError, Stopped, TrainingDiverged
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec, build
from trainer.training import batched_heads, head_fit
from trainer.training.batched_heads import HeadBatch, HeadRows, clip_each, head_batches, heads_at_once
from trainer.training.head_fit import HeadFit

CPU = torch.device("cpu")
IMAGES = 150
CASES = {
    "defaults": {},
    "EMA, weight decay, no dropout": {"ema": 0.95, "weight_decay": 0.05, "dropout": 0.0},
    "equal class weights": {"class_weights": False, "ema": 0.5},
}


def fit_of(*, multi_label=False, width=32, device=CPU, **options):
    spec = build(TrainSpec, shards="memory", **({"epochs": 4, "batch_size": 16, "head_width": width} | options))
    classes = ("a", "b", "c")
    config = HeadConfig(classes=classes, width=width, dropout=spec.dropout, image_size=224, multi_label=multi_label)
    return HeadFit(spec=spec, config=config, device=device)


def data_of(*, multi_label=False):
    """Features that depend on the labels: of each image one of three classes, the last one rare, or some of them."""
    draw = torch.Generator().manual_seed(7)
    targets = (torch.rand(IMAGES, 3, generator=draw) < torch.tensor([0.5, 0.3, 0.1])).long()
    directions = torch.randn(3, 1280, generator=draw)
    features = torch.rand(IMAGES, 1280, generator=draw) + 0.1 * targets @ directions
    if not multi_label:
        return features, targets[:, 2] * 2 + (1 - targets[:, 2]) * targets[:, 1]
    targets[torch.rand(IMAGES, 3, generator=draw) < 0.1] = -1
    return features, targets


def heads_of(*sizes):
    draw = torch.Generator().manual_seed(3)
    return [HeadRows(torch.randperm(IMAGES, generator=draw)[:size], seed) for seed, size in enumerate(sizes, 5)]


@pytest.fixture
def losses_alone(monkeypatch):
    """The training losses of the epochs that `HeadFit.fit` trains."""
    losses = []
    monkeypatch.setattr(head_fit._Hooks, "log_epoch", lambda _, metrics: losses.append(metrics.train_loss))
    return losses


@pytest.mark.parametrize("multi_label", [False, True], ids=["one class", "several labels"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("sizes", [(120, 120, 120), (119, 125, 113)], ids=["equal sizes", "unequal sizes"])
def test_heads_have_the_losses_and_logits_that_each_has_alone(multi_label, options, sizes, losses_alone):
    fit, (features, labels) = fit_of(multi_label=multi_label, **options), data_of(multi_label=multi_label)
    heads = heads_of(*sizes)

    found, losses = HeadBatch(fit=fit, features=features, labels=labels, heads=heads).train_with_losses()

    for number, head in enumerate(heads):
        losses_alone.clear()
        alone = fit.fit(features[head.rows], labels[head.rows], seed=head.seed)
        assert [epoch[number] for epoch in losses] == pytest.approx(losses_alone, abs=1e-5)
        assert torch.allclose(found[number](features), alone(features), atol=1e-4)
        assert len(losses_alone) == 4
        assert losses_alone[-1] < losses_alone[0]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("sizes", [(120, 120), (119, 125)], ids=["equal sizes", "unequal sizes"])
def test_steps_from_tables_as_on_a_gpu_are_those_of_a_cpu_bit_for_bit(options, sizes, monkeypatch):
    features, labels = data_of()
    batch = HeadBatch(fit=fit_of(**options), features=features, labels=labels, heads=heads_of(*sizes))
    usual, expected = batch.train_with_losses()

    monkeypatch.setattr(batched_heads, "DEVICES", ("cpu",))
    tables, losses = batch.train_with_losses()

    assert losses == [pytest.approx(epoch, rel=1e-12) for epoch in expected]
    for one, other in zip(tables, usual, strict=True):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(found, wanted) for found, wanted in pairs)


def test_each_head_has_a_seed_of_its_own():
    fit, (features, labels) = fit_of(), data_of()
    first = heads_of(120)[0]

    one, other = HeadBatch(
        fit=fit, features=features, labels=labels, heads=[first, HeadRows(first.rows, first.seed + 1)]
    ).train()

    assert not torch.allclose(one(features), other(features), atol=1e-2)


def test_the_gradients_of_each_head_are_clipped_by_their_own_norm():
    draw = torch.Generator().manual_seed(0)
    heads = [[nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(5))] for _ in range(3)]
    for scale, parameters in zip((0.01, 1.0, 100.0), heads, strict=True):
        for one in parameters:
            one.grad = scale * torch.randn(one.shape, generator=draw)
    stacked = [nn.Parameter(torch.stack([head[place].detach() for head in heads])) for place in (0, 1)]
    for place, one in enumerate(stacked):
        one.grad = torch.stack([head[place].grad for head in heads])

    clip_each(stacked, 1.0)

    for number, parameters in enumerate(heads):
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for place, one in enumerate(parameters):
            assert torch.allclose(stacked[place].grad[number], one.grad, rtol=1e-6)


def test_images_are_counted_and_a_stop_request_ends_the_training_after_a_step():
    counted = []
    fit = replace(fit_of(), on_images=counted.append, stop_reason=lambda: "cancel" if len(counted) == 3 else None)
    features, labels = data_of()

    with pytest.raises(Stopped, match="cancel"):
        HeadBatch(fit=fit, features=features, labels=labels, heads=heads_of(119, 125)).train()

    assert len(counted) == 3
    assert all(count in (29, 30, 31) for count in counted)


def test_a_loss_of_one_head_that_is_not_finite_ends_the_training():
    features, labels = data_of()
    first, other = heads_of(120, 120)
    row = next(number for number in first.rows.tolist() if number not in other.rows.tolist())
    features[row] = float("inf")

    with pytest.raises(TrainingDiverged, match=r"loss is not finite \(NaN or inf\) at step .* use a lower --lr"):
        HeadBatch(fit=fit_of(), features=features, labels=labels, heads=[other, first]).train()


def test_steps_of_a_single_image_are_refused():
    features, labels = data_of()

    with pytest.raises(SpecError, match="batch norm needs 2; use another --batch-size or more images"):
        HeadBatch(fit=fit_of(batch_size=2), features=features, labels=labels, heads=heads_of(51, 51)).train()


def test_a_batch_has_heads_of_the_same_number_of_steps_and_as_equal_sizes_as_possible():
    heads = heads_of(64, 65, 64, 80, 33, 63)

    found = head_batches(heads, batch_size=16, most=2)

    assert sorted(number for batch in found for number in batch) == [0, 1, 2, 3, 4, 5]
    assert all(len({heads[number].steps(16) for number in batch}) == 1 for batch in found)
    assert max(len(batch) for batch in found) == 2
    assert [len(batch) for batch in head_batches(heads_of(*[64] * 7), batch_size=16, most=3)] == [2, 2, 3]


def test_a_cpu_trains_wide_heads_one_at_a_time_and_a_gpu_all_heads_of_25_folds():
    of_width = {width: fit_of(width=width, batch_size=32) for width in (64, 512, 2048)}

    on_cpu = [heads_at_once(fit.config, fit.spec, CPU) for fit in of_width.values()]
    on_gpu = [heads_at_once(fit.config, fit.spec, torch.device("cuda")) for fit in of_width.values()]

    assert on_cpu[0] > 4
    assert on_cpu[1:] == [1, 1]
    assert on_gpu[0] > on_gpu[1] > 25
