"""Open pages that load at the same time share the work, and no page gets an answer that is older than its question."""

import asyncio
import threading

from jobs.web import changes
from jobs.web.changes import Looks
from jobs.web.shared_work import SharedWork


def test_who_asks_while_a_call_runs_shares_the_next_one() -> None:
    shared, calls, may_end = SharedWork[int](), list[int](), threading.Event()

    def work() -> int:
        calls.append(len(calls))
        number = calls[-1]
        may_end.wait()
        return number

    async def ask() -> tuple[int, list[int], list[int]]:
        first = asyncio.create_task(shared.result("key", work))
        while not calls:
            await asyncio.sleep(0.001)
        later = [asyncio.create_task(shared.result("key", work)) for _ in range(21)]
        await asyncio.sleep(0)
        later.pop().cancel()
        before = list(calls)
        may_end.set()
        return await first, await asyncio.gather(*later), before

    early, late, before = asyncio.run(ask())

    assert (early, before) == (0, [0])
    assert late == [1] * 20
    assert calls == [0, 1]
    assert (shared._waiting, shared._running) == ({}, {})


def test_an_error_reaches_all_who_asked_and_the_next_question_is_answered() -> None:
    shared = SharedWork[int]()

    def fail() -> int:
        raise ValueError("no storage")

    async def ask() -> tuple[list[int | BaseException], int]:
        failed = await asyncio.gather(*(shared.result("key", fail) for _ in range(3)), return_exceptions=True)
        return failed, await shared.result("key", lambda: 7)

    failed, found = asyncio.run(ask())

    assert [str(error) for error in failed] == ["no storage"] * 3
    assert found == 7


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
