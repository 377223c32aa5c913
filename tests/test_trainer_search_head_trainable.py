"""How the processes of a search wait for each other before their first trials."""

import threading

import pytest

from tests.searched import search_spec
from tests.trained import done
from trainer.search import head_trainable
from trainer.search.head_trainable import wait_for_processes


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
def test_short_trials_share_as_many_processes_as_there_are_slots(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=12, epochs=2, concurrency=2)

    paths, result = done(tmp_path, spec, "search-20261123-000000-abcdef")

    assert result.details["trials"]["finished"] == 12
    assert len(list((paths.scratch / "slots-1").iterdir())) == 2
