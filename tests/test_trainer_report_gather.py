import re

import pytest

from cluster.files import read_json
from cluster.run_paths import RunPaths
from data_shards.index import read_index, write_index
from tests.trained import evaluated
from trainer.errors import SpecError
from trainer.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def trained(digits_training):
    return digits_training.storage, digits_training


def text_of(paths):
    """The text of a run's report."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", paths.report.read_text()))


def test_the_report_of_a_training_shows_its_epochs_and_its_misclassified_images(trained):
    _, paths = trained
    metrics = read_json(paths.result)["metrics"]

    page, words = paths.report.read_text(), text_of(paths)

    wrong = metrics["n"] - sum(row[c] for c, row in enumerate(metrics["confusion_matrix"]))
    assert wrong > 0
    correct = page.count('<figure class="example correct')
    errors = page.count('<figure class="example') - correct
    assert page.count("data:image/jpeg;base64,") == 3 * errors + 2 * correct
    assert 0 < errors <= wrong
    assert correct == min(6, metrics["n"] - wrong)
    assert "best epoch:" in words
    assert "The best epoch was selected on this split" in words


def test_the_progress_says_that_the_report_is_written(trained):
    progress = read_json(trained[1].progress)

    assert (progress["phase"], progress["total"], progress["eta_seconds"]) == ("report", 0, None)


def test_a_training_stores_a_temperature_with_its_model(trained):
    _, paths = trained
    result = read_json(paths.result)["metrics"]

    stored = read_json(paths.best / "calibration.json")

    assert stored["temperature"] == result["temperature"] != 1
    assert result["loss"] < result["uncalibrated"]["loss"]
    assert stored["threshold"] is None


def named(paths, name="sensitivity-0.9"):
    return read_json(paths.best / "thresholds" / f"{name}.json")


@pytest.mark.usefixtures("without_reports")
def test_the_threshold_comes_from_the_validation_split_whichever_split_is_evaluated(trained, digits_shards):
    storage, paths = trained
    stored = []
    for split in ("test", "train"):
        evaluated(storage, paths.best, digits_shards, f"on-{split}", split=split, positive="3", min_sensitivity=0.9)
        stored.append(named(paths))

    assert stored[0] == stored[1]
    assert stored[0]["classes"]["3"]["sensitivity"] >= 0.9


@pytest.mark.usefixtures("without_reports")
def test_choosing_a_threshold_changes_neither_the_calibration_nor_later_evaluations(trained, digits_shards):
    storage, paths = trained
    calibration = (paths.best / "calibration.json").read_bytes()
    before = evaluated(storage, paths.best, digits_shards, "before", positive="3").metrics

    evaluated(storage, paths.best, digits_shards, "chosen", positive="3", min_sensitivity=0.9)
    after = evaluated(storage, paths.best, digits_shards, "after", positive="3").metrics

    assert (paths.best / "calibration.json").read_bytes() == calibration
    assert after == before
    assert after["threshold"] is None


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


@pytest.mark.usefixtures("without_reports")
def test_a_later_evaluation_uses_a_threshold_when_it_is_named(trained, digits_shards):
    storage, paths = trained
    chosen = evaluated(
        storage, paths.best, digits_shards, "chooses", positive="3", min_sensitivity=0.9, threshold_name="careful"
    ).metrics

    later = evaluated(storage, paths.best, digits_shards, "later", threshold="careful").metrics

    assert later == chosen
    assert (later["positive"], later["threshold"]) == ("3", named(paths, "careful")["classes"]["3"]["threshold"])
    assert later["threshold_name"] == "careful"


def test_an_evaluation_says_price_support_and_whether_the_split_reached_the_sensitivity(trained, digits_shards):
    storage, paths = trained

    metrics = evaluated(
        storage, paths.best, digits_shards, "evidence", positive="3", min_sensitivity=0.99, threshold_name="strict"
    ).metrics

    (choice,) = metrics["threshold_choices"]
    index = read_index(str(digits_shards))
    positives = index.per_class_in("valid")[3]
    assert choice["positives"] == positives
    assert choice["negatives"] == index.samples_in("valid") - positives
    assert choice["lower_bound"] == pytest.approx(0.05 ** (1 / positives))
    assert choice["false_positives"] >= choice["default_false_positives"]
    assert (choice["judged_split"], choice["judged_sensitivity"]) == ("test", metrics["sensitivity"])
    assert choice["judged_interval"] == metrics["intervals"]["sensitivity"]
    assert choice["reached"] == (metrics["sensitivity"] >= 0.99)
    words = text_of(RunPaths(storage / "runs" / "evidence"))
    assert f"{positives} positives of the valid split support a sensitivity of only 0." in words
    assert "that takes 299 independent positives without a miss, chosen with --min-sensitivity 1" in words


@pytest.mark.usefixtures("without_reports")
def test_a_name_of_another_class_is_not_replaced(trained, digits_shards):
    storage, paths = trained
    evaluated(storage, paths.best, digits_shards, "three", positive="3", min_sensitivity=0.8)

    with pytest.raises(SpecError, match=r"threshold 'sensitivity-0.8' of this model is about 3; give --threshold-name"):
        evaluated(storage, paths.best, digits_shards, "four", positive="4", min_sensitivity=0.8)


@pytest.mark.usefixtures("without_reports")
def test_a_threshold_of_another_class_than_the_positive_one_is_refused(trained, digits_shards):
    storage, paths = trained
    evaluated(storage, paths.best, digits_shards, "of-three", positive="3", min_sensitivity=0.7)

    with pytest.raises(SpecError, match=r"threshold 'sensitivity-0.7' is about 3 and --positive is 4"):
        evaluated(storage, paths.best, digits_shards, "of-four", positive="4", threshold="sensitivity-0.7")


@pytest.mark.usefixtures("without_reports")
def test_an_evaluation_saves_the_predictions_of_each_image(trained, digits_shards):
    storage, paths = trained

    found = evaluated(storage, paths.best, digits_shards, "kept", split="test").metrics
    kept = Predictions.read(storage / "runs" / "kept" / "predictions.safetensors")

    assert kept.ids.tolist() == list(range(found["n"]))
    assert kept.probabilities.sum(axis=1) == pytest.approx(1)


@pytest.mark.usefixtures("without_reports")
def test_a_model_folder_that_is_not_writable_does_not_fail_the_evaluation(trained, digits_shards, caplog):
    storage, paths = trained
    blocked = paths.best / "thresholds" / "blocked.json"
    blocked.mkdir(parents=True)  # nothing can be renamed onto it, whoever the user is

    found = evaluated(
        storage, paths.best, digits_shards, "blocked", positive="3", min_sensitivity=0.9, threshold_name="blocked"
    ).metrics

    blocked.rmdir()
    assert found["threshold"] is not None
    assert "the threshold cannot be used by name, because it could not be stored" in caplog.text


def test_a_threshold_needs_a_validation_split(trained, tmp_path, digits_shards):
    storage, paths = trained
    index = read_index(str(digits_shards))
    without = index.model_copy(update={"shards": index.of_split("test")}).sealed()
    write_index(tmp_path, without)

    with pytest.raises(SpecError, match="has no split 'valid' to choose a threshold on"):
        evaluated(storage, paths.best, tmp_path, "no-valid", positive="3", min_sensitivity=0.9)


def test_an_evaluation_of_the_training_images_warns(trained, digits_shards):
    storage, paths = trained

    result = evaluated(storage, paths.best, digits_shards, "of-train", split="train")

    count = read_index(str(digits_shards)).samples_in("train")
    assert result.details["seen"] == {"images": count, "trained": count, "chosen": 0}
    assert f"Warning: the model was trained on {count} of these {count} images" in text_of(
        RunPaths(storage / "runs" / "of-train")
    )
