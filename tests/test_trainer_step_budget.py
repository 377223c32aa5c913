"""What training steps ask of GPUs, counted without one: kernels, waits, copies, and the collectives of 64 ranks."""

import math
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_shards.index import Shard, ShardIndex
from data_shards.read.stream import Batch
from tests.fake_cuda import GPU, DeviceCounts, fake_cuda, on_gpu, walk_backward
from trainer.data.batches import DeviceBatch, FeatureLoader, ImageLoader
from trainer.data.transforms import Augmentation, normalised
from trainer.distributed.process_group import ProcessGroup
from trainer.evaluation.scoring import _rows, evaluation_plan
from trainer.model.efficientnet import Backbone, Classifier, build_head
from trainer.model.head import HeadConfig
from trainer.specs import TrainSpec, build
from trainer.training.head_fit import one_thread
from trainer.training.loop import LoopHooks, TrainLoop, ranks_differ_in_buffers
from trainer.training.optimizer import build_optimizer
from trainer.training.preemption import PreemptionWatcher
from trainer.training.train_state import TrainState

CPU = torch.device("cpu")
CONFIG = HeadConfig(classes=("a", "b"), width=16, dropout=0.4, image_size=32)
STEPS = 3
FEATURES, PIXELS = (1280,), (3, 32, 32)
GATHERINGS = 2  # after the first step of an epoch, and after the last
BUCKETS_REBUILT = 2  # broadcasts after the first step, in which DDP sees the order of gradients


class Steps(TrainLoop):
    """The steps of an epoch, without the validation that follows them."""

    def finish_epoch(self, state, plan, seconds, images):
        return state


def loop_of(module, loader, group, *, precision="fp32", hooks=None):
    """Return the training of `module` for one epoch of three steps of three images a rank; the last has one less."""
    images = 3 * group.world_size
    size = STEPS * images - 1
    shard = Shard(name="0.tar", split="train", samples=size, per_class=(1, size - 1), bytes=1, sha256="0" * 64)
    loop = Steps(
        spec=build(TrainSpec, shards="memory", epochs=1, workers=group.world_size, batch_size=images),
        index=ShardIndex(classes=("a", "b"), shards=(shard,)),
        process_group=group,
        module=module,
        optimizer=build_optimizer(
            getattr(module, "head", module),
            getattr(module, "backbone", None),
            backbone_factor=0.1,
            weight_decay=0.0,
            device=group.device,
        ),
        loader=loader,
        class_weights=None,
        hooks=hooks or LoopHooks(),
        precision=precision,
        preemption=PreemptionWatcher(_polled_at=math.inf),  # it would ask every two seconds
    )
    loop._gatherer.now = lambda: 0.0  # steps that take no time
    return loop


def counted(loop, counts):
    """Return what the steps cost, and how often losses were gathered: each time, the CPU waits for the device."""
    loop.model  # noqa: B018 -- DDP compares the ranks' parameters once
    gather, gatherings = loop._gatherer.gather, []

    def counted_gather(requests):
        gatherings.append(len(loop._gatherer._losses))
        before = counts.waits
        found = gather(requests)
        counts.waits = before  # a fake tensor gives its numbers one by one
        return found

    loop._gatherer.gather = counted_gather
    with one_thread(True), counts:
        assert loop.train_epoch(TrainState()).step == STEPS
    return counts, gatherings


def head():
    return build_head(CONFIG)


def whole_network(*, freeze_bn_statistics=True):
    model = Classifier(Backbone(32), build_head(CONFIG)).to(memory_format=torch.channels_last)
    model.backbone.freeze("none", freeze_bn_statistics=freeze_bn_statistics)
    return model


def features_on_gpu(_):
    """Load features as a training on cached features does."""
    rows, labels = torch.randn(STEPS * 3, *FEATURES, device=GPU), torch.zeros(STEPS * 3, dtype=torch.int64, device=GPU)
    return FeatureLoader({"train": rows}, {"train": labels}, GPU)


def images_on_gpu(monkeypatch, prepare=None):
    """Load images as a fine-tuning does, but for their files."""

    def batches(_, __, plan, **___):
        for number in range(plan.batches):
            ids = torch.from_numpy(plan.ids(number))
            pixels = torch.zeros(len(ids), 1, *PIXELS[1:], dtype=torch.uint8)
            yield Batch(pixels, ids % 2, ids, groups=(), sources=(), columns=())

    monkeypatch.setattr("trainer.data.batches.open_batches", batches)
    return ImageLoader(
        location="memory",
        index=None,
        image_size=32,
        loader_workers=0,
        prefetch_bytes=None,
        device=GPU,
        prepare=prepare or (lambda images, training: normalised(images, CONFIG)),
    )


def augmented_on_gpu(monkeypatch):
    return images_on_gpu(monkeypatch, lambda images, training: normalised(Augmentation()(images), CONFIG))


