"""Fine-tuning whose first epochs train the head alone."""

import signal
import weakref
from pathlib import Path

import psutil
import pytest

from cluster.files import read_lines
from tests.trained import attempted, done, evaluated, new_run, stop_at_epoch, train_spec, trainer_process, wait_until
from trainer.errors import SpecError, Stopped
from trainer.model.checkpoint_folder import read_tensors
from trainer.training import worker
from trainer.training.worker import phases

pytestmark = pytest.mark.usefixtures("without_reports")

TUNING = {"freeze": "5", "head_epochs": 2, "epochs": 4, "ema": 0.9, "seed": 7}
STEPS = 7  # an epoch of 210 digits has
FROZEN, TRAINED = "backbone.network._blocks.0.", "backbone.network._blocks.15."  # of the first stage and the last


@pytest.fixture(scope="module")
def shared_storage(tmp_path_factory):
    """One storage for all runs: the features of the head phase are computed once."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def tuned(shared_storage, digits_shards):
    return done(shared_storage, train_spec(digits_shards, **TUNING), "uninterrupted")


@pytest.fixture
def interrupted(shared_storage, digits_shards, monkeypatch):
    """A run stopped one step into its second phase."""
    spec = train_spec(digits_shards, **TUNING)
    paths = new_run(shared_storage, spec, "interrupted")
    stop_at_epoch(monkeypatch, paths, 2)
    with pytest.raises(Stopped, match=f"after step {2 * STEPS + 1}, checkpoint saved"):
        attempted(paths, spec)
    return paths


def test_the_backbone_moves_from_the_second_phase_on_but_for_its_frozen_stages(interrupted):
    start = tensors_of(interrupted, "best-*")
    before, after = tensors_of(interrupted, f"step-{2 * STEPS:09d}"), tensors_of(interrupted, "step-*")

    assert all(name.startswith("head.") for name in changed(start, before))
    moved = changed(before, after)
    assert any(name.startswith(TRAINED) for name in moved)
    assert any(name.startswith("head.") for name in moved)
    assert not any(name.startswith(FROZEN) for name in moved)


def test_a_run_stopped_in_either_phase_goes_on_to_the_very_same_model(
    tuned, shared_storage, digits_shards, monkeypatch
):
    uninterrupted, _ = tuned
    spec = train_spec(digits_shards, **TUNING)
    paths = new_run(shared_storage, spec, "stopped twice")
    for attempt, epoch in enumerate((1, 3), 1):
        stop_at_epoch(monkeypatch, paths, epoch, in_attempt=attempt)
        with pytest.raises(Stopped, match=f"after step {epoch * STEPS + 1}, checkpoint saved"):
            attempted(paths, spec)

    attempted(paths, spec)

    assert model_of(paths) == model_of(uninterrupted)
    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2, 3, 4]


def test_evaluating_a_fine_tuned_average_reproduces_the_figures_stored_with_it(tuned, shared_storage, digits_shards):
    paths, result = tuned

    found = evaluated(shared_storage, paths.best, digits_shards, split="valid", seed=7)

    assert found.metrics["confusion_matrix"] == result.metrics["confusion_matrix"]
    assert found.metrics["loss"] == pytest.approx(result.metrics["loss"], rel=1e-6)


def test_each_phase_has_a_warm_up_of_its_own(tuned):
    paths, _ = tuned

    first, second, third, fourth = (line["lr"] for line in read_lines(paths.metrics))

    assert (first, second) == (third, fourth)  # at the ends of two phases of two epochs
    assert first > second


def test_the_first_phase_holds_no_features_when_the_second_measures_the_memory(
    shared_storage, digits_shards, monkeypatch
):
    load, measure = worker._feature_loader, worker._micro_batches
    loaders, held = [], []

    def loaded(setup):
        loader = load(setup)
        loaders.append(weakref.ref(loader))
        return loader

    def measured(*given, **options):
        held.extend(loader() is not None for loader in loaders)
        return measure(*given, **options)

    monkeypatch.setattr(worker, "_feature_loader", loaded)
    monkeypatch.setattr(worker, "_micro_batches", measured)

    done(shared_storage, train_spec(digits_shards, **TUNING | {"head_epochs": 1, "epochs": 2}), "short")

    assert held == [False]


@pytest.mark.slow
def test_patience_ends_the_last_phase_only(shared_storage, digits_shards):
    options = TUNING | {"lr": 1e-9, "epochs": 6, "head_epochs": 3, "patience": 1, "best_by": "accuracy"}

    paths, _ = done(shared_storage, train_spec(digits_shards, **options), "impatient")

    epochs = [line["epoch"] for line in read_lines(paths.metrics)]
    assert 4 <= epochs[-1] < 6


def test_a_head_phase_that_leaves_the_backbone_no_epoch_is_refused(digits_shards):
    with pytest.raises(SpecError, match="head_epochs 4 leaves the backbone none of 4 epochs; use fewer --head-epochs"):
        train_spec(digits_shards, **TUNING | {"head_epochs": 4})


def test_where_the_backbone_is_frozen_there_is_one_phase():
    spec = train_spec(Path("digits"), freeze="all", head_epochs=5, epochs=3)

    assert phases(spec) == [(range(3), True)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_killed_in_the_second_phase_go_on_to_the_same_model_moments_and_average(tmp_path, digits_shards):
    spec = train_spec(digits_shards, workers=2, **TUNING)
    uninterrupted, paths = new_run(tmp_path, spec, "uninterrupted"), new_run(tmp_path, spec, "killed")
    assert trainer_process(uninterrupted).wait(600) == 0, uninterrupted.log.read_text()
    process = trainer_process(paths)

    assert wait_until(lambda: process.poll() is not None or len(list(read_lines(paths.metrics))) >= 3)
    psutil.Process(process.pid).children()[0].kill()
    assert process.wait(600) == 128 + signal.SIGKILL
    assert trainer_process(paths).wait(600) == 0, paths.log.read_text()

    assert model_of(paths) == model_of(uninterrupted)
    checkpoint = last_checkpoint_of(paths)
    assert sorted(checkpoint) == ["average.safetensors", "module.safetensors", "optimizer.safetensors"]
    assert checkpoint == last_checkpoint_of(uninterrupted)


def last_checkpoint_of(paths):
    """The bytes of weights, moments and average after the last step, by the name of their file."""
    return {file.name: file.read_bytes() for file in max(paths.checkpoints.glob("step-*")).glob("*.safetensors")}


def tensors_of(paths, name):
    """The tensors of the newest folder of that name."""
    return read_tensors(max(paths.checkpoints.glob(name)) / "module.safetensors")


def changed(before, after):
    return [name for name in before if not before[name].equal(after[name])]


def model_of(paths):
    return (paths.best / "model.safetensors").read_bytes()
