"""Loader processes that stay over the epochs of a training on images."""

import json
from collections import Counter

import psutil
import pytest
import torch
from efficientnet_pytorch import EfficientNet

from cluster.files import read_lines
from data_shards.errors import DamagedShard
from data_shards.plan import EpochPlan
from data_shards.read import stream
from tests.datasets import packed
from tests.trained import at_epoch, attempted, done, new_run, train_spec
from trainer.data import batches
from trainer.data.batches import ImageLoader
from trainer.distributed.worker import WorkerContext
from trainer.errors import Stopped
from trainer.evaluation import scoring
from trainer.model import folded_backbone
from trainer.model.folded_backbone import FoldedBackbone

pytestmark = [
    pytest.mark.usefixtures("without_reports"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
]

SPLITS = {f"{split}/{name}": count for split, count in (("train", 12), ("valid", 5)) for name in ("covid", "normal")}
WORKERS, EPOCHS = 2, 3


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("batches"), SPLITS, shard_bytes=12_000)


@pytest.fixture
def opened(monkeypatch):
    """How often loader processes were started, as the plans that each time were named."""
    found, open_batches = [], batches.open_batches

    def spied(location, index, plan, *, then, **options):
        found.append([plan, *then])
        return open_batches(location, index, plan, then=then, **options)

    monkeypatch.setattr(batches, "open_batches", spied)
    return found


def train_plan(index, epoch):
    return EpochPlan(index=index, split="train", batch_size=5, seed=3, epoch=epoch)


def plans_of(index, epochs=range(EPOCHS)):
    """Return what a training loads: each epoch, and the valid split after it."""
    valid = EpochPlan(index=index, split="valid", batch_size=4, shuffle=False)
    return [plan for epoch in epochs for plan in (train_plan(index, epoch), valid)]


def loader_of(data_set, workers=WORKERS, *, follows=True):
    location, index = data_set

    def following(plan):
        return plans_of(index)[2 * plan.epoch + 1 :] if follows and plan.shuffle else []

    return ImageLoader(
        location=str(location),
        index=index,
        image_size=32,
        loader_workers=workers,
        prefetch_bytes=None,
        device=torch.device("cpu"),
        prepare=lambda images, training: images.float() + training,
        following=following,
    )


def loaded(loader, plan, start=0):
    return [(batch.ids.tolist(), batch.images, batch.labels, batch.inputs) for batch in loader(plan, start)]


def is_same(ours, theirs):
    """Return whether all batches have the same samples, labels and pixels in the same order."""
    return len(ours) == len(theirs) and all(
        one[:2] == other[:2] and torch.equal(one[2], other[2]) and torch.equal(one[3], other[3])
        for one, other in zip(ours, theirs, strict=True)
    )


def test_processes_stay_over_the_epochs_and_load_what_new_ones_would(data_set, opened):
    kept, alone = loader_of(data_set), loader_of(data_set, workers=0, follows=False)
    before, children = psutil.Process().children(), []

    for plan in plans_of(data_set[1]):
        assert is_same(loaded(kept, plan), loaded(alone, plan))
        children.append([process.pid for process in psutil.Process().children() if process not in before])

    assert len(children[0]) == WORKERS
    assert children[:-1] == [children[0]] * (2 * EPOCHS - 1)
    assert children[-1] == []  # after the last plan that was named
    assert [len(plans) for plans in opened] == [2 * EPOCHS, *[1] * (2 * EPOCHS)]


def test_a_training_resumed_in_the_middle_of_an_epoch_goes_on_with_its_next_sample(data_set, opened):
    index = data_set[1]
    resumed, alone = loader_of(data_set), loader_of(data_set, workers=0, follows=False)

    rest = loaded(resumed, train_plan(index, 1), start=3)

    assert is_same(rest, loaded(alone, train_plan(index, 1))[3:])
    for plan in plans_of(index)[3:]:
        assert is_same(loaded(resumed, plan), loaded(alone, plan))
    assert len(opened[0]) == 4


def test_the_next_plan_is_begun_before_it_is_asked_for_and_no_more_than_its_prefetched_batches(data_set, monkeypatch):
    drawn, tasks_of = [], stream._tasks

    def counted(*arguments, **options):
        for task in tasks_of(*arguments, **options):
            drawn.append(len(task))
            yield task

    monkeypatch.setattr(stream, "_tasks", counted)
    loader, plans = loader_of(data_set), plans_of(data_set[1])

    found = loaded(loader, plans[0])

    ahead = len(drawn) - len(found)
    loader.close()
    assert 0 < ahead <= WORKERS * stream.PREFETCH_BATCHES


def test_steps_that_take_no_batch_too_many_keep_the_processes(data_set, opened):
    loader, plans = loader_of(data_set), plans_of(data_set[1])

    for plan in plans[:4]:
        found = loader(plan)
        for _ in range(plan.batches):
            next(found)  # and is not asked for the end, as by steps on a GPU

    loader.close()
    assert len(opened) == 1


