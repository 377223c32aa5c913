import json
from shutil import copytree

import pytest
import torch

from cluster.files import read_json, sha256_of, write_json
from data_shards.index import read_index
from tests.trained import attempted, lease_in, new_run
from trainer.errors import CheckpointError
from trainer.model.bundle import check_unchanged, publish_model, read_model, weights_sha256
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.result import RunResult, result_mismatch
from trainer.specs import EvaluateSpec, ExportSpec, PredictSpec, build


@pytest.fixture(scope="module")
def models(tmp_path_factory, digits_shards):
    """The folders of two models with random weights."""
    classes = read_index(str(digits_shards)).classes
    return [published(tmp_path_factory.mktemp("model"), classes, seed) for seed in (1, 2)]


def published(folder, classes, seed):
    torch.manual_seed(seed)
    config = HeadConfig(classes=classes, width=8, dropout=0.0, image_size=32)
    publish_model(folder / "best", build_model(config), config, manifest={}, lease=lease_in(folder))
    return folder / "best"


@pytest.fixture
def run(tmp_path, digits_shards, models):
    """A training with its model and result."""
    spec = build(EvaluateSpec, model="x", shards=str(digits_shards))
    paths = new_run(tmp_path, spec, "train-20260102-030405-abcdef")
    copytree(models[0], paths.best)
    weights = weights_sha256(paths.best)
    result = RunResult(
        kind="train", checkpoint=str(paths.best), metrics={"accuracy": 1.0}, seconds=1.0, model_sha256=weights
    )
    result.publish(lease_in(paths.folder))
    return paths


@pytest.fixture
def replaced(run, models):
    """The same run with another model in `best/`."""
    copytree(models[1], run.best, dirs_exist_ok=True)
    return run


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 4 * 10**9), ("width", 2**64), ("image_size", 10**9), ("mean", [float("nan")] * 3), ("std", [0, 0, 0]),
     ("classes", ["a", "a", *"bcdefghi"]), ("classes", "digits"), ("dropout", float("inf"))],
)  # fmt: skip
def test_a_model_whose_configuration_could_not_be_trained_is_refused(tmp_path, models, key, value):
    folder = tmp_path / "best"
    copytree(models[0], folder)
    head, manifest = read_json(folder / "head.json"), read_json(folder / "manifest.json")
    write_json(folder / "head.json", {**head, key: value})
    manifest["files"]["head.json"] = sha256_of(folder / "head.json")
    write_json(folder / "manifest.json", manifest)

    with pytest.raises(CheckpointError, match=r"head\.json is damaged or has another version: "):
        read_model(folder)


def test_a_result_names_the_weights_of_its_model(run):
    assert read_json(run.result)["model_sha256"] == weights_sha256(run.best)
    assert result_mismatch(run.best, weights_sha256(run.best)) is None
    read_model(run.best)


@pytest.mark.parametrize("kind", ["evaluate", "predict", "export"])
def test_a_model_that_is_not_the_one_of_its_result_is_refused(replaced, digits_shards, kind):
    spec = {
        "evaluate": lambda: build(EvaluateSpec, model=str(replaced.best), shards=str(digits_shards)),
        "predict": lambda: build(PredictSpec, model=str(replaced.best), images=(str(digits_shards),)),
        "export": lambda: build(ExportSpec, model=str(replaced.best), format="torchscript"),
    }[kind]()
    paths = new_run(replaced.storage, spec, kind)

    with pytest.raises(CheckpointError) as caught:
        attempted(paths, spec)

    named, found = read_json(replaced.result)["model_sha256"][:12], weights_sha256(replaced.best)[:12]
    assert str(caught.value) == (
        f"{replaced.best} is not the model that result.json describes: its weights have the sha256 {found}... and the "
        f"result names {named}...; restore both from one backup, or train the model again"
    )
    assert not paths.result.exists()


def test_a_result_of_version_0_1_0_names_no_model_and_is_accepted(replaced):
    content = read_json(replaced.result)
    del content["model_sha256"]
    write_json(replaced.result, content)

    read_model(replaced.best)


def test_a_model_outside_a_run_is_not_compared_with_a_result(replaced, tmp_path):
    model = replaced.best.rename(tmp_path / "model")
    (tmp_path / "result.json").write_text(json.dumps({"model_sha256": "0" * 64}))

    read_model(model)


def test_a_damaged_result_beside_a_model_is_named(run):
    run.result.write_text("{")

    with pytest.raises(CheckpointError, match=r"result.json cannot be read.*; restore it from a backup, or train"):
        read_model(run.best)


def test_a_model_that_is_replaced_while_a_run_reads_it_fails_the_run(run, models):
    before = weights_sha256(run.best)
    copytree(models[1], run.best, dirs_exist_ok=True)

    with pytest.raises(CheckpointError, match="was replaced while this run read it; start the run again"):
        check_unchanged(run.best, before)
