import csv
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import StorageError
from cluster.exit_codes import ExitCode
from cluster.files import read_json, write_json
from data_shards.index import read_index
from data_shards.pack.options import EncodeOptions, PackOptions
from data_shards.pack.packing import pack
from tests.datasets import encoded, image_folder, noise
from tests.trained import attempted, done, evaluated, new_run, train_spec
from trainer import train
from trainer.__main__ import main as trainer_main
from trainer.errors import CheckpointError, SpecError, Stopped, TrainerError
from trainer.evaluation.predictions import Predictions
from trainer.model.head import HeadConfig
from trainer.specs import PredictSpec, build


@pytest.fixture(scope="module")
def model(tmp_path_factory, digits_training, digits_shards):
    """A trained model with a threshold for the digit 3, in a folder of its own."""
    model = shutil.copytree(digits_training.best, tmp_path_factory.mktemp("model") / "best")
    evaluated(digits_training.storage, model, digits_shards, "predicted-later", positive="3", min_sensitivity=1.0)
    return model


@pytest.fixture(scope="module")
def digits(digits_shards):
    """The folder of images that the shards were packed from."""
    return digits_shards.parent / "images" / "test"


def predicted(storage, model, *images, name="predict", **options):
    """Run `predict` and return the rows of its table and its result."""
    spec = build(PredictSpec, model=str(model), images=tuple(map(str, images)), **options)
    paths, result = done(storage, spec, name)
    table = paths.predicted(spec.form)
    with table.open(newline="") as file:
        return (json.load(file) if spec.form == "json" else list(csv.DictReader(file))), result


def test_a_folder_gives_a_row_per_image_in_order_of_name(tmp_path, model, digits):
    rows, result = predicted(tmp_path, model, digits)

    files = sorted(str(file) for file in digits.rglob("*.png"))
    assert [row["file"] for row in rows] == files
    assert result.metrics["n"] == len(files)
    assert all(sum(float(row[f"probability_{digit}"]) for digit in range(10)) == pytest.approx(1) for row in rows)
    assert all(float(row[f"probability_{row['predicted']}"]) >= 0.1 for row in rows)


def test_rows_are_in_the_order_of_the_given_images(tmp_path, model, digits):
    last, first, *_ = sorted(digits.rglob("*.png"), reverse=True)

    rows, _ = predicted(tmp_path, model, first, digits / "0", last, batch_size=3)

    files = [row["file"] for row in rows]
    assert (files[0], files[-1]) == (str(first), str(last))
    assert files[1:-1] == sorted(str(file) for file in (digits / "0").iterdir())


def test_predictions_of_shards_are_those_of_evaluate(tmp_path, model, digits_shards):
    rows, _ = predicted(tmp_path, model, digits_shards, split="test", form="json")
    evaluated(tmp_path, model, digits_shards)

    seen = Predictions.read(tmp_path / "runs" / "evaluation" / "predictions.safetensors")
    assert len(rows) == read_index(str(digits_shards)).samples_in("test")
    assert [int(row["predicted"]) for row in rows] == seen.probabilities.argmax(axis=1).tolist()


def test_without_a_name_the_decision_is_the_most_probable_class(tmp_path, model, digits):
    rows, result = predicted(tmp_path, model, digits, form="json")

    assert all(row["decision"] == row["predicted"] for row in rows)
    assert (result.details["threshold"], result.details["threshold_name"]) == (None, None)


def test_the_decision_is_made_at_the_named_threshold(tmp_path, model, digits):
    stored = read_json(model / "thresholds" / "sensitivity-1.json")["classes"]["3"]

    rows, result = predicted(tmp_path, model, digits, form="json", threshold="sensitivity-1")

    reached = [row["probabilities"]["3"] >= stored["threshold"] for row in rows]
    assert [row["decision"] == "3" for row in rows] == reached
    assert any(row["decision"] != row["predicted"] for row in rows)
    assert (result.details["threshold"], result.details["threshold_name"]) == (stored["threshold"], "sensitivity-1")
    assert result.metrics["called"]["3"] == sum(reached)


def test_a_threshold_that_the_model_does_not_have_is_refused_with_those_it_has(tmp_path, model, digits):
    with pytest.raises(SpecError, match="the model has no threshold 'careful'; it has: sensitivity-1"):
        predicted(tmp_path, model, digits, threshold="careful")


