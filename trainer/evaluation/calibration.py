"""Temperature scaling, fitted on the validation split only, and decisions at a threshold.

A temperature that is fitted and evaluated on the same images gives optimistic metrics, so this module never reads the
test split. `calibration.json` beside the published model holds the temperature and the sha256 of the weights that it
belongs to. It is replaced atomically; the published model stays unchanged. Thresholds are kept under names: see
`trainer.model.thresholds`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import StorageError
from cluster.files import read_json
from cluster.lease import Lease
from trainer.errors import CheckpointError, TrainerError
from trainer.evaluation.temperature import apply_temperature
from trainer.model.names import CALIBRATION_FILE

# If every validation image is classified correctly, cross-entropy is lowest at temperature 0, so bounds are needed.
TEMPERATURES = (0.5, 10.0)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]


class LabelCalibration(BaseModel):
    """The temperature and the decision threshold of one label of a multi-label model.

    Attributes:
        temperature: Divides the label's logit before the sigmoid.
        threshold: The label is predicted if its probability after temperature scaling is at least this; None means 0.5.
        min_sensitivity: The sensitivity requested on the validation split.
        sensitivity: The sensitivity reached on the validation split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: Annotated[float, Field(gt=0)] = 1.0
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    min_sensitivity: float | None = None
    sensitivity: float | None = None


class Calibration(BaseModel):
    """The temperature and the decision threshold of a published model.

    Attributes:
        model: sha256 of the weights that the values were fitted for; "" before `write`.
        temperature: Divides the logits before softmax; 1 leaves them unchanged.
        positive: The class that `threshold` applies to; None without a threshold.
        threshold: A sample is predicted `positive` if its probability after temperature scaling is at least this.
        min_sensitivity: The sensitivity requested on the validation split.
        sensitivity: The sensitivity reached on the validation split.
        data: Digest of the data set whose validation split was used.
        samples: Number of images in that validation split.
        labels: Temperature and threshold of each label of a multi-label model; empty for other models.
        threshold_name: Name of the thresholds in `thresholds/`; None for the default decision. Not in the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    model: str = ""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    positive: str | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    min_sensitivity: float | None = None
    sensitivity: float | None = None
    data: str = ""
    samples: int = 0
    labels: dict[str, LabelCalibration] = {}
    threshold_name: str | None = None

    def without_thresholds(self) -> "Calibration":
        """Return the temperatures alone: the default decision.

        Version 0.1.0 kept a threshold in the file; `trainer.model.thresholds` reads it as a named one.
        """
        none = {"positive": None, "threshold": None, "min_sensitivity": None, "sensitivity": None}
        labels = {name: LabelCalibration(temperature=label.temperature) for name, label in self.labels.items()}
        return self.model_copy(update={**none, "labels": labels, "threshold_name": None})

    def with_thresholds(self, name: str, found: Mapping[str, Mapping[str, Any]], *, multi_label: bool) -> "Calibration":
        """Return the calibration with the thresholds of a name: of each label, or of the one class that it is about."""
        if not multi_label:
            ((positive, values),) = found.items()
            return self.model_copy(update={"positive": positive, **values, "threshold_name": name})
        labels = dict(self.labels)
        for label, values in found.items():
            labels[label] = labels.get(label, LabelCalibration()).model_copy(update=dict(values))
        return self.model_copy(update={"labels": labels, "threshold_name": name})

    def write(self, folder: Path, model: str, lease: Lease) -> None:
        """Write `calibration.json` atomically beside the model whose weights have the sha256 `model`.

        Raises:
            LeaseLost: A newer attempt owns the run that writes it.
            CheckpointError: The folder cannot be written.
        """
        try:
            left_out = {"threshold_name"} if self.labels else {"threshold_name", "labels"}
            content = self.model_dump(mode="json", exclude=left_out)
            lease.write_json(folder / CALIBRATION_FILE, {**content, "model": model})
        except OSError as error:
            raise CheckpointError(
                f"{folder / CALIBRATION_FILE} cannot be written: {error.strerror}; free space there or make it writable"
            ) from error

    @classmethod
    def read(cls, folder: Path, model: str) -> "Calibration":
        """Return the calibration beside the model with weights `model` (sha256); the identity if the file is absent.

        Raises:
            CheckpointError: The file is damaged or belongs to other weights.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return cls(model=model)
        try:
            found = cls.model_validate(read_json(path))
        except (StorageError, ValidationError) as error:
            raise CheckpointError(
                f"{path} is damaged; remove it: the model then answers without temperature scaling"
            ) from error
        if found.model != model:
            raise CheckpointError(
                f"{path} belongs to other weights; remove it: the model then answers without temperature scaling"
            )
        return found

    def threshold_for(self, positive: str) -> float | None:
        """Return the threshold if it was chosen for the class `positive`, else None."""
        return self.threshold if self.positive == positive else None


