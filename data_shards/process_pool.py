"""Runs tasks in a pool of processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import joblib

from data_shards.errors import ShardError

R = TypeVar("R")


def map_in_processes(
    work: Callable[..., R], tasks: Sequence[tuple[Any, ...]], *, processes: int
) -> Iterator[tuple[int, R]]:
    """Call `work` with the arguments of each task and yield its number and result as it completes.

    With one process or one task, everything runs in this process.

    Raises:
        ShardError: A process was killed, or could not start.
    """
    count = min(processes, len(tasks))
    if count <= 1:
        yield from ((number, work(*task)) for number, task in enumerate(tasks))
        return
    context = multiprocessing.get_context("spawn")  # a fork copies locks that other threads hold
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)
    others, ours = set(multiprocessing.active_children()), set[BaseProcess]()
    try:
        futures = dict[Future[R], int]()
        for number, task in enumerate(tasks):
            futures[pool.submit(work, *task)] = number
            if len(ours) < count:  # the pool may break before all tasks are submitted
                ours |= set(multiprocessing.active_children()) - others
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        pool.shutdown()  # so that all have their exit codes
        raise ShardError(_why_broken(ours, count)) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _why_broken(processes: Collection[BaseProcess], count: int) -> str:
    """Return why a pool lost its processes. The pool ends the others with a signal: only a failed start has a code."""
    if any(process.exitcode is not None and process.exitcode > 0 for process in processes):
        return (
            "processes could not start, with the error above: each one imports the script that it is started from; put "
            'the calls of a script under `if __name__ == "__main__":`, or choose one process'
        )
    return f"one of {count} processes was killed, perhaps out of memory; run it again with --processes 1"


def process_count(work: int, *, per_process: int) -> int:
    """Return the number of processes to start: one for each CPU that this process may use, or fewer for little work."""
    return min(int(joblib.cpu_count()), 1 + work // per_process)


def _end_with_parent() -> None:
    """End this process when its parent is killed. The parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
