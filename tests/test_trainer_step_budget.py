"""What training steps ask of GPUs, counted without one: kernels, waits and copies of the CPU, collectives of 64 ranks.

The CPU computes the same graph, and its tensors tell what was asked for: autograd on fake CUDA tensors needs a GPU.
"""

import math
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_shards.index import Shard, ShardIndex
from trainer.data.batches import DeviceBatch
from trainer.distributed.process_group import ProcessGroup
from trainer.model.efficientnet import Backbone, Classifier, build_head
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec, build
from trainer.training.head_fit import one_thread
from trainer.training.loop import LoopHooks, TrainLoop, epoch_plan, ranks_differ_in_buffers
from trainer.training.optimizer import build_optimizer
from trainer.training.preemption import PreemptionWatcher
from trainer.training.train_state import TrainState

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = HeadConfig(classes=("a", "b"), width=16, dropout=0.4, image_size=32)
STEPS = 3
FEATURES, PIXELS = (1280,), (3, 32, 32)
GATHERINGS = 2  # after the first step of an epoch, and after the last
BUCKETS_REBUILT = 2  # broadcasts after the first step, in which DDP sees the order of gradients
NO_KERNEL = {
    "view", "_unsafe_view", "expand", "permute", "t", "transpose", "detach", "alias", "slice", "select", "unsqueeze",
    "squeeze", "split", "split_with_sizes", "as_strided", "unbind", "empty", "empty_like", "empty_strided", "new_empty",
    "device", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


class Counts(TorchDispatchMode):
    """Counts the kernels that a GPU is given, how often the CPU waits for it, and copies between them."""

    def __init__(self):
        super().__init__()
        self.kernels, self.waits, self.copies, self.gatherings, self.collectives = Counter(), 0, 0, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, name = func._schema.name.split("::")
        if space == "c10d":
            self.collectives.append((name, *shape_of(args[0])))
        elif name == "_local_scalar_dense":  # of `.item()`, `float()` and `if`
            self.waits += 1
        elif name == "lift_fresh":  # of `torch.tensor(number)`
            self.copies += 1
        elif name not in NO_KERNEL:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))


def shape_of(argument):
    found = [tuple(tensor.shape) for tensor in tree_leaves(argument) if isinstance(tensor, torch.Tensor)]
    return found[:1]


class Steps(TrainLoop):
    """The steps of an epoch, without the validation that follows them."""

    def _finish_epoch(self, state, plan, seconds, images):
        return state


def loop_of(module, sample, *, rank=0, world_size=1, hooks=None):
    """Return the training of `module` for one epoch of three steps; the last one has an image less."""
    images = 3 * world_size
    size = STEPS * images - 1
    shard = Shard(name="0.tar", split="train", samples=size, per_class=(1, size - 1), bytes=1, sha256="0" * 64)

    spec = build(TrainSpec, shards="memory", epochs=1, workers=world_size, batch_size=images)
    index, group = ShardIndex(classes=("a", "b"), shards=(shard,)), ProcessGroup(rank, world_size, CPU)
    plan = epoch_plan(spec, index, group, epoch=0)
    ids = [torch.from_numpy(plan.ids(number)) for number in range(plan.batches)]
    ready = [
        DeviceBatch(torch.randn(len(of_step), *sample), of_step % 2, of_step, plan.images_in_step(number))
        for number, of_step in enumerate(ids)
    ]
    loop = Steps(
        spec=spec,
        index=index,
        process_group=group,
        module=module,
        optimizer=build_optimizer(
            getattr(module, "head", module),
            getattr(module, "backbone", None),
            backbone_factor=0.1,
            weight_decay=0.0,
            device=CPU,
        ),
        loader=lambda _, start=0: iter(ready[start:]),
        class_weights=None,
        hooks=hooks or LoopHooks(),
        preemption=PreemptionWatcher(_polled_at=math.inf),  # it would ask every two seconds
    )
    loop._gatherer.process_group = ProcessGroup(rank, world_size, GPU if world_size == 1 else CPU)
    loop._gatherer.now = lambda: 0.0  # steps that take no time
    return loop


def counted(loop):
    """Return what the steps cost."""
    loop.model  # noqa: B018 -- DDP compares the ranks' parameters once
    gather = loop._gatherer.gather

    def counted_gather(requests):
        counts.gatherings += 1
        return gather(requests)

    loop._gatherer.gather = counted_gather
    with one_thread(True), Counts() as counts:
        assert loop.train_epoch(TrainState()).step == STEPS
    return counts


