"""The rows of a prediction: from images to the rows of the table, with their counts. Imports torch, not ray."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.access import unreadable
from cluster.errors import StorageError
from data_shards.index import read_index
from trainer.data.images import ImageBatch, ImageSource, ShardSplit
from trainer.errors import TrainerError
from trainer.evaluation.calibration import Floats, Labels, decision_fields
from trainer.evaluation.decision_text import decision_line
from trainer.inference.prediction_table import PredictionRow
from trainer.inference.predictor import Predictor
from trainer.model.head import HeadConfig
from trainer.specs import PredictSpec
from trainer.specs.image_size import check_model_input

logger = logging.getLogger(__name__)


@contextmanager
def reading(images: tuple[str, ...]) -> Iterator[None]:
    """Name the file that cannot be read, so that its error is not taken for one of the table.

    Raises:
        StorageError: The block cannot read a file.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(unreadable(error, ", ".join(images))) from error


def check_sizes(parts: tuple[ImageSource, ...], image_size: int) -> None:
    """Refuse shards whose images are smaller than the model's input.

    Raises:
        ModelMismatch: They are.
    """
    for location in dict.fromkeys(part.location for part in parts if isinstance(part, ShardSplit)):
        check_model_input(image_size, read_index(location), location)


def read_batches(
    parts: tuple[ImageSource, ...],
    spec: PredictSpec,
    config: HeadConfig,
    *,
    loader_workers: int = 0,
    prefetch_bytes: int | None = None,
) -> Iterator[ImageBatch]:
    """Yield the images of all parts in order, in batches.

    Raises:
        DamagedShard: A shard or a sample differs from the index.
        StorageError: A file of a data set cannot be read.
    """
    with reading(spec.images):
        for part in parts:
            yield from part.batches(
                config, batch_size=spec.batch_size, loader_workers=loader_workers, prefetch_bytes=prefetch_bytes
            )


def rows_of(batch: ImageBatch, predictor: Predictor) -> Iterator[PredictionRow]:
    """Yield a row for each image of a batch, in order."""
    probabilities = predictor.probabilities(batch.pixels)
    found = iter(zip(probabilities, predictor.decisions(probabilities), strict=True))
    for file, error in zip(batch.files, batch.errors, strict=True):
        if error is not None:
            yield PredictionRow(file=file, error=error)
            continue
        yield _answer(file, *next(found), predictor.config)


def _answer(file: str, probabilities: Floats, decision: Labels, config: HeadConfig) -> PredictionRow:
    """Return the row of an image from its probabilities (C,) and its decision: a class, or 0 or 1 for each label."""
    values = tuple(probabilities.tolist())
    if config.multi_label:
        labels = tuple(name for name, is_present in zip(config.classes, decision, strict=True) if is_present)
        return PredictionRow(file=file, labels=labels, probabilities=values)
    predicted = config.classes[int(probabilities.argmax())]
    return PredictionRow(file=file, predicted=predicted, decision=config.classes[int(decision)], probabilities=values)


@dataclass
class RowCounts:
    """Counts the rows of a table.

    Attributes:
        ignored: Number of system files and hidden files, which have no row.
    """

    ignored: int
    _decisions: Counter[str] = field(default_factory=Counter)
    _images: Counter[str] = field(default_factory=Counter)

    def add(self, row: PredictionRow) -> None:
        """Count a row."""
        self._decisions.update(row.decisions)
        self._images["unreadable" if row.error else "answered"] += 1

    def outcome(self, predictor: Predictor) -> dict[str, Any]:
        """Log and return the counts and the decision rule, as `result.json` has them.

        Raises:
            TrainerError: No image could be read.
        """
        unreadable, answered = self._images["unreadable"], self._images["answered"]
        counts = {
            "images": answered + unreadable, "answered": answered, "unreadable": unreadable, "ignored": self.ignored,
        }  # fmt: skip
        total = "1 image" if answered + unreadable == 1 else f"{answered + unreadable} images"
        rest = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "images")
        logger.info("predict: %s, %s", total, rest)
        if unreadable and not answered:
            none = "the image could not" if unreadable == 1 else f"none of the {unreadable} images could"
            raise TrainerError(f"{none} be read; the table has the reason")
        calibration, classes = predictor.calibration, predictor.config.classes
        called = {name: self._decisions[name] for name in classes}
        metrics = {"n": answered, "errors": unreadable, **counts, "classes": list(classes), "called": called}
        details = calibration.model_dump(include=decision_fields(calibration))
        logger.info("decision: %s", decision_line(details))
        return {"metrics": metrics, "details": details}
