"""Columns whose values are stored with the images (`--keep-column`): which may be kept, and their values. Pure.

A value is stored as it is, so a column that identifies patients or images is refused: by its place, by its name, or by
what it holds. `data_shards.pack.label_checks` refuses what only the groups of the images show.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from data_shards.columns import MOST_VALUES, NOT_STATED, KeptColumn, number_in
from data_shards.errors import OptionError, SourceError
from data_shards.pack.labels.cells import is_missing, loose, whole_numbers
from data_shards.pack.labels.columns import GROUP_NAMES, IMAGE_NAMES, position_of
from data_shards.pack.labels.joining import Rows

MOST_CHARACTERS = 80  # of a value; a longer text is a remark about one patient
# Names of what identifies a person or an examination (HIPAA, 45 CFR 164.514), as `loose` gives them.
IDENTIFYING_NAMES = frozenset({
    *GROUP_NAMES, *IMAGE_NAMES, "patientname", "fullname", "firstname", "lastname", "surname", "initials",
    "accession", "accessionnumber", "ssn", "socialsecuritynumber", "insurancenumber", "address",
    "street", "phone", "telephone", "email", "dateofbirth", "birthdate", "patientbirthdate", "dob", "birthday",
    "seriesid", "seriesinstanceuid", "examid", "encounterid", "visitid", "reportid",
})  # fmt: skip
DATE = re.compile(r"[0-9]{1,4}([-/.])[0-9]{1,2}\1[0-9]{1,4}([T ].*)?|(19|20)[0-9]{6}")


def kept_positions(rows: Rows, kept: Sequence[KeptColumn], used: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the position of each column that is kept, by the name that the option gives it.

    Args:
        rows: The tables.
        kept: The columns to keep.
        used: Positions of the columns that have another meaning, by what they hold.

    Raises:
        OptionError: There is no such column, it is given twice, or it identifies images or patients.
    """
    found: dict[str, int] = {}
    for column in kept:
        position = position_of(rows.columns, column.name, "--keep-column", rows.where)
        name = rows.columns[position]
        if position in found.values():
            raise OptionError(f"--keep-column names the column {name!r} twice; name it once")
        held = next((what for what, positions in used.items() if position in positions), None)
        if held is not None:
            raise OptionError(
                f"--keep-column {column.name}: the column {name!r} holds the {held}; keep columns that describe the "
                "images, such as sex or site"
            )
        if loose(name) in IDENTIFYING_NAMES:
            raise OptionError(
                f"--keep-column {column.name}: by its name, the column {name!r} identifies patients or images, and "
                "values are stored as they are; keep a column such as sex or site, or rename this one in the table"
            )
        found[column.name] = position
    return found


def kept_values(rows: Rows, column: KeptColumn, position: int, numbers: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return the value of each image in a column, "" where its rows have none.

    Args:
        rows: The tables.
        column: The column to keep.
        position: Its position in the tables.
        numbers: Numbers of the rows of each image, by its path.

    Raises:
        OptionError: The column holds too many values, dates, long texts, or no numbers where bands are requested.
        SourceError: The rows of an image have different values.
    """
    whole = whole_numbers(rows.column(position))
    used = {path: [n for n in of_image if not is_missing(rows.rows[n][position])] for path, of_image in numbers.items()}
    value_of = {n: _value(rows, column, position, n, whole) for n in chain.from_iterable(used.values())}
    for of_image in used.values():
        if len({value_of[n] for n in of_image}) > 1:
            other = next(n for n in of_image if value_of[n] != value_of[of_image[0]])
            raise SourceError(
                f"{rows.place(of_image[0])} and {rows.place(other)} give one image different values in the column "
                f"{rows.columns[position]!r}; correct one of them, or leave out --keep-column {column.name}"
            )
    values = {path: value_of[of_image[0]] if of_image else "" for path, of_image in used.items()}
    _check_values(column, [value for value in values.values() if value])
    return values


def _value(rows: Rows, column: KeptColumn, position: int, number: int, whole: Mapping[str, str]) -> str:
    cell = rows.rows[number][position]
    if not column.bounds:
        return unicodedata.normalize("NFC", whole.get(cell, cell)).strip()
    found = number_in(cell)
    if found is None:
        raise OptionError(
            f"--keep-column {column}: {rows.place(number)} has no number in the column {rows.columns[position]!r}; "
            f"correct the cell, or keep the values as they are with --keep-column {column.name}"
        )
    return column.band_of(found)


def _check_values(column: KeptColumn, values: Sequence[str]) -> None:
    """Refuse values that may identify patients. No text names a value."""
    option, distinct = f"--keep-column {column.name}", set(values)
    if not values:
        raise OptionError(f"{option}: the column has no value for any of the images; leave the option out")
    if column.bounds:
        if len(column.bands) > MOST_VALUES:
            raise OptionError(f"{option}: {len(column.bands)} bands are more than {MOST_VALUES}; give fewer bounds")
        return
    if any(map(DATE.fullmatch, distinct)):
        raise OptionError(
            f"{option}: the column holds dates, which identify patients; keep a column of years, or leave it out"
        )
    if any(len(value) > MOST_CHARACTERS for value in distinct):
        raise OptionError(
            f"{option}: the column holds texts of more than {MOST_CHARACTERS} characters; keep a column of short values"
        )
    if len(distinct) <= MOST_VALUES:
        return
    numbers = [number_in(value) for value in distinct]
    many = f"{option}: the column has {len(distinct):,} different values, more than {MOST_VALUES}"
    if None not in numbers:
        raise OptionError(f"{many}; give bounds of bands, such as {option}=40,60,80")
    raise OptionError(f"{many}, and may identify patients; keep a coarser column, or leave it out")


def kept_note(column: KeptColumn, values: Sequence[str]) -> str:
    """Return how many images have each value of a column."""
    counts = Counter(values)
    listed = ", ".join(f"{value or NOT_STATED} {counts[value]:,}" for value in column.in_order(counts))
    return f"kept for metrics by subgroup: column {column.name!r} ({listed})"
