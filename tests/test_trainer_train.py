import json
import logging
import resource
import shutil

import pytest

from cluster.errors import LeaseLost
from cluster.files import read_json, read_lines
from cluster.lease import Lease
from cluster.run_paths import RunPaths, TrialPaths
from cluster.settings import Settings
from data_shards.errors import BadIndex
from data_shards.index import read_index
from tests.trained import at_epoch, attempted, done, evaluated, new_run, train_spec
from trainer.attempt import Attempt
from trainer.data.feature_cache import FeatureCache, FeatureKey
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerTask
from trainer.errors import SpecError, Stopped, StorageFull, TrainingDiverged
from trainer.model.bundle import read_model
from trainer.model.folded_backbone import FoldedBackbone
from trainer.training.loop import EpochMetrics
from trainer.training.worker import train_on_worker

pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_shards):
    """A training with its report."""
    storage = tmp_path_factory.mktemp("storage")
    return done(storage, train_spec(digits_shards, seed=7))


@pytest.fixture
def storage(trained, tmp_path):
    """A storage without runs that has the features of the trainings with this seed."""
    shutil.copytree(trained[0].storage / "features", tmp_path / "features")
    return tmp_path


def test_a_training_leaves_a_line_an_epoch_a_model_and_a_result(trained, digits_shards):
    paths, _ = trained

    lines = list(read_lines(paths.metrics))
    result = read_json(paths.result)
    model, config, manifest = read_model(paths.best)

    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0].keys() >= {"train_loss", "valid_loss", "valid_accuracy", "valid_auroc", "lr", "images_per_second"}
    assert result["kind"] == "train"
    assert result["checkpoint"] == str(paths.best)
    assert result["metrics"]["split"] == "valid"
    assert config.classes == tuple("0123456789")
    assert manifest["epoch"] == result["best_epoch"]
    assert not model.training


def test_the_log_has_a_line_an_epoch(storage, digits_shards, caplog):
    caplog.set_level(logging.INFO)

    paths, _ = done(storage, train_spec(digits_shards, seed=9))

    lines = [record.message for record in caplog.records if record.message.startswith("epoch ")]
    first, _ = read_lines(paths.metrics)
    assert len(lines) == 2
    assert lines[0] == (
        f"epoch 1 of 2: training loss {first['train_loss']:.4f}; valid loss {first['valid_loss']:.4f}, "
        f"accuracy {first['valid_accuracy']:.4f}, auroc {first['valid_auroc']:.4f}, "
        f"balanced_accuracy {first['valid_balanced_accuracy']:.4f}; the best so far"
    )
    assert "Running in local mode" not in caplog.text


def test_the_line_of_an_epoch_shows_a_loss_of_almost_one_as_one_and_only_zero_as_zero():
    valid = {"loss": 0.00001, "accuracy": 0.99998}

    found = EpochMetrics(
        epoch=1,
        epochs=2,
        train_loss=0.99998,
        valid=valid,
        lr=0.1,
        micro_batches=1,
        best=False,
        seconds=1.0,
        images_per_second=1.0,
    )

    assert str(found) == "epoch 1 of 2: training loss 1.0000; valid loss <0.0001, accuracy >0.9999"


def test_a_training_on_features_shows_what_linear_heads_reach_on_the_same_images(trained, digits_shards):
    result = read_json(trained[0].result)

    assert [row["head"] for row in result["baselines"]] == ["lda", "logistic"]
    for row in result["baselines"]:
        low, high = row["intervals"]["auroc"]
        assert low < row["auroc"] <= high <= 1
        assert row["images"] == read_index(str(digits_shards)).samples_in("train")
    assert "Baselines on the same features" in trained[0].report.read_text()


def test_the_same_seed_gives_the_same_model_to_the_last_bit(trained, tmp_path, digits_shards):
    paths, _ = trained

    again, _ = done(tmp_path, train_spec(digits_shards, seed=7))

    assert (again.best / "model.safetensors").read_bytes() == (paths.best / "model.safetensors").read_bytes()


def test_another_seed_gives_another_model(trained, tmp_path, digits_shards):
    paths, _ = trained

    other, _ = done(tmp_path, train_spec(digits_shards, seed=8))

    assert (other.best / "model.safetensors").read_bytes() != (paths.best / "model.safetensors").read_bytes()


def test_without_the_cache_the_result_is_the_same(trained, tmp_path, digits_shards):
    _, cached = trained

    _, streamed = done(tmp_path, train_spec(digits_shards, seed=7, cache=False))

    assert not (tmp_path / "features").exists()
    assert streamed.metrics["confusion_matrix"] == cached.metrics["confusion_matrix"]
    assert streamed.metrics["loss"] == pytest.approx(cached.metrics["loss"], rel=1e-3)


def test_a_step_of_a_head_on_augmented_images_does_not_take_its_features_to_the_cpu(
    tmp_path, digits_shards, monkeypatch
):
    monkeypatch.setattr(FoldedBackbone, "__call__", lambda *_: pytest.fail("a GPU would be waited for at each batch"))

    paths, _ = done(tmp_path, train_spec(digits_shards, augment=True, epochs=1))

    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1]


def test_evaluating_the_published_model_reproduces_the_figures_stored_with_it(trained, storage, digits_shards):
    paths, _ = trained
    stored = read_json(paths.best / "manifest.json")["metrics"]

    found = evaluated(storage, paths.best, digits_shards, split="valid", seed=7)

    assert json.loads(json.dumps(found.metrics)) == stored


