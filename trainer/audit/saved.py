"""Keeps the audit of a data set in the storage, where reports and model cards find it by the digest of the data set.

Beside it are the scores of its classifiers, with which a report compares a model on the same images. Imports nothing of
the audit itself: it needs scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cluster.errors import StorageError
from cluster.files import read_json, write_bytes, write_json

SAMPLES, LABELS, CHECK = "samples", "labels", "check "  # names of the tensors in a file of scores
IDENTITY_BYTES = 16  # of an image

METHOD = 2  # version of the checks; to be raised when an audit of the same images would find something else
METHOD_KEY = "method"  # of the file; version 1 wrote none

LARGEST = 10.0  # of an AUROC and its limits; a larger one is damage


@dataclass(frozen=True, kw_only=True)
class AuditScores:
    """What the classifiers of an audit gave out for each image, fitted without the image's fold.

    Attributes:
        samples: (N, 16) uint8, identity of each image: see `trainer.evaluation.predictions.sample_ids`.
        labels: (N,) int64, the classes.
        scores: (N, classes) float64 of each check, by its name; NaN where no fold scored the image.
    """

    samples: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.float64]]


def save_audit(storage: Path, digest: str, audit: dict[str, Any], scores: AuditScores | None = None) -> None:
    """Write the audit, as JSON values, with the version of its method, and its scores, each atomically.

    Raises:
        OSError: The storage is full or not writable.
    """
    path = _path(storage, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    if scores is not None:
        tensors: dict[str, NDArray[Any]] = {SAMPLES: scores.samples, LABELS: scores.labels}
        checks = {f"{CHECK}{name}": np.ascontiguousarray(one) for name, one in scores.scores.items()}
        write_bytes(_scores_path(storage, digest), save({**tensors, **checks}))
    write_json(path, {METHOD_KEY: METHOD, **audit})


def read_audit(storage: Path, digest: str) -> dict[str, Any] | None:
    """Return the audit of a data set as JSON values, None if there is none of today's method that can be read."""
    found = _stored(storage, digest)
    return found if found is not None and _is_current(found) and _is_complete(found) else None


def has_outdated_audit(storage: Path, digest: str) -> bool:
    """Whether an audit of the data set is stored that another version of the method made."""
    found = _stored(storage, digest)
    return found is not None and not _is_current(found)


def _stored(storage: Path, digest: str) -> dict[str, Any] | None:
    try:
        found = read_json(_path(storage, digest))
    except (StorageError, OSError):
        return None
    return found if isinstance(found, dict) else None


def _is_current(audit: dict[str, Any]) -> bool:
    return audit.get(METHOD_KEY) == METHOD


def _is_complete(audit: dict[str, Any]) -> bool:
    """Whether an audit has what the pages that show it need."""
    checks = audit.get("checks")
    has_counts = all(type(audit.get(name)) is int for name in ("images", "total"))
    has_checks = isinstance(checks, list) and all(isinstance(check, dict) and _is_check(check) for check in checks)
    return has_counts and has_checks and isinstance(audit.get("sentence"), str)


def _is_check(check: dict[str, Any]) -> bool:
    if not {"name", "explanation", "auroc", "low", "high", "alarm"} <= check.keys():
        return False
    has_texts = isinstance(check["name"], str) and isinstance(check["explanation"], str)
    low, high = check["low"], check["high"]
    has_interval = (low is None and high is None) or (_is_figure(low) and _is_figure(high))
    return has_texts and has_interval and _is_figure(check["auroc"]) and isinstance(check["alarm"], bool)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST  # NaN fails the comparison too


def read_scores(storage: Path, digest: str, classes: int) -> AuditScores | None:
    """Return the scores of an audit of this number of classes, None if there are none that can be read."""
    try:
        with safe_open(_scores_path(storage, digest), framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        scores = AuditScores(
            samples=found[SAMPLES],
            labels=found[LABELS],
            scores={name.removeprefix(CHECK): one for name, one in found.items() if name.startswith(CHECK)},
        )
    except (OSError, SafetensorError, KeyError, TypeError):  # TypeError: numbers that numpy does not have
        return None
    return scores if _are_complete(scores, classes) else None


def _are_complete(scores: AuditScores, classes: int) -> bool:
    """Whether all arrays have the types and shapes that a comparison needs, and values of their range."""
    labels, count = scores.labels, scores.labels.size
    return (
        _is_array(scores.samples, np.uint8, (count, IDENTITY_BYTES))
        and _is_array(labels, np.int64, (count,))
        and bool(((labels >= 0) & (labels < classes)).all())
        and all(
            _is_array(one, np.float64, (count, classes)) and not np.isinf(one).any() for one in scores.scores.values()
        )
    )


def _is_array(array: NDArray[Any], kind: type[np.generic], shape: tuple[int, ...]) -> bool:
    return array.dtype == kind and array.shape == shape


def _scores_path(storage: Path, digest: str) -> Path:
    return _path(storage, digest).with_suffix(".safetensors")


def _path(storage: Path, digest: str) -> Path:
    return storage / "audits" / f"{digest}.json"
