"""`predictions.csv` of a run that evaluates a model: one row per image of the split, in the order of the split.

Image, group and kept columns are what the data set itself holds; nothing else about a patient is written.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.files import OpenDraft, atomic_write
from trainer.evaluation.csv_cells import safe_cell

COLUMNS = ("image", "group")
NO_COLUMNS: Mapping[str, Sequence[str]] = MappingProxyType({})
TRUTH = {0: 0, 1: 1}  # the cell of a target; that of an unknown one is empty


def write_evaluation_table(
    path: Path,
    *,
    classes: Sequence[str],
    sources: Sequence[str],
    groups: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    decisions: NDArray[np.int64],
    columns: Mapping[str, Sequence[str]] = NO_COLUMNS,
    open_draft: OpenDraft = atomic_write,
) -> None:
    """Write the table atomically: image, group, truth, `probability_CLASS` of each class, decision, and
    `column_NAME` of each kept column.

    Text cells pass `safe_cell` and are quoted, so that no separator splits them. Probabilities are not rounded: the
    metrics can be computed again from the table.

    Args:
        path: Where to write.
        classes: Names of the C classes.
        sources: Name of the file that each image was packed from, (N,).
        groups: Patient or case of each image, "" where unknown, (N,).
        labels: (N,) true classes.
        probabilities: (N, C) after temperature scaling, as `predict` returns them.
        decisions: (N,) predicted classes by the decision rule of the evaluation.
        columns: Value of each image in each kept column, (N,) each, by the name of the column.
        open_draft: Opens the draft of the file.

    Raises:
        OSError: The folder is full or not writable.
    """
    names = [safe_cell(name) for name in classes]
    header = ["truth", *(safe_cell(f"probability_{name}") for name in classes), "decision"]
    values = zip(labels.tolist(), probabilities.tolist(), decisions.tolist(), strict=True)
    cells = ([names[label], *row, names[decision]] for label, row, decision in values)
    _write_rows(path, header, sources=sources, groups=groups, cells=cells, columns=columns, open_draft=open_draft)


def write_label_table(
    path: Path,
    *,
    classes: Sequence[str],
    sources: Sequence[str],
    groups: Sequence[str],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    decisions: NDArray[np.int64],
    columns: Mapping[str, Sequence[str]] = NO_COLUMNS,
    open_draft: OpenDraft = atomic_write,
) -> None:
    """Write the table of a multi-label evaluation atomically: image, group, and three columns for each label.

    `truth_LABEL` is 1 or 0, empty where it is unknown; `probability_LABEL` and `decision_LABEL` follow, then the kept
    columns. The arguments are those of `write_evaluation_table`, with (N, C) labels and decisions.

    Raises:
        OSError: The folder is full or not writable.
    """
    header = [safe_cell(f"{kind}_{name}") for name in classes for kind in ("truth", "probability", "decision")]
    values = zip(labels.tolist(), probabilities.tolist(), decisions.tolist(), strict=True)
    cells = (
        [value for truth, *rest in zip(*of_image, strict=True) for value in (TRUTH.get(truth, ""), *rest)]
        for of_image in values
    )
    _write_rows(path, header, sources=sources, groups=groups, cells=cells, columns=columns, open_draft=open_draft)


def _write_rows(
    path: Path,
    header: Sequence[str],
    *,
    sources: Sequence[str],
    groups: Sequence[str],
    cells: Iterable[list[Any]],
    columns: Mapping[str, Sequence[str]],
    open_draft: OpenDraft,
) -> None:
    """Write image, group, the cells and the kept values of each image below their columns."""
    kept = list(zip(*columns.values(), strict=True)) if columns else [()] * len(sources)
    with open_draft(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([*COLUMNS, *header, *(safe_cell(f"column_{name}") for name in columns)])
        for source, group, row, values in zip(sources, groups, cells, kept, strict=True):
            writer.writerow([safe_cell(source), safe_cell(group), *row, *map(safe_cell, values)])
