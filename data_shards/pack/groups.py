"""The group (patient or case) of each image: from a table of file and group, or from the image's name."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labels.cells import group_in_cell, loose, whole_numbers
from data_shards.pack.labels.column_matching import match_cells
from data_shards.pack.labels.columns import (
    GROUP_NAMES,
    IMAGE_NAMES,
    by_usual_name,
    find_group_columns,
    find_image_column,
    listed,
    position_of,
)
from data_shards.pack.labels.matching import Ambiguous, ImageMatcher
from data_shards.pack.labels.tables import Table, read_table
from data_shards.pack.names import normalized_name
from data_shards.pack.options import TABLE_ENDINGS

GROUP_COLUMNS = tuple(dict.fromkeys(("group", *GROUP_NAMES)))  # in this order: a patient may have several cases
SPREADSHEETS = (".xlsx", ".xls", ".ods")  # which reading a table refuses with the cure
SHOWN = 3  # names in an error

Find: TypeAlias = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class NamedGroups:
    """The groups that a table or an expression gives to images.

    Attributes:
        of_image: Group of each image by its name.
        values: All groups, those of rows without an image too.
        expression: The expression that finds the group in a name; None for a table.
        column: Name of the column of the table that gives the groups; None without a table.
        notes: What was assumed.
    """

    of_image: dict[str, str]
    values: frozenset[str]
    expression: re.Pattern[str] | None
    column: str | None = None
    notes: tuple[str, ...] = ()


def groups_of(names: Sequence[str], group_by: str, former: str | None = None) -> NamedGroups:
    """Return the group of each image by its name.

    Args:
        names: Names of the images, paths below the source.
        group_by: A table with the columns file and group, or a regular expression. The expression's first capture
            group, or else its whole match, in an image's name is the image's group.
        former: Name of the column that gave the groups of the data set that the images are added to, "" where that is
            not known; None if they are not added.

    Raises:
        OptionError: The expression is invalid, there is no such table, or it has several columns that may be meant.
        SourceError: The table is invalid, or an image has no group.
    """
    expression, column, values, notes = None, None, frozenset[str](), tuple[str, ...]()
    if is_table(group_by):
        find, values, notes, column = _by_table(group_by, names, former)
    else:
        expression = _expression(group_by)
        find = _by_expression(expression)
    groups = {name: find(name) for name in names}
    missing = [name for name, group in groups.items() if not group]
    if missing:
        raise SourceError(
            f"--group-by {group_by} gives {len(missing)} of {len(names)} images no group, "
            f"such as {', '.join(missing[:SHOWN])}; name each of them"
        )
    of_image = {name: str(group) for name, group in groups.items()}
    return NamedGroups(
        of_image=of_image,
        values=values.union(of_image.values()),
        expression=expression,
        column=column,
        notes=notes,
    )


def is_table(group_by: str) -> bool:
    """Whether `--group-by` names a table, not a regular expression: by its ending, which no name of an image has."""
    return group_by.lower().endswith((*TABLE_ENDINGS, *SPREADSHEETS))


def groups_in_table(file: str, column: str | None) -> list[str]:
    """Return the groups in a column of a table, each once and spelled as groups of images are.

    Args:
        file: Path of the table.
        column: Name of the column; None for the first one with a usual name for groups.

    Raises:
        OptionError: There is no such table or column.
        SourceError: The table cannot be read.
    """
    table = _table(file, "--table")
    usual = find_group_columns(table.columns, table.rows, GROUP_COLUMNS)
    if column is None and not usual:
        raise OptionError(f"{file} has the columns {listed(table.columns)}; choose that of the groups with --column")
    position = usual[0] if column is None else position_of(table.columns, column, "--column", file)
    cells = table.column(position)
    numbers = whole_numbers(cells)
    return list(dict.fromkeys(group for cell in cells if (group := group_in_cell(cell, numbers))))


def _table(file: str, option: str) -> Table:
    if not Path(file).is_file():
        raise OptionError(f"{option} {file}: there is no such file; give the path of a table")
    return read_table(Path(file), file, lambda _: True)


def _by_table(file: str, names: Sequence[str], former: str | None) -> tuple[Find, frozenset[str], tuple[str, ...], str]:
    """Find the group of an image by the rows with its very path, else by all rows that name it, if they agree.

    The other values are all groups of the table, notes, and the name of the column.
    """
    matcher = ImageMatcher(names)
    table = _table(file, "--group-by")
    image, group, rivals = _columns(table, matcher, former)
    cells = table.column(group)
    numbers = whole_numbers(cells)
    given = [group_in_cell(cell, numbers) for cell in cells]
    exact: dict[str, dict[str, int]] = defaultdict(dict)
    others: dict[str, dict[str, int]] = defaultdict(dict)
    named = table.column(image)
    matches = match_cells(named, [matcher])
    for number, (cell, found, matched) in enumerate(zip(named, given, matches.images, strict=True)):
        if found is None:
            continue
        for name in matched.images if isinstance(matched, Ambiguous) else [matched] if matched else []:
            rows = exact if name == normalized_name(cell).removeprefix("./") else others
            rows[name].setdefault(found, number)

    def find(name: str) -> str | None:
        groups = exact.get(name) or others.get(name, {})
        if len(groups) > 1:
            places = " and ".join(table.place(number) for number in list(groups.values())[:2])
            raise SourceError(
                f"{file} gives {name} two groups ({places}); remove one row, or write paths if two images have the name"
            )
        return next(iter(groups), None)

    notes = [_column_note(table, group, rivals)]
    if count := len(matches.by_name):
        notes.append(f"{file}: {count} of {len(named)} rows match by file name alone; their folders differ")
    return find, frozenset(filter(None, given)), tuple(notes), table.columns[group]


def _columns(table: Table, matcher: ImageMatcher, former: str | None) -> tuple[int, int, list[int]]:
    """Return the columns of the images and of their groups, and those that might be groups too."""
    found = find_image_column(table, matcher)
    usual = by_usual_name(table.columns, IMAGE_NAMES)
    image = next(iter(usual), None) if found is None else found
    filled = find_group_columns(table.columns, table.rows, GROUP_COLUMNS)
    groups = [position for position in filled or by_usual_name(table.columns, GROUP_COLUMNS) if position != image]
    same = [p for p, name in enumerate(table.columns) if former and loose(name) == loose(former) and p != image]
    if image is None or not (groups or same):
        raise SourceError(f"{table.name} has the columns {listed(table.columns)}; it needs the columns file and group")
    if not same and former is not None and len(groups) > 1:
        names, which = listed(table.columns[p] for p in sorted(groups)), f"none of them is the {former!r}"
        raise OptionError(
            f"{table.name} has several columns that may be groups ({names}), and "
            f"{which if former else 'it is not known which one is that'} of the data set; leave only that of the same "
            "identifiers in the table"
        )
    group = (same or groups)[0]
    return image, group, [position for position in filled if position not in (image, group)]


def _column_note(table: Table, group: int, rivals: Sequence[int]) -> str:
    """Return which column gives the groups, and which others might."""
    names = listed(repr(table.columns[position]) for position in rivals)
    other = f", not {names}; name the column group that is meant" if rivals else ""
    return f"groups: column {table.columns[group]!r} of {table.name}{other}"


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        raise OptionError(
            f"--group-by {pattern!r} is neither a table nor a valid regular expression (it is wrong{place}); write one "
            r"such as 'patient([0-9]+)', and a backslash before each of ( ) [ ] { } * + ? . that means itself"
        ) from error


def _by_expression(expression: re.Pattern[str]) -> Find:
    def find(name: str) -> str | None:
        match = expression.search(name)
        return match and match[1 if expression.groups else 0]

    return find
