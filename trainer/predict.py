"""`predict`: a table with a published model's prediction for each image."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import StorageError
from cluster.files import copy_atomically
from data_shards.locations import local_folder
from trainer.attempt import Attempt
from trainer.data.images import ImageSource, image_sources
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerContext, WorkerTask
from trainer.errors import SpecError, Stopped
from trainer.evaluate import model_folder
from trainer.inference.prediction_rows import RowCounts, check_sizes, read_batches, rows_of
from trainer.inference.prediction_table import PredictionRow, open_prediction_table
from trainer.inference.predictor import Predictor
from trainer.model.bundle import check_unchanged, weights_sha256
from trainer.model.head import HeadConfig
from trainer.model.names import HEAD_FILE
from trainer.model.thresholds import read_threshold
from trainer.result import RunResult
from trainer.specs import PredictSpec


def predict(attempt: Attempt, spec: PredictSpec) -> RunResult:
    """Write the table and return the counts.

    Raises:
        SpecError: An image, folder, split or threshold does not exist.
        CheckpointError: The model does not exist, is damaged or has another version.
        ModelMismatch: The images of shards are smaller than the model's input.
        TrainerError: No image could be read.
        StorageError: The table cannot be written.
    """
    _refuse_missing(spec.images)
    folder = model_folder(spec.model, attempt.settings)
    if spec.threshold is not None:
        read_threshold(folder, spec.threshold)  # fails here, before workers start
    check_sizes(image_sources(spec.images, spec.split), HeadConfig.read(folder / HEAD_FILE).image_size)  # likewise
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


def _refuse_missing(images: Sequence[str]) -> None:
    """Refuse files and folders that are not there any more, without their names: logs and webhooks have the error.

    Raises:
        SpecError: One is missing.
    """
    places = [local_folder(given) for given in images]
    missing = [number for number, place in enumerate(places, 1) if place is not None and not _is_there(place)]
    if missing:
        others = f" ({len(missing)} of them in all)" if len(missing) > 1 else ""
        raise SpecError(
            f"path {missing[0]} of the {len(images)} that were given does not exist any more, or may not be "
            f"read{others}; `nightshift show` lists them; submit them again where they are now"
        )


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except PermissionError:  # for a folder above it; its text has the name
        return False


def predict_on_worker(context: WorkerContext[PredictSpec]) -> dict[str, Any]:
    """Write the table and return its counts; runs on the Ray Train worker."""
    spec, attempt = context.spec, context.task.attempt
    folder = model_folder(spec.model, attempt.settings)
    predictor = Predictor.load(folder, context.process_group.device, spec.threshold)
    parts = image_sources(spec.images, spec.split)
    context.progress.start_phase("predict", total=sum(len(part) for part in parts))
    config, table = predictor.config, attempt.paths.predicted(spec.form)
    counts = RowCounts(ignored=sum(part.ignored for part in parts))
    try:
        with open_prediction_table(
            table, config.classes, attempt.lease.atomic_write, multi_label=config.multi_label
        ) as write:
            for row in _rows(context, parts, predictor):
                counts.add(row)
                write(row)
    except OSError as error:
        raise StorageError(f"{table} cannot be written ({error.strerror}); free space there and retry") from error
    return counts.outcome(predictor)


def _rows(
    context: WorkerContext[PredictSpec], parts: tuple[ImageSource, ...], predictor: Predictor
) -> Iterator[PredictionRow]:
    batches = read_batches(
        parts,
        context.spec,
        predictor.config,
        loader_workers=context.loader_workers,
        prefetch_bytes=context.prefetch_bytes,
    )
    for batch in batches:
        yield from rows_of(batch, predictor)
        context.progress.add(len(batch.files))
        if reason := context.stop.reason():
            raise Stopped(f"stopped ({reason}); predict starts from the beginning when it is resumed")
