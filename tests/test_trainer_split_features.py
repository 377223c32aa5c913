"""Features that are read from the files of the cache: the same rows as in memory, and no copy of them."""

import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from cluster.settings import Settings
from cluster.stop_request import StopWatcher
from data_shards.index import Shard, ShardIndex, read_index, write_index
from data_shards.plan import EpochPlan
from tests.datasets import index_of
from tests.own_memory import ANONYMOUS, anonymous_peak, memory
from tests.trained import new_run, train_spec, wait_until
from trainer import train
from trainer.attempt import Attempt
from trainer.data import cache_folder, feature_cache, feature_extraction
from trainer.data.batches import FeatureLoader
from trainer.data.cache_folder import evict
from trainer.data.feature_cache import FeatureCache, FeatureKey, Features
from trainer.data.feature_extraction import FeatureExtractor
from trainer.data.split_features import StoredRows
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.model.efficientnet import Backbone
from trainer.model.head import HeadConfig
from trainer.progress import Progress
from trainer.training import baselines
from trainer.training.model_setup import TrainingSetup

CPU = torch.device("cpu")
CONFIG = HeadConfig(classes=("a", "b"), width=8, dropout=0.0, image_size=32)
SHARDS, ROWS, VALID = 6, 5000, 100  # 154 MB of features
LIMIT = 100e6  # bytes


def shard_of(number, *, split="train", samples=ROWS):
    return Shard(
        name=f"{split}-{number}.tar",
        split=split,
        samples=samples,
        per_class=(samples // 2, samples - samples // 2),
        bytes=1,
        sha256=f"{number:064x}",
    )


def features_of(samples, seed=0):
    values = torch.randn(samples, 1280, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"{n}.png" for n in range(samples))
    return Features.of(values, torch.arange(samples) % 2, sources=names, groups=names)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def rows(request):
    """Rows of three tensors, stored in a precision, and the same rows as one in float32."""
    parts = [torch.randn(count, 4, generator=torch.Generator().manual_seed(count)) for count in (5, 1, 6)]
    stored = tuple(part.to(request.param) for part in parts)
    return StoredRows(stored), torch.cat(stored).float()


@pytest.mark.parametrize("wanted", [[0], [11, 0, 5, 4, 6, 5], [5, 5], list(range(12)), []])
def test_rows_of_several_shards_are_those_of_one_matrix(rows, wanted):
    stored, whole = rows

    assert torch.equal(stored[torch.tensor(wanted, dtype=torch.int64)], whole[wanted])


def test_slices_choices_of_choices_and_all_rows_are_those_of_one_matrix(rows):
    stored, whole = rows
    first, second = torch.tensor([11, 3, 5, 0, 6]), torch.tensor([4, 0, 1])

    chosen = stored.select(first).select(second)

    assert len(stored) == 12
    assert len(chosen) == 3
    assert torch.equal(stored[3:7], whole[3:7])
    assert torch.equal(stored[10:99], whole[10:])
    assert torch.equal(chosen[0:3], whole[first][second])
    assert stored.to(CPU) is stored
    on_device = stored.to(torch.device("meta"))
    assert (on_device.shape, on_device.dtype, stored.nbytes) == (whole.shape, whole.dtype, whole.nbytes)


def test_features_for_which_a_gpu_has_no_memory_are_copied_for_each_step(rows, monkeypatch, caplog):
    stored, whole = rows
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (whole.nbytes, 10**9))
    plan = EpochPlan(index=index_of([5, 1, 6]), split="train", batch_size=4)

    values = stored.to(torch.device("cuda", 0))
    loader = FeatureLoader({"train": values}, {"train": torch.arange(12)}, torch.device("meta"))

    assert values is stored
    assert "features of 0.0 GB stay in the memory of the machine: cuda:0 has 0.0 GB free" in caplog.text
    assert [(batch.inputs.device.type, *batch.inputs.shape) for batch in loader(plan)] == [("meta", 4, 4)] * 3


def test_an_image_that_does_not_exist_is_no_row_of_another(rows):
    stored, _ = rows

    with pytest.raises(IndexError):
        stored[torch.tensor([12])]


@pytest.fixture
def extractor(tmp_path):
    """An extractor whose cache has the features of one shard of three images."""
    index = ShardIndex(classes=CONFIG.classes, shards=(shard_of(0, samples=3),))
    cache = FeatureCache(tmp_path, FeatureKey.of(CONFIG), 10**9)
    cache.write(index.shards[0].sha256, features_of(3))
    return FeatureExtractor("nowhere", index, CONFIG, None, ProcessGroup(0, 1, CPU), cache)


def test_features_that_are_evicted_while_a_training_reads_them_stay_readable(extractor):
    extractor.extract("train")
    found = extractor.features_of("train")

    evict(extractor.cache.root, 0)

    assert torch.equal(found.values[torch.tensor([2, 0])], features_of(3).values[[2, 0]])
    assert found.sources == ("0.png", "1.png", "2.png")


