"""Makes one table of several: tables with the same columns follow each other, others are joined. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labels.cells import column_key
from data_shards.pack.labels.columns import listed
from data_shards.pack.labels.tables import Table


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of all tables as one table.

    Attributes:
        where: What errors call the table: the name of the file, or of the first one.
        columns: Names of the columns.
        rows: Cells of each row.
        tables: The tables that the rows come from, of which those that were joined are no part.
        origins: Of each row the position of its table in `tables`, and the number of its row there.
        without_partner: Number of rows that a joined table has no row for, by the name of that table.
        joined: The tables that were joined, in the order of their columns.
    """

    where: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    tables: tuple[Table, ...]
    origins: list[tuple[int, int]]
    without_partner: dict[str, int] = field(default_factory=dict)
    joined: tuple["JoinedRows", ...] = ()

    def place(self, number: int, position: int = 0) -> str:
        """Return where the cell of a row and a column stands, for an error."""
        for joined in self.joined:
            partner = joined.partners[number]
            if joined.begin <= position < joined.begin + joined.width and partner is not None:
                return joined.rows.place(partner)
        table, row = self.origins[number]
        return self.tables[table].place(row)

    def table_of(self, number: int) -> str:
        """Return the name of the table that a row comes from."""
        return self.tables[self.origins[number][0]].name

    def column(self, position: int) -> list[str]:
        """Return the cells of a column."""
        return [row[position] for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class JoinedRows:
    """The rows of a table that was joined.

    Attributes:
        rows: The rows of that table.
        begin: Position of the first of its columns.
        width: Number of its columns.
        partners: The number of its row for each row of the whole table, None where it has no such row.
    """

    rows: Rows
    begin: int
    width: int
    partners: list[int | None]


def group_by_columns(tables: Sequence[Table]) -> list[list[Table]]:
    """Return the tables in groups with the same columns, whatever their order."""
    groups: dict[frozenset[str], list[Table]] = {}
    for table in tables:
        groups.setdefault(frozenset(map(column_key, table.columns)), []).append(table)
    return list(groups.values())


def append_tables(tables: Sequence[Table]) -> Rows:
    """Return the rows of tables that have the same columns."""
    first = tables[0]
    rows: list[tuple[str, ...]] = []
    origins: list[tuple[int, int]] = []
    for number, table in enumerate(tables):
        at = {column_key(column): position for position, column in enumerate(table.columns)}
        order = [at[column_key(column)] for column in first.columns]
        in_order = order == list(range(len(order)))
        rows += table.rows if in_order else [tuple(row[position] for position in order) for row in table.rows]
        origins += [(number, row) for row in range(len(table.rows))]
    return Rows(where=first.name, columns=first.columns, rows=rows, tables=tuple(tables), origins=origins)


def join_tables(rows: Rows, tables: Sequence[Table]) -> Rows:
    """Return the rows with the columns of other tables, whose rows have the same values in the columns of both.

    Raises:
        OptionError: The tables have no column in common.
        SourceError: Two rows of the other tables have the same values there, but differ elsewhere; or no row of one
            fits a row of the other.
    """
    other = append_tables(tables)
    keys = [
        name
        for name in map(column_key, rows.columns)
        if name in set(map(column_key, other.columns)) and not name.isdecimal()
    ]
    if not keys:
        raise OptionError(
            f"{rows.where} and {other.where} have no column in common ({listed(rows.columns)}; "
            f"{listed(other.columns)}); give tables with the same columns, or with one that both have"
        )
    theirs = [position for position, name in enumerate(other.columns) if column_key(name) not in keys]
    found = _by_key(other, keys, theirs)
    own = _positions(rows.columns, keys)
    partners = [found.get(tuple(row[position] for position in own)) for row in rows.rows]
    if set(partners) == {None}:
        raise SourceError(
            f"no row of {other.where} has the values of a row of {rows.where} in the columns that both have "
            f"({listed(rows.columns[position] for position in own)}); if it is about other images, give both tables "
            "the same columns"
        )
    blank = ("",) * len(theirs)
    added = [blank if number is None else tuple(other.rows[number][p] for p in theirs) for number in partners]
    joined = JoinedRows(rows=other, begin=len(rows.columns), width=len(theirs), partners=partners)
    return Rows(
        where=rows.where,
        columns=rows.columns + tuple(other.columns[position] for position in theirs),
        rows=[row + more for row, more in zip(rows.rows, added, strict=True)],
        tables=rows.tables,
        origins=rows.origins,
        without_partner=rows.without_partner | {other.where: partners.count(None)},
        joined=(*rows.joined, joined),
    )


def _positions(columns: Sequence[str], names: Sequence[str]) -> list[int]:
    at = {column_key(column): position for position, column in reversed(list(enumerate(columns)))}
    return [at[name] for name in names]


def _by_key(other: Rows, keys: Sequence[str], theirs: Sequence[int]) -> dict[tuple[str, ...], int]:
    """Return the number of the first row of each key."""
    found: dict[tuple[str, ...], tuple[tuple[str, ...], int]] = {}
    positions = _positions(other.columns, keys)
    for number, row in enumerate(other.rows):
        key, values = tuple(row[position] for position in positions), tuple(row[position] for position in theirs)
        before = found.setdefault(key, (values, number))
        if before[0] != values:
            raise SourceError(
                f"{other.place(before[1])} and {other.place(number)} have the same values in the columns that the "
                f"tables are joined by ({listed(other.columns[p] for p in positions)}), but differ elsewhere; "
                "remove one"
            )
    return {key: number for key, (_, number) in found.items()}
