"""Conditions on the columns of a table: `--where COLUMN=VALUE`. Pure."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from data_shards.columns import MOST_VALUES
from data_shards.errors import OptionError
from data_shards.pack.labels.cells import whole_numbers
from data_shards.pack.labels.columns import listed, position_of
from data_shards.pack.labels.joining import Rows
from data_shards.pack.options import DICOM_PREFIX


def fulfilled(rows: Rows, where: Sequence[tuple[str, str]]) -> list[bool]:
    """Return for each row whether it fulfils the conditions: of those on one column any, of all columns.

    A value with commas stands for each of its parts too.

    Raises:
        OptionError: There is no such column, or no row has the value.
    """
    wanted: dict[int, set[str]] = defaultdict(set)
    for column, value in where:
        if not column.startswith(DICOM_PREFIX):
            position = position_of(rows.columns, column, "--where", rows.where)
            wanted[position] |= _values(rows, position, value)
    return [all(row[position] in values for position, values in wanted.items()) for row in rows.rows]


def _values(rows: Rows, position: int, value: str) -> set[str]:
    """Return the cells of a column that a value means: the same text, or else the same in upper or lower case."""
    counts = Counter(rows.column(position))
    found: set[str] = set()
    for text in (value,) if _same(counts, value) else value.split(","):
        same = _same(counts, text)
        if not same:
            raise OptionError(
                f"--where {rows.columns[position]}={value}: no row of {rows.where} has {text!r} there{_shown(counts)}"
            )
        found |= same
    return found


def _same(counts: Counter[str], text: str) -> set[str]:
    numbers, text = whole_numbers(counts), text.strip()
    exact = {cell for cell in counts if text in (cell, numbers.get(cell))}
    return exact or {cell for cell in counts if cell.casefold() == text.casefold()}


def _shown(counts: Counter[str]) -> str:
    if len(counts) > MOST_VALUES:
        return "; check its spelling"
    return "; the column has " + listed(f"{cell or 'nothing'} ({count})" for cell, count in counts.most_common())
