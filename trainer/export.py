"""`export`: a published model as one file for other programs, compared with the model before anybody sees it."""

import os
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
from trainer.evaluation.calibration import Calibration
from trainer.inference.export_formats import EXPORT_FORMATS, ExportedModel, ExportFormat, Metadata, export_metadata
from trainer.model.bundle import read_model
from trainer.model.names import MODEL_FILE
from trainer.result import RunResult
from trainer.specs import ExportSpec

TOLERANCE = 1e-4  # between probabilities: other kernels round otherwise, by 1e-5 where it was measured


def export(attempt: Attempt, spec: ExportSpec) -> RunResult:
    """Write the file and return how well it agrees with the model.

    Raises:
        CheckpointError: The model is absent, damaged or of another version.
        SpecError: There are no images to compare on, or the packages for the format are not installed.
        TrainerError: The file and the model disagree; nothing is published.
        StorageError: The file cannot be written.
    """
    folder, form = model_folder(spec.model, attempt.settings), EXPORT_FORMATS[spec.format]
    model, config, manifest = read_model(folder)
    weights = str(manifest["files"][MODEL_FILE])
    calibration = Calibration.read(folder, weights)
    images = sample_images(spec.samples, attempt.settings, manifest, image_size=config.image_size)
    deployed, facts = ExportedModel(model, config, calibration), export_metadata(config, calibration, weights)
    target = attempt.paths.exported(form.ending)
    with _published(attempt, target) as draft:
        form.write(deployed, images[[0, -1]], facts, draft)
        difference = verify_export(form, draft, deployed, facts, images)
    if spec.output is not None:
        copy_atomically(target, Path(spec.output))
    return RunResult(
        kind=spec.kind,
        checkpoint=str(folder),
        metrics={"n": len(images), "max_difference": difference, "classes": list(config.classes)},
        seconds=round(attempt.seconds, 3),
        details={
            "output": spec.output or str(target),
            "sha256": sha256_of(target),
            **calibration.model_dump(include={"positive", "threshold", "temperature"}),
        },
    )


@contextmanager
def _published(attempt: Attempt, target: Path) -> Iterator[Path]:
    """Yield where to write; what was written becomes `target` when the block ends well."""
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield draft
        attempt.lease.check()
        draft.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written ({error.strerror}); free space there and retry") from error
    finally:
        draft.unlink(missing_ok=True)


def verify_export(form: ExportFormat, path: Path, model: ExportedModel, facts: Metadata, images: Tensor) -> float:
    """Return the greatest difference between the file's and the model's probabilities of `images`.

    One image alone is tried too, so that a file which only takes the batch it was made with is found out.

    Raises:
        TrainerError: A probability differs by more than rounding, or the file lacks its metadata.
    """
    with torch.no_grad():
        expected = model(images).numpy()
    found, alone = form.run(path, images), form.run(path, images[:1])
    difference = float(max(np.abs(found - expected).max(), np.abs(alone - expected[:1]).max()))
    if not difference <= TOLERANCE:  # nor when it is no number
        raise TrainerError(f"the file differs from the model by {difference:.2g}, more than {TOLERANCE}; not published")
    if form.facts(path) != dict(facts):
        raise TrainerError("the file does not give back the metadata it was given; not published")
    return difference
