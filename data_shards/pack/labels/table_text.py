"""Reads the text of a table: its encoding, its separator and its rows. Pure."""

import codecs
import csv
import io
import re
from dataclasses import dataclass

from data_shards.errors import SourceError

# A longer byte order mark stands before one that it starts with.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODING_NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "cp1252": "Windows-1252"}
SAMPLE_BYTES = 400  # of which the NUL bytes show UTF-16 without a byte order mark
MANY_NULS = 0.3  # of the bytes in even or odd places
SEPARATORS = (",", ";", "\t")
PIPE = "|"  # more often a separator of labels in a cell
BLANK = " "
NO_SEPARATOR = "\x1f"
EXCEL_SEPARATOR = re.compile(r"\"?sep=(.)\"?[ ,;\t]*\r?\n", re.IGNORECASE)  # a first line that Excel reads
COMMENTS = re.compile(r"(?:#[^\n]*\n)+(#[^\n]*\n)(?=([^#\n][^\n]*))")  # above the rows
EXCEL_TEXT = re.compile(r"=\"(.*)\"", re.DOTALL)  # keeps Excel from turning 0001 into 1
CELL_LIMIT = 1 << 20  # characters


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """The rows of a text table, the header among them.

    Attributes:
        rows: Cells of each row without blanks at their ends; all rows have the same number of cells.
        lines: Line of the file on which each row ends, from 1.
        encoding: The encoding in words.
    """

    rows: list[tuple[str, ...]]
    lines: list[int]
    encoding: str


def read_text_rows(raw: bytes, name: str) -> TextRows:
    """Return the rows of a table from the bytes of its file. Rows and trailing columns without content are left out.

    Raises:
        SourceError: It is no text, or its rows do not agree with its header. The text starts with `name`.
    """
    text, encoding = decode(raw, name)
    first = EXCEL_SEPARATOR.match(text)
    begin = first.end() if first else end_of_comments(text)
    body, offset = text[begin:], text.count("\n", 0, begin)
    parsed = {s: _parse(body, s, name, offset) for s in ((first[1],) if first else _candidates(body))}
    loose = () if first else (PIPE, BLANK)  # they stand in names and labels too: only as part of every row they count
    found = [rows for s, rows in parsed.items() if isinstance(rows, _Parsed) and (rows.is_exact or s not in loose)]
    faults = [fault for fault in parsed.values() if isinstance(fault, _Fault)]
    if not found:
        raise max(faults, key=lambda fault: fault.width).error
    best = max(found, key=lambda rows: (rows.is_exact, rows.width))  # of equal ones the first
    return TextRows(rows=best.rows, lines=best.lines, encoding=encoding)


def end_of_comments(text: str) -> int:
    """Return where the header or first row begins below lines that start with `#`.

    A single such line is the header. Of several, the last one is if it has as many separators as the next line, none
    followed by a blank as in a sentence.
    """
    above = COMMENTS.match(text)
    if above is None:
        return 0
    last, row = above[1], above[2]
    is_header = any(f"{s} " not in last and 0 < last.count(s) == row.count(s) for s in SEPARATORS)
    return above.start(1) if is_header else above.end()


def decode(raw: bytes, name: str) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding: Unicode by its mark or content, else Windows-1252.

    Raises:
        SourceError: It is no text.
    """
    for encoding in (_unicode_of(raw), "cp1252"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise SourceError(f"{name}: line {line} has a NUL character, so it is no text; save it as CSV in UTF-8")
        return text, ENCODING_NAMES.get(encoding, encoding.upper())
    raise SourceError(f"{name} is neither UTF-8, UTF-16 nor Windows-1252; save it as CSV in UTF-8")


def _unicode_of(raw: bytes) -> str:
    for mark, encoding in BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            return encoding
    sample = raw[:SAMPLE_BYTES]
    if sample[1::2].count(0) > MANY_NULS * len(sample) / 2:
        return "utf-16-le"
    return "utf-16-be" if sample[::2].count(0) > MANY_NULS * len(sample) / 2 else "utf-8"


def _candidates(text: str) -> tuple[str, ...]:
    """Return the separators that may be meant: those in the first line, else bars or blanks, or one cell a line."""
    line = next((line for line in text.splitlines() if line.strip()), "").strip(" ")
    usual = tuple(separator for separator in SEPARATORS if separator in line)
    return usual or (*(separator for separator in (PIPE, BLANK) if separator in line), NO_SEPARATOR)


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    """A table as one separator gives it."""

    rows: list[tuple[str, ...]]
    lines: list[int]
    is_exact: bool
    width: int


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """Why one separator does not fit."""

    error: SourceError
    width: int


def _parse(text: str, separator: str, name: str, offset: int) -> _Parsed | _Fault:
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    csv.field_size_limit(CELL_LIMIT)
    shared: dict[str, str] = {}  # a class name stands in a million rows: one string
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            row = tuple(shared.setdefault(cell, cell) for cell in map(_clean, cells))
            if any(row):
                rows.append(row)
                lines.append(reader.line_num + offset)
    except csv.Error as error:
        line = (lines[-1] if lines else offset) + 1
        return _Fault(error=SourceError(_broken(name, line, error)), width=len(rows[0]) if rows else 1)
    return _even(rows, lines, name)


def _clean(cell: str) -> str:
    cell = cell.strip(" \t\r\n\ufeff\xa0")
    text = EXCEL_TEXT.fullmatch(cell)
    return text[1] if text else cell


def _broken(name: str, line: int, error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"{name}: line {line} has a cell of more than {CELL_LIMIT} characters; close the quote that opens it"
    return f"{name}: the quotes from line {line} on do not match; write a quote inside a quoted cell twice"


def _even(rows: list[tuple[str, ...]], lines: list[int], name: str) -> _Parsed | _Fault:
    """Return rows of one width: blank cells at the end may be missing or too many, as Excel writes them."""
    if not rows:
        return _Parsed(rows=[], lines=[], is_exact=True, width=0)
    used = [_used(row) for row in rows]
    width, header = max(used), len(rows[0])
    if len(rows) > 1 and width == header + 1 and all(len(row) == width for row in rows[1:]):
        rows[0] = ("", *rows[0])  # R leaves out the header of the column of row names
    elif width > header:
        number = next(number for number, cells in enumerate(used) if cells > header)
        text = (
            f"{name}: line {lines[number]} has {used[number]} cells, but the first line has {header}; put quotes "
            "around a cell that contains the separator"
        )
        return _Fault(error=SourceError(text), width=header)
    is_exact = width > 1 and 1 in (len({len(row) for row in rows}), len(set(used)))
    padded = [row[:width] + ("",) * (width - len(row)) for row in rows]
    return _Parsed(rows=padded, lines=lines, is_exact=is_exact, width=width)


def _used(row: tuple[str, ...]) -> int:
    return next((number for number in range(len(row), 0, -1) if row[number - 1]), 0)
