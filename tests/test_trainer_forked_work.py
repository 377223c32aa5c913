"""Independent work in forked processes."""

import os
import signal
from contextlib import closing

import pytest

from trainer.errors import Stopped
from trainer.training.forked_work import results_of


def squares(task, on_images):
    on_images(task)
    return task**2, os.getpid()


@pytest.mark.parametrize("processes", [1, 3])
def test_every_task_is_done_once_and_its_images_are_counted_here(processes):
    counted = []

    found = list(results_of(squares, [1, 2, 3, 4, 5], processes=processes, on_images=counted.append))

    assert sorted((task, square) for task, (square, _) in found) == [(1, 1), (2, 4), (3, 9), (4, 16), (5, 25)]
    assert sorted(counted) == [1, 2, 3, 4, 5]
    assert (os.getpid() in {pid for _, (_, pid) in found}) == (processes == 1)


def test_an_error_of_a_process_is_raised_here_and_ends_the_others():
    pids = []

    def stopped(task, on_images):
        on_images(os.getpid())
        if task == 1:
            raise Stopped("cancel")
        signal.pause()

    with pytest.raises(Stopped, match="cancel"):
        list(results_of(stopped, [0, 1], processes=2, on_images=pids.append))

    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class TwoPartError(Exception):
    """Cannot be restored from its pickle, which keeps the text alone."""

    def __init__(self, fault, cure):
        super().__init__(f"{fault}; {cure}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (KeyError("width"), KeyError, "width"),
        (TwoPartError("too wide", "use less"), RuntimeError, "TwoPartError: too wide; use less"),
    ],
)
def test_an_unexpected_error_of_a_process_says_where_it_was_raised(error, kind, text):
    def failing(task, on_images):
        raise error

    with pytest.raises(kind, match=text) as found:
        list(results_of(failing, [0, 1], processes=2, on_images=lambda _: None))

    assert "in failing" in found.value.__notes__[0]


def test_the_task_of_a_process_that_dies_is_done_here():
    trainer = os.getpid()

    def dying(task, on_images):
        if task == 1 and os.getpid() != trainer:
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(task, on_images)

    found = dict(results_of(dying, [1, 2, 3], processes=2, on_images=lambda _: None))

    assert {task: square for task, (square, _) in found.items()} == {1: 1, 2: 4, 3: 9}
    assert found[1][1] == trainer
    assert found[2][1] != trainer


def test_all_tasks_are_done_here_if_every_process_dies():
    trainer = os.getpid()

    def dying(task, on_images):
        if os.getpid() != trainer:
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(task, on_images)

    found = list(results_of(dying, [1, 2, 3, 4], processes=2, on_images=lambda _: None))

    assert sorted(found) == [(1, (1, trainer)), (2, (4, trainer)), (3, (9, trainer)), (4, (16, trainer))]


def test_processes_end_with_an_iterator_that_is_closed():
    pids = []

    def waiting(task, on_images):
        on_images(os.getpid())
        if task:
            signal.pause()
        return task

    with closing(results_of(waiting, [0, 1], processes=2, on_images=pids.append)) as found:
        assert next(found) == (0, 0)

    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
