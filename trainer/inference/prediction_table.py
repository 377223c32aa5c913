"""The table that `predict` writes: CSV or JSON, streamed row by row and published atomically."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cluster.files import OpenDraft, atomic_write
from trainer.evaluation.csv_cells import safe_cell


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """The prediction for one image.

    Attributes:
        predicted: The most probable class; None where the image could not be read and `error` has the reason.
        decision: The class at the stored threshold; the most probable class where none is stored.
        labels: Of a multi-label model: the labels at their thresholds, none or several; there is no `predicted` and no
            `decision` then.
        probabilities: Probability of each class.
    """

    file: str
    predicted: str | None = None
    decision: str | None = None
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None

    @property
    def decisions(self) -> tuple[str, ...]:
        """The class or the labels that were decided on."""
        return self.labels if self.decision is None else (self.decision,)


WriteRow = Callable[[PredictionRow], None]
RowAsJson = Callable[[PredictionRow, tuple[str, ...]], dict[str, Any]]

SEPARATOR = "|"  # between the decided labels of one image in a cell


@contextmanager
def open_prediction_table(
    path: Path, classes: tuple[str, ...], open_draft: OpenDraft = atomic_write, *, multi_label: bool = False
) -> Iterator[WriteRow]:
    """Yield a function that writes a row; the file is published when the block succeeds. Its suffix gives the format.

    Raises:
        OSError: The folder is full or not writable; no partial file remains.
    """
    with (
        open_draft(path) as draft,
        draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        open_rows(file, classes, as_json=path.suffix == ".json", multi_label=multi_label) as write,
    ):
        yield write


def open_rows(
    file: IO[str], classes: tuple[str, ...], *, as_json: bool, multi_label: bool
) -> AbstractContextManager[WriteRow]:
    """Yield a function that writes a row to an open file, as CSV or JSON; the table is complete after the block."""
    if as_json:
        return _json_rows(file, classes, as_json=_labels_as_json if multi_label else _as_json)
    return _csv_label_rows(file, classes) if multi_label else _csv_rows(file, classes)


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
def _csv_label_rows(file: IO[str], classes: tuple[str, ...]) -> Iterator[WriteRow]:
    """Write the decided labels in one cell, and a probability and a decision of 1 or 0 in the columns of each label."""
    writer = csv.writer(file)
    columns = [safe_cell(f"{kind}_{name}") for name in classes for kind in ("probability", "decision")]
    writer.writerow(["file", "decision", *columns, "error"])
    blank = ("",) * len(columns)

    def write(row: PredictionRow) -> None:
        pairs = zip(_rounded(row), (int(name in row.labels) for name in classes), strict=False)
        cells = [value for pair in pairs for value in pair]
        decision, error = safe_cell(SEPARATOR.join(row.labels)), safe_cell(row.error or "")
        writer.writerow([safe_cell(row.file), decision, *(cells or blank), error])

    yield write


@contextmanager
def _json_rows(file: IO[str], classes: tuple[str, ...], *, as_json: RowAsJson) -> Iterator[WriteRow]:
    lead = "[\n"

    def write(row: PredictionRow) -> None:
        nonlocal lead
        file.write(lead + json.dumps(as_json(row, classes)))
        lead = ",\n"

    yield write
    file.write("\n]\n" if lead == ",\n" else "[]\n")


def _as_json(row: PredictionRow, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "file": row.file,
        "predicted": row.predicted,
        "decision": row.decision,
        "probabilities": _probabilities(row, classes),
        "error": row.error,
    }


def _labels_as_json(row: PredictionRow, classes: tuple[str, ...]) -> dict[str, Any]:
    decision = None if row.error else list(row.labels)
    return {"file": row.file, "decision": decision, "probabilities": _probabilities(row, classes), "error": row.error}


def _probabilities(row: PredictionRow, classes: tuple[str, ...]) -> dict[str, float] | None:
    return dict(zip(classes, _rounded(row), strict=True)) if row.probabilities else None


def _rounded(row: PredictionRow) -> tuple[float, ...]:
    """Return the probabilities with six decimal places; further digits are rounding noise."""
    return tuple(round(value, 6) for value in row.probabilities)