def steps_on_gpu(monkeypatch, build_module, build_loader, precision="fp32", hooks=None):
    """Return what the steps of a training on a GPU cost after its first epoch, which creates the optimizer's state."""
    module = build_module()
    with fake_cuda(monkeypatch):
        loop = loop_of(on_gpu(module), build_loader(monkeypatch), ProcessGroup(0, 1, GPU), precision=precision)
        with DeviceCounts():
            loop.train_epoch(TrainState())
        object.__setattr__(loop, "hooks", hooks or LoopHooks())
        return counted(loop, DeviceCounts())


# What three steps ask for that are taken eagerly, as the first one of a shape: kernels, and copies to the GPU, those
# that the CPU waits for (the tables of the epoch) and the others. Lower the numbers with the code; steps that need more
# are slower on every GPU.
BUDGETS = {
    "head": (head, features_on_gpu, "fp32", 171, 4, 0),
    "fine-tuning in fp32": (whole_network, images_on_gpu, "fp32", 2130, 4, 9),
    "fine-tuning in bf16": (whole_network, images_on_gpu, "bf16", 2811, 4, 9),
    "fine-tuning in bf16, augmented": (whole_network, augmented_on_gpu, "bf16", 2955, 4, 9),
}


@pytest.mark.parametrize("what", BUDGETS)
def test_steps_stay_within_their_budget_and_wait_only_where_losses_are_gathered(monkeypatch, what):
    build_module, build_loader, precision, *budget = BUDGETS[what]

    counts, gatherings = steps_on_gpu(monkeypatch, build_module, build_loader, precision)

    assert (counts.waits, gatherings) == (0, [1, STEPS - 1])
    asked = [sum(counts.kernels.values()), counts.copies["waits"], counts.copies["goes on"]]
    assert [most - count for most, count in zip(budget, asked, strict=True) if count > most] == [], (asked, budget)


def test_a_validation_lets_the_gpu_compute_while_the_next_batch_is_loaded(monkeypatch):
    module, counts = whole_network(), DeviceCounts()
    shard = Shard(name="0.tar", split="valid", samples=8, per_class=(4, 4), bytes=1, sha256="0" * 64)
    index, group = ShardIndex(classes=("a", "b"), shards=(shard,)), ProcessGroup(0, 1, GPU)
    plan = evaluation_plan(index, "valid", group, at_once=3)

    with fake_cuda(monkeypatch), counts:
        _rows(on_gpu(module), images_on_gpu(monkeypatch), plan, group, "bf16")

    assert (counts.waits, counts.copies["waits"]) == (0, 0)
    assert counts.copies["goes on"] >= plan.batches * 3  # images, labels and ids


class Careless(LoopHooks):
    """Copies a number to the GPU, computes with it and reads it, in each step."""

    def on_step_end(self, images):
        torch.tensor(1.0, device=GPU).exp().item()


def test_a_copy_a_kernel_and_a_wait_more_are_counted(monkeypatch):
    usual, _ = steps_on_gpu(monkeypatch, head, features_on_gpu)

    more, _ = steps_on_gpu(monkeypatch, head, features_on_gpu, hooks=Careless())

    assert (more.copies - usual.copies, more.waits) == (Counter(waits=STEPS), STEPS)
    assert more.kernels - usual.kernels == Counter(exp=STEPS)


class Block(nn.Module):
    """Values that several operations use, broadcast parameters and casts, as in EfficientNet's blocks."""

    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.squeeze, self.top = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, images):
        wide = nn.functional.silu(self.norm(self.wide(images)))
        deep = self.deep(wide)
        return self.top((wide + deep * self.squeeze(deep.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))


@pytest.mark.parametrize("in_bf16", [False, True])
def test_the_graph_that_is_walked_in_python_gives_the_gradients_of_autograd(in_bf16):
    module, images = Block(), torch.randn(4, *PIXELS)
    gradients = []

    for backward in (torch.autograd.backward, walk_backward):
        module.zero_grad(set_to_none=True)
        for _ in range(2):  # the second time they are added
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
                logits = module(images)
            backward(nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 0, 1])))
        gradients.append([parameter.grad for parameter in module.parameters()])

    assert [float(gradient.abs().max()) > 0 for gradient in gradients[0]] == [True] * 9
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def loop_on_cpu(module, sample, *, rank=0, world_size=1, hooks=None):
    """Return the training of `module` on random inputs of a shape; alone, it gathers losses as on a GPU."""

    def load(plan, start=0):
        for number in range(start, plan.batches):
            ids = torch.from_numpy(plan.ids(number))
            inputs = torch.randn(len(ids), *sample, generator=torch.Generator().manual_seed(int(ids[0])))
            yield DeviceBatch(inputs, ids % 2, ids, plan.images_in_step(number))

    loop = loop_of(module, load, ProcessGroup(rank, world_size, CPU), hooks=hooks)
    loop._gatherer.process_group = ProcessGroup(rank, world_size, GPU if world_size == 1 else CPU)
    return loop


def collectives_of(rank, world_size, build_module, sample, hooks=None):
    """Return the collectives of the steps on a rank; a fake process group sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        torch.manual_seed(0)
        loop = loop_on_cpu(build_module(), sample, rank=rank, world_size=world_size, hooks=hooks)
        loop.model.register_comm_hook(None, reduced)
        return counted(loop, DeviceCounts())[0].collectives
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
