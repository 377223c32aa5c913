"""`nightshift trials` and `best`: the leaderboard of a search, and what it has published."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cluster.files import append_line, write_json
from cluster.run_paths import RunPaths
from jobs.runs.trial_rows import cell
from tests import queued_search
from tests.conftest import Say
from tests.queued_search import play

search = queued_search.search


def test_trials_shows_the_best_first_and_json_as_scripts_rely_on(say: Say, search: RunPaths) -> None:
    play(search, 0.8, 0.95, 0.9)

    code, out, _ = say("trials", search.run_id[:25], "--json")
    rows = json.loads(out)
    table = say("trials", search.run_id)[1]

    assert code == 0
    assert [row["trial"] for row in rows] == [1, 2, 0]
    promised = {"trial", "lr", "dropout", "head_width", "metric", "epochs", "seconds", "state", "checkpoint"}
    assert all(promised <= row.keys() for row in rows)
    assert table.splitlines()[0].split() == [
        "TRIAL", "LR", "DROPOUT", "HEAD_WIDTH", "AUROC", "EPOCH", "EPOCHS", "SECONDS", "STATE", "WHY",
    ]  # fmt: skip
    assert table.splitlines()[1].split()[:5] == ["1", "0.001", "0.1", "128", "0.95"]


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("epochs", "ran all epochs"),
        ("patience", "early stopping"),
        ("rung", "stopped (ASHA)"),
        ("paused", "paused"),
        (None, ""),
    ],
)
def test_the_reason_why_a_trial_finished_is_said_in_words(why: str | None, words: str) -> None:
    assert cell({"why": why, "error": None}, "why") == words


def test_a_cell_shows_only_one_itself_as_one() -> None:
    row = {"auroc": 0.99998, "spread": 1.0, "loss": 0.99998}

    assert [cell(row, key) for key in row] == [">0.9999", "1", "1"]


def test_a_search_without_trials_is_a_sentence(say: Say, search: RunPaths) -> None:
    assert say("trials", search.run_id) == (
        0, "", f"no trial has begun; `nightshift logs -f {search.run_id}` follows the search\n"
    )  # fmt: skip


def test_trials_can_be_sorted_by_any_column(say: Say, search: RunPaths) -> None:
    play(search, 0.8, 0.95, 0.9)

    rows = json.loads(say("trials", search.run_id, "--sort", "seconds", "--json")[1])
    code, _, err = say("trials", search.run_id, "--sort", "colour")

    assert [row["trial"] for row in rows] == [2, 1, 0]
    assert code == 2
    assert err.startswith("Error: 'colour' is not a column; sort by trial, lr,")


def test_trials_writes_a_file_that_optuna_opens_and_refuses_to_overwrite_it(
    say: Say, search: RunPaths, tmp_path: Path
) -> None:
    play(search, 0.5, 0.75)
    file = tmp_path / "night.log"

    code, out, err = say("trials", search.run_id, "--json", "--optuna", str(file))
    content = file.read_bytes()
    again = say("trials", search.run_id, "--optuna", str(file))
    nowhere = say("trials", search.run_id, "--optuna", str(tmp_path / "absent" / "night.log"))

    assert (code, len(json.loads(out))) == (0, 2)
    assert err == f"{file} has 2 trials; `optuna-dashboard {file}` shows them\n"
    study = optuna.load_study(study_name=search.run_id, storage=JournalStorage(JournalFileBackend(str(file))))
    assert (study.best_value, study.best_params["lr"]) == (0.75, 1e-3)
    assert again[::2] == (1, f"Error: --optuna {file} exists and is not overwritten; choose another name\n")
    assert file.read_bytes() == content
    assert nowhere[0] == 2
    assert "night.log cannot be written; name a file in a folder that exists" in nowhere[2]


def test_trials_of_a_run_that_is_no_search_are_refused(say: Say, digits_shards: Path) -> None:
    run_id = say("train", str(digits_shards), "--weights", "none")[1].strip()

    code, _, err = say("trials", run_id)

    assert (code, err) == (
        1,
        f"Error: {run_id} is of kind train, not a search; `nightshift list --kind search` shows the searches\n",
    )


def test_best_shows_the_published_trial_or_says_that_there_is_none_yet(say: Say, search: RunPaths) -> None:
    before = say("best", search.run_id)
    play(search, 0.8)
    search.best.mkdir()
    write_json(search.best / "manifest.json", {"trial": 0, "epoch": 1, "value": 0.8, "config": {"lr": 0.01}})

    code, out, _ = say("best", search.run_id, "--json")

    assert before[0] == 1
    assert "has published no model yet" in before[2]
    assert code == 0
    found = json.loads(out)
    assert (found["trial"], found["epoch"], found["metric"]) == (0, 1, {"name": "auroc", "value": 0.8})
    assert found["checkpoint"] == str(search.best)
    assert say("best", search.run_id)[1].startswith("trial 0, epoch 1: auroc 0.8 on the valid split\n")
    choice = {"sentence": "trial 0 is published", "correction": "auroc 0.8; corrected 0.7", "warning": "too few"}
    write_json(search.result, {"metrics": None, "choice": choice})
    assert say("best", search.run_id)[1].endswith(
        "\ntrial 0 is published\nauroc 0.8; corrected 0.7\nwarning: too few\n"
    )
    assert json.loads(say("best", search.run_id, "--json")[1])["choice"] == choice
    write_json(search.result, {"metrics": {"split": "test", "n": 4, "accuracy": 0.75, "auroc": None}})
    assert say("best", search.run_id)[1].endswith("\ntest: accuracy 0.7500 (4 images)\n")


@pytest.mark.parametrize("command", [("best",), ("show",), ("show", "--json")], ids=" ".join)
def test_a_published_model_that_the_result_does_not_name_is_refused(
    say: Say, search: RunPaths, command: tuple[str, ...]
) -> None:
    play(search, 0.9)
    about = {"trial": 0, "epoch": 1, "value": 0.9, "config": {"lr": 1e-2}}
    search.best.mkdir()
    write_json(search.best / "manifest.json", {"files": {"model.safetensors": "a" * 64}, **about})
    write_json(search.result, {"metrics": {"split": "test", "accuracy": 0.9}, "model_sha256": "b" * 64})

    code, _, err = say(*command, search.run_id)

    assert code == 1
    assert f"{search.best} is not the model that result.json describes" in err
    assert "restore both from one backup, or train the model again" in err


def test_damaged_lines_of_a_trial_journal_are_named_and_the_others_are_shown(say: Say, search: RunPaths) -> None:
    play(search, 0.9)
    for damage in ({"event": "epoch", "trial": 0}, {"event": "started", "trial": "x", "config": {}}, [], {"a": 1}):
        append_line(search.trials, damage)

    code, out, err = say("trials", search.run_id, "--json")

    assert (code, len(json.loads(out))) == (0, 1)
    assert f"{search.trials}: lines 4, 5, 6, 7 are damaged and left out" in err
