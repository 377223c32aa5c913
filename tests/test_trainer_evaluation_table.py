import csv

import numpy as np
import pytest

from cluster.files import read_json
from cluster.run_paths import TrialPaths
from data_shards.index import read_index
from tests.datasets import packed
from tests.trained import done, evaluated, lease_in, train_spec
from trainer.errors import CheckpointError
from trainer.evaluation.csv_cells import safe_cell
from trainer.evaluation.evaluation_table import write_evaluation_table
from trainer.evaluation.metrics import classification_metrics
from trainer.evaluation.predictions import EvaluatedSplit, Predictions, sample_ids


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """A data set of 48 images of 2 classes, and its groups by number."""
    counts = {f"{split}/{name}": 8 for split in ("train", "valid", "test") for name in ("covid", "normal")}
    return packed(tmp_path_factory.mktemp("patients"), counts, group_by=r"(\w+/\w+/image-00\d)")[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, patients):
    storage = tmp_path_factory.mktemp("storage")
    return storage, done(storage, train_spec(patients, epochs=1, batch_size=8))[0]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(tmp_path, *, sources=("a.png",), groups=("",), classes=("covid", "normal")):
    """Write a table of images of the first class and return its lines and rows."""
    count = len(sources)
    write_evaluation_table(
        tmp_path / "predictions.csv",
        classes=classes,
        sources=sources,
        groups=groups * count if len(groups) < count else groups,
        labels=np.zeros(count, dtype=np.int64),
        probabilities=np.full((count, len(classes)), 1 / len(classes)),
        decisions=np.zeros(count, dtype=np.int64),
    )
    return (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines(), rows_of(
        tmp_path / "predictions.csv"
    )


def test_an_evaluation_leaves_a_table_from_which_its_metrics_can_be_computed_again(trained, patients):
    storage, paths = trained

    result = evaluated(storage, paths.best, patients, positive="normal", seed=0).metrics
    rows = rows_of(storage / "runs" / "evaluation" / "predictions.csv")

    classes = ("covid", "normal")
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows])
    labels = np.array([classes.index(row["truth"]) for row in rows])
    again = classification_metrics(
        probabilities, labels, classes=classes, positive="normal", groups=[row["group"] for row in rows]
    )
    assert list(rows[0]) == ["image", "group", "truth", "probability_covid", "probability_normal", "decision"]
    assert (len(rows), again["confusion_matrix"]) == (result["n"], result["confusion_matrix"])
    assert again["loss"] == pytest.approx(result["loss"], rel=1e-9)
    assert again["auroc"] == pytest.approx(result["auroc"])
    assert again["intervals"]["accuracy"] == result["intervals"]["accuracy"]
    assert [row["decision"] for row in rows] == [classes[c] for c in probabilities.argmax(axis=1)]


def test_the_table_names_images_and_groups_as_the_data_set_does(trained, patients):
    storage, paths = trained
    evaluated(storage, paths.best, patients, "named")

    rows = rows_of(storage / "runs" / "named" / "predictions.csv")

    assert {row["image"] for row in rows} == {
        f"test/{name}/image-00{number}.png" for name in ("covid", "normal") for number in range(8)
    }
    assert {(row["group"], row["truth"]) for row in rows} == {
        (row["image"].removesuffix(".png"), row["image"].split("/")[1]) for row in rows
    }


def test_a_training_leaves_the_table_of_its_validation_split(trained):
    _, paths = trained

    rows = rows_of(paths.predicted("csv"))

    assert len(rows) == read_json(paths.result)["metrics"]["n"]
    assert all(row["image"].startswith("valid/") for row in rows)


def test_a_trial_keeps_no_table_of_its_own():
    assert not hasattr(TrialPaths, "predicted")


