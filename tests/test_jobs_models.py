"""Names for models in use: promotion, refusal of a worse model, history, and such names as MODEL."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.files import read_json, write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.cli.completion import complete_model
from jobs.errors import NameTaken
from jobs.queue.checks import model_of
from jobs.runs import names
from tests import compared as comparing
from tests.compared import OF_A, OF_B, A, B
from tests.conftest import Say
from trainer.evaluation.predictions import read_about

trained_there = comparing.say_there  # two trainings, and an evaluation of each on the test split


@pytest.fixture
def settings(storage: Path) -> Settings:
    """Settings without a Redis: nothing here is submitted."""
    return Settings(storage=storage, redis_url=f"unix://{storage}/no-redis")


@pytest.fixture
def there(trained_there: Say, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Those runs, with a whole head config each, and a user called ada."""
    monkeypatch.setenv("NIGHTSHIFT_USER", "ada")
    for run_id in (A, B):
        head = {"classes": ["covid", "normal"], "width": 512, "dropout": 0.4, "image_size": 224}
        write_json(RunPaths.of(settings.storage, run_id).best / "head.json", head)
    return trained_there


def make_second(settings: Settings, share: float) -> None:
    """Let the second model be right about a share of the images of the test split."""
    labels = comparing.predictions_of(1, "test", "1" * 64).labels
    comparing.change(settings.storage, OF_B, **comparing.scored(labels, right=share))


def test_a_promoted_name_means_the_model_and_has_a_history(there: Say, settings: Settings) -> None:
    make_second(settings, 1.0)
    first = there("models", "promote", A, "--as", "chest", "--why", "the first")
    second = there("models", "promote", B, "--as", "chest", "--why", "more films")

    listed = json.loads(there("models", "list", "--json")[1])
    history = json.loads(there("models", "history", "chest", "--json")[1])

    assert first == (0, "", f"chest is {A}\n")
    assert second[:2] == (0, "")
    assert second[2].splitlines()[0] == f"chest is {B}, before {A}"
    assert second[2].splitlines()[1].startswith("compared: auroc 1.0000 instead of 0.")
    assert second[2].endswith(" on 24 images of the test split\n")
    assert [(each["name"], each["model"]) for each in listed] == [("chest", B)]
    assert [(each["model"], each["who"], each["why"]) for each in history] == [
        (B, "ada", "more films"), (A, "ada", "the first"),
    ]  # fmt: skip
    assert history[0]["when"] >= history[1]["when"]
    assert model_of(settings, "chest").name == B


def test_a_worse_model_is_refused_unless_it_is_forced(there: Say, settings: Settings) -> None:
    make_second(settings, 0.25)
    there("models", "promote", A, "--as", "chest")

    code, out, err = there("models", "promote", B, "--as", "chest")
    refused = model_of(settings, "chest").name
    forced = there("models", "promote", B, "--as", "chest", "--force")

    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {B} is worse than chest ({A}): auroc 0.2500 instead of 0.")
    assert err.endswith("; --force promotes it\n")
    assert refused == A
    assert forced[0] == 0
    assert json.loads(there("models", "history", "chest", "--json")[1])[0]["forced"] is True


def test_a_loss_within_the_margin_is_accepted(there: Say, settings: Settings) -> None:
    make_second(settings, 0.25)
    there("models", "promote", A, "--as", "chest")

    assert there("models", "promote", B, "--as", "chest", "--margin", "100%")[0] == 0


def test_models_without_a_common_split_are_not_compared_and_the_history_says_so(there: Say, settings: Settings) -> None:
    there("models", "promote", A, "--as", "chest")
    shutil.rmtree(RunPaths.of(settings.storage, OF_B).folder)
    RunPaths.of(settings.storage, B).predictions.unlink()

    code, _, err = there("models", "promote", B, "--as", "chest")
    (newest, _) = json.loads(there("models", "history", "chest", "--json")[1])

    assert code == 0
    assert err.splitlines()[1].startswith("compared: no: ")
    assert newest["compared"].startswith("no: ")


