"""How the processes of a search wait for each other before their first trials."""

import threading
from datetime import UTC, datetime

import pytest

from cluster.settings import Settings
from tests.searched import SimulatedSearch, search_spec
from tests.trained import done, new_run
from trainer.attempt import Attempt
from trainer.distributed.ray_train import ray_session
from trainer.distributed.worker import WorkerTask
from trainer.search import head_trainable
from trainer.search.head_trainable import HeadTrainable, wait_for_processes
from trainer.search.tune_driver import head_slots, run_trials


def test_the_first_process_waits_for_the_last(tmp_path):
    there: list[str] = []

    def join(name: str) -> None:
        wait_for_processes(tmp_path / "slots", name, 2, lambda: None)
        there.append(name)

    first = threading.Thread(target=join, args=("first",))
    first.start()
    first.join(0.3)
    alone = list(there)
    join("second")
    first.join(10)

    assert alone == []
    assert sorted(there) == ["first", "second"]


def test_a_search_that_was_asked_to_stop_does_not_wait_for_other_trials(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(head_trainable.time, "sleep", waits.append)

    wait_for_processes(tmp_path / "slots", "first", 2, lambda: "cancel")

    assert waits == []


def test_the_wait_for_a_process_that_never_starts_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(head_trainable, "GATHER_SECONDS", 0.1)

    wait_for_processes(tmp_path / "slots", "first", 2, lambda: None)

    assert (tmp_path / "slots" / "first").exists()


@pytest.mark.slow
def test_short_trials_in_ray_tune_share_as_many_processes_as_there_are_slots(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=12, epochs=2, concurrency=2)

    paths = new_run(tmp_path, spec, "search-20261123-000000-abcdef")
    search, settings = SimulatedSearch(paths, spec, lambda: datetime.now(UTC)), Settings(storage=tmp_path)
    attempt = Attempt.of(paths.folder, 1, settings)
    done(tmp_path, spec.trial_spec({}), "features")

    with ray_session(attempt, spec):
        task = WorkerTask(attempt=attempt, spec=spec, source=None)
        run_trials(search.controller, task, HeadTrainable, head_slots(spec, settings, 0), lambda: None)

    assert search.controller.journal.table.finished == 12
    assert len(list((paths.scratch / "slots-1").iterdir())) == 2
