"""Reads the tables and decides which columns hold the images, labels, groups and splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labels.cells import is_missing, loose
from data_shards.pack.labels.columns import (
    GROUP_NAMES,
    NO_COLUMN,
    PROBED_ROWS,
    READER_NAMES,
    SPLIT_NAMES,
    by_usual_name,
    find_group_columns,
    find_label_column,
    find_label_columns,
    is_binary,
    likely_image_column,
    listed,
    position_of,
    refuse_rivals,
)
from data_shards.pack.labels.joining import Rows, append_tables, group_by_columns, join_tables
from data_shards.pack.labels.matching import ImageMatcher, looks_like_image, nearest
from data_shards.pack.labels.tables import Table, find_table, read_table
from data_shards.pack.names import split_of
from data_shards.pack.options import AddedLabelOptions, LabelOptions

MOST_CLASSES = 20  # values of a column that are shown in an error


@dataclass(frozen=True, kw_only=True)
class ChosenColumns:
    """Positions of the columns that are used.

    Attributes:
        labels: The column of labels, or one column of 1 and 0 for each label.
        is_binary: Whether the label columns hold 1 and 0, and their names are the labels.
        is_found: Whether the label columns were found by their names, not told by an option.
        reader: The column that says who gave the labels of a row.
    """

    image: int
    labels: tuple[int, ...]
    is_binary: bool
    is_found: bool
    group: int | None
    split: int | None
    reader: int | None


def read_tables(folder: Path, matcher: ImageMatcher, options: LabelOptions) -> tuple[Rows, int]:
    """Return the rows of all tables as one table, and the position of the column that names the images.

    Raises:
        OptionError: A table or column that an option names is not there.
        SourceError: A table cannot be read, or none names an image.
    """

    def is_header(rows: Sequence[tuple[str, ...]]) -> bool:
        return not names_image(rows, matcher)

    tables = [read_table(find_table(given, folder), given, is_header) for given in options.tables]
    groups = group_by_columns(tables)
    if options.image_column is not None:
        having = [group for group in groups if _has_column(group[0], options.image_column)]
        main = (having or groups)[0]
        image = position_of(main[0].columns, options.image_column, "--image-column", main[0].name)
    else:
        main, image = _main_tables(groups, matcher)
    rows = append_tables(main)
    for group in groups:
        rows = rows if group is main else join_tables(rows, group)
    return rows, image


def names_image(rows: Sequence[tuple[str, ...]], matcher: ImageMatcher) -> bool:
    """Whether the first row names an image in a column that names images further down too."""
    below = rows[1 : 1 + PROBED_ROWS]
    for position, cell in enumerate(rows[0]):
        if cell and (looks_like_image(cell) or matcher.count([cell])):
            named = matcher.count(row[position] for row in below)
            if 2 * named >= len(below) or all(looks_like_image(row[position]) for row in below):
                return True
    return False


def _has_column(table: Table, name: str) -> bool:
    try:
        position_of(table.columns, name, "", "")
    except OptionError:
        return False
    return True


def _main_tables(groups: Sequence[list[Table]], matcher: ImageMatcher) -> tuple[list[Table], int]:
    """Return the tables of one kind that name most images, and the column; not by numbers of patients if others do.

    Raises:
        OptionError: Other numbers of these tables may name the images, too.
        SourceError: None names an image.
    """
    every = [append_tables(group) for group in groups]
    tables = [Table(name=rows.where, columns=rows.columns, rows=rows.rows, lines=[]) for rows in every]
    found = [(n, column) for n, table in enumerate(tables) if (column := likely_image_column(table, matcher))]
    if not found:
        raise SourceError(_no_image_named(groups[0][0], matcher))
    best, column = max(found, key=lambda one: (not one[1].may_count, one[1].named))
    refuse_rivals(tables[best], column, matcher, "--image-column")
    return groups[best], column.position


def _no_image_named(table: Table, matcher: ImageMatcher) -> str:
    shown = next((cell for cell in table.rows[0] if looks_like_image(cell)), table.rows[0][0])
    close = nearest(shown, matcher.names)
    return (
        f"{table.name} names no image of the source (columns {listed(table.columns)}; the first row has {shown!r}"
        f"{f', nearest is {close}' if close else ''}); give the column of file names with --image-column, or, "
        "with a further --labels, the table that says which images these rows are about"
    )


def choose_columns(rows: Rows, image: int, options: LabelOptions, *, multi_label: bool) -> ChosenColumns:
    """Return the columns of labels, groups and splits.

    Raises:
        OptionError: A column that an option names is not there, or the labels may be in several columns.
    """

    def named(name: str, option: str) -> int:
        return position_of(rows.columns, name, option, rows.where)

    group = _group(rows, image, options)
    split = _optional(rows, image, options.split_column, "--split-column", SPLIT_NAMES)
    if split is not None and options.split_column is None and not _are_splits(rows.column(split)):
        split = None
    used = {position for position in (image, group, split) if position is not None}
    if options.label_columns:
        labels = tuple(named(name, "--label-columns") for name in options.label_columns)
        if len(set(labels)) < len(labels):
            raise OptionError("--label-columns names a column twice; name each one once")
        found, binary = False, True
    elif options.label_column is not None:
        labels = (named(options.label_column, "--label-column"),)
        found, binary = False, multi_label and is_binary(rows.column(labels[0]))
    else:
        one = find_label_column([column if n not in used else "" for n, column in enumerate(rows.columns)], rows.where)
        several = find_label_columns(rows.columns, rows.rows, used, rows.where) if one is None else []
        labels = tuple(several) if one is None else (one,)
        found, binary = True, one is None or (multi_label and is_binary(rows.column(one)))
        if not labels:
            raise OptionError(_no_labels(rows, used))
    if overlap := used.intersection(labels):
        raise OptionError(
            f"the column {rows.columns[min(overlap)]!r} cannot be the label and the image, group or split too; "
            "name another with --image-column, --label-column, --group-column or --split-column"
        )
    readers = [n for n in find_group_columns(rows.columns, rows.rows, READER_NAMES) if n not in {*used, *labels}]
    return ChosenColumns(
        image=image,
        labels=labels,
        is_binary=binary,
        is_found=found,
        group=group,
        split=split,
        reader=readers[0] if readers else None,
    )


def _optional(rows: Rows, image: int, name: str | None, option: str, usual: Sequence[str]) -> int | None:
    """Return the column that an option names, or the first one with a usual name, if any."""
    if name == NO_COLUMN and NO_COLUMN not in rows.columns:
        return None
    if name is not None:
        return position_of(rows.columns, name, option, rows.where)
    return next((position for position in by_usual_name(rows.columns, usual) if position != image), None)


def _group(rows: Rows, image: int, options: LabelOptions) -> int | None:
    """Return the column of groups: the one of the data set that images are added to, where it is not told."""
    if options.group_column is not None:
        return _optional(rows, image, options.group_column, "--group-column", GROUP_NAMES)
    found = [position for position in find_group_columns(rows.columns, rows.rows) if position != image]
    if not isinstance(options, AddedLabelOptions):
        return found[0] if found else None
    former = options.former_group_column
    if former:
        if loose(former) in map(loose, rows.columns):
            return position_of(rows.columns, former, "--group-column", rows.where)
        raise OptionError(
            f"the groups of the data set are from a column {former!r}, which {rows.where} does not have; it has "
            f"{listed(rows.columns)}; give that of the same identifiers with --group-column, or them with --group-by"
        )
    if len(found) > 1:
        names_found = listed(rows.columns[position] for position in sorted(found))
        raise OptionError(
            f"{rows.where} has several columns that may be groups ({names_found}), and the data set, which an earlier "
            "version packed, does not say which one its groups are from; give it with --group-column"
        )
    return found[0] if found else None


def _are_splits(cells: Sequence[str]) -> bool:
    return all(is_missing(cell) or split_of(cell) for cell in set(cells))


def _no_labels(rows: Rows, used: set[int]) -> str:
    """Return the error for tables without a column that is surely the labels, with those that may be."""
    rest = [position for position in range(len(rows.columns)) if position not in used]
    shown = [rows.columns[position] + _examples(rows.column(position)) for position in rest]
    return (
        f"{rows.where} has no column with a usual name for labels; it has {listed(shown) or 'no further column'}; "
        "choose with --label-column, or columns of 1 and 0 with --label-columns A,B"
    )


def _examples(cells: Sequence[str]) -> str:
    """Return some values of a column in brackets; none of one with many values, which may identify patients."""
    distinct = list(dict.fromkeys(cell for cell in cells if cell))
    if not distinct or len(distinct) > MOST_CLASSES:
        return ""
    return f" ({', '.join(cell[:20] for cell in distinct[:3])}{', ...' if len(distinct) > 3 else ''})"  # noqa: PLR2004