def test_the_predictions_say_which_model_judged_which_images(trained, patients):
    storage, paths = trained
    found = evaluated(storage, paths.best, patients, "about", positive="normal")

    kept = Predictions.read(storage / "runs" / "about" / "predictions.safetensors")

    index = read_index(str(patients))
    assert kept.about.model == read_json(paths.best / "manifest.json")["files"]["model.safetensors"]
    assert (kept.about.data, kept.about.split, kept.about.positive) == (index.digest, "test", "normal")
    assert kept.about.temperature == found.metrics["temperature"] != 1
    assert kept.samples.tobytes() == sample_ids(index, "test").tobytes()
    assert len(np.unique(kept.groups)) == 16


def test_predictions_of_version_0_1_0_can_be_read(tmp_path):
    old = Predictions(ids=np.arange(2), labels=np.array([0, 1]), probabilities=np.array([[0.9, 0.1], [0.2, 0.8]]))
    old.write(tmp_path / "predictions.safetensors", lease_in(tmp_path))

    read = Predictions.read(tmp_path / "predictions.safetensors")

    assert read.probabilities.tolist() == old.probabilities.tolist()
    assert (read.samples, read.groups, read.about) == (None, None, None)


@pytest.mark.parametrize(
    "damage",
    [
        {"labels": np.array([0])},
        {"labels": np.array([0, 7])},
        {"decisions": np.array([0, 1, 1])},
        {"samples": np.zeros((2, 4), dtype=np.uint8)},
        {"probabilities": np.array([0.5, 0.5])},
        {"probabilities": np.array([[0.9, np.nan], [0.2, 0.8]])},
    ],
)
def test_damaged_predictions_are_refused_in_words_of_our_own(tmp_path, damage):
    path = tmp_path / "predictions.safetensors"
    good = {"ids": np.arange(2), "labels": np.array([0, 1]), "probabilities": np.array([[0.9, 0.1], [0.2, 0.8]])}
    Predictions(**{**good, **damage}).write(path, lease_in(tmp_path))

    with pytest.raises(CheckpointError) as refused:
        Predictions.read(path)

    assert str(refused.value) == f"{path} is absent or damaged; evaluate the model again"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_stored_temperature_that_divides_no_logit_is_damage(temperature):
    about = EvaluatedSplit(
        model="m", data="d", split="test", classes=("a", "b"), positive="a", threshold=None, temperature=temperature
    )

    with pytest.raises(ValueError, match="a temperature is expected"):
        EvaluatedSplit.from_json(about.to_json())


def test_images_that_are_added_later_do_not_change_the_identity_of_an_image(patients):
    index = read_index(str(patients))
    first = index.of_split("test")[0]
    grown = index.model_copy(
        update={"shards": (*index.shards, first.model_copy(update={"name": "test-99999.tar", "sha256": "f" * 64}))}
    )

    before, after = sample_ids(index, "test"), sample_ids(grown, "test")

    assert after[: len(before)].tobytes() == before.tobytes()
    assert len(np.unique(after, axis=0)) == len(before) + first.samples


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("film-1.png", "film-1.png"),
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        (" =1+1", "' =1+1"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b", "a\\u2028b"),
        ("a;=1", "a;'=1"),
        ('a; "-1', "a;' \"-1"),
        ("a;b-1", "a;b-1"),
        ("film-\udcff.png", "film-\\udcff.png"),
        ("Jürgen 中 x", "Jürgen 中 x"),
        ("", ""),
    ],
)
def test_a_cell_is_no_formula_and_has_no_control_character(text, cell):
    assert safe_cell(text) == cell


def test_every_text_of_the_table_is_guarded(tmp_path):
    lines, rows = written(tmp_path, sources=("=1+1", "b;=cmd.png"), groups=("@p\x1b",), classes=("-1", "+\n"))

    assert lines[0] == '"image","group","truth","probability_-1","probability_+\\n","decision"'
    assert lines[2] == '"b;\'=cmd.png","\'@p\\x1b","\'-1",0.5,0.5,"\'-1"'
    assert len(lines) == 3
    assert rows[0]["image"] == "'=1+1"


def test_a_failed_write_leaves_no_table(tmp_path):
    with pytest.raises(ValueError, match="longer"):
        written(tmp_path, sources=("a", "b"), groups=("1", "2", "3"))

    assert not list(tmp_path.iterdir())
