"""Work that several pages ask for at the same time is done once: open pages load at each change of a run."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class SharedWork(Generic[T]):
    """Calls functions in threads; who asks while others wait for the same gets their result, and needs no thread.

    A result is never older than the question: who asks while a call runs waits for the next one. All questions come
    from one event loop.
    """

    def __init__(self) -> None:
        self._waiting = dict[Hashable, asyncio.Task[T]]()  # whose call has not begun
        self._running = dict[Hashable, asyncio.Task[T]]()  # whose call runs

    async def result(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return what `work` returns when it is called after this moment, for this question or another one.

        Args:
            key: What is asked for; equal keys get the same result.
            work: What finds it; its errors are raised for all who share the call.
        """
        if key not in self._waiting:
            self._waiting[key] = asyncio.create_task(self._call(key, work, self._running.get(key)))
        return await asyncio.shield(self._waiting[key])  # the others still wait if this one is gone

    async def _call(self, key: Hashable, work: Callable[[], T], before: "asyncio.Task[T] | None") -> T:
        if before is not None:
            await asyncio.wait([before])
        self._running[key] = self._waiting.pop(key)
        try:
            return await run_in_threadpool(work)
        finally:
            del self._running[key]
