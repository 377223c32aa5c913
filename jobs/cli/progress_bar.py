"""A progress bar for work that this command does itself: packing and verifying."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

PERCENT_PER_LINE = 10  # where there is no terminal


@contextmanager
def shown_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar on a terminal, a line per 10 percent elsewhere; yields what reports it."""
    if not sys.stderr.isatty():
        yield _line_by_line(verb)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_by_line(verb: str) -> Callable[[int, int], None]:
    printed = -PERCENT_PER_LINE

    def on_progress(done: int, total: int) -> None:
        nonlocal printed
        percent = 100 * done // total if total else 100
        if percent >= printed + PERCENT_PER_LINE:
            printed = percent
            click.echo(f"{verb}: {done} of {total}", err=True)

    return on_progress
