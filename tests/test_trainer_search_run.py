"""Whole searches with real features and real heads."""

import json
import random
import signal
from collections import Counter
from datetime import timedelta
from functools import partial

import pytest

from cluster.files import read_json, read_lines
from data_shards.index import read_index
from tests.searched import NOON, attempt_at, events_of, killed_when, search_spec, started, table_of
from tests.trained import done, evaluated, new_run, train_spec
from trainer.errors import Stopped
from trainer.model.bundle import read_model

pytestmark = pytest.mark.slow

SEARCH = "search-20261123-000000-abcdef"


@pytest.fixture(scope="module")
def searched(tmp_path_factory, digits_shards):
    """A search of 24 trials that runs without interruption."""
    spec = search_spec(digits_shards, trials=24, epochs=3, seed=11, concurrency=1)
    paths = new_run(tmp_path_factory.mktemp("storage"), spec, SEARCH)
    return paths, spec, attempt_at(paths, spec)


def test_a_search_runs_each_trial_publishes_the_best_and_evaluates_it_on_the_test_split(searched, digits_shards):
    paths, spec, result = searched

    table = table_of(paths, spec)
    manifest = read_json(paths.best / "manifest.json")
    model, config, _ = read_model(paths.best)

    best = table.best()
    assert (table.finished, table.failed) == (24, 0)
    assert (manifest["trial"], manifest["epoch"], manifest["value"]) == (best.trial, best.epoch, best.value)
    assert best.value == min(report.value for report in table.reports())
    assert config.width == table.trials[best.trial].config["head_width"]
    assert not model.training
    assert result.metrics["split"] == "test"
    assert result.metrics["n"] == read_index(str(digits_shards)).samples_in("test")
    assert result.metrics["intervals"]
    assert result.details["feature_precision"] == manifest["feature_precision"] == "fp32"
    assert result.details["trials"] == {"asked": 24, "finished": 24, "failed": 0, "paused": 0}


def test_the_best_trial_equals_train_with_its_options(searched, tmp_path, digits_shards):
    paths, spec, _ = searched
    best = table_of(paths, spec).best()
    config = table_of(paths, spec).trials[best.trial].config

    trained, _ = done(tmp_path, train_spec(digits_shards, **{**config, "epochs": 3, "seed": 11}))

    lines = {line["epoch"]: line for line in read_lines(trained.metrics)}
    assert lines[best.epoch]["valid_loss"] == pytest.approx(best.value, rel=1e-4)  # train uses all cores


def test_a_search_id_serves_as_a_model(searched, digits_shards):
    paths, _, result = searched

    found = evaluated(paths.storage, SEARCH, digits_shards, split="test", name="evaluation")

    assert found.metrics["confusion_matrix"] == result.metrics["confusion_matrix"]


def test_nothing_is_lost_when_the_trainer_is_killed_three_times(searched, tmp_path_factory):
    undisturbed, spec, _ = searched
    paths = new_run(tmp_path_factory.mktemp("killed"), spec, SEARCH)
    moments = sorted(random.Random(3).sample(range(2, 110), 3))

    codes = [killed_when(paths, partial(_has_lines, paths, lines)) for lines in moments]
    codes.append(started(paths).wait(600))

    one, other = table_of(undisturbed, spec), table_of(paths, spec)
    assert codes == [128 + signal.SIGKILL] * 3 + [0]
    assert Counter(event["trial"] for event in events_of(paths, "finished")) == dict.fromkeys(range(24), 1)
    assert [t.config for t in one.trials.values()] == [t.config for t in other.trials.values()]
    assert [r.value for r in one.reports()] == [r.value for r in other.reports()]
    assert (paths.best / "model.safetensors").read_bytes() == (undisturbed.best / "model.safetensors").read_bytes()
    assert read_json(paths.result)["metrics"] == read_json(undisturbed.result)["metrics"]


def test_a_window_that_closes_pauses_trials_with_checkpoints_and_they_resume_when_it_reopens(tmp_path, digits_shards):
    window = {"window": "20:00-07:00", "timezone": "UTC"}
    spec = search_spec(digits_shards, trials=3, epochs=60, early_stopping=False, concurrency=1, **window)
    paths = new_run(tmp_path, spec, SEARCH)
    now = [NOON.replace(hour=21)]

    def clock():
        if len(events_of(paths, "epoch")) >= 3 and now[0].hour == 21:
            now[0] = NOON.replace(hour=7) + timedelta(days=1)  # the time window closes
        return now[0]

    with pytest.raises(Stopped, match="stopped after 0 of 3 trials"):
        attempt_at(paths, spec, clock=clock)
    left = sorted(paths.checkpoints.glob("trial-*/repeat-*/step-*"))
    assert json.loads(paths.stop.read_text()) == {"reason": "window", "attempt": 1}
    assert [trial.state for trial in table_of(paths, spec).trials.values()] == ["paused"]
    assert left
    assert not paths.result.exists()
    paths.stop.unlink()  # as the queue does before the next attempt
    now[0] = NOON.replace(hour=22) + timedelta(days=1)

    attempt_at(paths, spec, clock=lambda: now[0])

    table = table_of(paths, spec)
    assert [(trial.state, trial.epochs) for trial in table.trials.values()] == [("finished", 60)] * 3
    resumed = [event for event in events_of(paths, "epoch") if event["trial"] == 0 and event["attempt"] == 2]
    assert resumed[0]["epoch"] > 2


def test_a_search_that_is_cancelled_pauses_its_trial_and_publishes_the_best_so_far(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=3, epochs=200, early_stopping=False, concurrency=1)
    paths = new_run(tmp_path, spec, SEARCH)
    running = started(paths)
    while len(events_of(paths, "epoch")) < 3:
        assert running.wait(0.1) is None, paths.log.read_text()[-2000:]

    paths.stop.write_text(json.dumps({"reason": "cancel", "attempt": 1}))

    code, table = running.wait(600), table_of(paths, spec)
    manifest = read_json(paths.best / "manifest.json")
    assert code == 3
    assert [trial.state for trial in table.trials.values()] == ["paused"]
    assert list(paths.checkpoints.glob("trial-000000/repeat-0/step-*"))
    assert (manifest["trial"], manifest["epoch"]) == (table.best().trial, table.best().epoch)
    assert not paths.result.exists()


def test_a_trial_that_diverges_is_recorded_and_the_others_run(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=4, space={"lr": (1e-3, 10.0), "dropout": None, "head_width": (8, 16)},
                       algorithm="grid", repeats=2, class_weights=False, patience=1)  # fmt: skip
    paths = new_run(tmp_path, spec, SEARCH)

    attempt_at(paths, spec)

    table = table_of(paths, spec)
    assert table.finished + table.failed == 4
    assert all(report.report.spread is not None for report in table.reports())


def _has_lines(paths, lines):
    return len(list(read_lines(paths.trials))) >= lines
