"""The best of a search trained once more on train and valid together, with real Ray and real heads."""

import errno
import json
import shutil
import signal
from datetime import timedelta

import pytest

from cluster.errors import StorageAway
from cluster.files import read_json, read_lines
from cluster.run_paths import RunPaths
from data_shards.index import read_index, write_index
from tests.searched import NOON, attempt_at, killed_when, search_spec, simulated_search, started, table_of
from tests.trained import evaluated, new_run, trainer_process
from trainer.errors import SpecError, Stopped
from trainer.model.bundle import read_model
from trainer.search.refit import chosen_model, published_refit

SEARCH = "search-20261123-000000-abcdef"


@pytest.fixture(scope="module")
def refitted(tmp_path_factory, digits_shards):
    """A search whose best was refitted."""
    spec = search_spec(digits_shards, trials=3, epochs=6, seed=11, concurrency=1, refit=True, patience=3)
    paths = new_run(tmp_path_factory.mktemp("storage"), spec, SEARCH)
    return paths, spec, attempt_at(paths, spec)


@pytest.mark.slow
def test_the_refit_trains_on_both_splits_for_as_many_epochs_as_the_best_trial(refitted, digits_shards):
    paths, spec, result = refitted
    index, best = read_index(str(digits_shards)), table_of(paths, spec).best()

    manifest, refit = read_json(paths.best / "manifest.json"), result.details["refit"]

    images = index.samples_in("train") + index.samples_in("valid")
    assert (manifest["trial"], manifest["epoch"], manifest["value"]) == (best.trial, best.epoch, best.value)
    assert manifest["refit"] == {name: value for name, value in refit.items() if name != "chosen"}
    assert (refit["epochs"], refit["images"], refit["splits"]) == (best.epoch, images, ["train", "valid"])
    assert "was trained on that split" in refit["calibrated_by"]
    assert "metrics" not in manifest
    assert manifest["chosen"]["metrics"]["split"] == "valid"
    assert not (paths.checkpoints / "refit").exists()


@pytest.mark.slow
def test_both_models_are_evaluated_on_the_test_split_with_the_same_temperature(refitted, digits_shards):
    paths, _, result = refitted
    storage, chosen = paths.storage, result.details["refit"]["chosen"]

    one = evaluated(storage, SEARCH, digits_shards, name="one")
    other = evaluated(storage, paths.chosen, digits_shards, name="other")

    assert result.metrics["confusion_matrix"] == one.metrics["confusion_matrix"]
    assert (chosen["split"], chosen["loss"]) == ("test", other.metrics["loss"])
    assert one.metrics["loss"] != other.metrics["loss"]
    assert one.metrics["temperature"] == other.metrics["temperature"] != 1.0


@pytest.mark.slow
def test_a_refit_that_is_published_is_not_made_again(refitted):
    paths, spec, before = refitted
    weights = paths.best / "model.safetensors"
    bytes_before, at = weights.read_bytes(), weights.stat().st_mtime_ns
    paths.result.unlink()

    again = attempt_at(paths, spec)

    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == (bytes_before, at)
    assert again.details["refit"] == before.details["refit"]
    assert again.metrics == before.metrics


@pytest.mark.slow
def test_a_refit_killed_while_training_and_while_publishing_gives_the_same_model(
    refitted, tmp_path_factory, digits_shards
):
    undisturbed, spec, result = refitted
    paths = new_run(tmp_path_factory.mktemp("killed"), spec, SEARCH)

    code = killed_when(paths, (paths.checkpoints / "refit" / "metrics.jsonl").exists)
    assert code == 128 + signal.SIGKILL
    assert started(paths).wait(600) == 0
    (paths.best / "calibration.json").unlink()  # as a kill between the model and it would leave them
    paths.result.unlink()
    assert started(paths).wait(600) == 0

    assert (paths.best / "model.safetensors").read_bytes() == (undisturbed.best / "model.safetensors").read_bytes()
    assert read_json(paths.result)["metrics"] == result.metrics
    assert len(list(read_lines(paths.trials))) == len(list(read_lines(undisturbed.trials))) + 1  # one more attempt


