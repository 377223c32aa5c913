"""Work on the features of a frozen backbone: which of it needs Ray workers, and where the time goes."""

from itertools import chain, repeat

import pytest
import ray
import torch

from cluster.settings import Settings
from cluster.stop_request import StopWatcher
from data_shards.index import read_index
from tests.trained import done, evaluated, new_run, train_spec
from trainer import evaluate, phase_times, train
from trainer.attempt import Attempt
from trainer.data import feature_extraction
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.ray_train import run_here
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.model.precision import best_precision
from trainer.phase_times import PhaseTimes
from trainer.progress import Progress
from trainer.result import FeatureCounts
from trainer.training import features
from trainer.training.worker import train_on_worker

SAME = {"seed": 7, "epochs": 1}
LINEAR = {"epochs": 30, "head_width": 512, "patience": 10}  # the defaults, which a linear head does not use


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_shards):
    """A training on one worker, whose features are in the cache of its storage."""
    storage = tmp_path_factory.mktemp("storage")
    return done(storage, train_spec(digits_shards, **SAME))


@pytest.fixture
def extractions(monkeypatch):
    """Record the extractions that would start Ray workers, and run them in this process."""
    started = []

    def run(work, task):
        started.append(work.__module__)
        return run_here(work, task)

    def refuse(**_options):
        raise AssertionError("Ray was started")

    for module in (train, evaluate):  # reports take longer than these trainings
        monkeypatch.setattr(module, "write_report", lambda *_: None)
    monkeypatch.setattr(features, "run_on_workers", run)
    monkeypatch.setattr(ray, "init", refuse)
    return started


def images_of(shards):
    """Return the number of images whose features a training needs."""
    index = read_index(str(shards))
    return index.samples_in("train") + index.samples_in("valid")


def test_two_workers_with_cached_features_start_no_ray_and_give_the_model_of_one(trained, digits_shards, extractions):
    paths, alone = trained

    together, result = done(paths.storage, train_spec(digits_shards, **SAME, workers=2), "together")

    assert extractions == []
    assert (together.best / "model.safetensors").read_bytes() == (paths.best / "model.safetensors").read_bytes()
    assert result.metrics == alone.metrics
    assert result.details["workers"] == 1
    assert result.features == FeatureCounts(cached=images_of(digits_shards))


def test_several_workers_only_compute_what_the_training_needs_and_the_cache_lacks(
    trained, tmp_path, digits_shards, extractions
):
    paths, alone = trained

    together, result = done(tmp_path, train_spec(digits_shards, **SAME, workers=2), "together")

    assert extractions == ["trainer.training.features"]
    assert result.features == FeatureCounts(computed=images_of(digits_shards))
    index, files = read_index(str(digits_shards)), (tmp_path / "features").glob("*/*.safetensors")
    assert {file.stem for file in files} == {shard.sha256 for shard in index.of_split("train+valid")}
    assert result.metrics == alone.metrics
    assert (together.best / "model.safetensors").read_bytes() == (paths.best / "model.safetensors").read_bytes()


def test_one_missing_shard_is_computed_without_workers(trained, digits_shards, extractions):
    paths, alone = trained
    next(iter((paths.storage / "features").glob("*/*.safetensors"))).unlink()

    _, result = done(paths.storage, train_spec(digits_shards, **SAME, workers=2), "missing")

    assert extractions == []
    assert result.metrics == alone.metrics


def test_evaluate_with_two_workers_gives_the_figures_of_one(trained, digits_shards, extractions):
    paths, _ = trained

    alone = evaluated(paths.storage, paths.best, digits_shards, name="alone", split="test")
    together = evaluated(paths.storage, paths.best, digits_shards, name="two", split="test", workers=2)

    assert extractions == ["trainer.evaluate"]  # the run of the single worker, which computes the features here
    assert together.metrics == alone.metrics


