"""The table that `predict` writes: CSV or JSON, streamed row by row and published atomically."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster.files import atomic_write
from trainer.evaluation.csv_cells import safe_cell


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """The prediction for one image.

    Attributes:
        predicted: The most probable class; None where the image could not be read and `error` has the reason.
        decision: The class at the stored threshold; the most probable class where none is stored.
        probabilities: Probability of each class.
    """

    file: str
    predicted: str | None = None
    decision: str | None = None
    probabilities: tuple[float, ...] = ()
    error: str | None = None


WriteRow = Callable[[PredictionRow], None]


@contextmanager
def open_prediction_table(path: Path, classes: tuple[str, ...]) -> Iterator[WriteRow]:
    """Yield a function that writes a row; the file is published when the block succeeds. Its suffix gives the format.

    Raises:
        OSError: The folder is full or not writable; no partial file remains.
    """
    open_rows = _json_rows if path.suffix == ".json" else _csv_rows
    with (
        atomic_write(path) as draft,
        draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        open_rows(file, classes) as write,
    ):
        yield write


@contextmanager
def _csv_rows(file: IO[str], classes: tuple[str, ...]) -> Iterator[WriteRow]:
    writer = csv.writer(file)
    writer.writerow(["file", "predicted", "decision", *(safe_cell(f"probability_{name}") for name in classes), "error"])
    blank = ("",) * len(classes)

    def write(row: PredictionRow) -> None:
        predicted, decision, error = (safe_cell(text or "") for text in (row.predicted, row.decision, row.error))
        writer.writerow([safe_cell(row.file), predicted, decision, *(_rounded(row) or blank), error])

    yield write


@contextmanager
def _json_rows(file: IO[str], classes: tuple[str, ...]) -> Iterator[WriteRow]:
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
    """Return the probabilities with six decimal places; further digits are rounding noise."""
    return tuple(round(value, 6) for value in row.probabilities)
