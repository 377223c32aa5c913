"""A positive class that the training states is kept with the model, and everything later is about it."""

import re
from pathlib import Path

import pytest

from cluster.files import read_json
from cluster.run_paths import RunPaths
from tests.trained import done, evaluated, train_spec
from trainer.errors import SpecError
from trainer.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def storage(digits_training: RunPaths) -> Path:
    """A storage that has the features of the digits already."""
    return digits_training.storage


@pytest.fixture(scope="module")
def stated(storage: Path, digits_shards: Path) -> RunPaths:
    """A training with a positive class that is not the first."""
    return done(storage, train_spec(digits_shards, positive="3"), "stated")[0]


def words_of(paths: RunPaths) -> str:
    """The text of a run's report."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", paths.report.read_text())).replace("&#34;", '"')


def test_the_model_keeps_the_positive_class_and_a_training_without_one_keeps_none(
    stated: RunPaths, digits_training: RunPaths
) -> None:
    neutral = digits_training

    assert read_json(stated.best / "head.json")["positive"] == "3"
    assert "positive" not in read_json(neutral.best / "head.json")
    assert read_json(neutral.result)["metrics"]["positive_stated"] is False
    about = Predictions.read(neutral.predictions).about
    assert about is not None
    assert not about.positive_stated
    assert "false negatives" not in words_of(neutral)


def test_a_later_evaluation_is_about_the_positive_class_of_the_training(
    storage: Path, stated: RunPaths, digits_shards: Path
) -> None:
    found = evaluated(storage, stated.best, digits_shards, "stated-later", min_sensitivity=0.9, prevalence=0.01).metrics

    assert (found["positive"], found["positive_stated"]) == ("3", True)
    assert list(read_json(stated.best / "thresholds" / "sensitivity-0.9.json")["classes"]) == ["3"]
    assert (found["at_prevalence"]["positive"], found["at_prevalence"]["prevalence"]) == ("3", 0.01)
    assert found["at_prevalence"]["ppv"] < found["per_class"]["3"]["precision"]
    words = words_of(RunPaths(storage / "runs" / "stated-later"))
    assert '"3" images are false negatives' in words
    assert 'At a prevalence of 0.01 of "3": PPV' in words
    assert "Decision curve" in words


@pytest.mark.usefixtures("without_reports")
def test_an_evaluation_can_be_about_another_class(storage: Path, stated: RunPaths, digits_shards: Path) -> None:
    found = evaluated(storage, stated.best, digits_shards, "stated-other", positive="4").metrics

    assert (found["positive"], found["threshold"]) == ("4", None)
    assert found["sensitivity"] == found["per_class"]["4"]["recall"]


def test_a_training_refuses_an_unknown_positive_class(storage: Path, digits_shards: Path) -> None:
    with pytest.raises(SpecError, match="--positive 'three' is not a class; use one of 0, 1"):
        done(storage, train_spec(digits_shards, positive="three"), "stated-unknown")
