"""`export`: a published model as one file for other programs, compared with the model before it is published."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.errors import StorageError
from cluster.files import copy_atomically, sha256_of
from trainer.attempt import Attempt
from trainer.data.images import sample_images
from trainer.errors import TrainerError
from trainer.evaluate import model_folder
from trainer.evaluation.calibration import decision_fields
from trainer.evaluation.named_thresholds import StoredModel, read_calibration
from trainer.inference.export_formats import EXPORT_FORMATS, ExportedModel, ExportFormat, Metadata, export_metadata
from trainer.model.bundle import read_model
from trainer.model.names import MODEL_FILE
from trainer.result import RunResult
from trainer.specs import ExportSpec

TOLERANCE = 1e-4  # on probabilities; other kernels round differently, measured up to 1e-5


def export(attempt: Attempt, spec: ExportSpec) -> RunResult:
    """Write the file and return the largest difference from the model's probabilities.

    Raises:
        CheckpointError: The model does not exist, is damaged or has another version.
        SpecError: There are no sample images, or the packages for the format are not installed.
        TrainerError: File and model differ; nothing is published.
        StorageError: The file cannot be written.
    """
    folder, form = model_folder(spec.model, attempt.settings), EXPORT_FORMATS[spec.format]
    model, config, manifest = read_model(folder)
    weights = str(manifest["files"][MODEL_FILE])
    calibration = read_calibration(StoredModel.of(folder, config, manifest), spec.threshold)
    images = sample_images(spec.samples, attempt.settings, manifest, config=config)
    exported, metadata = ExportedModel(model, config, calibration), export_metadata(config, calibration, weights)
    target = attempt.paths.exported(form.ending)
    with _atomic_file(attempt, target) as draft:
        form.write(exported, images[[0, -1]], metadata, draft)
        difference = verify_export(form, draft, exported, metadata, images)
    if spec.output is not None:
        copy_atomically(target, Path(spec.output), write=attempt.lease.atomic_write)
    return RunResult(
        kind=spec.kind,
        checkpoint=str(folder),
        metrics={"n": len(images), "max_difference": difference, "classes": list(config.classes)},
        seconds=round(attempt.seconds, 3),
        model_sha256=weights,
        details={
            "output": spec.output or str(target),
            "sha256": sha256_of(target),
            **calibration.model_dump(include=decision_fields(calibration)),
        },
    )


@contextmanager
def _atomic_file(attempt: Attempt, target: Path) -> Iterator[Path]:
    """Yield the path of a draft, which is renamed to `target` when the block succeeds."""
    try:
        with attempt.lease.atomic_write(target) as draft:
            yield draft
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}); free space there and retry") from error


def verify_export(form: ExportFormat, path: Path, model: ExportedModel, metadata: Metadata, images: Tensor) -> float:
    """Return the largest difference between the probabilities of the file and the model for `images`.

    A single image is run too, to detect a file that only accepts the batch size it was traced with.

    Raises:
        TrainerError: A probability differs by more than `TOLERANCE`, or the file lacks its metadata.
    """
    with torch.no_grad():
        expected = model(images).numpy()
    found, single = form.run(path, images), form.run(path, images[:1])
    difference = float(max(np.abs(found - expected).max(), np.abs(single - expected[:1]).max()))
    if not difference <= TOLERANCE:  # also true for NaN
        raise TrainerError(
            f"the file's probabilities differ from the model by {difference:.2g}, more than {TOLERANCE}; "
            "not published; try another --format"
        )
    if form.metadata(path) != dict(metadata):
        raise TrainerError("the metadata of the file is incomplete; not published; try another --format")
    return difference
