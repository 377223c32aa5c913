"""How the processes of a search wait for each other before their first trials."""

import threading

import pytest

from tests.searched import search_spec
from tests.trained import done
from trainer.search import head_trainable
from trainer.search.head_trainable import gather


def test_the_first_waits_until_the_last_is_there(tmp_path):
    there: list[str] = []

    def join(name: str) -> None:
        gather(tmp_path / "slots", name, 2, lambda: None)
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

    gather(tmp_path / "slots", "first", 2, lambda: "cancel")

    assert waits == []


def test_a_slot_that_never_comes_is_waited_for_no_longer_than_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(head_trainable, "GATHER_SECONDS", 0.1)

    gather(tmp_path / "slots", "first", 2, lambda: None)

    assert (tmp_path / "slots" / "first").exists()


@pytest.mark.slow
def test_short_trials_share_as_many_processes_as_there_are_slots(tmp_path, digits_shards):
    spec = search_spec(digits_shards, trials=12, epochs=2, concurrency=2)

    paths, result = done(tmp_path, spec, "search-20261123-000000-abcdef")

    assert result.details["trials"]["finished"] == 12
    assert len(list((paths.scratch / "slots-1").iterdir())) == 2