@pytest.mark.parametrize(("data", "is_refused"), [("d" * 64, True), ("e" * 64, False)])
def test_without_common_evaluations_the_published_metrics_of_the_same_split_decide(
    there: Say, settings: Settings, data: str, is_refused: bool
) -> None:
    for run_id, value, of_data in ((A, 0.9, "d" * 64), (B, 0.8, data)):
        manifest = RunPaths.of(settings.storage, run_id).best / "manifest.json"
        metrics = {"split": "valid", "n": 270, "auroc": value}
        write_json(manifest, {**read_json(manifest), "data": of_data, "metrics": metrics})
    there("models", "promote", A, "--as", "chest")
    shutil.rmtree(RunPaths.of(settings.storage, OF_B).folder)
    RunPaths.of(settings.storage, B).predictions.unlink()

    code, _, err = there("models", "promote", B, "--as", "chest")

    worse = f"{B} is worse than chest ({A}): auroc 0.8000 instead of 0.9000 on the 270 images of the valid split"
    assert (code == 1) is is_refused
    assert (err == f"Error: {worse}; --force promotes it\n") is is_refused


def publish_metrics(settings: Settings, run_id: str, **metrics: Any) -> None:
    """Let a model be published with metrics of the valid split, and never be evaluated."""
    manifest = RunPaths.of(settings.storage, run_id).best / "manifest.json"
    about = {"split": "valid", "n": 270, "positive": "covid", "positive_stated": True, **metrics}
    write_json(manifest, {**read_json(manifest), "data": "d" * 64, "metrics": about})
    RunPaths.of(settings.storage, run_id).predictions.unlink()
    shutil.rmtree(RunPaths.of(settings.storage, OF_A if run_id == A else OF_B).folder)


@pytest.mark.parametrize(
    ("published", "words", "refusal"),
    [
        (({}, {}), [], (1, "is worse than chest")),
        (({"positive_stated": False}, {}), [], (1, "is worse than chest")),
        (({"positive_stated": False}, {"positive_stated": False}), [], (2, "--metric sensitivity needs a "
         "positive class; add --positive with one of covid, normal")),
        (({"positive_stated": False}, {"positive_stated": False}), ["--positive", "covid"], (1, "is worse than chest")),
        (({}, {"positive": "normal"}), [], (0, "compared: no: ")),
        (({}, {}), ["--positive", "normal"], (0, "compared: no: ")),
        (({}, {}), ["--split", "valid"], (1, "is worse than chest")),
        (({}, {}), ["--split", "test"], (1, f"{A} has no evaluation of the test split; run: nightshift evaluate {A} ")),
    ],
)  # fmt: skip
def test_published_metrics_of_the_positive_class_are_compared_only_if_it_is_the_same(
    there: Say,
    settings: Settings,
    published: tuple[dict[str, Any], dict[str, Any]],
    words: list[str],
    refusal: tuple[int, str],
) -> None:
    code, line = refusal
    publish_metrics(settings, A, **{"sensitivity": 0.9, **published[0]})
    publish_metrics(settings, B, **{"sensitivity": 0.8, **published[1]})
    there("models", "promote", A, "--as", "chest")

    got, _, err = there("models", "promote", B, "--as", "chest", "--metric", "sensitivity", *words)

    assert (got, line in err) == (code, True), err


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--positive", "flu"], (2, "--positive 'flu' is not a class; use one of covid, normal")),
        ([], (2, "the evaluations have different positive classes, covid, normal; choose with --positive")),
        (["--split", "train"], (1, f"{A} has no evaluation of the train split; run: nightshift evaluate {A} /shards "
         "--split train --wait")),
    ],
)  # fmt: skip
def test_wrong_usage_or_a_split_without_evaluations_promotes_nothing(
    there: Say, settings: Settings, words: list[str], refusal: tuple[int, str]
) -> None:
    code, line = refusal
    about = read_about(RunPaths.of(settings.storage, OF_B).predictions)
    assert about is not None
    comparing.change(settings.storage, OF_B, about=replace(about, positive="normal"))
    there("models", "promote", A, "--as", "chest")

    got = there("models", "promote", B, "--as", "chest", "--force", *words)

    assert got == (code, "", f"Error: {line}\n")
    assert model_of(settings, "chest").name == A


