"""The trials of a search as Optuna reads them back from the file that `nightshift trials --optuna` writes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cluster.errors import StorageError
from cluster.files import append_line
from cluster.run_paths import RunPaths
from tests.searched import NOON, SimulatedSearch, search_spec, simulated_search, table_of
from tests.trained import new_run
from trainer.search.journal import copy_trials
from trainer.search.optuna_file import write_optuna_file

SPACE = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": [0.1, 0.4], "head_width": [8, 16]}


class MinutesClock:
    """A clock that is a minute later each time that it is read."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture
def searched(tmp_path: Path) -> SimulatedSearch:
    """A search with a complete, a failed, a stopped, and a paused trial, and one that has not reported."""
    found = simulated_search(
        tmp_path, MinutesClock(), space=SPACE, trials=5, epochs=3, best_by="auroc", early_stopping=False
    )
    for _ in range(5):
        found.start()
    found.whole(0, [0.5, 0.75, 0.625])
    found.epoch(1, 1, 0.25)
    found.fail(1, "loss is not finite")
    append_line(paths_of(found).trials, {"event": "epoch", "trial": 2, "epoch": 1, "value": 0.125})
    append_line(paths_of(found).trials, {"event": "finished", "trial": 2, "why": "rung"})
    found.epoch(3, 1, 0.875)
    found.pause(3)
    return found


def paths_of(search: SimulatedSearch) -> RunPaths:
    return search.controller.journal.lease.paths


def written(search: SimulatedSearch, file: Path, *, has_ended: bool = False) -> optuna.Study:
    paths = paths_of(search)
    table = table_of(paths, search.spec)
    write_optuna_file(file, paths, search.spec, table, submitted=NOON, has_ended=has_ended)
    storage = JournalStorage(JournalFileBackend(str(file)))
    return optuna.load_study(study_name=paths.run_id, storage=storage)


def utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC)


def states(trials: list[FrozenTrial]) -> list[TrialState]:
    return [trial.state for trial in trials]


def test_optuna_reads_states_values_and_intermediate_values(searched: SimulatedSearch, tmp_path: Path) -> None:
    study = written(searched, tmp_path / "night.log")

    assert states(study.trials) == [
        TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING, TrialState.RUNNING,
    ]  # fmt: skip
    assert [trial.value for trial in study.trials] == [0.75, None, 0.125, None, None]
    assert [trial.intermediate_values for trial in study.trials] == [
        {1: 0.5, 2: 0.75, 3: 0.625}, {1: 0.25}, {1: 0.125}, {1: 0.875}, {},
    ]  # fmt: skip
    assert (study.direction.name, study.metric_names, study.best_trial.number) == ("MAXIMIZE", ["auroc"], 0)
    assert study.trials[1].user_attrs["error"] == "loss is not finite"
    assert [trial.user_attrs["state"] for trial in study.trials[3:]] == ["paused", "running"]


def test_optuna_reads_the_space_and_the_options_of_each_trial(searched: SimulatedSearch, tmp_path: Path) -> None:
    study = written(searched, tmp_path / "night.log")

    table = table_of(paths_of(searched), searched.spec)
    for trial in study.trials:
        config = table.trials[trial.number].config
        assert trial.params == {name: config[name] for name in SPACE}
        assert trial.distributions == {
            "lr": FloatDistribution(1e-4, 1e-2, log=True),
            "dropout": CategoricalDistribution((0.1, 0.4)),
            "head_width": CategoricalDistribution((8, 16)),
        }
        assert (trial.user_attrs["trial"], trial.user_attrs["batch_size"]) == (trial.number, config["batch_size"])


def test_optuna_reads_when_trials_started_and_ended(searched: SimulatedSearch, tmp_path: Path) -> None:
    study = written(searched, tmp_path / "night.log")

    trials = table_of(paths_of(searched), searched.spec).trials
    assert [utc(trial.datetime_start) for trial in study.trials] == [trials[n].started_at for n in range(5)]
    assert [utc(trial.datetime_complete) for trial in study.trials[:2]] == [trials[0].ended_at, trials[1].ended_at]
    assert utc(study.trials[2].datetime_complete) == trials[2].started_at  # its events have no time
    assert [trial.datetime_complete for trial in study.trials[3:]] == [None, None]
    assert trials[0].started_at is not None
    assert trials[0].ended_at is not None
    assert NOON < trials[0].started_at < trials[0].ended_at


def test_no_trial_runs_once_the_search_has_ended(searched: SimulatedSearch, tmp_path: Path) -> None:
    study = written(searched, tmp_path / "night.log", has_ended=True)

    assert states(study.trials[3:]) == [TrialState.PRUNED, TrialState.FAIL]
    assert study.trials[3].value == 0.875


def test_optuna_continues_the_study(searched: SimulatedSearch, tmp_path: Path) -> None:
    study = written(searched, tmp_path / "night.log")

    trial = study.ask({"lr": FloatDistribution(1e-4, 1e-2, log=True)})
    study.tell(trial, 0.9)

    assert (study.best_trial.number, len(study.trials)) == (5, 6)


def test_a_copied_trial_keeps_its_times_and_options_outside_of_the_new_space(tmp_path: Path) -> None:
    narrow = search_spec("shards", space={"dropout": None, "lr": {"low": 0.5, "high": 1}, "head_width": [8, 16]})
    earlier = SimulatedSearch(new_run(tmp_path, narrow, "search-20261122-203000-aaaaaa"), narrow, MinutesClock())
    earlier.start()
    earlier.whole(0, [0.5] * narrow.epochs)
    other = {"dropout": None, "lr": {"low": 1e-4, "high": 1e-2, "log": True}, "head_width": [32, 64]}
    spec = search_spec("shards", space=other)
    later = SimulatedSearch(new_run(tmp_path, spec, "search-20261123-203000-bbbbbb"), spec)
    copy_trials(later.controller.journal, paths_of(earlier), NOON + timedelta(days=1))
    original = earlier.controller.journal.table.trials[0]

    [trial] = written(later, tmp_path / "night.log").trials

    assert trial.params == {name: original.config[name] for name in ("lr", "head_width")}
    assert trial.distributions["lr"] == FloatDistribution(1e-4, original.config["lr"], log=True)
    assert trial.distributions["head_width"] == CategoricalDistribution((32, 64, original.config["head_width"]))
    assert trial.user_attrs["from"] == paths_of(earlier).run_id
    assert (utc(trial.datetime_start), utc(trial.datetime_complete)) == (original.started_at, original.ended_at)


def test_an_existing_file_is_not_overwritten(searched: SimulatedSearch, tmp_path: Path) -> None:
    file = tmp_path / "night.log"
    file.write_text("mine")

    with pytest.raises(StorageError, match=r"night\.log exists and is not overwritten; choose another name"):
        written(searched, file)

    assert file.read_text() == "mine"