def test_an_unreadable_image_has_its_reason_and_the_others_their_predictions(tmp_path, model, digits):
    folder = tmp_path / "films"
    folder.mkdir()
    good = next(digits.rglob("*.png")).read_bytes()
    (folder / "a.png").write_bytes(good)
    (folder / "b.png").write_bytes(good[: len(good) // 2])
    (folder / "c.jpg").write_bytes(b"")
    (folder / "d.png").write_bytes(good)
    (folder / "notes.txt").write_text("no image")

    rows, result = predicted(tmp_path, model, folder)

    assert [row["file"][-5:] for row in rows] == ["a.png", "b.png", "c.jpg", "d.png", "s.txt"]
    assert [bool(row["error"]) for row in rows] == [False, True, True, False, True]
    assert rows[2]["error"] == "the file is empty"
    assert (rows[1]["predicted"], rows[1]["probability_3"]) == ("", "")
    assert rows[0]["predicted"] == rows[3]["predicted"] != ""
    assert (result.metrics["n"], result.metrics["errors"]) == (2, 3)


def test_every_file_of_a_folder_has_a_row_with_an_answer_or_a_reason(tmp_path, model, caplog):
    folder = tmp_path / "films"
    (folder / "@eaDir").mkdir(parents=True)
    digit = Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))
    for name, form in {"a.webp": "WEBP", "b.jfif": "JPEG", "c": "PNG", "d.dcm": "TIFF", "e.txt": "BMP"}.items():
        (folder / name).write_bytes(encoded(digit, form))
    (folder / "f.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(300))
    (folder / "g.pdf").write_bytes(b"%PDF-1.7")
    os.mkfifo(folder / "h.jpg")
    (folder / "i.jpg").symlink_to("/dev/zero")
    (folder / "j.jpg").symlink_to("absent")
    with (folder / "k.png").open("wb") as file:
        file.truncate(2 << 30)  # without using space on the disk
    (folder / "Thumbs.db").write_bytes(b"system")
    (folder / "@eaDir" / "a.jpg").write_bytes(encoded(digit, "JPEG"))
    caplog.set_level(logging.DEBUG)

    rows, result = predicted(tmp_path, model, folder)

    no_image = "no readable JPEG, PNG, BMP, TIFF, WebP, GIF, PNM or DICOM"
    assert {Path(row["file"]).name: row["error"] for row in rows} == {
        "a.webp": "", "b.jfif": "", "c": "", "d.dcm": "", "e.txt": "",
        "f.dcm": "it has no pixel data, or they are cut off",
        "g.pdf": f"{no_image}, but PDF",
        "h.jpg": "it is a pipe, device or folder, not a regular file",
        "i.jpg": "it is a pipe, device or folder, not a regular file",
        "j.jpg": "the file cannot be read (No such file or directory)",
        "k.png": "the file has 2147483648 bytes, above the limit of 1073741824 for one image",
    }  # fmt: skip
    assert [bool(row["predicted"]) for row in rows] == [not row["error"] for row in rows]
    counts = {name: result.metrics[name] for name in ("images", "answered", "unreadable", "ignored")}
    assert counts == {"images": 11, "answered": 5, "unreadable": 6, "ignored": 2}
    assert not [record for record in caplog.records if "films" in record.getMessage()]


def test_a_file_that_was_moved_before_the_run_began_is_not_named_in_the_log_or_the_error(tmp_path, model, caplog):
    film = tmp_path / "film.png"
    Image.new("L", (40, 40)).save(film)
    spec = build(PredictSpec, model=str(model), images=(str(film), str(tmp_path / "Doe^Jane.dcm")))
    paths = new_run(tmp_path, spec, "predict")
    caplog.set_level(logging.DEBUG)

    code = trainer_main([str(paths.folder)])

    error = read_json(paths.error)["error"]
    assert code == ExitCode.USAGE
    assert error.startswith(
        "path 2 of the 2 that were given does not exist any more, or may not be read; `nightshift show`"
    )
    assert "Doe" not in error + caplog.text


def test_a_run_without_readable_images_fails_and_keeps_the_table_of_reasons(tmp_path, model):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing of the kind")

    with pytest.raises(TrainerError, match="the image could not be read; the table has the reason"):
        predicted(tmp_path, model, broken)

    assert "no readable JPEG" in (tmp_path / "runs" / "predict" / "predictions.csv").read_text()


def test_the_table_is_copied_to_the_output_path(tmp_path, model, digits):
    output = tmp_path / "here.csv"

    predicted(tmp_path, model, digits / "1", output=str(output))

    assert output.read_bytes() == (tmp_path / "runs" / "predict" / "predictions.csv").read_bytes()


def test_an_output_that_cannot_be_written_names_the_path_of_the_table(tmp_path, model, digits):
    with pytest.raises(StorageError, match=r"absent/x.csv cannot be written .* the result is in .*predictions.csv"):
        predicted(tmp_path, model, digits / "1", output=str(tmp_path / "absent" / "x.csv"))


def test_colour_and_gray_files_of_one_folder_go_through_one_batch(tmp_path, model):
    folder = tmp_path / "mixed"
    folder.mkdir()
    gray = Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40))
    gray.save(folder / "a-gray.png")
    gray.convert("RGB").save(folder / "b-colour.png")

    rows, _ = predicted(tmp_path, model, folder)

    first, second = ([float(row[f"probability_{digit}"]) for digit in range(10)] for row in rows)
    assert first == pytest.approx(second, abs=1e-5)


