import re

import pytest

from cluster.files import read_json
from cluster.run_paths import RunPaths
from data_shards.index import read_index, write_index
from tests.trained import done, evaluated, train_spec
from trainer.errors import SpecError
from trainer.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits_shards):
    storage = tmp_path_factory.mktemp("storage")
    return storage, done(storage, train_spec(digits_shards))[0]


def text_of(paths):
    """The text of a run's report."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", paths.report.read_text()))


def test_the_report_of_a_training_shows_its_epochs_and_its_misclassified_images(trained):
    _, paths = trained
    metrics = read_json(paths.result)["metrics"]

    page, words = paths.report.read_text(), text_of(paths)

    wrong = metrics["n"] - sum(row[c] for c, row in enumerate(metrics["confusion_matrix"]))
    assert wrong > 0
    assert page.count("data:image/jpeg;base64,") == 2 * page.count('<figure class="misclassified')
    assert 0 < page.count('<figure class="misclassified') <= wrong
    assert "best epoch:" in words
    assert "The best epoch was selected on this split" in words
    assert "none: no image or group is in two splits" in words


def test_a_training_stores_a_temperature_with_its_model(trained):
    _, paths = trained
    result = read_json(paths.result)["metrics"]

    stored = read_json(paths.best / "calibration.json")

    assert stored["temperature"] == result["temperature"] != 1
    assert result["calibrated"]["loss"] < result["loss"]
    assert stored["threshold"] is None


def test_the_threshold_comes_from_the_validation_split_whichever_split_is_evaluated(trained, digits_shards):
    storage, paths = trained
    stored = []
    for split in ("test", "train"):
        evaluated(storage, paths.best, digits_shards, f"on-{split}", split=split, positive="3", min_sensitivity=0.9)
        stored.append(read_json(paths.best / "calibration.json"))

    assert stored[0] == stored[1]
    assert stored[0]["sensitivity"] >= 0.9


def test_the_report_shows_the_chosen_threshold_and_the_default_side_by_side(trained, digits_shards):
    storage, paths = trained

    found = evaluated(
        storage, paths.best, digits_shards, "both", split="valid", positive="3", min_sensitivity=1.0
    ).metrics

    assert found["sensitivity"] == 1.0
    assert found["false_negatives"] == 0 < found["at_default"]["false_negatives"]
    words = text_of(RunPaths(storage / "runs" / "both"))
    assert "chosen threshold" in words
    assert "most probable class" in words
    assert "The threshold was chosen on this split" in words


def test_a_later_evaluation_uses_the_stored_threshold_for_its_class_only(trained, digits_shards):
    storage, paths = trained
    evaluated(storage, paths.best, digits_shards, "chooses", positive="3", min_sensitivity=0.9)

    same = evaluated(storage, paths.best, digits_shards, "same").metrics
    other = evaluated(storage, paths.best, digits_shards, "other", positive="4").metrics

    assert (same["positive"], same["threshold"]) == ("3", read_json(paths.best / "calibration.json")["threshold"])
    assert (other["positive"], other["threshold"]) == ("4", None)


def test_an_evaluation_saves_the_predictions_of_each_image(trained, digits_shards):
    storage, paths = trained

    found = evaluated(storage, paths.best, digits_shards, "kept", split="test").metrics
    kept = Predictions.read(storage / "runs" / "kept" / "predictions.safetensors")

    assert kept.ids.tolist() == list(range(found["n"]))
    assert kept.probabilities.sum(axis=1) == pytest.approx(1)


def test_a_model_folder_that_is_not_writable_does_not_fail_the_evaluation(trained, digits_shards, caplog):
    storage, paths = trained
    calibration = paths.best / "calibration.json"
    calibration.unlink()
    calibration.mkdir()  # nothing can be renamed onto it, whoever the user is

    found = evaluated(storage, paths.best, digits_shards, "blocked", positive="3", min_sensitivity=0.9).metrics

    calibration.rmdir()
    assert found["threshold"] is not None
    assert "predict will not use the threshold" in caplog.text


def test_a_threshold_needs_a_validation_split(trained, tmp_path, digits_shards):
    storage, paths = trained
    index = read_index(str(digits_shards))
    without = index.model_copy(update={"shards": index.of_split("test")}).sealed()
    write_index(tmp_path, without)

    with pytest.raises(SpecError, match="has no split 'valid' to choose a threshold on"):
        evaluated(storage, paths.best, tmp_path, "no-valid", min_sensitivity=0.9)