def test_an_epoch_that_ends_early_is_loaded_anew(data_set, opened):
    index = data_set[1]
    loader, alone = loader_of(data_set), loader_of(data_set, workers=0, follows=False)
    before = psutil.Process().children()

    first = loader(train_plan(index, 0))
    next(first)
    first.close()

    assert psutil.Process().children() == before
    assert is_same(loaded(loader, train_plan(index, 0)), loaded(alone, train_plan(index, 0)))
    loader.close()
    assert psutil.Process().children() == before


def test_a_generator_that_ends_late_does_not_end_the_processes_of_another_plan(data_set):
    index = data_set[1]
    loader, alone = loader_of(data_set), loader_of(data_set, workers=0, follows=False)

    first = loader(train_plan(index, 0))
    next(first)
    second = loader(train_plan(index, 1))
    next(second)
    first.close()

    rest = [batch.ids.tolist() for batch in second]
    loader.close()
    assert rest == [found[0] for found in loaded(alone, train_plan(index, 1))[1:]]


def test_a_damaged_sample_of_the_next_plan_ends_the_training_when_its_batch_is_asked_for(data_set, tmp_path):
    location, index = data_set
    shard = index.of_split("valid")[0]
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in location.iterdir():
        content = bytearray(file.read_bytes())
        if file.name == shard.name:
            content[600] ^= 1
        (damaged / file.name).write_bytes(content)
    loader, plans = loader_of((damaged, index)), plans_of(index)

    found = loaded(loader, plans[0])

    assert len(found) == plans[0].batches
    with pytest.raises(DamagedShard, match=shard.name):
        loaded(loader, plans[1])
    loader.close()


IMAGES = {"freeze": "none", "seed": 7, "epochs": 3, "ema": 0.5}


@pytest.fixture
def with_processes(monkeypatch):
    """Let a training on a CPU load its images as one on a GPU does."""
    monkeypatch.setattr(WorkerContext, "loader_workers", WORKERS)


def test_a_training_with_loader_processes_starts_them_once_and_gives_the_model_of_one_without(
    tmp_path, digits_shards, opened, monkeypatch
):
    spec = train_spec(digits_shards, **IMAGES)
    alone, _ = done(tmp_path, spec, "alone")
    monkeypatch.setattr(WorkerContext, "loader_workers", WORKERS)
    opened.clear()
    before = set(psutil.Process().children())

    helped, _ = done(tmp_path, spec, "helped")

    assert [len(plans) for plans in opened] == [2 * IMAGES["epochs"]]
    assert (helped.best / "model.safetensors").read_bytes() == (alone.best / "model.safetensors").read_bytes()
    assert set(psutil.Process().children()) <= before


@pytest.mark.usefixtures("with_processes")
def test_a_training_with_loader_processes_that_is_stopped_in_an_epoch_goes_on_to_the_same_model(
    tmp_path, digits_shards, opened, monkeypatch
):
    spec = train_spec(digits_shards, **IMAGES)
    whole, _ = done(tmp_path, spec, "whole")
    paths = new_run(tmp_path, spec, "stopped")
    at_epoch(monkeypatch, 1, lambda: paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1})))
    opened.clear()

    with pytest.raises(Stopped, match="checkpoint saved"):
        attempted(paths, spec)
    attempted(paths, spec)

    assert [len(plans) for plans in opened] == [6, 4]
    assert (paths.best / "model.safetensors").read_bytes() == (whole.best / "model.safetensors").read_bytes()
    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2, 3]


@pytest.mark.usefixtures("with_processes")
@pytest.mark.parametrize(
    ("options", "plans"),
    [
        ({"head_epochs": 1, "augment": True}, [2, 4]),  # a phase each
        ({"augment": True, "freeze": "all"}, [6]),
    ],
)
def test_each_phase_of_a_training_names_the_plans_that_it_loads(tmp_path, digits_shards, opened, options, plans):
    spec = train_spec(digits_shards, **IMAGES | options)

    done(tmp_path, spec)

    assert [len(named) for named in opened] == plans


def test_a_fine_tuning_on_a_gpu_gives_the_network_few_sizes_of_batches(tmp_path, digits_shards, monkeypatch):
    sizes, extract = [], EfficientNet.extract_features
    begin = FoldedBackbone.__init__

    def counted(network, images):
        sizes.append(("trained" if network.training else "evaluated", len(images)))
        return extract(network, images)

    def begin_as_on_a_gpu(forward, *arguments, **options):
        begin(forward, *arguments, **options)
        forward.fills, forward.micro_batch = True, folded_backbone.MICRO_BATCH_GPU

    monkeypatch.setattr(EfficientNet, "extract_features", counted)
    monkeypatch.setattr(FoldedBackbone, "__init__", begin_as_on_a_gpu)
    monkeypatch.setattr(scoring, "FILLED", ("cpu",))

    done(tmp_path, train_spec(digits_shards, **IMAGES))

    assert Counter(kind for kind, _ in set(sizes)) == {"trained": 2, "evaluated": 1}
