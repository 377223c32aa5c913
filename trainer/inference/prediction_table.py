"""The table that `predict` writes, row by row: CSV or JSON. Whole or not at all, however long."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """What is said of one image.

    Attributes:
        predicted: The likeliest class; None where the image could not be read, and `error` says why.
        decision: The class called at the stored threshold; the likeliest where none is stored.
        probabilities: Of each class.
    """

    file: str
    predicted: str | None = None
    decision: str | None = None
    probabilities: tuple[float, ...] = ()
    error: str | None = None


Write = Callable[[PredictionRow], None]


@contextmanager
def open_prediction_table(path: Path, classes: tuple[str, ...]) -> Iterator[Write]:
    """Yield what writes a row; the file appears when the block ends well, in the form that its ending says.

    Raises:
        OSError: The folder is full or cannot be written; nothing is left behind.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    begin = _json_rows if path.suffix == ".json" else _csv_rows
    try:
        with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            with begin(file, classes) as write:
                yield write
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _csv_rows(file: IO[str], classes: tuple[str, ...]) -> Iterator[Write]:
    writer = csv.writer(file)
    writer.writerow(["file", "predicted", "decision", *(f"probability_{name}" for name in classes), "error"])
    blank = ("",) * len(classes)
    yield lambda row: writer.writerow(
        [row.file, row.predicted, row.decision, *(_rounded(row) or blank), row.error]  # None is an empty field
    )


@contextmanager
def _json_rows(file: IO[str], classes: tuple[str, ...]) -> Iterator[Write]:
    lead = "[\n"

    def write(row: PredictionRow) -> None:
        nonlocal lead
        file.write(lead + json.dumps(_as_json(row, classes)))
        lead = ",\n"

    yield write
    file.write("\n]\n" if lead == ",\n" else "[]\n")


def _as_json(row: PredictionRow, classes: tuple[str, ...]) -> dict[str, Any]:
    probabilities = dict(zip(classes, _rounded(row), strict=True)) if row.probabilities else None
    return {**vars(row), "probabilities": probabilities}


def _rounded(row: PredictionRow) -> tuple[float, ...]:
    """Return the probabilities with six places: more is noise of the arithmetic."""
    return tuple(round(value, 6) for value in row.probabilities)
