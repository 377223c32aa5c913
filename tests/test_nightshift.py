"""`import nightshift`: predictions, tables of runs, submitting and waiting."""

import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import BatchNorm1d, BatchNorm2d

import nightshift
from cluster.errors import SettingsError, StorageAway, UnknownRun
from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.index import read_index
from data_shards.pack.options import EncodeOptions
from jobs.errors import InvalidOption, Refused
from jobs.queue.submit import publish
from jobs.runs import state as run_state
from jobs.runs.request import JobRequest
from jobs.runs.run_filter import Kind
from jobs.runs.state import RunState
from tests.trained import lease_in
from trainer.errors import CheckpointError, ModelMismatch, SpecError
from trainer.inference.predictor import Predictor
from trainer.model.bundle import publish_model
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.specs import SearchSpec, TrainSpec

CLASSES = ("covid", "normal")


@pytest.fixture
def there(storage: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of this process, without a Redis."""
    monkeypatch.setenv("NIGHTSHIFT_STORAGE", str(storage))
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", f"unix://{storage}/no-redis")
    monkeypatch.setenv("NIGHTSHIFT_USER", "ada")
    return Settings.read()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model with random weights, which tells images apart."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    config = HeadConfig(classes=CLASSES, width=64, dropout=0.0, image_size=32, pack=EncodeOptions())
    torch.manual_seed(0)
    model = build_model(config).train()
    for layer in model.modules():
        if isinstance(layer, BatchNorm1d | BatchNorm2d):
            layer.momentum = None  # the statistics become those of the images; with fresh ones all answers are equal
    with torch.no_grad():
        model(torch.rand(16, 3, 32, 32))
        for parameter in model.head.parameters():
            parameter.mul_(0.1)  # so that no probability is rounded to 1
    publish_model(folder / "best", model, config, manifest={}, lease=lease_in(folder))
    return folder / "best"


@pytest.fixture
def run(there: Settings, shards: str) -> RunPaths:
    """A training that waits in the queue."""
    paths = RunPaths.of(there.storage, "train-20261123-203000-a1b2c3")
    state = RunState(
        id=paths.run_id, kind="train", name="night", state="queued", tags=("chest",), owner="ada", note="first",
        created=run_state.now(),
    )  # fmt: skip
    publish(there.storage, paths, TrainSpec(shards=shards, weights="none"), JobRequest(name="night"), state)
    return paths


def succeed(run: RunPaths) -> None:
    write_json(run.result, {"kind": "train", "metrics": {"accuracy": 0.75}, "seconds": 1.0, "checkpoint": None})
    with run_state.changing(run) as state:
        run_state.write_state(run, state.with_state("succeeded", metric=("accuracy", 0.75)))


def test_a_model_classifies_files_folders_and_arrays_alike(there: Settings, published: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    films = tmp_path / "films"
    films.mkdir()
    Image.fromarray(pixels).save(films / "a.png")
    (films / "b.txt").write_text("no image")

    model = nightshift.load(published)
    table = model.predict([films / "a.png", films, pixels])

    assert (model.classes, model.threshold, model.metrics, model.folder) == (CLASSES, None, {}, published)
    assert list(table.columns) == ["file", "decision", "probability_covid", "probability_normal", "error"]
    assert list(table["file"]) == [str(films / "a.png"), str(films / "a.png"), str(films / "b.txt"), "2"]
    read = table[table["error"].isna()]
    assert len(read) == 3
    assert np.ptp(read["probability_covid"]) < 1e-6  # batches of other sizes are rounded otherwise
    assert np.allclose(read["probability_covid"] + read["probability_normal"], 1)
    assert set(read["decision"]) == {
        CLASSES[int(read["probability_normal"].iloc[0] > read["probability_covid"].iloc[0])]
    }
    assert table["decision"].isna().tolist() == [False, False, True, False]


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_an_array_that_is_not_an_image_is_refused(there: Settings, published: Path, array: np.ndarray) -> None:
    with pytest.raises(SpecError, match=r"array 0 has the shape .* give \(H, W\) or \(H, W, 3\) of uint8, several"):
        nightshift.load(published).predict(array)


def test_a_run_is_loaded_by_its_name_with_its_metrics(run: RunPaths, published: Path) -> None:
    shutil.copytree(published, run.best)
    succeed(run)

    model = nightshift.load("night")

    assert (model.name, model.folder, model.metrics) == ("night", run.best, {"accuracy": 0.75})


def test_a_model_that_is_not_there_is_refused(run: RunPaths) -> None:
    with pytest.raises(CheckpointError, match=f"{run.run_id} has no model yet; wait for it: nightshift wait"):
        nightshift.load("night")
    with pytest.raises(CheckpointError, match="day is not a model"):
        nightshift.load("day")


def test_runs_are_a_table(run: RunPaths) -> None:
    succeed(run)

    table = nightshift.runs(tag="chest", owner="ada", kind="train")

    (row,) = table.to_dict("records")
    assert (row["id"], row["name"], row["tags"], row["note"]) == (run.run_id, "night", ("chest",), "first")
    assert (row["state"], row["metric"], row["value"]) == ("succeeded", "accuracy", 0.75)
    assert row["ended"] >= row["created"]
    assert len(nightshift.runs(name="day")) == 0


def test_epochs_are_a_table(run: RunPaths) -> None:
    lines = [{"epoch": epoch, "valid_loss": 1 / epoch} for epoch in (1, 2)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert nightshift.metrics("night").to_dict("records") == lines
    with run.metrics.open("a") as file:
        file.write("damage\n")
    with pytest.warns(UserWarning, match="is damaged and left out"):
        assert len(nightshift.metrics("night")) == len(lines)
    with pytest.raises(UnknownRun, match="no run has the id or name 'day'"):
        nightshift.metrics("day")


def test_a_run_of_a_kind_without_epochs_has_no_table_of_them(there: Settings, shards: str) -> None:
    paths = RunPaths.of(there.storage, "search-20261123-203000-a1b2c3")
    state = RunState(id=paths.run_id, kind="search", name="night", state="queued", created=run_state.now())
    publish(there.storage, paths, SearchSpec(shards=shards, weights="none"), JobRequest(name="night"), state)

    with pytest.raises(Refused, match=r"is of kind search, which has no epochs; trials\(\) has its trials"):
        nightshift.metrics("night")


def test_submit_takes_the_options_of_the_command_line(
    there: Settings, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", str(settings.redis_url))

    with pytest.warns(UserWarning, match=r"^No job worker is running; `nightshift up` starts one") as warned:
        run_id = nightshift.submit(
            "train", shards=Path(shards), weights="none", epochs=7, lr=1e-4, cache=False, tag=["a", "b"], name="night"
        )

    spec = json.loads(RunPaths.of(there.storage, run_id).spec.read_text())
    state = run_state.read_state(RunPaths.of(there.storage, run_id))
    assert (spec["shards"], spec["epochs"], spec["lr"], spec["cache"]) == (shards, 7, 1e-4, False)
    assert (state.name, state.tags, state.owner) == ("night", ("a", "b"), "ada")
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings(action="error"), pytest.raises(UserWarning, match="No job worker is running"):
        nightshift.submit("train", shards=Path(shards), weights="none")
    assert len(nightshift.runs()) == 1


@pytest.mark.usefixtures("there")
@pytest.mark.filterwarnings("ignore:No job worker is running")
@pytest.mark.parametrize(("setting", "mode"), [("", 0o750), ("077", 0o700)])
def test_the_files_of_a_submitted_run_have_the_permissions_of_the_settings(
    settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch, setting: str, mode: int
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", str(settings.redis_url))
    monkeypatch.setenv("NIGHTSHIFT_UMASK", setting)
    before = os.umask(0o022)

    run_id = nightshift.submit("train", shards=shards, weights="none")
    after = os.umask(before)

    assert RunPaths.of(settings.storage, run_id).folder.stat().st_mode & 0o777 == mode
    assert after == 0o022


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("train", {"epoch": 3}, "submit(): 'epoch' is not an option of nightshift train; did you mean epochs?"),
        ("train", {"wait": True}, "submit(): 'wait' is for the command line alone; leave it out"),
        ("train", {"epochs": "ten"}, "epochs in submit(): 'ten' is not a whole number"),
        ("train", {"epochs": 0}, "epochs 0 is below 1; use 1 or more"),
        ("trian", {}, "'trian' is not one of train, evaluate, search, predict, export"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_queued(
    there: Settings, shards: str, kind: Kind, options: dict[str, object], line: str
) -> None:
    with pytest.raises((InvalidOption, SpecError)) as refused:
        nightshift.submit(kind, shards=shards, weights="none", **options)

    assert str(refused.value) == line
    assert run_state.all_ids(there.storage) == []


def test_a_prediction_without_a_run_is_not_submitted(there: Settings, published: Path) -> None:
    with pytest.raises(InvalidOption, match="--now is for a command that runs at once; leave it out here"):
        nightshift.submit("predict", model=published, images=[published], now=True)


def test_wait_returns_the_run_that_has_ended_and_gives_up_after_its_timeout(run: RunPaths) -> None:
    with pytest.raises(TimeoutError, match=f"{run.run_id} has not ended after 0 s; it goes on"):
        nightshift.wait("night", timeout=0)
    succeed(run)

    ended = nightshift.wait("night")

    assert (ended["state"], ended["result"]["metrics"]) == ("succeeded", {"accuracy": 0.75})


def test_a_timeout_is_a_duration_as_on_the_command_line(run: RunPaths) -> None:
    with pytest.raises(SettingsError, match="'5' is not a duration; write 30m, 8h or 2d"):
        nightshift.wait("night", timeout="5")
    succeed(run)

    assert nightshift.wait("night", timeout="30m")["state"] == "succeeded"


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({"state": "done"}, "state 'done' is not one of queued, scheduled, running, paused, succeeded, failed, lost, "
         "cancelled, damaged"),
        ({"kind": "tain"}, "kind 'tain' is not one of train, evaluate, search, predict, export"),
    ],
)  # fmt: skip
def test_runs_of_a_state_or_kind_that_does_not_exist_are_refused(
    there: Settings, wanted: dict[str, Any], line: str
) -> None:
    with pytest.raises(InvalidOption) as refused:
        nightshift.runs(**wanted)

    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("images", "number", "kind"),
    [
        (5, 0, "int"),
        (None, 0, "NoneType"),
        (torch.zeros(2, 4, 4), 0, "Tensor"),
        ([np.zeros((4, 4), np.uint8), 5], 1, "int"),
    ],
)
def test_what_is_no_image_is_refused(there: Settings, published: Path, images: Any, number: int, kind: str) -> None:
    with pytest.raises(SpecError) as refused:
        nightshift.load(published).predict(images)

    line = f"image {number} is of type {kind}; give files, folders, shards, arrays or images of Pillow"
    assert str(refused.value) == line


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "RGBA", "LA", "I;16"])
def test_an_image_of_pillow_has_the_answer_of_its_file(
    there: Settings, published: Path, tmp_path: Path, mode: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    image = deep if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "film.png")

    table = nightshift.load(published).predict([image, tmp_path / "film.png", pixels[::-1]])

    assert image.mode == mode
    assert table["probability_covid"][0] == table["probability_covid"][1] != table["probability_covid"][2]


def test_an_image_of_pillow_is_turned_upright(there: Settings, published: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    model = nightshift.load(published)

    with Image.open(tmp_path / "turned.png") as image:
        table = model.predict([image, tmp_path / "turned.png", pixels])

    assert table["probability_covid"][0] == table["probability_covid"][1] != table["probability_covid"][2]


def test_an_image_of_pillow_without_8_bit_pixels_is_refused(there: Settings, published: Path) -> None:
    with pytest.raises(SpecError, match=r"^image 0: its pixels are floating point; save it with 8 or 16 bits$"):
        nightshift.load(published).predict(Image.new("F", (8, 8)))


def test_files_and_arrays_are_classified_in_batches_and_in_order(
    there: Settings, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    probabilities = Predictor.probabilities

    def counted(self: Predictor, pixels: torch.Tensor) -> Any:
        sizes.append(len(pixels))
        return probabilities(self, pixels)

    monkeypatch.setattr(Predictor, "probabilities", counted)
    arrays = [np.full((32, 32), 40 * number, np.uint8) for number in range(5)]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(5)]

    table = nightshift.load(published).predict(iter([*arrays, *files]), batch_size=3)

    assert sizes == [3, 2, 3, 2]
    assert list(table["file"]) == [*"01234", *map(str, files)]
    assert np.allclose(table["probability_covid"][:5], table["probability_covid"][5:])


def test_a_batch_size_below_1_is_refused(there: Settings, published: Path) -> None:
    with pytest.raises(SpecError, match=r"^batch_size 0 is below 1; use 1 or more$"):
        nightshift.load(published).predict([], batch_size=0)


def test_shards_with_images_below_the_input_of_the_model_are_refused(
    there: Settings, shards: str, tmp_path: Path
) -> None:
    index = read_index(shards)
    (Path(shards) / "index.json").write_text(index.model_copy(update={"image_size": 64}).sealed().model_dump_json())
    config = HeadConfig(classes=CLASSES, width=8, dropout=0.0, image_size=96)
    publish_model(tmp_path / "best", build_model(config), config, manifest={}, lease=lease_in(tmp_path))

    with pytest.raises(
        ModelMismatch,
        match=r"the model's input has 96 pixels and the images in .* 64; pack them again with --image-size 96",
    ):
        nightshift.load(tmp_path / "best").predict(shards)


def test_the_timeout_of_a_wait_bounds_the_wait_for_a_storage_that_is_away(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(storage: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(storage))

    monkeypatch.setattr(run_state, "all_ids", away)

    with pytest.raises(TimeoutError, match=r"has not answered within 0 s: /.* cannot be read: Input/output error"):
        nightshift.wait(run.run_id[:-1], timeout=0)


def test_the_timeout_of_a_wait_bounds_the_last_read_of_a_run_that_has_ended(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: RunPaths) -> None:
        raise StorageAway("the server does not answer")

    succeed(run)
    monkeypatch.setattr(nightshift, "read_record", away)

    with pytest.raises(TimeoutError, match="the storage has not answered within 0 s: the server does not answer"):
        nightshift.wait("night", timeout=0)
