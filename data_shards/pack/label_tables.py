"""Tables that lie beside the images: which of the images each one names."""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_shards.pack.labels.cells import loose
from data_shards.pack.labels.columns import FINDING_NAMES, LABEL_NAMES
from data_shards.pack.labels.matching import SHORT_NUMBER
from data_shards.pack.labels.table_text import end_of_comments
from data_shards.pack.labels.tables import MAX_TABLE_BYTES
from data_shards.pack.options import TABLE_ENDINGS

HEADER_BYTES = 1 << 16  # that the first line of a table may have
SEPARATORS = re.compile(r"[,;\t\n\r\"'|]+")
BLANKS = re.compile(r"\s+")
MAX_TABLES = 20  # the largest ones; some sets have a text file for each image
MOST_IMAGES = 0.9  # a table that names so many of the images is about them


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A table that names images.

    Attributes:
        name: Path of the table below the source.
        share: Share of the images that it names, 0 to 1.
        where: Which images these are, in words.
        has_labels: Whether its first line has a usual name of a column of labels.
    """

    name: str
    share: float
    where: str
    has_labels: bool = False

    def __str__(self) -> str:
        return f"{self.name} names {self.share:.0%} of the images{self.where}"


def best_table(root: Path, files: Iterable[str], images: Mapping[str, Sequence[str]]) -> LabelTable | None:
    """Return the table that names most of the images, None if none names at least `MOST_IMAGES` of any group of them.

    Args:
        root: The source.
        files: Paths below it of files that are not images and lie near its top.
        images: Paths of the images in each group, by the group in words; a table may be about one split alone.
    """
    tables = [name for name in files if name.lower().endswith(TABLE_ENDINGS) and (root / name).is_file()]
    tables = sorted(tables, key=lambda name: (-(root / name).stat().st_size, name))[:MAX_TABLES]
    candidates: dict[str, list[LabelTable]] = {where: [] for where in images}
    for name in tables:
        cells = frozenset(_cells(root / name))  # of one table at a time: it may have millions
        for where, of_group in images.items():
            share, has_labels = _share(cells, of_group), _has_labels(root / name)
            candidates[where].append(LabelTable(name=name, share=share, where=where, has_labels=has_labels))
    for found in candidates.values():
        naming = [table for table in found if table.share >= MOST_IMAGES]
        if naming:
            return max(naming, key=lambda table: (table.has_labels, table.share))
    return None


def _share(cells: frozenset[str], images: Sequence[str]) -> float:
    paths = [PurePosixPath(image.lower()) for image in images]
    counts = Counter(path.name for path in paths)
    named = sum(not cells.isdisjoint(_spellings(path, is_unique=counts[path.name] == 1)) for path in paths)
    return named / len(images) if images else 0.0


def _spellings(path: PurePosixPath, *, is_unique: bool) -> Iterator[str]:
    """Yield how a table may name an image: by its path from any folder on, and if unique by its file name or id."""
    parts = path.parts
    yield from ("/".join(parts[start:]) for start in range(len(parts) - 1))
    if is_unique:
        yield path.name
        if len(path.stem) >= SHORT_NUMBER or not path.stem.isdecimal():
            yield path.stem


def _cells(table: Path) -> Iterator[str]:
    """Yield the cells of a table in lower case; of a path also its last part, of a cell with blanks also its words."""
    text = _text(table, MAX_TABLE_BYTES).lower()
    for cell in map(str.strip, SEPARATORS.split(text.replace("\\", "/"))):
        yield cell.removeprefix("./")
        for word in BLANKS.split(cell) if BLANKS.search(cell) else (cell,):
            yield word
            yield word.rpartition("/")[2]


def _text(table: Path, most: int) -> str:
    """Return the first bytes of a table as text, "" if it cannot be read."""
    try:
        with gzip.open(table, "rb") if table.suffix.lower() == ".gz" else table.open("rb") as file:
            raw = file.read(most)
    except (OSError, EOFError, zlib.error):
        return ""
    return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")


def _has_labels(table: Path) -> bool:
    """Whether the first line of a table names a column of labels, or several columns of findings."""
    text = _text(table, HEADER_BYTES)
    first = text[end_of_comments(text) :].partition("\n")[0]
    columns = {loose(cell.strip()) for cell in SEPARATORS.split(first)}
    return bool(columns.intersection(LABEL_NAMES)) or len(columns & FINDING_NAMES) > 1