def test_features_that_a_training_reads_stay_the_most_recently_used(extractor, monkeypatch):
    extractor.extract("train")
    values = extractor.features_of("train").values
    on_gpu = FeatureLoader.of(extractor, ["train"], torch.device("meta"))  # which reads no file in its steps
    path = extractor.cache.path(extractor.index.shards[0].sha256)
    plan = EpochPlan(index=extractor.index, split="train", batch_size=3)
    marked = []

    for seconds in (600.0, 0.0):
        monkeypatch.setattr(feature_extraction, "MARK_SECONDS", seconds)
        for read in (lambda: values[0:1], lambda: list(on_gpu(plan))):
            long_ago(path)
            read()
            marked.append(path.stat().st_mtime > time.time() - 60)

    assert marked == [False, False, True, True]


def test_features_in_use_are_not_evicted_over_a_network(extractor, monkeypatch):
    for module in (cache_folder, feature_cache):
        monkeypatch.setattr(module, "is_on_network", lambda _: True)
    size = extractor.cache.path(extractor.index.shards[0].sha256).stat().st_size
    small = FeatureCache(extractor.cache.root, extractor.cache.key, size)

    with pytest.raises(OSError, match="is full of features in use"):
        small.write("1" * 64, features_of(3))
    kept = small.has(extractor.index.shards[0].sha256)
    long_ago(small.path(extractor.index.shards[0].sha256))
    small.write("1" * 64, features_of(3))

    assert kept
    assert small.has("1" * 64)
    assert not small.has(extractor.index.shards[0].sha256)


def test_features_are_written_while_those_of_the_next_shard_are_computed_and_then_read_from_their_file(
    tmp_path, digits_shards, monkeypatch
):
    index = read_index(str(digits_shards))
    config = CONFIG.model_copy(update={"classes": index.classes})
    cache = FeatureCache(tmp_path, FeatureKey.of(config), 10**9)
    extractor = FeatureExtractor(
        str(digits_shards), index, config, Backbone(32, config.layout), ProcessGroup(0, 1, CPU), cache
    )
    shards, compute, write = index.of_split("train"), extractor._features, FeatureCache.write
    computed, overlapped = [], []

    def counted(batches):
        computed.append(compute(batches))
        return computed[-1]

    def delayed(self, shard_sha256, features):
        with_next = min(len(overlapped) + 2, len(shards))
        overlapped.append(wait_until(lambda: len(computed) >= with_next))
        write(self, shard_sha256, features)

    monkeypatch.setattr(extractor, "_features", counted)
    monkeypatch.setattr(FeatureCache, "write", delayed)

    extractor.extract("train")

    assert len(shards) > 1
    assert overlapped == [True] * len(shards)
    assert [mapped_file(features.values) for features in extractor.features_of("train").shards] == [
        str(cache.path(shard.sha256)) for shard in shards
    ]


def mapped_file(tensor):
    """Return the file whose memory map holds a tensor; None if it is in anonymous memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(address, 16) for address in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else None
    return None


def long_ago(path):
    os.utime(path, (1000, 1000))


@pytest.mark.usefixtures("without_reports")
def test_a_training_of_a_head_holds_no_copy_of_the_features_in_memory(tmp_path, monkeypatch):
    shards = [shard_of(number) for number in range(SHARDS)]
    valid = shard_of(SHARDS, split="valid", samples=VALID)
    (tmp_path / "shards").mkdir()
    write_index(tmp_path / "shards", ShardIndex(classes=CONFIG.classes, shards=(*shards, valid)).sealed())
    spec = train_spec(tmp_path / "shards", batch_size=1000, epochs=1)
    attempt = Attempt.of(new_run(tmp_path, spec).folder, None, Settings(storage=tmp_path))
    cache = cache_of(attempt, spec)
    cache.write(valid.sha256, features_of(VALID))
    cache.write(shards[0].sha256, features_of(ROWS))
    for shard in shards[1:]:
        cache.path(shard.sha256).hardlink_to(cache.path(shards[0].sha256))
    monkeypatch.setattr(baselines, "sample_rows", partial(baselines.sample_rows, most=100))
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)  # imports torch's compiler
    before = memory(ANONYMOUS)

    with anonymous_peak(every_seconds=0.002) as highest:
        result = train.train(attempt, spec)

    assert result.details["baselines"]
    assert (highest.kilobytes - before) * 1024 < LIMIT


def cache_of(attempt, spec):
    """Return the cache that the training will read."""
    context = WorkerContext(
        task=WorkerTask(attempt=attempt, spec=spec, source=None),
        process_group=ProcessGroup(0, 1, CPU),
        progress=Progress(attempt.paths, attempt.lease, writes=False),
        stop=StopWatcher(attempt.paths.stop, attempt.number),
    )
    return TrainingSetup.fresh(context).extractor.cache
