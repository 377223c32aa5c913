"""Open pages that load at the same time share the work, and no page gets an answer that is older than its question."""

import asyncio
import threading
from collections.abc import Hashable
from typing import Any

import pytest

from jobs.web import changes
from jobs.web.changes import Looks
from jobs.web.shared_work import SharedWork
from tests.stack import eventually


def asking(shared: SharedWork[int], work, count: int) -> tuple[list[threading.Thread], list[object]]:
    """Threads that ask for the same, and what they get."""
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(shared.result("key", work))
        except ValueError as error:
            found.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


class CountedLookups(dict[Hashable, Any]):
    """The running calls, which every thread that asks looks up once, and how often that was done."""

    count = 0

    def get(self, key: Hashable, default: Any = None) -> Any:
        self.count += 1
        return super().get(key, default)


def test_who_asks_while_a_call_runs_shares_the_next_one() -> None:
    shared, calls, may_end, is_running = SharedWork[int](), [], threading.Event(), threading.Event()
    shared._running = asked = CountedLookups()

    def work() -> int:
        calls.append(len(calls))
        number = calls[-1]
        is_running.set()
        may_end.wait()
        return number

    first, early = asking(shared, work, 1)
    is_running.wait()
    later, late = asking(shared, work, 20)
    assert eventually(lambda: asked.count == 21)
    assert calls == [0]
    may_end.set()
    for thread in (*first, *later):
        thread.join()

    assert early == [0]
    assert late == [1] * 20
    assert calls == [0, 1]
    assert (shared._waiting, shared._running) == ({}, {})


def test_an_error_reaches_who_asked_and_the_next_question_is_answered() -> None:
    shared = SharedWork[int]()

    def fail() -> int:
        raise ValueError("no storage")

    with pytest.raises(ValueError, match="no storage"):
        shared.result("key", fail)

    assert shared.result("key", lambda: 7) == 7


def test_fifty_open_pages_look_at_the_storage_once_and_a_closed_one_disturbs_no_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(changes, "LOOK_SECONDS", 0.01)
    seen: list[str | None] = []
    monkeypatch.setattr(changes, "stamps", lambda _storage, run_id: seen.append(run_id) or ((str(run_id), 1, 1),))

    async def watch() -> list[object]:
        looks = Looks(tmp_path)
        pages = [asyncio.create_task(looks.next("a")) for _ in range(50)]
        other = asyncio.create_task(looks.next(None))
        await asyncio.sleep(0)
        pages[0].cancel()
        return [*await asyncio.gather(*pages[1:]), await other]

    found = asyncio.run(watch())

    assert found == [*[(("a", 1, 1),)] * 49, (("None", 1, 1),)]
    assert sorted(seen, key=str) == [None, "a"]
