"""Does independent pieces of work on the CPUs of this machine, in processes that are forked from the trainer."""

import logging
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeAlias, TypeVar

from trainer.distributed.child_process import ChildProcess
from trainer.errors import TrainerError, infrastructure_fault

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
            child.process.end()
    for number in [*lost, *waiting]:
        yield tasks[number], work(tasks[number], on_images)


def _answers(
    children: "Sequence[_Child[Task, Result]]",
) -> "Iterator[tuple[_Child[Task, Result], int | Exception | tuple[Result] | None]]":
    """Yield what the processes answer until none is busy: None from one that has died."""
    while busy := {child.process.connection: child for child in children if child.is_busy}:
        for connection in wait(list(busy)):
            child = busy[connection]  # type: ignore[index]  # these are connections
            try:
                answer = child.process.connection.recv()
            except (EOFError, OSError):
                answer = None
            yield child, answer


class _Child(Generic[Task, Result]):
    """A forked process that does one task after another.

    Attributes:
        process: Numbers of tasks are sent to it, and numbers of images, results and errors back.
        number: Of its task.
        is_busy: Whether it does one.
    """

    def __init__(self, work: Work[Task, Result], tasks: Sequence[Task]) -> None:
        self.process = ChildProcess(_do_tasks, work, tasks)
        self.number, self.is_busy = -1, False

    def start(self, waiting: list[int]) -> None:
        """Let it do the first of the tasks that wait."""
        self.is_busy = bool(waiting)
        if waiting:
            self.number = waiting.pop(0)
            self.process.send(self.number)


def _do_tasks(connection: Connection, work: Work[Task, Result], tasks: Sequence[Task]) -> None:
    """Do the tasks whose numbers come through the connection."""
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
    if fault := infrastructure_fault(error):
        return fault
    if isinstance(error, TrainerError):
        return error
    is_known = type(error).__module__ == "builtins"
    sent = error if is_known else RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(f"In a process that trained heads:\n{traceback.format_exc()}")
    return sent