def test_the_metric_in_which_a_model_is_worse_has_its_figures(there: Say, settings: Settings) -> None:
    labels = comparing.predictions_of(1, "test", "1" * 64).labels
    ranked = np.where(labels == 0, 0.4, 0.3)  # of covid: all of them are ranked first, and none is found
    for run_id, covid in ((OF_A, np.full(24, 0.6)), (OF_B, ranked)):
        scores = {"probabilities": np.column_stack([covid, 1 - covid]), "decisions": (covid < 0.5).astype(np.int64)}
        comparing.change(settings.storage, run_id, **scores)
    there("models", "promote", A, "--as", "chest")

    code, _, err = there("models", "promote", B, "--as", "chest")

    assert code == 1
    assert "auroc 1.0000 instead of 0.5000 on 24 images" in err
    assert err.endswith("; worse in sensitivity: 0.0000 instead of 1.0000; --force promotes it\n")


def test_the_positive_class_that_is_named_is_compared(there: Say, settings: Settings) -> None:
    about = read_about(RunPaths.of(settings.storage, OF_B).predictions)
    assert about is not None
    comparing.change(settings.storage, OF_B, about=replace(about, positive="normal"))
    make_second(settings, 1.0)
    there("models", "promote", A, "--as", "chest")

    words = ("--metric", "specificity", "--positive", "covid")
    code, _, err = there("models", "promote", B, "--as", "chest", *words)

    assert code == 0
    assert err.splitlines()[1].startswith("compared: specificity 1.0000 instead of 0.")


def test_a_metric_that_is_undefined_on_the_named_split_is_refused(there: Say, settings: Settings) -> None:
    for run_id in (OF_A, OF_B):
        comparing.change(settings.storage, run_id, labels=np.zeros(24, dtype=np.int64))
    there("models", "promote", A, "--as", "chest")

    got = there("models", "promote", B, "--as", "chest", "--split", "test", "--force")

    assert got == (1, "", "Error: auroc is undefined on the test split; choose another --metric\n")


def test_the_valid_split_is_compared_if_there_is_no_evaluation_of_the_test_split(
    there: Say, settings: Settings
) -> None:
    there("models", "promote", A, "--as", "chest")
    shutil.rmtree(RunPaths.of(settings.storage, OF_B).folder)

    err = there("models", "promote", B, "--as", "chest", "--force")[2]

    assert err.endswith(" on 24 images of the valid split\n")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["promote", "nothere", "--as", "x"], 1, "nothere is not a model; give a folder with head.json, the id of a "
         "run, or a promoted name"),
        (["promote", A, "--as", "../x"], 2, f"--as '../x' is not valid; {names.NAME_RULE}"),
        (["promote", A, "--as", B], 2, f"--as '{B}' has the form of a run id; choose another name"),
        (["promote", A], 2, "--as is missing; `nightshift models promote --help` shows how to use it"),
        (["promote", A, "--as", "chest"], 1, f"chest is {A} already; `nightshift models history chest` shows "
         "since when"),
        (["history", "lung"], 1, "no model is called 'lung'; `nightshift models list` shows them"),
    ],
)  # fmt: skip
def test_what_cannot_be_promoted_is_one_line_and_changes_nothing(
    there: Say, settings: Settings, words: list[str], code: int, line: str
) -> None:
    there("models", "promote", A, "--as", "chest")
    before = read_json(settings.storage / "models" / "chest.json")

    got = there("models", *words)

    assert got == (code, "", f"Error: {line}\n")
    assert read_json(settings.storage / "models" / "chest.json") == before
    assert [file.name for file in (settings.storage / "models").iterdir()] == ["chest.json"]


def test_a_run_and_a_model_cannot_have_the_same_name(there: Say, settings: Settings) -> None:
    names.claim(settings.storage, "night", OF_B)
    there("models", "promote", A, "--as", "chest")

    promoted = there("models", "promote", A, "--as", "night")

    assert promoted == (1, "", f"Error: night is the name of {OF_B}; choose another name for the model\n")
    with pytest.raises(NameTaken, match="chest is the name of a promoted model; choose another name for the run"):
        names.claim(settings.storage, "chest", OF_B)


