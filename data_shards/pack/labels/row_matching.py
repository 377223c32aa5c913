"""Matches the rows of a table with the images of a source, and counts what is left on either side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import SourceError
from data_shards.pack.labels.cells import is_missing
from data_shards.pack.labels.joining import Rows
from data_shards.pack.labels.matching import MOST_COMPARED, Ambiguous, ImageMatcher, near_folders, nearest
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
    """

    of_image: dict[str, list[int]]
    rows_without_image: tuple[str, ...]
    images_without_row: tuple[str, ...]


def match_rows(
    rows: Rows,
    position: int,
    paths: Sequence[Sequence[str]],
    *,
    folder: Path,
    split_folders: Mapping[str, str],
    allow_unmatched: bool,
) -> MatchedRows:
    """Return which rows name which image.

    Args:
        rows: The tables.
        position: The column that names the images.
        paths: Paths of the images below the source. Those of a later sequence are meant only if no image of an
            earlier one is; without a row they are not missed.
        folder: The source.
        split_folders: The folder of each split, if there are such folders.
        allow_unmatched: Take what matches, however little that is.

    Raises:
        SourceError: A cell names several images, or neither most rows have an image nor most images a row.
    """
    matchers = [ImageMatcher(some) for some in paths]
    near = [near_folders(_below(folder, table.name), split_folders.items()) for table in rows.tables]
    of_image: dict[str, list[int]] = {}
    unmatched: list[int] = []
    for number, row in enumerate(rows.rows):
        path = _find(rows, number, row[position], matchers, near[rows.origins[number][0]])
        if path is None:
            unmatched.append(number)
        else:
            of_image.setdefault(path, []).append(number)
    missing = [path for path in paths[0] if path not in of_image]
    lines = _lines(rows, position, unmatched, missing or paths[0])
    has_images = len(unmatched) <= FEW * len(rows.rows)
    has_rows = len(missing) <= FEW * len(paths[0])
    if not (has_images or has_rows or allow_unmatched):
        raise SourceError(
            f"{len(unmatched)} of {len(rows.rows)} rows name no image, and {len(missing)} of {len(paths[0])} images "
            f"have no row: {'; '.join(lines[:SHOWN])}; correct the column {rows.columns[position]!r}, choose another "
            "with --image-column, or take what matches with --allow-unmatched"
        )
    return MatchedRows(of_image=of_image, rows_without_image=tuple(lines), images_without_row=tuple(missing))


def _below(folder: Path, table: str) -> str:
    """Return the path of a table below the source, its name alone if it lies elsewhere."""
    path = find_table(table, folder).resolve()
    root = folder.resolve()
    return path.relative_to(root).as_posix() if root in path.parents else path.name


def _find(rows: Rows, number: int, cell: str, matchers: Sequence[ImageMatcher], near: Sequence[str]) -> str | None:
    for matcher in matchers:
        found = None if is_missing(cell) else matcher.find(cell, near)
        if isinstance(found, Ambiguous):
            raise SourceError(
                f"{rows.place(number)}: {cell!r} fits {len(found.images)} images, {' and '.join(found.images[:2])}; "
                "write its path into the table, or remove the other file"
            )
        if found is not None:
            return found
    return None


def _lines(rows: Rows, position: int, numbers: Sequence[int], images: Sequence[str]) -> list[str]:
    """Return a line for each row without an image; a wrong name is most likely that of an image without a row."""
    names = [normalized_name(path) for path in images[:MOST_COMPARED]]
    lines = []
    for count, number in enumerate(numbers):
        cell = rows.rows[number][position]
        close = nearest(cell, names) if count < NEAREST and cell else None
        lines.append(f"{rows.place(number)}: {cell or 'blank'}{f' (nearest: {close})' if close else ''}")
    return lines
