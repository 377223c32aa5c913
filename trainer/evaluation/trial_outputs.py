"""The outputs of a search's trials on the images that rank them, kept until the search chooses a trial.

`checkpoints/outputs/trial-NNNNNN-NNNNNN.safetensors` of a search has the logits of one epoch of a trial: of each of its
trainings (seeds, or repeats of a cross-validation). It holds no names of images or patients.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from cluster.access import why_not
from cluster.lease import Lease
from trainer.errors import CheckpointError
from trainer.evaluation.intervals import group_ids

if TYPE_CHECKING:
    from trainer.evaluation.scoring import ModelOutputs  # it imports ray, which the search controller does not need

FOLDER = "outputs"
VALUE = "value"  # key of the metadata
KEPT = 2  # epochs of a trial: a training may be an epoch ahead of what it has reported


@dataclass(frozen=True, kw_only=True)
class EpochOutputs:
    """Which epoch of which trial outputs are about, and its value of the metric that ranks."""

    trial: int
    epoch: int
    value: float


@dataclass(frozen=True, kw_only=True)
class TrialOutputs:
    """What one trial gave out.

    Attributes:
        logits: `(R, N, C) float64`, of each training.
        labels: `(N,)` classes, or `(N, C)` targets.
        units: `(N,)`, index of each image's group; None where the groups are not stored.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    units: NDArray[np.int64] | None


def write_trial_outputs(
    checkpoints: Path, about: EpochOutputs, outputs: Sequence["ModelOutputs"], lease: Lease, *, has_groups: bool
) -> None:
    """Keep the outputs of an epoch that is the best of its trial so far; those of much earlier ones are removed.

    Args:
        checkpoints: Of the search.
        about: Trial and epoch.
        outputs: Of each training, on the same images.
        lease: Of the attempt that writes.
        has_groups: Whether the groups in `outputs` are those of the images.

    Raises:
        LeaseLost: A newer attempt owns the run.
        CheckpointError: The storage is full.
    """
    first = outputs[0]
    arrays = {
        "logits": np.stack([one.logits for one in outputs]).astype(np.float32),  # as they were computed
        "labels": np.ascontiguousarray(first.labels, dtype=np.int32),
    }
    if has_groups:
        arrays["units"] = group_ids(first.groups, len(first.labels)).astype(np.int32)
    path = _path(checkpoints, about.trial, about.epoch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lease.write_bytes(path, save(arrays, metadata={VALUE: repr(about.value)}), durable=False)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {why_not(error, path, 'free space there')}") from error
    for old in _files(checkpoints, about.trial)[:-KEPT]:
        lease.remove(old)


def trial_of(folder: Path) -> int | None:
    """Return the number of the trial that has a folder; None for that of a repeat or of a refit."""
    found = re.fullmatch(r"trial-(\d{6,})", folder.name)
    return None if found is None else int(found[1])


def best_written_value(checkpoints: Path, trial: int) -> float | None:
    """Return the best value of a trial in an earlier attempt or process; None if there is none.

    The file of its last epoch has it: the outputs of an epoch are written if it is better than those before.
    """
    for path in reversed(_files(checkpoints, trial)):
        try:
            with safe_open(path, framework="numpy") as file:
                return float((file.metadata() or {})[VALUE])
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
    return None


def read_trial_outputs(checkpoints: Path, trial: int, epoch: int) -> TrialOutputs | None:
    """Return what `write_trial_outputs` wrote; None if it is absent or damaged."""
    try:
        found = load_file(_path(checkpoints, trial, epoch))
        logits, labels, units = found["logits"], found["labels"], found.get("units")
    except (OSError, SafetensorError, ValueError, KeyError):
        return None
    if logits.ndim != 3 or logits.shape[1] != len(labels) or (units is not None and len(units) != len(labels)):  # noqa: PLR2004
        return None
    return TrialOutputs(
        logits=logits.astype(np.float64),
        labels=labels.astype(np.int64),
        units=None if units is None else units.astype(np.int64),
    )


def copy_trial_outputs(checkpoints: Path, trial: int, target: Path, lease: Lease) -> None:
    """Copy the outputs of a trial to the checkpoints of a search that extends its own."""
    for path in _files(checkpoints, trial):
        copy = target / FOLDER / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        lease.write_bytes(copy, path.read_bytes(), durable=False)


def _files(checkpoints: Path, trial: int) -> list[Path]:
    return sorted((checkpoints / FOLDER).glob(f"trial-{trial:06d}-*.safetensors"))


def _path(checkpoints: Path, trial: int, epoch: int) -> Path:
    return checkpoints / FOLDER / f"trial-{trial:06d}-{epoch:06d}.safetensors"
