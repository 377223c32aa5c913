"""A search of heads on this machine's CPUs: forked processes, no Ray."""

import os
import signal

import pytest
import ray

from tests.searched import search_spec, table_of
from tests.trained import done
from trainer.search import run
from trainer.search.head_trial import HeadTrial
from trainer.search.trial_messages import RESTARTS

SEARCH = "search-20261123-000000-abcdef"


@pytest.fixture
def no_ray(monkeypatch):
    """Let the test fail where Ray is started; leave out the report."""

    def refuse(**_options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(run, "write_report", lambda *_: None)  # takes longer than the search


def test_a_search_of_heads_needs_no_ray_and_ranks_the_same_with_two_processes(tmp_path, digits_shards, no_ray):
    spec = search_spec(digits_shards, trials=3, epochs=1, concurrency=2, seed=11)

    paths, result = done(tmp_path, spec, SEARCH)
    _, alone = done(tmp_path, spec.model_copy(update={"concurrency": 1}), "search-20261123-000001-abcdef")

    assert result.details["trials"] == {"asked": 3, "finished": 3, "failed": 0, "paused": 0}
    assert {trial.state for trial in table_of(paths, spec).trials.values()} == {"finished"}
    assert result.details["best"]["config"] == alone.details["best"]["config"]
    assert result.metrics == alone.metrics


def test_a_trial_whose_process_is_killed_resumes_and_fails_if_it_dies_again_and_again(
    tmp_path, digits_shards, no_ray, monkeypatch
):
    step, deaths = HeadTrial.step, tmp_path / "deaths"
    deaths.mkdir()

    def dying(trial):
        number = trial.assignment.trial
        if number == 0 or (number == 1 and not (deaths / "1").exists()):
            (deaths / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trial)

    monkeypatch.setattr(HeadTrial, "step", dying)
    spec = search_spec(digits_shards, trials=3, epochs=1, concurrency=2)

    paths, result = done(tmp_path, spec, SEARCH)

    table = table_of(paths, spec)
    assert [trial.state for trial in table.trials.values()] == ["failed", "finished", "finished"]
    assert table.trials[0].error == f"its process died {RESTARTS + 1} times: signal 9 ended it"
    assert result.details["trials"]["failed"] == 1
