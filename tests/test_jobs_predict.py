import json
import sys

import pytest

from cluster.files import write_json
from jobs.cli import predict
from trainer.model.head import HeadConfig


@pytest.fixture
def model(tmp_path):
    """A model folder with head.json and without weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "head.json", HeadConfig(classes=("a", "b"), width=8, dropout=0.1, image_size=32).model_dump())
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_predict_names_every_place_so_that_a_job_worker_elsewhere_finds_it(say, model, tmp_path):
    (tmp_path / "films").mkdir()

    code, out, _ = say("predict", "model", "films", "s3://bucket/shards", "--output", "p.csv", "--dry-run")

    spec = json.loads(out)
    assert code == 0
    assert spec["kind"] == "predict"
    assert spec["model"] == str(model)
    assert spec["images"] == [str(tmp_path / "films"), "s3://bucket/shards"]
    assert (spec["output"], spec["form"]) == (str(tmp_path / "p.csv"), "csv")


@pytest.mark.parametrize("options", [["--json"], ["--output", "p.json"]])
def test_json_is_written_where_it_is_asked_for(say, model, options):
    _, out, _ = say("predict", "model", "model", *options, "--dry-run")

    assert json.loads(out)["form"] == "json"


def test_export_says_format_and_place(say, model, tmp_path):
    code, out, _ = say("export", "model", "--format", "torchscript", "--output", "m.pt", "--dry-run")

    spec = json.loads(out)
    assert code == 0
    assert (spec["kind"], spec["format"], spec["output"]) == ("export", "torchscript", str(tmp_path / "m.pt"))


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (
            ["predict", "model", "nowhere"],
            (2, "nowhere does not exist; give image files, folders of images, or shards"),
        ),
        (["predict", "model", "pipe:rm"], (1, "'pipe:rm' has the scheme pipe:, which is not allowed")),
        (
            ["predict", "nothing", "model"],
            (1, "nothing is not a model; give a folder with head.json, the id of a run, or a promoted name"),
        ),
        (
            ["predict", "model", "model", "--threshold", "careful"],
            (2, "the model has no threshold 'careful'; it has: none; evaluate --min-sensitivity chooses one"),
        ),
        (
            ["predict", "model", "model", "--now", "--name", "x"],
            (2, "--now makes no run, to which --name would belong; leave out one of them"),
        ),
        (
            ["predict", "model", "model", "--now", "--wait"],
            (2, "--now makes no run, to which --wait would belong; leave out one of them"),
        ),
        (
            ["predict", "model", "model", "--now", "--gpus-per-worker", "1"],
            (2, "--now predicts on the CPU; leave out --gpus-per-worker 1, or leave out --now"),
        ),
        (["export", "model", "--threshold", "a/b"], (2, "--threshold 'a/b' is not a name; use up to 64 letters")),
        (
            ["export", "model", "--output", "no/m.pt"],
            (2, "--output no/m.pt cannot be written; name a file in a folder"),
        ),
    ],
)
def test_what_can_never_work_is_one_line_and_queues_nothing(say, model, storage, command, refusal):
    wanted_code, line = refusal

    code, out, err = say(*command)

    assert (code, out) == (wanted_code, "")
    assert err.startswith(f"Error: {line}")
    assert err.count("\n") == 1
    assert not list((storage / "runs").iterdir())


def test_now_needs_no_redis_and_makes_no_run(say, model, storage, tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTSHIFT_REDIS_URL", "redis://127.0.0.1:1/0")
    answer = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.stdin.readline()); sys.exit(7)"
    monkeypatch.setattr(predict, "PREDICTION", (sys.executable, "-c", answer, str(tmp_path / "request")))

    code, out, err = say("predict", "model", "model", "--now", "--json")

    request = json.loads((tmp_path / "request").read_text())
    assert (code, out, err) == (7, "", f"loading the model {model}\n")
    assert request["folder"] == str(model)
    assert request["spec"]["images"] == [str(model)]
    assert request["spec"]["form"] == "json"
    assert not list((storage / "runs").iterdir())


def test_now_refuses_a_model_that_is_not_trained_yet(say, shards, tmp_path):
    say("train", shards, "--weights", "none", "--name", "first")

    code, out, err = say("predict", "first", str(tmp_path), "--now")

    assert (code, out) == (1, "")
    assert err.endswith("has not ended, so it has no model; wait for it, or leave out --now\n")


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (
            ["predict", "films", "nothing"],
            (2, "films is not a model; write nightshift predict nothing films, MODEL first"),
        ),
        (
            ["predict", "films", "films"],
            (1, "films is not a model; give a folder with head.json, the id of a run, or a promoted name"),
        ),
        (
            ["predict", "model", "shards/test-00000.tar"],
            (2, "shards/test-00000.tar is one file of a data set; give its folder shards"),
        ),
        (
            ["train", "shards/test-00000.tar", "--weights", "none"],
            (1, "{here}/shards/test-00000.tar is a file; give the folder that `nightshift shards pack` wrote"),
        ),
        (
            ["predict", "model", "films", "--output", "table.XLSX"],
            (2, "--output table.XLSX would not be xlsx; end the name in .csv or .json"),
        ),
        (
            ["export", "model", "--output", "m.pt"],
            (2, "--output m.pt is a name of torchscript files; end it in .onnx, or give --format torchscript"),
        ),
        (
            ["export", "model", "--format", "torchscript", "--output", "m.onnx"],
            (2, "--output m.onnx is a name of onnx files; end it in .pt, or give --format onnx"),
        ),
    ],
)
def test_a_place_of_another_kind_is_one_line_with_its_cure(say, model, tmp_path, command, refusal):
    (tmp_path / "films").mkdir()
    (tmp_path / "shards").mkdir()
    for name in ("index.json", "test-00000.tar"):
        (tmp_path / "shards" / name).touch()

    code, out, err = say(*command)

    assert (code, out, err) == (refusal[0], "", f"Error: {refusal[1].format(here=tmp_path)}\n")
