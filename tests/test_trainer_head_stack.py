"""What a step of heads in slots asks of a GPU, counted without one."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.efficientnet import build_head
from trainer.model.head import HeadConfig
from trainer.training.checkpointer import TrainingCheckpoint
from trainer.training.ema import ModelEma
from trainer.training.head_stack import HeadStack, StackStep
from trainer.training.optimizer import build_optimizer

CPU = torch.device("cpu")
CONFIG = HeadConfig(classes=("a", "b"), width=16, dropout=0.0, image_size=32)
IMAGES = 6


class Operations(TorchDispatchMode):
    """Counts the operations of torch by name."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[func._schema.name.split("::")[1]] += 1
        return func(*args, **(kwargs or {}))


def checkpoint_of(width=16, *, decay=0.9, weight_decay=0.1):
    module = build_head(CONFIG.model_copy(update={"width": width}))
    optimizer = build_optimizer(module, None, backbone_factor=1.0, weight_decay=weight_decay, device=CPU)
    return TrainingCheckpoint(module, optimizer, ModelEma(module, decay))


def step_of(count, *, draw=None):
    return StackStep(
        features=torch.rand(IMAGES, count, 1280, generator=draw),
        labels=torch.arange(IMAGES * count) % 2,
        dropout=None,
        lr=torch.full((count,), 1e-3),
        decay=torch.zeros(count),
    )


def stack_of(heads):
    stack = HeadStack(CONFIG, len(heads), has_ema=bool(heads[0].ema.decay), class_weights=None, device=CPU)
    for slot, head in enumerate(heads):
        stack.put(slot, head)
    return stack


def operations(count):
    stack, step = stack_of([checkpoint_of() for _ in range(count)]), step_of(count)
    stack.step(step)
    with Operations() as counted:
        stack.step(step)
    return counted.found


def test_a_step_of_many_heads_has_the_operations_of_a_step_of_two_and_waits_for_nothing():
    two, many = operations(2), operations(16)

    assert many == two
    assert two["_fused_adamw_"] == 1
    assert not {"_local_scalar_dense", "lift_fresh", "item", "nonzero"} & set(two)


@pytest.mark.parametrize("width", [4, 16])
def test_a_head_is_taken_from_its_slot_as_it_was_put_there(width):
    head, other = checkpoint_of(width), checkpoint_of(width)
    stack = stack_of([head, checkpoint_of()])

    stack.take(0, other)

    for name, tensor in head.module.state_dict().items():
        assert torch.equal(other.module.state_dict()[name], tensor)
        assert torch.equal(other.ema.module.state_dict()[name], head.ema.module.state_dict()[name])


def test_a_free_slot_changes_nothing_of_the_other_heads_and_stays_finite():
    torch.manual_seed(3)
    first, other = checkpoint_of(), checkpoint_of()
    other.module.load_state_dict(first.module.state_dict())
    full = stack_of([first])
    free = HeadStack(CONFIG, 2, has_ema=True, class_weights=None, device=CPU)
    free.put(0, other)
    one = step_of(1, draw=torch.Generator().manual_seed(0))
    two = StackStep(
        features=one.features.expand(-1, 2, -1),
        labels=one.labels.repeat_interleave(2),
        dropout=None,
        lr=one.lr.expand(2),
        decay=one.decay.expand(2),
    )

    alone, beside = full.step(one), free.step(two)

    assert torch.allclose(beside[0], alone[0])
    assert torch.allclose(free.model.values[0], full.model.values[0], atol=1e-6)
    assert all(tensor.isfinite().all() for tensor in [*free.model.changing, free.means, free.squares])