def test_a_model_in_use_is_not_deleted_by_mistake(there: Say, settings: Settings) -> None:
    there("models", "promote", A, "--as", "chest")

    refused = there("delete", A, "--yes")
    forced = there("delete", A, "--yes", "--force")
    used = there("predict", "chest", str(settings.storage))

    assert refused == (
        1, "", f"Error: the model of {A} is in use as chest; promote another model, or give --force\n",
    )  # fmt: skip
    assert forced[0] == 0
    assert used[0] == 1
    assert used[2].startswith("Error: the model chest cannot be read at ")
    assert used[2].endswith("/best; restore it from a backup, or promote another as chest\n")


def test_a_model_whose_weights_have_changed_is_refused(there: Say, settings: Settings) -> None:
    there("models", "promote", A, "--as", "chest")
    best = RunPaths.of(settings.storage, A).best
    write_json(best / "manifest.json", {"files": {"model.safetensors": "f" * 64}, "run": A})

    code, _, err = there("export", "chest")

    assert code == 1
    assert err == (
        "Error: the model chest has other weights than when it was promoted: sha256 ffffffffffff... instead of "
        f"000000000000...; restore {best} from a backup, or promote it again\n"
    )


@pytest.mark.parametrize("content", ["", "{}", '{"history": []}', '{"history": [{"model": 1}]}', "[]"])
def test_a_damaged_history_is_one_line(there: Say, settings: Settings, content: str) -> None:
    there("models", "promote", A, "--as", "chest")
    (settings.storage / "models" / "chest.json").write_text(content)

    code, out, err = there("predict", "chest", str(settings.storage))

    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "models/chest.json is damaged" in err


@pytest.mark.parametrize("content", ["", "{}", '{"history": []}', '{"history": [{"model": 1}]}', "[]"])
def test_a_damaged_history_hides_no_other_model_and_no_model_is_deleted_meanwhile(
    there: Say, settings: Settings, content: str
) -> None:
    there("models", "promote", A, "--as", "chest")
    there("models", "promote", A, "--as", "lung")
    damaged = settings.storage / "models" / "chest.json"
    damaged.write_text(content)

    code, out, err = there("models", "list", "--json")
    of_model = there("delete", B, "--yes")
    of_evaluation = there("delete", OF_B, "--yes")
    forced = there("delete", B, "--yes", "--force")

    assert (code, [each["name"] for each in json.loads(out)]) == (0, ["lung"])
    assert err.startswith(f"{damaged} is damaged")
    assert err.endswith("; restore it from a backup\n")
    assert err.count("\n") == 1
    assert (of_model[:2], of_evaluation[0], forced[0]) == ((1, ""), 0, 0)
    assert of_model[2].startswith(f"Error: the model of {B} may be in use: {damaged} ")
    assert of_model[2].endswith("; restore it from a backup; --force deletes it all the same\n")


def test_a_model_that_was_promoted_by_its_folder_is_not_deleted_by_mistake(there: Say, settings: Settings) -> None:
    there("models", "promote", str(RunPaths.of(settings.storage, A).best), "--as", "chest")

    refused = there("delete", A, "--yes")

    assert refused == (
        1, "", f"Error: the model of {A} is in use as chest; promote another model, or give --force\n",
    )  # fmt: skip


def test_promoted_names_are_completed_for_models(there: Say) -> None:
    there("models", "promote", A, "--as", "chest")

    assert [item.value for item in complete_model(None, None, "ch")] == ["chest"]  # type: ignore[arg-type]
    assert [item.value for item in complete_model(None, None, "train")] == [B, A]  # type: ignore[arg-type]


def test_names_and_reasons_cannot_send_escape_sequences(there: Say) -> None:
    there("models", "promote", A, "--as", "chest", "--why", "\x1b[31mred")

    shown = there("models", "history", "chest")[1] + there("models", "list")[1]

    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown


def test_a_folder_is_promoted_by_its_path(there: Say, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(RunPaths.of(settings.storage, A).best, folder)

    assert there("models", "promote", str(folder), "--as", "chest")[2] == f"chest is {folder}\n"
    assert model_of(settings, "chest").folder == folder
