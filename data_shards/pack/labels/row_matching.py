"""Matches the rows of a table with the images of a source, and counts what is left on either side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import SourceError
from data_shards.pack.labels.cells import is_missing
from data_shards.pack.labels.column_matching import SourceImages, match_cells
from data_shards.pack.labels.joining import Rows
from data_shards.pack.labels.matching import MOST_COMPARED, Ambiguous, near_folders, nearest
from data_shards.pack.labels.tables import find_table
from data_shards.pack.names import normalized_name

SHOWN = 3  # names in an error
NEAREST = 20  # rows without an image for which the nearest name is searched; it is slow
FEW = 0.1  # of the rows may name no image, however many images have no row; or the other way round


@dataclass(frozen=True, kw_only=True)
class MatchedRows:
    """Which rows name which image.

    Attributes:
        of_image: Numbers of the rows of each image that has any, by its path.
        rows_without_image: Place and cell of each other row, the first ones with the nearest name of an image.
        images_without_row: Paths of the other images.
        rows_by_name: Number of the rows that name their image by the file name alone: the folders differ.
    """

    of_image: dict[str, list[int]]
    rows_without_image: tuple[str, ...]
    images_without_row: tuple[str, ...]
    rows_by_name: int


def match_rows(
    rows: Rows,
    position: int,
    images: SourceImages,
    *,
    folder: Path,
    split_folders: Mapping[str, str],
    allow_unmatched: bool,
) -> MatchedRows:
    """Return which rows name which image.

    Args:
        rows: The tables.
        position: The column that names the images.
        images: The images of the source.
        folder: The source.
        split_folders: The folder of each split, if there are such folders.
        allow_unmatched: Take what matches, however little that is.

    Raises:
        SourceError: A cell names several images, or neither most rows have an image nor most images a row.
    """
    near = [near_folders(_below(folder, table.name), split_folders.items()) for table in rows.tables]
    cells = ["" if is_missing(row[position]) else row[position] for row in rows.rows]
    matched = match_cells(cells, images.matchers, [near[table] for table, _ in rows.origins])
    of_image: dict[str, list[int]] = {}
    unmatched: list[int] = []
    for number, path in enumerate(_refuse_ambiguous(rows, position, matched.images)):
        if path is None:
            unmatched.append(number)
        else:
            of_image.setdefault(path, []).append(number)
    first = images.paths[0]
    missing = [path for path in first if path not in of_image]
    lines = _lines(rows, position, unmatched, missing or first)
    has_images = len(unmatched) <= FEW * len(rows.rows)
    has_rows = len(missing) <= FEW * len(first)
    if not (has_images or has_rows or allow_unmatched):
        raise SourceError(
            f"{len(unmatched)} of {len(rows.rows)} rows name no image, and {len(missing)} of {len(first)} images "
            f"have no row: {'; '.join(lines[:SHOWN])}; correct the column {rows.columns[position]!r}, choose another "
            "with --image-column, or take what matches with --allow-unmatched"
        )
    return MatchedRows(
        of_image=of_image,
        rows_without_image=tuple(lines),
        images_without_row=tuple(missing),
        rows_by_name=len(matched.by_name),
    )


def _below(folder: Path, table: str) -> str:
    """Return the path of a table below the source, its name alone if it lies elsewhere."""
    path = find_table(table, folder).resolve()
    root = folder.resolve()
    return path.relative_to(root).as_posix() if root in path.parents else path.name


def _refuse_ambiguous(rows: Rows, position: int, images: Sequence[str | Ambiguous | None]) -> Iterator[str | None]:
    """Yield the image of each row, None without one; refuse a row that may mean several."""
    for number, found in enumerate(images):
        if isinstance(found, Ambiguous):
            raise SourceError(
                f"{rows.place(number)}: {rows.rows[number][position]!r} fits {len(found.images)} images, "
                f"{' and '.join(found.images[:2])}; write its path into the table, or remove the other file"
            )
        yield found


def _lines(rows: Rows, position: int, numbers: Sequence[int], images: Sequence[str]) -> list[str]:
    """Return a line for each row without an image; a wrong name is most likely that of an image without a row."""
    names = [normalized_name(path) for path in images[:MOST_COMPARED]]
    lines = []
    for count, number in enumerate(numbers):
        cell = rows.rows[number][position]
        close = nearest(cell, names) if count < NEAREST and cell else None
        lines.append(f"{rows.place(number)}: {cell or 'blank'}{f' (nearest: {close})' if close else ''}")
    return lines
