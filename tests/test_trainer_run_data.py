"""Runs on a data set that images are added to: before, between and during them."""

import errno
import json
import logging
import re
import shutil

import pytest

from cluster.errors import LeaseLost, StorageAway
from cluster.files import read_json
from cluster.run_paths import RunPaths
from data_shards.index import read_index, write_index
from data_shards.pack.add import add
from tests.datasets import image_folder
from tests.trained import attempted, done, evaluated, lease_in, new_run, stop_at_epoch, train_spec
from trainer.data.images import ShardSplit
from trainer.data.run_data import run_index, training_data
from trainer.errors import SpecError, Stopped

ADDED = {"train/3": 3, "valid/4": 2, "test/5": 1}


def grow(shards, folder):
    add(str(shards), image_folder(folder, ADDED, size=(32, 32)), {"processes": 1})


@pytest.fixture
def shards(tmp_path, digits_shards):
    return shutil.copytree(digits_shards, tmp_path / "shards")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_shards):
    """A model trained before images were added, and the data set after."""
    folder = tmp_path_factory.mktemp("grown")
    shards = shutil.copytree(digits_shards, folder / "shards")
    paths, _ = done(folder / "storage", train_spec(shards))
    features = {file.name: file.stat().st_mtime_ns for file in (folder / "storage/features").rglob("*.safetensors")}
    grow(shards, folder / "new")
    return paths, shards, features


@pytest.mark.usefixtures("without_reports")
def test_a_training_on_a_data_set_with_new_images_computes_the_features_of_the_new_shards_alone(trained):
    paths, shards, before = trained
    index = read_index(str(shards))
    new = {shard.sha256 for shard in index.shards[index.history[0].shards :] if shard.split != "test"}

    done(paths.storage, train_spec(shards), "later")

    files = {path.name: path.stat().st_size for path in (paths.storage / "features").rglob("*.safetensors")}
    assert {name.removesuffix(".safetensors") for name in files.keys() - before.keys()} == new
    assert len(before) == len(index.before(0).of_split("train+valid"))


def test_an_evaluation_says_that_the_model_saw_an_earlier_version_of_the_data_set(trained):
    paths, shards, _ = trained

    evaluated(paths.storage, paths.best, shards)

    run = RunPaths(paths.storage / "runs/evaluation")
    seen = read_json(run.result)["trained_on"]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", run.report.read_text()))
    train = read_index(str(shards)).samples_in("train")
    assert seen.startswith(
        f"an earlier version of this data set, with 300 of its 306 images ({train - 3} of {train} in train, "
    )
    assert seen in words
    assert re.search(r"images added \d{4}-\d\d-\d\d: 3 train, 2 valid, 1 test", words)


def test_a_refit_on_an_earlier_version_has_seen_the_validation_images(trained, tmp_path):
    paths, shards, _ = trained
    model = shutil.copytree(paths.best, tmp_path / "best")
    manifest = read_json(model / "manifest.json")
    (model / "manifest.json").write_text(json.dumps({**manifest, "refit": {"epochs": 1}}))

    with pytest.raises(SpecError, match="needs a validation split without training images"):
        evaluated(tmp_path, model, shards, positive="3", min_sensitivity=0.9)


def test_a_model_of_this_version_or_of_other_data_is_not_mentioned(trained):
    index = read_index(str(trained[1]))

    assert training_data({"data": index.digest}, index) is None
    assert training_data({"data": "0" * 64}, index) is None
    assert training_data({}, index) is None


@pytest.mark.usefixtures("without_reports")
def test_a_training_that_is_resumed_after_images_were_added_equals_an_undisturbed_one(tmp_path, shards, monkeypatch):
    spec = train_spec(shards, epochs=3)
    undisturbed, _ = done(tmp_path / "storage", spec, "undisturbed")
    paths = new_run(tmp_path / "storage", spec, "disturbed")
    stop_at_epoch(monkeypatch, paths, 1)
    with pytest.raises(Stopped):
        attempted(paths, spec)

    grow(shards, tmp_path / "new")
    attempted(paths, spec)

    assert (paths.best / "model.safetensors").read_bytes() == (undisturbed.best / "model.safetensors").read_bytes()
    assert read_json(paths.best / "manifest.json")["data"] == read_index(str(shards)).history[0].digest


def test_a_run_keeps_its_version_of_the_data_set_in_all_its_processes(tmp_path, shards):
    paths = new_run(tmp_path / "storage", train_spec(shards))
    first = run_index(lease_in(paths.folder), str(shards))

    grow(shards, tmp_path / "new")

    assert run_index(lease_in(paths.folder), str(shards)) == first != read_index(str(shards))
    assert read_json(paths.data) == {"shards": str(shards), "digest": first.digest}


def test_an_attempt_that_was_superseded_does_not_change_the_version_of_the_data_set(tmp_path, shards):
    paths = new_run(tmp_path / "storage", train_spec(shards))
    stopped = lease_in(paths.folder)
    newer = run_index(lease_in(paths.folder), str(shards))
    paths.data.unlink()  # the older attempt had looked for it before the newer one wrote it

    with pytest.raises(LeaseLost):
        run_index(stopped, str(shards))

    assert not paths.data.exists()
    assert newer == read_index(str(shards))


def test_a_run_whose_data_set_was_packed_again_uses_the_new_one_and_says_so(tmp_path, shards, caplog):
    paths = new_run(tmp_path / "storage", train_spec(shards))
    run_index(lease_in(paths.folder), str(shards))
    write_index(shards, read_index(str(shards)).model_copy(update={"options": {"seed": 5}}).sealed())

    with caplog.at_level(logging.WARNING):
        found = run_index(lease_in(paths.folder), str(shards))

    assert found == read_index(str(shards))
    assert "was packed again after the run started; the run uses it as it is" in caplog.text
    assert read_json(paths.data)["digest"] == found.digest


@pytest.mark.parametrize("content", ["{half", "[]", '{"shards": 3}'])
def test_a_damaged_note_of_the_version_is_written_again(tmp_path, shards, content):
    paths = new_run(tmp_path / "storage", train_spec(shards))
    paths.data.write_text(content)

    index = run_index(lease_in(paths.folder), str(shards))

    assert read_json(paths.data)["digest"] == index.digest


def test_a_storage_that_does_not_answer_does_not_change_the_version_of_the_data_set(tmp_path, shards, monkeypatch):
    paths = new_run(tmp_path / "storage", train_spec(shards))
    first = run_index(lease_in(paths.folder), str(shards))
    grow(shards, tmp_path / "new")
    lease = lease_in(paths.folder)

    with monkeypatch.context() as failing:
        failing.setattr("cluster.files.read_content", unreadable)
        with pytest.raises(StorageAway, match="Input/output error"):
            run_index(lease, str(shards))

    assert run_index(lease, str(shards)) == first


def unreadable(_path):
    raise OSError(errno.EIO, "Input/output error")


def test_a_prediction_reads_the_images_that_it_counted(tmp_path, shards):
    split = ShardSplit(str(shards), "test")
    count = len(split)

    grow(shards, tmp_path / "new")

    assert (len(split), split.index.samples_in("test")) == (count, count)
