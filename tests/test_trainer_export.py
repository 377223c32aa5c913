import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from cluster.exit_codes import ExitCode
from cluster.files import read_json, sha256_of
from tests.disks import small_disk
from tests.trained import done, evaluated, new_run, trainer_process
from trainer.errors import SpecError, TrainerError
from trainer.evaluation.calibration import Calibration
from trainer.export import verify_export
from trainer.inference.export_formats import EXPORT_FORMATS, ExportedModel, TorchScript, export_metadata
from trainer.inference.predictor import Predictor
from trainer.model.bundle import read_model
from trainer.specs import ExportSpec, build

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_training, digits_shards):
    """The storage and folder of a model with a threshold for the digit 3."""
    storage = tmp_path_factory.mktemp("storage")
    run = shutil.copytree(digits_training.folder, storage / "runs" / "train-20260102-030405-abcdef")
    shutil.copytree(digits_training.storage / "features", storage / "features")
    evaluated(storage, run / "best", digits_shards, positive="3", min_sensitivity=0.9)
    return storage, run / "best"


@pytest.fixture(scope="module")
def exported(trained):
    """The run and result of an export to each format."""
    storage, model = trained
    return {
        form: done(
            storage, build(ExportSpec, model=str(model), format=form, threshold="sensitivity-0.9"), f"export-{form}"
        )
        for form in EXPORT_FORMATS
    }


@pytest.fixture(scope="module")
def unnamed(trained, tmp_path_factory):
    """The run and result of an export without a named threshold, and the path that the file was also written to."""
    storage, model = trained
    output = tmp_path_factory.mktemp("output") / "model.pt"
    spec = build(ExportSpec, model=str(model), format="torchscript", output=str(output))
    return *done(storage, spec, "default"), output


@pytest.fixture
def digits(digits_shards):
    """Some real digits, (n, 3, 32, 32) uint8."""
    files = sorted((digits_shards.parent / "images" / "test").rglob("*.png"))[::5]
    gray = np.stack([np.asarray(Image.open(file)) for file in files])
    return np.ascontiguousarray(np.broadcast_to(gray[:, None], (len(gray), 3, 32, 32)))


def probabilities(form, path, images):
    """The probabilities that another program computes with the file."""
    if form == "onnx":
        return onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    return TorchScript().run(path, torch.from_numpy(images))


@pytest.mark.parametrize("form", EXPORT_FORMATS)
@pytest.mark.parametrize("count", [1, 7])
def test_another_program_computes_the_probabilities_of_predict(trained, exported, digits, form, count):
    paths, _ = exported[form]
    predictor = Predictor.load(trained[1], torch.device("cpu"))

    found = probabilities(form, paths.exported(EXPORT_FORMATS[form].ending), digits[:count])

    expected = predictor.probabilities(torch.from_numpy(digits[:count]))
    tolerance = 1e-4 if predictor.config.precision == "fp32" else 0.05
    assert found == pytest.approx(expected, abs=tolerance)