@pytest.mark.slow
def test_a_search_that_extends_one_with_a_refit_publishes_the_model_of_the_best_trial(refitted, tmp_path_factory):
    first, spec, _ = refitted
    storage = tmp_path_factory.mktemp("storage")
    shutil.copytree(first.folder, storage / "runs" / SEARCH)
    more = spec.model_copy(update={"trials": 3, "extend": SEARCH, "refit": False})
    paths = new_run(storage, more, "search-20261124-000000-abcdef")

    attempt_at(paths, more)

    extended, chosen = (read_model(folder)[0].state_dict() for folder in (paths.best, first.chosen))
    assert all(extended[name].equal(chosen[name]) for name in chosen)
    assert "refit" not in read_json(paths.best / "manifest.json")


@pytest.mark.slow
def test_a_window_that_closes_pauses_the_refit_and_the_next_one_finishes_it(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=1, epochs=40, window="20:00-07:00", timezone="UTC", refit=True)
    paths, hours = new_run(tmp_path, spec, SEARCH), {"evening": NOON.replace(hour=21)}
    refit = paths.checkpoints / "refit"
    morning = NOON.replace(hour=7) + timedelta(days=1)

    with pytest.raises(Stopped):
        attempt_at(paths, spec, clock=lambda: morning if refit.exists() else hours["evening"])
    assert read_json(paths.stop) == {"reason": "window", "attempt": 1}
    assert "refit" not in read_json(paths.best / "manifest.json")
    paths.stop.unlink()

    result = attempt_at(paths, spec, clock=lambda: NOON.replace(hour=22) + timedelta(days=1))

    assert result.details["refit"]["epochs"] == table_of(paths, spec).best().epoch
    assert read_json(paths.best / "manifest.json")["refit"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_best_of_a_fine_tuning_search_is_refitted_on_two_workers(tmp_path, digits_shards):
    spec = search_spec(
        digits_shards, freeze="none", workers=2, trials=1, epochs=1, refit=True,
        space={"lr": (1e-4, 1e-3), "dropout": None, "head_width": None},
    )  # fmt: skip
    paths = new_run(tmp_path, spec, SEARCH)

    code = trainer_process(paths).wait(600)

    assert code == 0, paths.log.read_text()[-3000:]
    found = read_json(paths.result)
    index = read_index(str(digits_shards))
    assert found["refit"]["images"] == index.samples_in("train") + index.samples_in("valid")
    one, other = (read_model(folder)[0].state_dict() for folder in (paths.best, paths.chosen))
    assert not one["backbone.network._conv_stem.weight"].equal(other["backbone.network._conv_stem.weight"])


def test_a_refit_without_a_test_split_is_refused_because_it_could_not_be_evaluated(tmp_path, digits_shards):
    index = read_index(str(digits_shards))
    some = tuple(shard for shard in index.shards if shard.split != "test")
    folder = tmp_path / "shards"
    folder.mkdir()
    write_index(folder, index.model_copy(update={"shards": some}).sealed())
    spec = search_spec(folder, refit=True)
    paths = new_run(tmp_path, spec, SEARCH)

    with pytest.raises(SpecError, match="no split 'test' to evaluate a refit on; pack one, or leave out --refit"):
        attempt_at(paths, spec)


def test_the_deadline_leaves_time_for_the_refit(tmp_path):
    until = NOON + timedelta(seconds=11)
    plain, refits = (
        simulated_search(tmp_path / name, trials=9, epochs=4, until=until, refit=name == "refits")
        for name in ("a", "refits")
    )

    for one in (plain, refits):
        one.whole(one.start(), [0.5] * 4)  # four epochs of 1 s: a trial takes up to 5 s

    assert plain.start() == 1
    assert refits.start() == 1
    refits.controller.clock = plain.controller.clock = lambda: NOON + timedelta(seconds=4)
    assert plain.start() == 2
    assert refits.start() is None


def test_a_storage_that_does_not_answer_does_not_make_a_refit_the_model_of_the_best_trial(tmp_path, monkeypatch):
    paths = RunPaths(tmp_path)
    paths.best.mkdir()
    (paths.best / "manifest.json").write_text(json.dumps({"refit": {"epochs": 3}}))
    (paths.best / "calibration.json").touch()
    assert published_refit(paths) == {"epochs": 3}
    assert chosen_model(paths) == paths.chosen

    def fail(_path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cluster.files.read_content", fail)

    with pytest.raises(StorageAway, match="Input/output error"):
        chosen_model(paths)


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_search_without_a_readable_refit_publishes_its_best_trial(tmp_path, content):
    paths = RunPaths(tmp_path)
    paths.best.mkdir()
    if content is not None:
        (paths.best / "manifest.json").write_text(content)

    assert published_refit(paths) is None
    assert chosen_model(paths) == paths.best
