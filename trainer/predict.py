"""`predict`: a table with a published model's prediction for each image."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import copy_atomically
from data_shards.index import read_index
from trainer.attempt import Attempt
from trainer.data.images import ImageBatch, ImageSource, ShardSplit, image_sources
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import Stopped, TrainerError
from trainer.evaluate import model_folder
from trainer.evaluation.calibration import Floats, Labels, decision_fields
from trainer.evaluation.decision_text import decision_line
from trainer.inference.prediction_table import PredictionRow, open_prediction_table
from trainer.inference.predictor import Predictor
from trainer.model.bundle import check_unchanged, weights_sha256
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE
from trainer.model.thresholds import read_threshold
from trainer.result import RunResult
from trainer.specs import PredictSpec
from trainer.specs.image_size import check_model_input

logger = logging.getLogger(__name__)


def predict(attempt: Attempt, spec: PredictSpec) -> RunResult:
    """Write the table and return the counts.

    Raises:
        SpecError: An image, folder, split or threshold does not exist.
        CheckpointError: The model does not exist, is damaged or has another version.
        ModelMismatch: The images of shards are smaller than the model's input.
        TrainerError: No image could be read.
        StorageError: The table cannot be written.
    """
    folder = model_folder(spec.model, attempt.settings)
    if spec.threshold is not None:
        read_threshold(folder, spec.threshold)  # fails here, before workers start
    _check_sizes(image_sources(spec.images, spec.split), folder)  # fails here, before workers start
    weights = weights_sha256(folder)
    outcome = run_on_workers(predict_on_worker, WorkerTask(attempt=attempt, spec=spec, source=folder))
    check_unchanged(folder, weights)
    table = attempt.paths.predicted(spec.form)
    if spec.output is not None:
        copy_atomically(table, Path(spec.output), write=attempt.lease.atomic_write)
    return RunResult(
        kind=spec.kind,
        checkpoint=str(folder),
        metrics=outcome["metrics"],
        seconds=round(attempt.seconds, 3),
        model_sha256=weights,
        details={**outcome["details"], "output": spec.output or str(table)},
    )


def _check_sizes(parts: tuple[ImageSource, ...], folder: Path) -> None:
    image_size = HeadConfig.read(folder / HEAD_FILE).image_size
    for location in dict.fromkeys(part.location for part in parts if isinstance(part, ShardSplit)):
        check_model_input(image_size, read_index(location), location)


def predict_on_worker(context: WorkerContext[PredictSpec]) -> dict[str, Any]:
    """Write the table and return its counts; runs on the Ray Train worker."""
    spec, attempt = context.spec, context.task.attempt
    folder = model_folder(spec.model, attempt.settings)
    predictor = Predictor.load(folder, context.process_group.device, spec.threshold)
    parts = image_sources(spec.images, spec.split)
    context.progress.start_phase("predict", total=sum(len(part) for part in parts))
    config, table = predictor.config, attempt.paths.predicted(spec.form)
    decisions, images = Counter[str](), Counter[str]()
    try:
        with open_prediction_table(
            table, config.classes, attempt.lease.atomic_write, multi_label=config.multi_label
        ) as write:
            for row in _rows(context, parts, predictor):
                decisions.update(row.decisions)
                images["unreadable" if row.error else "answered"] += 1
                write(row)
    except OSError as error:
        raise StorageError(f"{table} cannot be written ({error.strerror}); free space there and retry") from error
    return _outcome(decisions, images, predictor, ignored=sum(part.ignored for part in parts))


def _rows(
    context: WorkerContext[PredictSpec], parts: tuple[ImageSource, ...], predictor: Predictor
) -> Iterator[PredictionRow]:
    batch_size = context.spec.batch_size
    for part in parts:
        for batch in part.batches(predictor.config, batch_size=batch_size, loader_workers=context.loader_workers):
            yield from rows_of(batch, predictor)
            context.progress.add(len(batch.files))
            if reason := context.stop.reason():
                raise Stopped(f"stopped ({reason}); predict starts from the beginning when it is resumed")


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


def _outcome(decisions: Counter[str], images: Counter[str], predictor: Predictor, *, ignored: int) -> dict[str, Any]:
    """Return the counts: `images` are `answered` and `unreadable`; `ignored` system files have no row."""
    unreadable, answered = images["unreadable"], images["answered"]
    counts = {"images": answered + unreadable, "answered": answered, "unreadable": unreadable, "ignored": ignored}
    logger.info("predict: %s", ", ".join(f"{count} {name}" for name, count in counts.items()))
    if unreadable and not answered:
        raise TrainerError(f"none of the {unreadable} images could be read; the table has the reason for each")
    calibration, classes = predictor.calibration, predictor.config.classes
    called = {name: decisions[name] for name in classes}
    metrics = {"n": answered, "errors": unreadable, **counts, "classes": list(classes), "called": called}
    details = calibration.model_dump(include=decision_fields(calibration))
    logger.info("decision: %s", decision_line(details))
    return {"metrics": metrics, "details": details}