def test_the_example_of_another_program_prints_the_probabilities_of_the_file(exported, digits_shards):
    model = exported["onnx"][0].exported("onnx")
    images = sorted(str(file) for file in (digits_shards.parent / "images" / "test" / "3").iterdir())[:2]

    done = subprocess.run(
        [sys.executable, EXAMPLES / "predict_onnx.py", model, *images], capture_output=True, text=True, check=True
    )

    gray = np.stack([np.asarray(Image.open(file)) for file in images])
    expected = probabilities("onnx", model, np.broadcast_to(gray[:, None], (2, 3, 32, 32)).copy())
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.pop("file") for row in found] == images
    assert [list(row) for row in found] == [list("0123456789")] * 2
    assert np.array([list(row.values()) for row in found]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_the_metadata_have_classes_normalisation_and_threshold(trained, exported, form):
    paths, _ = exported[form]
    stored = read_json(trained[1] / "thresholds" / "sensitivity-0.9.json")["classes"]["3"]

    metadata = EXPORT_FORMATS[form].metadata(paths.exported(EXPORT_FORMATS[form].ending))

    assert json.loads(metadata["classes"]) == list("0123456789")
    assert metadata["normalisation"] == "inside"
    assert metadata["mean"] == "0.485 0.456 0.406"
    assert metadata["image_size"] == "32"
    assert metadata["pack"] == (
        "before the resize: short side reduced to 256 with a Lanczos filter and stored as JPEG of quality 95 without "
        "subsampling; smaller JPEG and PNG files unchanged; color images converted to gray"
    )
    assert (metadata["positive"], float(metadata["threshold"])) == ("3", stored["threshold"])
    assert metadata["threshold_name"] == "sensitivity-0.9"
    assert metadata["weights_sha256"] == sha256_of(trained[1] / "model.safetensors")


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_the_result_has_the_largest_difference_from_the_model(exported, form):
    paths, result = exported[form]

    assert result.metrics["n"] == 16
    assert result.metrics["max_difference"] <= 1e-4
    assert result.details["sha256"] == sha256_of(paths.exported(EXPORT_FORMATS[form].ending))


def test_without_a_name_the_file_carries_the_default_decision(unnamed):
    paths, result, _ = unnamed

    metadata = TorchScript().metadata(paths.exported("pt"))
    assert (metadata["positive"], metadata["threshold"], metadata["threshold_name"]) == ("", "", "")
    assert metadata["decision"] == "the likeliest class"
    assert (result.details["threshold"], result.details["threshold_name"]) == (None, None)


def test_the_file_is_copied_to_the_output_path(unnamed):
    paths, _, output = unnamed

    assert output.read_bytes() == paths.exported("pt").read_bytes()


def test_without_sample_images_nothing_is_exported(trained, tmp_path):
    spec = build(ExportSpec, model=str(trained[1]), format="torchscript")

    with pytest.raises(SpecError, match="give images or shards with --samples"):
        done(tmp_path, spec)

    assert not list((tmp_path / "runs" / "run").glob("*model*"))


def test_sample_images_can_be_given(trained, tmp_path, digits_shards):
    folder = digits_shards.parent / "images" / "test" / "4"
    spec = build(ExportSpec, model=str(trained[1]), format="torchscript", samples=str(folder))

    _, result = done(tmp_path, spec)

    assert result.metrics["n"] == min(16, len(list(folder.iterdir())))


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_an_export_that_a_full_disk_stops_names_the_file_and_the_cure(trained, tmp_path, digits_shards, form):
    spec = build(ExportSpec, model=str(trained[1]), format=form, samples=str(digits_shards))
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        paths = new_run(disk.folder / "storage", spec)

        code = trainer_process(paths).wait()  # a real process: a library may end it

        error = read_json(paths.error)["error"]
        left = list(paths.folder.glob("*model*"))
    file = paths.exported(EXPORT_FORMATS[form].ending)
    assert error == f"{file} cannot be written (No space left on device); free space there and retry"
    assert (code, left) == (ExitCode.FAILED, [])


@dataclass
class FromElsewhere:
    """A format whose file differs from the model, as a faulty exporter would write it."""

    model: ExportedModel
    shift: float
    carried: dict[str, str]

    def run(self, path, images):
        return self.model(images).detach().numpy() + self.shift

    def metadata(self, path):
        return self.carried


@pytest.mark.parametrize(
    ("shift", "loses", "words"),
    [(0.001, False, "differ from the model by 0.001"), (np.nan, False, "by nan"), (0.0, True, "metadata")],
)
def test_a_file_that_differs_from_the_model_is_not_published(trained, digits, shift, loses, words):
    model, config, _ = read_model(trained[1])
    exported_model, metadata = ExportedModel(model, config, Calibration()), export_metadata(config, Calibration(), "")
    form = FromElsewhere(exported_model, shift, {} if loses else metadata)

    with pytest.raises(TrainerError, match=words):
        verify_export(form, Path("file"), exported_model, metadata, torch.from_numpy(digits))
