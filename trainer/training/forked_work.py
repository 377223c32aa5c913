"""Does independent pieces of work on the CPUs of this machine, in processes that are forked from the trainer.

They share its memory, and nothing has to be imported. Each computes with one thread.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeAlias, TypeVar

import torch

from cluster import guard
from trainer.errors import TrainerError

Task = TypeVar("Task")
Result = TypeVar("Result")
Work: TypeAlias = Callable[[Task, Callable[[int], None]], Result]  # the second argument is `on_images`

logger = logging.getLogger(__name__)


def results_of(
    work: Work[Task, Result], tasks: Sequence[Task], *, processes: int, on_images: Callable[[int], None]
) -> Generator[tuple[Task, Result], None, None]:
    """Yield each task with its result, in the order in which they end; close the iterator to end all processes.

    Args:
        work: What to do with a task; it calls its second argument with each number of images that it has processed.
        tasks: In the order in which they start.
        processes: At most so many at once; with one, everything happens in this process.
        on_images: Called in this process with the numbers of images.

    Raises:
        Exception: What `work` raises; the other processes end.
    """
    count = min(processes, len(tasks))
    if count <= 1:
        for task in tasks:
            yield task, work(task, on_images)
        return
    children, lost = list[_Child[Task, Result]](), list[int]()
    try:
        for _ in range(count):
            children.append(_Child(work, tasks))
        waiting = list(range(len(tasks)))
        for child in children:
            child.start(waiting)
        for child, answer in _answers(children):
            if answer is None:
                logger.warning("a process that trained heads died; the trainer trains them again itself")
                lost.append(child.number)
                child.is_busy = False
            elif isinstance(answer, int):
                on_images(answer)
            elif isinstance(answer, Exception):
                raise answer
            else:
                yield tasks[child.number], answer[0]
                child.start(waiting)
    finally:
        for child in children:
            child.end()
    for number in [*lost, *waiting]:
        yield tasks[number], work(tasks[number], on_images)


def _answers(
    children: "Sequence[_Child[Task, Result]]",
) -> "Iterator[tuple[_Child[Task, Result], int | Exception | tuple[Result] | None]]":
    """Yield what the processes answer until none is busy: None from one that has died."""
    while busy := {child.connection: child for child in children if child.is_busy}:
        for connection in wait(list(busy)):
            child = busy[connection]  # type: ignore[index]  # these are connections
            try:
                answer = child.connection.recv()
            except (EOFError, OSError):
                answer = None
            yield child, answer


class _Child(Generic[Task, Result]):
    """A forked process that does one task after another.

    Attributes:
        connection: Carries numbers of tasks to it, and numbers of images, results and errors back.
        number: Of its task.
        is_busy: Whether it does one.
    """

    def __init__(self, work: Work[Task, Result], tasks: Sequence[Task]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.number, self.is_busy = -1, False
        self.process = context.Process(target=_do_tasks, args=(work, tasks, other, os.getpid()), daemon=True)
        with warnings.catch_warnings():
            # The other threads of a trainer send heartbeats; the child uses no lock of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        other.close()

    def start(self, waiting: list[int]) -> None:
        """Let it do the first of the tasks that wait; that it has died is noticed when its answer is read."""
        self.is_busy = bool(waiting)
        if waiting:
            self.number = waiting.pop(0)
            with contextlib.suppress(ConnectionError):
                self.connection.send(self.number)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _do_tasks(work: Work[Task, Result], tasks: Sequence[Task], connection: Connection, parent: int) -> None:
    """Do the tasks whose numbers come through the connection; the process ends with its parent."""
    guard.die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the trainer too, which decides
    torch.set_num_threads(1)
    while True:
        task = tasks[connection.recv()]
        try:
            answer = (work(task, connection.send),)
        except Exception as error:  # the trainer raises it
            connection.send(_sendable(error))
            return
        connection.send(answer)


def _sendable(error: Exception) -> Exception:
    """Return an error that the trainer can receive, with a note on where an unexpected one was raised.

    An error of a library may not survive the way; its type becomes text.
    """
    if isinstance(error, TrainerError):
        return error
    is_known = type(error).__module__ == "builtins"
    sent = error if is_known else RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(f"In a process that trained heads:\n{traceback.format_exc()}")
    return sent
