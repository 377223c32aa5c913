"""Reads tables: text in any usual dialect, compressed text, and Parquet."""

import glob
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import OptionError, SourceError
from data_shards.pack.labels.cells import column_key
from data_shards.pack.labels.table_text import decode, read_text_rows

MAX_TABLE_BYTES = 256 << 20  # after decompression; a million rows have about 100 MB
PARQUET_ENDINGS = (".parquet", ".pq")
PARQUET_SIGNATURE = b"PAR1"
GZIP_SIGNATURE = b"\x1f\x8b"
JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\{\s*[\"}]|\[\s*\{)")
# Formats that are no table of text, by the first bytes of the file.
OTHER_SIGNATURES = {
    b"PK\x03\x04": "an Excel or OpenDocument sheet, or an archive",
    b"\xd0\xcf\x11\xe0": "an old Excel sheet",
    b"%PDF": "a PDF",
    b"SQLite format 3": "a SQLite database",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"ARROW1": "an Arrow file",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells.

    Attributes:
        name: Its path as the user gave it, for errors.
        columns: Names of its columns; a column without a name has its position, from 1.
        rows: Cells of each row, in the order of the columns.
        lines: Line of the file on which each row ends; of a Parquet file its number, from 1.
        has_header: Whether the names of the columns come from the file.
        encoding: Encoding of the text, in words.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    lines: list[int]
    has_header: bool = True
    encoding: str = "UTF-8"

    def column(self, position: int) -> list[str]:
        """Return the cells of a column."""
        return [row[position] for row in self.rows]

    def place(self, number: int) -> str:
        """Return where the row with a number stands, for an error."""
        return f"{self.name} line {self.lines[number]}"


def find_table(given: str, folder: Path) -> Path:
    """Return the path of a table: as it was given, or else below the source.

    Raises:
        OptionError: There is no such file.
    """
    for path in (Path(given), folder / given):
        if path.is_file():
            return path
    near = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{glob.escape(given)}")]
    cure = f"did you mean {near[0].relative_to(folder)}?" if near else "give the path of a table"
    raise OptionError(f"there is no file {given}, neither here nor in the source; {cure}")


def read_table(path: Path, name: str, is_header: Callable[[Sequence[tuple[str, ...]]], bool]) -> Table:
    """Return a table.

    Args:
        path: Where it lies.
        name: What errors call it.
        is_header: Tells from the rows of a text table whether the first one names the columns.

    Raises:
        SourceError: It is no table, it is damaged or larger than `MAX_TABLE_BYTES`, or it has no rows.
    """
    raw = _read(path, name)
    is_parquet = raw.startswith(PARQUET_SIGNATURE)
    table = _read_parquet(path, name) if is_parquet else _read_text(raw, name, is_header)
    if not table.rows:
        raise SourceError(f"{name} has no rows; give a table with a row for each image")
    column, count = Counter(map(column_key, table.columns)).most_common(1)[0]
    if count > 1:
        same = " and ".join(repr(other) for other in table.columns if column_key(other) == column)
        raise SourceError(f"{name} has {count} columns of one name, {same}; rename or remove all but one")
    return table


def read_lines(path: Path, name: str) -> list[str]:
    """Return the lines of a text file that are not blank, none of a Parquet file.

    Raises:
        SourceError: It is no text, or is damaged.
    """
    raw = _read(path, name)
    if raw.startswith(PARQUET_SIGNATURE):
        return []
    lines = [line.strip().strip('"') for line in decode(raw, name)[0].splitlines()]
    return [line for line in lines if line]


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TABLE_BYTES + 1)
        if raw.startswith(GZIP_SIGNATURE):
            with gzip.open(path, "rb") as file:
                raw = file.read(MAX_TABLE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{name} is a damaged gzip file; copy or download it again") from error
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}; check the file and its permissions") from error
    if len(raw) > MAX_TABLE_BYTES:
        raise SourceError(
            f"{name} has more than {MAX_TABLE_BYTES >> 20} MiB; keep only the columns that are needed, or divide it"
        )
    found = next((kind for signature, kind in OTHER_SIGNATURES.items() if raw.startswith(signature)), None)
    if found is None and path.suffix.lower() in PARQUET_ENDINGS and not raw.startswith(PARQUET_SIGNATURE):
        found = "no Parquet file in spite of its name"
    if JSON.match(raw):
        raise SourceError(
            f"{name} is JSON, not a table; write its images and labels to a CSV with the columns file and label, and "
            "give that file"
        )
    if found:
        raise SourceError(f"{name} is {found}; save the table as CSV in UTF-8, and give that file")
    return raw


def _read_text(raw: bytes, name: str, is_header: Callable[[Sequence[tuple[str, ...]]], bool]) -> Table:
    text = read_text_rows(raw, name)
    if not text.rows:
        raise SourceError(f"{name} is empty; give a table with a row for each image")
    positions = tuple(str(number) for number in range(1, len(text.rows[0]) + 1))
    if not is_header(text.rows):
        return Table(
            name=name,
            columns=positions,
            rows=text.rows,
            lines=text.lines,
            has_header=False,
            encoding=text.encoding,
        )
    columns = tuple(column or position for column, position in zip(text.rows[0], positions, strict=True))
    return Table(name=name, columns=columns, rows=text.rows[1:], lines=text.lines[1:], encoding=text.encoding)


def _read_parquet(path: Path, name: str) -> Table:
    import pyarrow as pa  # noqa: PLC0415 (takes half a second)
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            _refuse_large(file.metadata, name)
            fields = [field for field in file.schema_arrow if _is_text(pa, field.type)]
            content = file.read([field.name for field in fields])
        columns = [[_cell(value) for value in content.column(number).to_pylist()] for number in range(len(fields))]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{name} is a damaged Parquet file; copy or download it again") from error
    rows = list(zip(*columns, strict=True))
    names = tuple(field.name.strip() or str(number) for number, field in enumerate(fields, 1))
    return Table(name=name, columns=names, rows=rows, lines=list(range(1, len(rows) + 1)))


def _refuse_large(metadata: Any, name: str) -> None:
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > MAX_TABLE_BYTES:
        raise SourceError(
            f"{name} has more than {MAX_TABLE_BYTES >> 20} MiB; if it holds the images themselves, write them to "
            "files; else keep only the columns that are needed"
        )


def _is_text(pa: Any, kind: Any) -> bool:
    """Whether the values of an Arrow type can be written into a cell."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(pa, kind.value_type)
    nested = pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not nested and not pa.types.is_fixed_size_binary(kind)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        return json.dumps([_cell(item) for item in value], ensure_ascii=False)
    return str(value).strip()
