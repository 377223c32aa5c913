"""What the cells of a table mean: several labels, 1 and 0, numbers as spreadsheets write them. Pure."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping

from data_shards.targets import ABSENT, PRESENT, UNKNOWN

MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null"})  # as pandas, R and Excel write a gap
BINARY = {
    **dict.fromkeys(("1", "1.0", "1,0", "1.00", "true", "yes", "wahr", "vrai"), PRESENT),
    **dict.fromkeys(("0", "0.0", "0,0", "0.00", "false", "no", "falsch", "faux", "-0.0"), ABSENT),
    **dict.fromkeys(("-1", "-1.0", "-1,0", "-1.00"), UNKNOWN),
}
NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)?")
WHOLE = re.compile(r"([+-]?[0-9]+)[.,]0+")
SPACING = re.compile(r"[ _\ufeff-]|(?<![0-9])\.|\.(?![0-9])")  # in names of columns; in a number, dots count
LIST = re.compile(r"\[.*\]", re.DOTALL)
CHOICES = re.compile(r'\{\s*"choices"\s*:\s*(\[.*\])\s*\}', re.DOTALL)  # as Label Studio writes several labels
QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def is_missing(cell: str) -> bool:
    """Whether a cell says nothing: it is blank, or a word for a gap such as NaN."""
    return cell.casefold() in MISSING


def column_key(name: str) -> str:
    """Return what the spellings of one column's name have in common: R writes `Patient.ID` for `Patient ID`."""
    return SPACING.sub("", name.casefold())


def loose(name: str) -> str:
    """Return a column's name as it is compared with usual names. `Case` and `Case #` are alike, but two columns."""
    return column_key(name).replace("#", "")


def normalized_label(label: str) -> str:
    """Return a label in composed Unicode, as the names of class folders are."""
    return unicodedata.normalize("NFC", label)


def group_spelling(group: str) -> str:
    """Return a group as it is compared with others, wherever it was read: one in composed and decomposed Unicode."""
    return unicodedata.normalize("NFC", group)


def group_in_cell(cell: str, numbers: Mapping[str, str]) -> str | None:
    """Return the group that a cell names, None if it names none; `numbers` are the whole numbers of the column."""
    return None if is_missing(cell) else group_spelling(numbers.get(cell, cell))


def is_list(cell: str) -> bool:
    """Whether a cell is a list as Python or JSON write it, such as `['a', 'b']`, or `{"choices": [...]}`."""
    return LIST.fullmatch(_without_key(cell)) is not None


def labels_of(cell: str, separator: str | None) -> tuple[str, ...]:
    """Return the labels in a cell, each once.

    Args:
        cell: One label, labels with a separator between them, or a list such as `['a', 'b']`, `[a, b]` or
            `{"choices": ["a", "b"]}`.
        separator: What parts the labels; None for a cell of one label.
    """
    cell = _without_key(cell)
    one_or_more = cell.split(separator) if separator else [cell]
    labels = _items(cell) if is_list(cell) else one_or_more
    return tuple(dict.fromkeys(label for label in map(str.strip, labels) if label))


def _without_key(cell: str) -> str:
    choices = CHOICES.fullmatch(cell)
    return choices[1] if choices else cell


def _items(cell: str) -> list[str]:
    try:
        return [str(item) for item in json.loads(cell)]
    except ValueError:  # the quotes of Python, or none; NumPy leaves out the commas
        quoted = QUOTED.findall(cell)
        return [ESCAPED.sub(r"\1", single or double) for single, double in quoted] or cell[1:-1].split(",")


def whole_numbers(cells: Iterable[str]) -> dict[str, str]:
    """Return for each cell such as 1.0 the whole number, if all cells are numbers or blank; else nothing.

    A spreadsheet or pandas writes the whole numbers of a column with gaps so.
    """
    distinct = set(cells)
    if not all(is_missing(cell) or NUMBER.fullmatch(cell) for cell in distinct):
        return {}
    found = {cell: WHOLE.fullmatch(cell) for cell in distinct}
    return {cell: match[1] for cell, match in found.items() if match}