@pytest.mark.parametrize("head", ["mlp", "lda"])
def test_the_features_of_a_shard_are_computed_once_even_if_the_cache_holds_only_one(
    tmp_path, digits_shards, monkeypatch, head
):
    read, computed = feature_extraction.read_shards, []

    def spied(location, shards, *arguments, **options):
        computed.extend(shard.name for shard in shards)
        return read(location, shards, *arguments, **options)

    monkeypatch.setattr(feature_extraction, "read_shards", spied)
    monkeypatch.setattr(train, "write_report", lambda *_: None)
    spec = train_spec(digits_shards, **({"epochs": 1} if head == "mlp" else {"head": head, **LINEAR}))
    settings = Settings(storage=tmp_path, cache_bytes=1)

    result = train.train(Attempt.of(new_run(tmp_path, spec).folder, None, settings), spec)

    assert sorted(computed) == sorted(shard.name for shard in read_index(str(digits_shards)).of_split("train+valid"))
    assert result.details["baselines"]


class OneOfTwo(ProcessGroup):
    """A worker of two whose other one has the same hardware and asks for nothing."""

    def all_reduce_sum(self, *values):
        return list(values)

    def broadcast(self, value):
        return value if self.is_rank_zero else best_precision(self.device, trains=False)


def test_one_of_two_workers_trains_the_head_as_one_does_and_the_other_only_computes_features(
    trained, tmp_path, digits_shards, monkeypatch
):
    paths, alone = trained
    spec = train_spec(digits_shards, **SAME, workers=2)
    attempt = Attempt.of(new_run(tmp_path, spec).folder, None, Settings(storage=tmp_path))
    read, computed = feature_extraction.read_shards, []

    def spied(location, shards, *arguments, **options):
        computed.append([shard.name for shard in shards])
        return read(location, shards, *arguments, **options)

    counts = []

    def work_of(rank):
        progress = Progress(attempt.paths, attempt.lease, writes=rank == 0)
        counts.append(progress.features)
        return train_on_worker(
            WorkerContext(
                task=WorkerTask(attempt=attempt, spec=spec, source=None),
                process_group=OneOfTwo(rank, 2, torch.device("cpu")),
                progress=progress,
                stop=StopWatcher(attempt.paths.stop, attempt.number),
            )
        )

    monkeypatch.setattr(feature_extraction, "read_shards", spied)

    second = work_of(1)
    is_published = attempt.paths.best.exists()
    first = work_of(0)

    assert (second.metrics, second.details, is_published) == ({}, {}, False)
    assert first.metrics == alone.metrics
    weights = [folder / "model.safetensors" for folder in (attempt.paths.best, paths.best)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    all_shards = [shard.name for shard in read_index(str(digits_shards)).of_split("train+valid")]
    assert sorted(chain.from_iterable(computed)) == sorted(all_shards)
    assert len([shards for shards in computed if shards]) > 1
    assert sum(count.computed for count in counts) == images_of(digits_shards)
    assert [count.cached for count in counts] == [0, 0]


def test_an_attempt_says_where_the_time_went(trained, digits_shards):
    paths, _ = trained
    attempt = Attempt.of(paths.folder, None, Settings(storage=paths.storage))

    train.train(attempt, train_spec(digits_shards, **SAME))  # its epochs are done: it judges and writes the report

    timing = attempt.timing()
    assert sorted(timing) == ["evaluation", "queue", "report", "start"]
    assert all(seconds >= 0 for seconds in timing.values())
    assert timing["queue"] == 0.0  # it was started by hand
    assert sum(timing.values()) == pytest.approx(attempt.seconds, abs=1.0)


def test_what_runs_inside_a_part_is_counted_once(monkeypatch):
    clock = chain([10.0], repeat(17.0))
    monkeypatch.setattr(phase_times.time, "monotonic", lambda: next(clock))
    times = PhaseTimes()

    with times.measure("evaluation"):
        times.add({"features": 5.0})

    assert times.seconds == {"features": 5.0, "evaluation": 2.0}