def head():
    return build_head(CONFIG)


def whole_network(*, freeze_bn_statistics=True):
    model = Classifier(Backbone(32), build_head(CONFIG))
    model.backbone.freeze("none", freeze_bn_statistics=freeze_bn_statistics)
    return model


@pytest.mark.parametrize(
    ("build_module", "sample", "most_kernels"),
    [(head, FEATURES, 66), (whole_network, PIXELS, 920)],
)
def test_a_step_copies_nothing_and_waits_only_where_losses_are_gathered(build_module, sample, most_kernels):
    counts = counted(loop_of(build_module(), sample))

    assert (counts.copies, counts.waits, counts.gatherings) == (0, 0, GATHERINGS)
    assert sum(counts.kernels.values()) / STEPS < most_kernels


class Careless(LoopHooks):
    """Copies a number to the GPU, computes with it and reads it, in each step."""

    def on_optimizer_step(self):
        torch.tensor(1.0).exp().item()


def test_a_copy_a_kernel_and_a_wait_more_are_counted():
    usual = counted(loop_of(head(), FEATURES))

    more = counted(loop_of(head(), FEATURES, hooks=Careless()))

    assert (more.copies, more.waits) == (STEPS, STEPS)
    assert more.kernels - usual.kernels == Counter(exp=STEPS)


def collectives_of(rank, world_size, build_module, sample, hooks=None):
    """Return the collectives of the steps on a rank; a fake process group sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        torch.manual_seed(0)
        loop = loop_of(build_module(), sample, rank=rank, world_size=world_size, hooks=hooks)
        loop.model.register_comm_hook(None, reduced)
        return counted(loop).collectives
    finally:
        dist.destroy_process_group()


def reduced(_, bucket):
    """Reduce a bucket as DDP does; the works of a fake process group have no result, which DDP would ask for."""
    dist.all_reduce(bucket.buffer())
    result = torch.futures.Future()
    result.set_result(bucket.buffer())
    return result


@pytest.mark.parametrize("world_size", [2, 8, 64])
def test_all_ranks_call_the_same_collectives_in_the_same_order(world_size):
    ranks = sorted({0, 1, world_size // 2, world_size - 1})

    found = {rank: collectives_of(rank, world_size, head, FEATURES) for rank in ranks}

    assert [found[rank] == found[0] for rank in ranks] == [True] * len(ranks)


def test_a_step_of_a_head_costs_six_collectives_and_losses_are_gathered_together():
    found = collectives_of(0, 2, head, FEATURES)

    sums = [shape for name, shape in found if name == "allreduce_"]
    forward, backward, bucket = 3, 2, 1  # the first batch norm has no gradient to give to the features
    assert len(sums) == STEPS * (forward + backward + bucket) + GATHERINGS
    assert (sums[6], sums[-1]) == ((1 + 4,), (2 + 4,))  # a loss for each step, three requests and the interval
    assert len(found) - len(sums) == BUCKETS_REBUILT


class OnlyRankZero(LoopHooks):
    """Calls a collective on one rank alone, for which the others would wait."""

    def checkpoint_is_due(self):
        dist.barrier()
        return False


def test_a_collective_of_one_rank_alone_is_noticed():
    found = [collectives_of(rank, 4, head, FEATURES, OnlyRankZero()) for rank in range(4)]

    assert found[0] != found[1]
    assert found[1] == found[2] == found[3]


def plain_norm():
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 32 * 32, 2))


@pytest.mark.parametrize(
    ("build_module", "sample", "broadcasts"), [(head, FEATURES, False), (plain_norm, PIXELS, True)]
)
def test_ranks_take_the_buffers_of_rank_zero_only_where_a_batch_norm_trains_on_their_own_images(
    build_module, sample, broadcasts
):
    names = [name for name, _ in collectives_of(1, 2, build_module, sample)]

    assert (names.count("broadcast_") > BUCKETS_REBUILT) is broadcasts


@pytest.mark.parametrize(
    ("module", "differ"),
    [
        (nn.BatchNorm2d(2), True),
        (nn.SyncBatchNorm(2), False),
        (nn.BatchNorm2d(2, track_running_stats=False), False),
        (build_head(CONFIG), False),
        (whole_network(), False),
        (whole_network(freeze_bn_statistics=False), True),
        (nn.Linear(1, 1), False),
    ],
)
def test_buffers_differ_where_a_norm_counts_the_images_of_one_rank(module, differ):
    assert ranks_differ_in_buffers(module.eval()) is differ
    assert not module.training
