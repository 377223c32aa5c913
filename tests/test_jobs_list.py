"""`nightshift list`: what its columns say at the width of a terminal."""

import json
from pathlib import Path

import pytest

from cluster.files import write_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from jobs.runs import state as run_state
from jobs.runs.outcomes import mark_succeeded
from jobs.runs.run_filter import KINDS
from tests.conftest import Say
from trainer.specs import SPEC_OF_KIND

PLAIN = ("--weights", "none")


def submitted(say: Say, settings: Settings, *words: str) -> RunPaths:
    return RunPaths.of(settings.storage, say(*words)[1].strip())


def finish(paths: RunPaths, metrics: str) -> None:
    paths.result.write_text(f'{{"metrics": {metrics}}}')
    with run_state.changing(paths) as state:
        mark_succeeded(paths, state)


def test_the_best_metric_says_which_images_it_is_of(say: Say, settings: Settings, shards: str) -> None:
    trained = submitted(say, settings, "train", shards, *PLAIN, "--name", "night")
    folds = submitted(say, settings, "train", shards, *PLAIN)
    judged = submitted(say, settings, "evaluate", "night", shards, "--after", "night")
    finish(trained, '{"split": "valid", "auroc": 0.98765}')
    finish(folds, '{"split": "train+valid", "out_of_fold": {}, "auroc": 0.9}')
    finish(judged, '{"split": "test", "auroc": null, "accuracy": 0.5}')

    rows = {line.split()[0]: line for line in say("list")[1].splitlines()}

    assert "  valid auroc 0.9877  " in rows[trained.run_id]
    assert "  folds auroc 0.9000  " in rows[folds.run_id]
    assert "  test accuracy 0.5000  " in rows[judged.run_id]


def test_runs_of_every_kind_of_spec_can_be_listed_alone() -> None:
    assert set(KINDS) == set(SPEC_OF_KIND)


def test_the_metric_of_a_run_of_an_earlier_version_says_no_split(say: Say, settings: Settings, shards: str) -> None:
    run = submitted(say, settings, "train", shards, *PLAIN)
    with run_state.changing(run) as state:
        run_state.write_state(run, state.with_changes(metric=("auroc", 0.5)))

    assert "  auroc 0.5000  " in say("list")[1]


def test_at_80_columns_the_age_stays_where_no_run_has_progress(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(say, settings, "train", shards, *PLAIN, "--name", "the-night-of-all-films")
    finish(run, '{"split": "valid", "auroc": 0.98765}')
    monkeypatch.setenv("COLUMNS", "80")

    heading, row = say("list")[1].splitlines()

    assert heading.split() == ["ID", "NAME", "STATE", "BEST", "AGE"]
    assert row.startswith(f"{run.run_id}  the-nigh")
    assert len(row) <= 80


def test_at_80_columns_the_epoch_of_a_run_is_whole_and_its_owner_goes(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(say, settings, "train", shards, *PLAIN, "--name", "night")
    with run_state.changing(run) as state:
        run_state.write_state(run, state.with_state("running"))
    write_json(run.progress, {"phase": "train", "epoch": 78, "epochs": 200})
    monkeypatch.setenv("COLUMNS", "80")

    heading, row = say("list")[1].splitlines()

    assert heading.split() == ["ID", "NAME", "KIND", "STATE", "AGE", "PROGRESS"]
    assert row.endswith("  train, epoch 78/200")


def test_at_80_columns_the_progress_of_a_run_shares_a_column_with_the_best_metric_of_another(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = submitted(say, settings, "train", shards, *PLAIN, "--name", "the-night-of-all-films")
    running = submitted(say, settings, "train", shards, *PLAIN, "--name", "night")
    finish(ended, '{"split": "valid", "accuracy": 0.98765}')
    with run_state.changing(running) as state:
        run_state.write_state(running, state.with_state("running"))
    write_json(running.progress, {"phase": "train", "epoch": 78, "epochs": 200, "images_per_second": 812.0})
    whole = say("list")[1].splitlines()[0]
    monkeypatch.setenv("COLUMNS", "80")

    heading, first, second = say("list")[1].splitlines()

    assert whole.split()[-3:] == ["BEST", "AGE", "PROGRESS"]
    assert heading.split() == ["ID", "NAME", "STATE", "BEST", "/", "PROGRESS", "AGE"]
    assert "  running    train, epoch 78/200…  " in first
    assert "  succeeded  valid accuracy 0.9877  " in second
    assert max(map(len, (heading, first, second))) <= 80


def test_a_run_that_waits_for_a_time_names_it_by_the_clock_of_the_reader(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    submitted(say, settings, "train", shards, *PLAIN, "--at", "2099-01-02T23:30:00+00:00")

    row = say("list")[1].splitlines()[1]

    assert row.endswith("  waits until 2099-01-03 00:30")


def test_a_run_that_waits_names_the_other_run_whole(
    say: Say, settings: Settings, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = submitted(say, settings, "train", shards, *PLAIN, "--name", "first")
    plain = submitted(say, settings, "train", shards, *PLAIN)
    after_named = submitted(say, settings, "train", shards, *PLAIN, "--after", named.run_id)
    after_plain = submitted(say, settings, "train", shards, *PLAIN, "--after", plain.run_id)

    whole = {line.split()[0]: line for line in say("list")[1].splitlines()}
    monkeypatch.setenv("COLUMNS", "80")
    narrow = {line.split()[0]: line for line in say("list")[1].splitlines()}

    assert whole[after_named.run_id].endswith("  waits for first")
    assert whole[after_plain.run_id].endswith(f"  waits for {plain.run_id}")
    assert narrow[after_plain.run_id].endswith("  waits for…")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("list",), "no runs in {storage}; `nightshift train SHARDS` submits one\n"),
        (("list", "--state", "failed"), "no run matches --state; `nightshift list` shows all runs\n"),
        (("schedule", "list"), "no schedules; `nightshift schedule add NAME CRON COMMAND` adds one\n"),
        (("models", "list"), "no models; `nightshift models promote MODEL --as NAME` names one\n"),
    ],
    ids=" ".join,
)
def test_a_list_without_rows_is_a_sentence_that_says_what_to_do(
    say: Say, storage: Path, words: tuple[str, ...], sentence: str
) -> None:
    assert say(*words) == (0, "", sentence.format(storage=storage))


def test_list_shows_the_newest_first_and_filters(say: Say, shards: str) -> None:
    first = say("train", shards, "--weights", "none")[1].strip()
    second = say("evaluate", first, shards)[1].strip()

    everything = json.loads(say("list", "--json")[1])
    waiting = json.loads(say("list", "--state", "scheduled", "--json")[1])
    training = say("list", "--kind", "train")[1]

    assert [row["id"] for row in everything] == [second, first]
    assert [(row["id"], row["kind"]) for row in waiting] == [(second, "evaluate")]
    assert first in training
    assert second not in training


@pytest.mark.parametrize("alias", ["ls", "ps"])
def test_ls_and_ps_mean_list(say: Say, alias: str) -> None:
    assert say(alias, "--json") == (0, "[]\n", "")


def test_a_limit_beyond_all_numbers_of_the_machine_lists_all_runs(say: Say, settings: Settings, shards: str) -> None:
    run = submitted(say, settings, "train", shards, *PLAIN)

    listed = say("list", "--limit", "9" * 30, "--json")[1]

    assert [found["id"] for found in json.loads(listed)] == [run.run_id]
