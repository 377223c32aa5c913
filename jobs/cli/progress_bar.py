"""A progress bar or a spinner for work that a command does itself: packing, verifying, comparing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

PERCENT_PER_LINE = 10  # where there is no terminal
MEGABYTE = 1_000_000
UNKNOWN_SIZE_STEP = 100 * MEGABYTE


@contextmanager
def shown_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar on a terminal, a line per 10 percent elsewhere; yields what reports it.

    The bar appears with the first report: an error before it stands alone.
    """
    if not sys.stderr.isatty():
        yield _line_by_line(verb)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@contextmanager
def shown_spinner(text: str) -> Iterator[None]:
    """Show a spinner with `text` on stderr until the block ends, if stderr is a terminal: for work of some seconds."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415

    with Console(stderr=True).status(text):
        yield


@contextmanager
def shown_bytes(verb: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show the progress of a transfer on stderr; yields what reports the bytes done and in all, None if unknown."""
    if not sys.stderr.isatty():
        yield _megabytes_by_line(verb)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn(verb), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _megabytes_by_line(verb: str) -> Callable[[int, int | None], None]:
    printed = -1

    def on_bytes(done: int, total: int | None) -> None:
        nonlocal printed
        step = done * (100 // PERCENT_PER_LINE) // total if total else done // UNKNOWN_SIZE_STEP
        if step > printed:
            printed = step
            of_all = f" of {total / MEGABYTE:.1f}" if total else ""
            click.echo(f"{verb}: {done / MEGABYTE:.1f}{of_all} MB", err=True)

    return on_bytes


def _line_by_line(verb: str) -> Callable[[int, int], None]:
    printed = -PERCENT_PER_LINE

    def on_progress(done: int, total: int) -> None:
        nonlocal printed
        percent = 100 * done // total if total else 100
        if percent >= printed + PERCENT_PER_LINE:
            printed = percent
            click.echo(f"{verb}: {done} of {total}", err=True)

    return on_progress
