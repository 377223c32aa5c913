"""Work that several threads ask for at the same time is done once: open pages load at each change of a run."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Batch(Generic[T]):
    """The threads that get the result of one call; `done` is set when there is one, or an error."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.result: T | None = None
        self.error: Exception | None = None


class SharedWork(Generic[T]):
    """Calls functions; a thread that asks while others wait for the same gets their result.

    A result is never older than the question: who asks while a call runs waits for the next one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = dict[Hashable, _Batch[T]]()  # batches whose call has not begun
        self._running = dict[Hashable, _Batch[T]]()  # batches whose call runs

    def result(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return what `work` returns when it is called after this moment, by this thread or another one.

        Args:
            key: What is asked for; equal keys get the same result.
            work: What finds it; its errors are raised in all threads that share the call.
        """
        with self._lock:
            batch, is_first = self._waiting.get(key), False
            if batch is None:
                batch, is_first = _Batch(), True
                self._waiting[key] = batch
            before = self._running.get(key)
        if is_first:
            if before is not None:
                before.done.wait()
            self._call(key, batch, work)
        batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.result  # type: ignore[return-value]

    def _call(self, key: Hashable, batch: _Batch[T], work: Callable[[], T]) -> None:
        with self._lock:
            del self._waiting[key]
            self._running[key] = batch
        try:
            batch.result = work()
        except Exception as error:
            batch.error = error
        finally:
            with self._lock:
                del self._running[key]
            batch.done.set()
