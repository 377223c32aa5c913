"""Tables: ids and states are never cut; names shrink first, then the least important column is left out."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
ELLIPSIS = "…"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        importance: The column with the least importance is left out first; None is never left out.
        least: Width to which its cells may be cut; None cuts nothing.
    """

    title: str
    importance: int | None = None
    least: int | None = None


def output_width() -> int | None:
    """Return the columns of the terminal behind stdout (or `COLUMNS`), None for a file or a pipe."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None


def table_text(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Return a table whose lines have at most `width` characters, as far as ids and states allow; None: no limit."""
    lines = [[column.title for column in columns], *rows]
    natural = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    kept = list(range(len(columns)))
    while (widths := _fitted(columns, kept, natural, width)) is None:
        optional = [at for at in kept if columns[at].importance is not None]
        if not optional:
            widths = {at: natural[at] for at in kept}
            break
        kept.remove(min(optional, key=lambda at: columns[at].importance or 0))
    return "\n".join(GAP.join(_cell(line[at], widths[at]) for at in kept).rstrip() for line in lines)


def _fitted(
    columns: Sequence[Column], kept: Sequence[int], natural: Sequence[int], width: int | None
) -> dict[int, int] | None:
    """Return the width of each kept column so that all fit into `width`, None if they cannot."""
    widths = {at: natural[at] for at in kept}
    if width is None:
        return widths
    excess = sum(widths.values()) + len(GAP) * (len(kept) - 1) - width
    for at in kept:
        least = columns[at].least
        if least is not None and excess > 0:
            narrowed = max(min(least, natural[at]), len(columns[at].title), natural[at] - excess)
            excess -= natural[at] - narrowed
            widths[at] = narrowed
    return widths if excess <= 0 else None


def _cell(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - len(ELLIPSIS)] + ELLIPSIS
