"""The group (patient or case) of each image: from a CSV of file and group, or from the image's name."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from data_shards.errors import SourceError

FILE_COLUMNS = ("file", "filename", "path", "image")
GROUP_COLUMNS = ("group", "patient", "case")
SHOWN = 3  # names in an error

Find: TypeAlias = Callable[[str], str | None]


def groups_of(names: Sequence[str], group_by: str) -> dict[str, str]:
    """Return the group of each image by its name.

    Args:
        names: Names of the images, paths below the source.
        group_by: A CSV file with the columns file and group, or a regular expression. The expression's first capture
            group, or else its whole match, in an image's name is the image's group.

    Raises:
        SourceError: The CSV or expression is invalid, or gives an image no group.
    """
    find = _by_csv(Path(group_by), frozenset(names)) if group_by.lower().endswith(".csv") else _by_expression(group_by)
    groups = {name: find(name) for name in names}
    missing = [name for name, group in groups.items() if not group]
    if missing:
        raise SourceError(
            f"--group-by {group_by} gives {len(missing)} of {len(names)} images no group, "
            f"such as {', '.join(missing[:SHOWN])}; name each of them"
        )
    return {name: str(group) for name, group in groups.items()}


def _by_csv(file: Path, names: frozenset[str]) -> Find:
    """Look a name up by its path, else by its file name if all rows of that file name have one group.

    A row with the path of another image of the source counts for that image alone.
    """
    by_path: dict[str, str] = {}
    by_last: dict[str, set[str]] = {}
    for name, group in _rows(file):
        if by_path.setdefault(name, group) != group:
            raise SourceError(f"{file} gives {name} two groups, {by_path[name]!r} and {group!r}; remove one row")
        if name not in names:
            by_last.setdefault(_last(name), set()).add(group)

    def find(name: str) -> str | None:
        candidates = by_last.get(_last(name), set())
        return by_path.get(name) or (next(iter(candidates)) if len(candidates) == 1 else None)

    return find


def _rows(file: Path) -> list[tuple[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
            name_column = next((columns[c] for c in FILE_COLUMNS if c in columns), None)
            group_column = next((columns[c] for c in GROUP_COLUMNS if c in columns), None)
            if name_column is None or group_column is None:
                raise SourceError(
                    f"{file} has the columns {', '.join(columns) or 'none'}; it needs the columns file and group"
                )
            return [(row[name_column] or "", (row[group_column] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{file} cannot be read as a CSV: {error}") from error


def _by_expression(pattern: str) -> Find:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SourceError(f"--group-by {pattern!r} is neither a .csv file nor a regular expression: {error}") from error

    def find(name: str) -> str | None:
        match = expression.search(name)
        return match and match[1 if expression.groups else 0]

    return find


def _last(name: str) -> str:
    return name.rpartition("/")[2]
