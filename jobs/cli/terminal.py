r"""Text from outside on a terminal: names, logs and errors may hold escape sequences that a terminal would obey.

Such a sequence can hide lines, change the window's title, or make other commands look as if they had been typed.
"""

import logging
import sys
from functools import partial

import click

from cluster.storage_patience import StoragePatience
from trainer.evaluation.csv_cells import escaped_controls


def terminal_text(text: str) -> str:
    r"""Return `text` with every control character but newline and tab escaped as in Python (`\x1b`).

    A carriage return, with which progress bars overwrite their line, becomes a newline.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join("\t".join(map(escaped_controls, line.split("\t"))) for line in lines)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line that has text from outside on stdout or stderr, without its escape sequences."""
    click.echo(terminal_text(text), err=err)


def table_cell(text: str) -> str:
    """Return text from outside for a table or a progress bar of rich, without escape sequences and without markup."""
    from rich.markup import escape  # noqa: PLC0415 -- keeps --help fast

    return escape(terminal_text(text))


def log_to_terminal() -> None:
    """Send the log to stderr, with a time and without the escape sequences of what it reports."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TerminalFormatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _TerminalFormatter(logging.Formatter):
    """Formats records as text for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return terminal_text(super().format(record))


STATE_COLORS = {
    "running": "cyan", "succeeded": "green", "failed": "red", "lost": "red", "damaged": "red", "cancelled": "yellow",
    "paused": "yellow",
}  # fmt: skip


def colored_state(text: str) -> str:
    """Return a state, which spaces may follow, in its color; `click.echo` drops the color where none is wanted."""
    color = STATE_COLORS.get(text.strip())
    return click.style(text, fg=color) if color else text


def accept_every_character() -> None:
    r"""Let stdout and stderr write characters that their encoding lacks as `\u2026`, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def waits_for_storage() -> StoragePatience:
    """Return the patience of a command that follows a run, which says on stderr what it waits for."""
    return StoragePatience(partial(echo, err=True))
