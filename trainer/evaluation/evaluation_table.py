"""`predictions.csv` of a run that evaluates a model: one row per image of the split, in the order of the split.

Image, group and kept columns are what the data set itself holds; nothing else about a patient is written.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    multi_label: bool = False,
    columns: Mapping[str, Sequence[str]] = NO_COLUMNS,
    open_draft: OpenDraft = atomic_write,
) -> None:
    """Write the table atomically: image, group, truth, `probability_CLASS` of each class, decision, and
    `column_NAME` of each kept column.

    With several labels per image, each label has `truth_LABEL`, `probability_LABEL` and `decision_LABEL` instead;
    the truth is 1 or 0, empty where it is unknown.

    Text cells pass `safe_cell` and are quoted, so that no separator splits them. Probabilities are not rounded: the
    metrics can be computed again from the table.

    Args:
        path: Where to write.
        classes: Names of the C classes.
        sources: Name of the file that each image was packed from, (N,).
        groups: Patient or case of each image, "" where unknown, (N,).
        labels: (N,) true classes; (N, C) targets of several labels per image.
        probabilities: (N, C) after temperature scaling, as `predict` returns them.
        decisions: (N,) predicted classes by the decision rule of the evaluation; (N, C) of several labels per image.
        multi_label: Whether images have several labels.
        columns: Value of each image in each kept column, (N,) each, by the name of the column.
        open_draft: Opens the draft of the file.

    Raises:
        OSError: The folder is full or not writable.
    """
    values = zip(labels.tolist(), probabilities.tolist(), decisions.tolist(), strict=True)
    header, cells = (_of_labels if multi_label else _of_classes)(classes, values)
    kept = list(zip(*columns.values(), strict=True)) if columns else [()] * len(sources)
    with open_draft(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([*COLUMNS, *header, *(safe_cell(f"column_{name}") for name in columns)])
        for source, group, row, in_columns in zip(sources, groups, cells, kept, strict=True):
            writer.writerow([safe_cell(source), safe_cell(group), *row, *map(safe_cell, in_columns)])


def _of_classes(classes: Sequence[str], values: Iterable[tuple[Any, ...]]) -> tuple[list[str], Iterator[list[Any]]]:
    """Return header and cells of one class per image."""
    names = [safe_cell(name) for name in classes]
    header = ["truth", *(safe_cell(f"probability_{name}") for name in classes), "decision"]
    return header, ([names[label], *row, names[decision]] for label, row, decision in values)


def _of_labels(classes: Sequence[str], values: Iterable[tuple[Any, ...]]) -> tuple[list[str], Iterator[list[Any]]]:
    """Return header and cells of several labels per image: three for each label."""
    header = [safe_cell(f"{kind}_{name}") for name in classes for kind in ("truth", "probability", "decision")]
    return header, (
        [value for truth, *rest in zip(*of_image, strict=True) for value in (TRUTH.get(truth, ""), *rest)]
        for of_image in values
    )