def test_a_folder_that_is_not_a_model_is_refused(tmp_path, digits):
    with pytest.raises(CheckpointError, match="is not a published model"):
        predicted(tmp_path, tmp_path / "nothing", digits)


def test_a_stopped_run_leaves_no_partial_table(tmp_path, model, digits):
    spec = build(PredictSpec, model=str(model), images=(str(digits),), batch_size=1)
    paths = new_run(tmp_path, spec)
    write_json(paths.stop, {"reason": "cancel", "attempt": None})

    with pytest.raises(Stopped, match="predict starts from the beginning when it is resumed"):
        attempted(paths, spec)

    assert not list(paths.folder.glob("*predictions.csv*"))


@pytest.fixture(scope="module", params=[{}, {"image_size": 0}, {"encoding": "lossless"}, {"keep_small": False}])
def films(request, tmp_path_factory):
    """Films of all kinds larger and smaller than the pack size, their shards, and a model trained on these."""
    folder = tmp_path_factory.mktemp("films")
    source = image_folder(folder / "images", {"train/a": 5, "train/b": 5, "valid/a": 2, "valid/b": 2}, size=(150, 130))
    for number, (name, image, options) in enumerate(kinds_of_films()):
        image.save(source / "train" / "ab"[number % 2] / name, **options)
    encode = EncodeOptions(**{"image_size": 70, **request.param})
    pack(source, folder / "shards", PackOptions(processes=1, encode=encode))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_report", lambda *_: None)
        paths, _ = done(folder / "storage", train_spec(folder / "shards", epochs=1, image_size=64))
    return source, folder / "shards", paths.best


def kinds_of_films():
    """Yield name, image and options of saving it."""
    upside_down = Image.Exif()
    upside_down[0x0112] = 6
    for size in ((160, 140), (66, 65)):
        yield f"color-{size[0]}.jpg", noise(size[0] + 1, size, "RGB"), {"quality": 60}
        yield f"gray-{size[0]}.jpg", noise(size[0] + 2, size), {"progressive": True}
        yield f"turned-{size[0]}.jpg", noise(size[0] + 3, size), {"exif": upside_down}
        yield f"alpha-{size[0]}.png", noise(size[0] + 4, size, "RGBA"), {}
        yield f"deep-{size[0]}.png", noise(size[0] + 5, size).convert("I;16").point(lambda value: value * 16), {}
        yield f"palette-{size[0]}.png", noise(size[0] + 6, size, "RGB").quantize(32), {}
        yield f"cmyk-{size[0]}.jpg", noise(size[0] + 7, size, "RGB").convert("CMYK"), {}
        yield f"bitmap-{size[0]}.bmp", noise(size[0] + 8, size, "RGB"), {}
        yield f"web-{size[0]}.webp", noise(size[0] + 9, size, "RGB"), {"quality": 50}


def test_a_film_has_the_same_probabilities_as_a_file_and_in_shards(tmp_path, films):
    source, shards, model = films

    of_files, _ = predicted(tmp_path, model, source, name="files", form="json")
    of_shards, _ = predicted(tmp_path, model, shards, name="shards", form="json")

    as_file = {Path(row["file"]).relative_to(source).as_posix(): row["probabilities"]["a"] for row in of_files}
    in_shards = {row["file"]: row["probabilities"]["a"] for row in of_shards}
    assert as_file.keys() == in_shards.keys()
    assert len(as_file) == 32
    turned = {name for name in as_file if "turned" in name}  # version 0.1 stored these as they came, now turned
    assert max(abs(as_file[name] - in_shards[name]) for name in as_file.keys() - turned) < 1e-5
    assert max(abs(as_file[name] - in_shards[name]) for name in turned) < 1e-3


def test_the_head_records_the_packing_and_color_of_its_data(digits_shards, model):
    head = HeadConfig.read(model / "head.json")

    assert head.pack == EncodeOptions.of_index(read_index(str(digits_shards)).options) == EncodeOptions()
    assert head.color == "L"