def test_a_run_stopped_in_an_epoch_goes_on_to_the_very_same_model(trained, storage, digits_shards, monkeypatch):
    uninterrupted, _ = trained
    spec = train_spec(digits_shards, seed=7)
    paths = new_run(storage, spec)
    at_epoch(monkeypatch, 1, lambda: paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1})))

    with pytest.raises(Stopped, match=r"stopped \(cancel\) after step 8, checkpoint saved"):
        attempted(paths, spec)
    attempted(paths, spec)

    assert (paths.best / "model.safetensors").read_bytes() == (uninterrupted.best / "model.safetensors").read_bytes()
    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2]


def test_a_run_stopped_while_it_computes_features_says_so(tmp_path, digits_shards):
    spec = train_spec(digits_shards)
    paths = new_run(tmp_path, spec)
    paths.stop.write_text(json.dumps({"reason": "drain", "attempt": None}))

    with pytest.raises(Stopped, match="stopped while computing features"):
        attempted(paths, spec)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(trained, storage, digits_shards, caplog):
    uninterrupted, _ = trained
    spec = train_spec(digits_shards, seed=7)
    paths, _ = done(storage, spec)
    newest = max(paths.checkpoints.glob("step-*"))
    with (newest / "module.safetensors").open("r+b") as file:
        file.truncate(1000)

    attempted(paths, spec)

    assert f"{newest} is damaged: module.safetensors" in caplog.text
    assert (paths.best / "model.safetensors").read_bytes() == (uninterrupted.best / "model.safetensors").read_bytes()
    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2]


def test_a_run_that_resumes_names_the_damaged_lines_of_its_metrics_and_drops_them(storage, digits_shards, caplog):
    spec = train_spec(digits_shards, seed=7)
    paths, _ = done(storage, spec)
    with paths.metrics.open("a") as file:
        file.write('{"epoch": \n')

    attempted(paths, spec)

    assert caplog.text.count(f"{paths.metrics}: line 3 is damaged and left out") == 1
    assert [json.loads(line)["epoch"] for line in paths.metrics.read_text().splitlines()] == [1, 2]


def test_patience_ends_a_training_that_gets_no_better(storage, digits_shards):
    paths, result = done(storage, train_spec(digits_shards, seed=7, epochs=50, lr=1e-9, patience=2, best_by="accuracy"))

    epochs = [line["epoch"] for line in read_lines(paths.metrics)]

    assert epochs[-1] == result.details["best_epoch"] + 2
    assert epochs[-1] < 50


def test_shards_that_do_not_exist_are_refused_in_one_line(tmp_path):
    with pytest.raises(BadIndex, match="does not exist"):
        done(tmp_path, train_spec(tmp_path / "nothing"))


def test_steps_too_small_for_batch_norm_are_refused(tmp_path, digits_shards):
    with pytest.raises(SpecError, match="leave a worker with 1 image, and batch norm needs 2"):
        done(tmp_path, train_spec(digits_shards, batch_size=4, workers=2))


def test_an_attempt_that_was_overtaken_publishes_nothing(storage, digits_shards, monkeypatch):
    spec = train_spec(digits_shards, seed=7)
    paths = new_run(storage, spec)
    at_epoch(monkeypatch, 1, lambda: Lease.claim(paths, after=1))

    with pytest.raises(LeaseLost, match="attempt 2 has taken over from attempt 1"):
        attempted(paths, spec)

    assert not paths.result.exists()
    assert not paths.best.exists()
    assert not list(paths.checkpoints.glob("step-*"))


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_last_good_checkpoint(storage, digits_shards):
    spec = train_spec(digits_shards, seed=7, epochs=1)
    paths, _ = done(storage, spec, "first")
    spoil_features(storage)
    longer = train_spec(digits_shards, seed=7)
    (storage / "runs" / "second").mkdir()
    shutil.copytree(paths.checkpoints, storage / "runs" / "second" / "checkpoints")
    resumed = RunPaths(storage / "runs" / "second")

    with pytest.raises(
        TrainingDiverged, match=r"loss is not finite \(NaN or inf\) at step \d+ of epoch 2; use a lower --lr"
    ):
        attempted(resumed, longer)

    assert [path.name for path in resumed.checkpoints.glob("step-*")] == ["step-000000007"]
    assert not resumed.result.exists()
    assert not resumed.best.exists()


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint_and_says_the_cure(storage, digits_shards, monkeypatch):
    spec = train_spec(digits_shards, seed=7, head_width=512)
    paths = new_run(storage, spec)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the system now refuses, as a full disk does

    at_epoch(monkeypatch, 2, fill_up)
    try:
        with pytest.raises(StorageFull, match="free space there and retry the run"):
            attempted(paths, spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    attempted(paths, spec)

    assert [line["epoch"] for line in read_lines(paths.metrics)] == [1, 2]
    assert read_json(paths.result)["best_epoch"] in {1, 2}


def spoil_features(storage):
    """Make one stored feature no number, in a file that is otherwise sound."""
    (folder,) = (storage / "features").glob("*/")
    key = FeatureKey(**{name: as_tuple(value) for name, value in read_json(folder / "key.json").items()})
    cache = FeatureCache(storage / "features", key, 10**9)
    for file in folder.glob("*.safetensors"):
        features = cache.read(file.stem)
        features.values[0, 0] = float("nan")
        file.unlink()  # what is stored is not replaced
        cache.write(file.stem, features)


def as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def test_a_training_inside_a_search_publishes_in_its_own_folder_alone(storage, digits_shards):
    spec = train_spec(digits_shards, seed=7, epochs=1)
    paths = new_run(storage, spec)
    attempt = Attempt.of(paths.folder, None, Settings(storage=storage))
    trial = TrialPaths(paths.checkpoints / "trial-000000")

    run_on_workers(train_on_worker, WorkerTask(attempt=attempt, spec=spec, source=None, trial=trial))

    assert (trial.best.exists(), trial.predictions.exists()) == (True, True)
    assert (paths.best.exists(), paths.predictions.exists()) == (False, False)
