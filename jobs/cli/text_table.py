"""Tables: ids and states are never cut; empty columns are left out, names and reasons shrink, then columns go."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.cli.terminal import terminal_text

GAP = "  "
ELLIPSIS = "…"
BETWEEN_WORDS = " ,;"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        importance: The column with the least importance is left out first; None is never left out.
        least: Width to which its cells may be cut; None cuts nothing.
        enough: Width to which they may be cut before less important columns are left out; None: `least`.
        cuts_words: Whether a cell may be cut within a word. A reason may not: its words may be ids.
        style: Colors a cell, whose text it does not change.
    """

    title: str
    importance: int | None = None
    least: int | None = None
    enough: int | None = None
    cuts_words: bool = True
    style: Callable[[str], str] = str


def output_width() -> int | None:
    """Return the columns of the terminal behind stdout (or `COLUMNS`), None for a file or a pipe."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None


def error_width() -> int | None:
    """Return the columns of the terminal behind stderr (or `COLUMNS`), None for a file or a pipe."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal():
        return int(columns) or None
    return os.get_terminal_size(sys.stderr.fileno()).columns or None if sys.stderr.isatty() else None


def wrapped(text: str, width: int | None, *, first: str = "", indent: int) -> str:
    """Return a text whose lines have at most `width` characters; long words, such as paths, are not broken.

    Args:
        text: Words.
        width: None: no limit.
        first: What the first line begins with.
        indent: Spaces before all other lines.
    """
    return textwrap.fill(
        text,
        width or sys.maxsize,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table_text(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table whose lines have at most `width` characters, as far as ids and states allow; None: no limit."""
    lines, natural = _measured(columns, rows)
    kept = list(range(len(columns)))
    if width is not None and _width(natural, kept) > width:
        kept = [at for at in kept if columns[at].importance is None or any(line[at] for line in lines[1:])]
    while (widths := _fitted(columns, kept, natural, width)) is None:
        optional = [at for at in kept if columns[at].importance is not None]
        if not optional:
            widths = {at: natural[at] for at in kept}
            break
        kept.remove(min(optional, key=lambda at: columns[at].importance or 0))
    heading, *cells = ([_cell(columns[at], line[at], widths[at]) for at in kept] for line in lines)
    styled = [[columns[at].style(cell) for at, cell in zip(kept, line, strict=True)] for line in cells]
    return "\n".join(GAP.join(line).rstrip() for line in (heading, *styled))


def fits(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> bool:
    """Whether `table_text` would show a table whole."""
    return width is None or _width(_measured(columns, rows)[1], range(len(columns))) <= width


def on_one_line(text: str) -> str:
    """Return the text of a cell without line breaks and escape sequences."""
    return terminal_text(" ".join(text.splitlines())) if not text.isprintable() else text


def _measured(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
    """Return the heading and the rows as they are printed, and the width of each column without cuts."""
    lines = [[column.title for column in columns], *([on_one_line(cell) for cell in row] for row in rows)]
    return lines, [max(len(line[at]) for line in lines) for at in range(len(columns))]


def _fitted(
    columns: Sequence[Column], kept: Sequence[int], natural: Sequence[int], width: int | None
) -> dict[int, int] | None:
    """Return the width of each kept column so that all fit into `width`, None if they cannot."""
    widths = {at: natural[at] for at in kept}
    if width is None:
        return widths
    excess = _width(natural, kept) - width
    floors = {at: _floor(columns, at, kept, natural[at]) for at in kept}
    while excess > 0:
        narrowable = [at for at in kept if widths[at] > floors[at]]
        if not narrowable:
            return None
        widest = max(narrowable, key=lambda at: widths[at])
        narrowed = max(floors[widest], widths[widest] - excess)
        excess -= widths[widest] - narrowed
        widths[widest] = narrowed
    return widths


def _width(natural: Sequence[int], kept: Sequence[int]) -> int:
    """Return the width of the kept columns without cuts."""
    return sum(natural[at] for at in kept) + len(GAP) * (len(kept) - 1)


def _floor(columns: Sequence[Column], at: int, kept: Sequence[int], natural: int) -> int:
    """Return the width to which a column may be cut beside the other columns that are kept."""
    column = columns[at]
    if column.least is None:
        return natural
    others = [columns[other].importance for other in kept if other != at]
    may_go_first = any(other is not None and other < (column.importance or 0) for other in others)
    least = column.enough if column.enough is not None and may_go_first else column.least
    return max(min(least, natural), len(column.title))


def _cell(column: Column, text: str, width: int) -> str:
    if len(text) <= width:
        return text.ljust(width)
    shown = text[: width - len(ELLIPSIS)]
    if not column.cuts_words and text[len(shown)] not in BETWEEN_WORDS:
        shown = shown.rpartition(" ")[0]
    return (shown.rstrip(BETWEEN_WORDS) + ELLIPSIS).ljust(width)
