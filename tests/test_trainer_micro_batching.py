"""Steps that do not fit into memory: refused with what would fit, or taken in parts. Memory here is a limit."""

import pytest
import torch
from torch import nn

from tests.trained import train_spec
from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.errors import OutOfMemory
from trainer.model.efficientnet import SyncBatchNorm1d
from trainer.training.micro_batching import accumulate_gradients, choose_micro_batches, fits_in_memory

CPU = torch.device("cpu")
ALONE = ProcessGroup(0, 1, CPU)


class Cramped(nn.Module):
    """A network on a device whose memory holds so many images at once."""

    def __init__(self, room):
        super().__init__()
        self.room = room
        self.norm = SyncBatchNorm1d(3)
        self.last = nn.Linear(3, 2)

    def forward(self, images):
        if len(images) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.last(self.norm(images.mean((2, 3))))


@pytest.mark.parametrize(("room", "micro_batches"), [(32, 1), (31, 2), (16, 2), (8, 4), (5, 8)])
def test_a_step_is_halved_until_it_fits(tmp_path, room, micro_batches):
    spec = train_spec(tmp_path, batch_size="auto")

    found = choose_micro_batches(spec, ALONE, fits(Cramped(room)), largest=32, smallest=29)

    assert found == micro_batches


def test_a_batch_that_is_too_large_is_refused_with_one_that_fits(tmp_path):
    spec = train_spec(tmp_path, batch_size=60)

    with pytest.raises(OutOfMemory) as refusal:
        choose_micro_batches(spec, ALONE, fits(Cramped(17)), largest=60, smallest=52)

    assert str(refusal.value) == (
        "a batch of 60 images over 1 workers does not fit into the memory of cpu; "
        "use --batch-size 15, which fits, or --accumulate to split each step into 4 micro-batches"
    )


def test_the_size_that_fits_is_one_for_all_workers_while_some_are_missing(tmp_path):
    spec = train_spec(tmp_path, batch_size=64, workers=4, min_workers=3)

    class Three(ProcessGroup):
        def all_reduce_sum(self, *values):
            return list(values)

    with pytest.raises(OutOfMemory, match=r"64 images over 3 workers does not fit .* use --batch-size 32, which fits"):
        choose_micro_batches(spec, Three(0, 3, torch.device("cpu")), fits(Cramped(16)), largest=22, smallest=21)


def test_images_of_which_not_even_two_fit_are_refused(tmp_path):
    spec = train_spec(tmp_path, batch_size="auto")

    with pytest.raises(OutOfMemory, match=r"2 images at once do not fit into the memory of cpu; use a smaller --image"):
        choose_micro_batches(spec, ALONE, fits(Cramped(1)), largest=32, smallest=32)


def test_a_trial_moves_nothing():
    module = Cramped(8).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    assert fits(module)(8)
    assert not fits(module)(9)

    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.training


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
def test_gradients_in_parts_are_those_of_the_whole_step(micro_batches):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    step = DeviceBatch(torch.randn(16, 6), torch.arange(16) % 3, torch.arange(16), images=16)
    weights = torch.tensor([0.5, 1.0, 2.0])

    whole, loss = gradients(module, step, weights, micro_batches=1)
    found, loss_in_parts = gradients(module, step, weights, micro_batches=micro_batches)

    assert loss_in_parts == pytest.approx(loss)
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found, whole, strict=True))


def test_auto_is_the_default_batch_in_parts(tmp_path):
    spec = train_spec(tmp_path, batch_size="auto")

    assert (spec.batch_size, spec.accumulate) == (32, True)


def fits(module):
    return lambda images: fits_in_memory(module, images, image_size=4, device=CPU, precision="fp32")


def gradients(module, step, weights, *, micro_batches):
    module.zero_grad()
    loss = accumulate_gradients(
        module, step, loss_weight=1 / step.images, class_weights=weights, micro_batches=micro_batches
    )
    return [parameter.grad.clone() for parameter in module.parameters()], loss
