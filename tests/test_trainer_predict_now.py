"""`predict --now`: the table on stdout, without queue, run folder and Ray."""

import contextlib
import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

from data_shards.pack.options import EncodeOptions
from jobs.cli.predict import PREDICTION
from tests.processes import command_line
from tests.stack import command_in_group
from tests.trained import done, lease_in, wait_until
from trainer.data.images import ImageFiles
from trainer.evaluation.calibration import Calibration
from trainer.inference import __main__ as now
from trainer.model.bundle import publish_model, weights_sha256
from trainer.model.efficientnet import build_model
from trainer.model.head import HeadConfig
from trainer.specs import PredictSpec, build


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A published model with random weights."""
    config = HeadConfig(classes=("a", "b"), width=8, dropout=0.0, image_size=32, pack=EncodeOptions())
    folder = tmp_path_factory.mktemp("storage") / "runs" / "trained"
    folder.mkdir(parents=True)
    publish_model(folder / "best", build_model(config), config, manifest={}, lease=lease_in(folder))
    Calibration().write(folder / "best", weights_sha256(folder / "best"), lease_in(folder))
    return folder / "best"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of three images."""
    folder = tmp_path_factory.mktemp("digits")
    for number in range(3):
        Image.fromarray(np.full((40, 48), 80 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def predict_now(model, monkeypatch, capsys, caplog):
    """Predict in this process; return the exit code, stdout, and what was logged."""

    def predict(*images, **options):
        spec = {"model": str(model), "images": list(map(str, images)), **options}
        request = {"spec": spec, "folder": str(model), "shard_cache_bytes": 10**9}
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n"))
        with caplog.at_level("INFO"):
            code = now.main()
        return code, capsys.readouterr().out, caplog.text

    return predict


def from_the_queue(storage, model, images, form):
    """Return the table that a run of `predict` writes."""
    paths, _ = done(storage, build(PredictSpec, model=str(model), images=(str(images),), form=form), "predict")
    return paths.predicted(form).read_bytes().decode()


@pytest.mark.parametrize("form", ["csv", "json"])
def test_the_table_on_stdout_is_that_of_a_run(tmp_path, model, digits, predict_now, form):
    code, out, log = predict_now(digits, form=form)

    assert code == 0
    assert out == from_the_queue(tmp_path, model, digits, form)
    assert "decision: the most probable class" in log


def test_output_gets_a_copy_of_the_table_and_an_unreadable_file_its_reason(tmp_path, digits, predict_now):
    (tmp_path / "a.png").write_bytes(b"")

    code, out, log = predict_now(tmp_path / "a.png", digits, output=str(tmp_path / "table.txt"))

    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert (tmp_path / "table.txt").read_bytes().decode() == out
    assert [bool(row["error"]) for row in rows[:2]] == [True, False]
    assert f"predict: {len(rows)} images, {len(rows) - 1} answered, 1 unreadable, 0 ignored" in log


@pytest.mark.parametrize(
    "case",
    [
        ("empty.png", {}, 1, "Error: the image could not be read; the table has the reason"),
        ("digits", {"threshold": "careful"}, 2, "Error: the model has no threshold 'careful'; it has: none"),
        ("digits", {"output": "/proc/nowhere/x.csv"}, 1, "Error: the table cannot be written (No such file"),
    ],
)
def test_what_fails_is_one_line(tmp_path, digits, predict_now, case):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "digits").symlink_to(digits)
    images, options, code, line = case

    found, _, log = predict_now(tmp_path / images, **options)

    assert found == code
    assert line in log
    assert "Traceback" not in log


def test_images_that_the_system_cannot_read_are_not_taken_for_a_fault_of_the_table(
    tmp_path, digits, predict_now, monkeypatch
):
    def unreadable(*_args, **_options):
        raise OSError(errno.EIO, "Input/output error", "/data/train-00000.tar")

    monkeypatch.setattr(ImageFiles, "batches", unreadable)

    code, _, log = predict_now(digits, output=str(tmp_path / "table.csv"))

    why = "(Input/output error); check the path, its permissions and its disk"
    assert code == 1
    assert f"Error: /data/train-00000.tar cannot be read {why}" in log
    assert list(tmp_path.iterdir()) == []


def test_neither_ray_nor_scikit_learn_is_imported():
    code = f"import sys, {PREDICTION[-1]}.__main__; print([m for m in ('ray', 'sklearn', 'redis') if m in sys.modules])"

    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout == "[]\n"


@pytest.fixture
def running(tmp_path, model):
    """The command with a table of more rows than stdout takes; in a process group, as on a terminal."""
    (tmp_path / "images").mkdir()
    for number in range(1000):
        (tmp_path / "images" / f"{'x' * 200}{number}.png").touch()
    (tmp_path / "tables").mkdir()
    words = ["predict", str(model), str(tmp_path / "images"), "--now", "--output", str(tmp_path / "tables" / "a.csv")]
    command = command_in_group(*words, storage=tmp_path / "storage")
    yield command
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGKILL)
    command.communicate()


def test_ctrl_c_while_modules_are_imported_is_one_line(running, model):
    assert wait_until(lambda: any("trainer.inference" in command_line(child) for child in running.children()))
    children = running.children(recursive=True)

    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=600)

    assert (running.returncode, err.split("\n")) == (
        130, [f"loading the model {model}", "", "Error: stopped by Ctrl-C", ""]
    )  # fmt: skip
    assert psutil.wait_procs(children, timeout=600)[1] == []


def test_a_terminated_prediction_leaves_neither_a_draft_of_the_table_nor_a_process(running, tmp_path, model):
    assert wait_until(lambda: any((tmp_path / "tables").iterdir()))
    children = running.children(recursive=True)

    running.terminate()
    _, err = running.communicate(timeout=600)

    assert (running.returncode, err) == (143, f"loading the model {model}\n")
    assert psutil.wait_procs(children, timeout=600)[1] == []
    assert list((tmp_path / "tables").iterdir()) == []