def decision_fields(calibration: Calibration) -> set[str]:
    """Return the fields of a calibration that say how the model decides."""
    return {"threshold_name", *({"labels"} if calibration.labels else {"positive", "threshold", "temperature"})}


def fit_calibration(probabilities: Floats, labels: Labels, *, data: str) -> Calibration:
    """Fit the temperature on the validation split of the data set with the digest `data`."""
    return Calibration(temperature=fit_temperature(probabilities, labels), data=data, samples=len(labels))


def predicted_classes(probabilities: Floats, *, positive: int, threshold: float | None) -> Labels:
    """Return the predicted class of each row of `probabilities` (N, C) as (N,) int64.

    Without a threshold: the class with the highest probability (the first of ties). With a threshold: `positive`
    where its probability is at least the threshold, elsewhere the most probable of the other classes.
    """
    if threshold is None:
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    others: Floats = probabilities.copy()
    others[:, positive] = -1.0
    reached = probabilities[:, positive] >= threshold
    return np.where(reached, positive, others.argmax(axis=1)).astype(np.int64)


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """Return the temperature that minimizes cross-entropy (Guo et al. 2017), within `TEMPERATURES`."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 -- takes a second, and a prediction does not need it
    from sklearn.metrics import log_loss  # noqa: PLC0415

    every = range(probabilities.shape[1])

    def loss(logarithm: float) -> float:
        return float(log_loss(labels, apply_temperature(probabilities, float(np.exp(logarithm))), labels=every))

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return round(float(np.exp(found.x)), 4)


def threshold_for_sensitivity(
    probabilities: Floats, labels: Labels, *, positive: int, min_sensitivity: float, name: str
) -> tuple[float, float]:
    """Return the threshold with the fewest false positives that reaches `min_sensitivity`, and the sensitivity reached.

    Of the thresholds with as many false positives, it is the lowest: a lower one finds more of the class at no cost. It
    lies midway between the lowest score that it includes and the next lower one (0 if there is none), as the thresholds
    of pROC do (Robin et al. 2011, BMC Bioinformatics 12), so no image has exactly this score.

    Raises:
        TrainerError: There is no image of the class `name`.
    """
    hits = labels == positive
    if not hits.any():
        raise TrainerError(f"there are no {name} images to choose a threshold on; pack the data set with some")
    scores = probabilities[:, positive]
    cuts = np.unique(scores)[::-1]  # of equal scores, all are included or none
    found = _at_or_above(scores[hits], cuts) / hits.sum()
    false_positives = _at_or_above(scores[~hits], cuts)
    first = int(np.argmax(found >= min_sensitivity))
    last = int(np.searchsorted(false_positives, false_positives[first], side="right")) - 1
    lower = float(cuts[last + 1]) if last + 1 < len(cuts) else 0.0
    midway = (float(cuts[last]) + lower) / 2
    return midway if midway > lower else float(cuts[last]), float(found[last])


def _at_or_above(scores: Floats, cuts: Floats) -> NDArray[np.int64]:
    """Return how many of the scores are at or above each of the cuts."""
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), cuts, side="left"), dtype=np.int64)
