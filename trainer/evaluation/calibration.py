"""From a model's probabilities to a decision: temperature and threshold, both chosen on the validation split only.

A threshold chosen on the data it is judged on flatters itself, so nothing here ever sees the test split. What was
chosen lies beside the model in `calibration.json`, which names the model it belongs to by sha256: it is replaced
whole, without touching the published model.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn import metrics as sk

from cluster.errors import StorageError
from cluster.files import read_json, write_json
from trainer.errors import CheckpointError, TrainerError
from trainer.model.names import CALIBRATION_FILE

# A handful of validation images can all be right, and the best temperature is then 0: every probability 0 or 1.
TEMPERATURES = (0.5, 10.0)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


class Calibration(BaseModel):
    """How a model's probabilities are read.

    Attributes:
        model: sha256 of the weights that this was chosen for; "" until it lies beside them.
        temperature: Divides the logits before softmax; 1 leaves them.
        positive: The class that `threshold` decides on; None when no threshold was chosen.
        threshold: Probability of `positive`, after the temperature, from which on the decision is `positive`.
        min_sensitivity: What the threshold was to reach on the validation split; `sensitivity` what it does reach.
        data: Digest of the data set whose validation split was used; `samples` its images.
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

    def write(self, folder: Path, model: str) -> None:
        """Put it beside the model whose weights have the sha256 `model`, whole or not at all.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            write_json(folder / CALIBRATION_FILE, {**self.model_dump(mode="json"), "model": model})
        except OSError as error:
            raise CheckpointError(
                f"{folder / CALIBRATION_FILE} cannot be written: {error.strerror}; free space there or make it writable"
            ) from error

    @classmethod
    def read(cls, folder: Path, model: str) -> "Calibration":
        """Return what lies beside the model whose weights have the sha256 `model`; nothing chosen when nothing does.

        Raises:
            CheckpointError: The file is damaged or was made for other weights.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return cls(model=model)
        try:
            found = cls.model_validate(read_json(path))
        except (StorageError, ValidationError) as error:
            raise CheckpointError(
                f"{path} is damaged; remove it, or replace it by evaluate --min-sensitivity"
            ) from error
        if found.model != model:
            raise CheckpointError(
                f"{path} was made for other weights; remove it, or replace it by evaluate --min-sensitivity"
            )
        return found

    def threshold_for(self, positive: str) -> float | None:
        """Return the threshold where it was chosen for this class."""
        return self.threshold if self.positive == positive else None


def fit_calibration(
    probabilities: Floats,
    labels: Labels,
    *,
    data: str,
    classes: tuple[str, ...],
    positive: str | None = None,
    min_sensitivity: float | None = None,
) -> Calibration:
    """Choose a temperature on the validation split, and a threshold where a sensitivity is wished.

    Raises:
        TrainerError: A threshold is wished, and the split has no image of the positive class.
    """
    temperature = fit_temperature(probabilities, labels)
    chosen = Calibration(temperature=temperature, data=data, samples=len(labels))
    if min_sensitivity is None:
        return chosen
    name = positive or classes[0]
    threshold, reached = threshold_for_sensitivity(
        apply_temperature(probabilities, temperature),
        labels,
        positive=classes.index(name),
        min_sensitivity=min_sensitivity,
        name=name,
    )
    wished = {"positive": name, "threshold": threshold, "min_sensitivity": min_sensitivity, "sensitivity": reached}
    return chosen.model_copy(update=wished)


def predicted_classes(probabilities: Floats, *, positive: int, threshold: float | None) -> Labels:
    """Return the class called for each row (N, C), as (N,) int64.

    Without a threshold the likeliest class (the first of equals); with one, `positive` wherever its probability
    reaches the threshold and the likeliest of the others elsewhere.
    """
    if threshold is None:
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    others: Floats = probabilities.copy()
    others[:, positive] = -1.0
    reached = probabilities[:, positive] >= threshold
    return np.where(reached, positive, others.argmax(axis=1)).astype(np.int64)


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return the probabilities (N, C) that the same logits give when divided by `temperature` before softmax."""
    if temperature == 1:
        return probabilities
    with np.errstate(divide="ignore"):  # the logarithm of 0 is -inf, which stays 0 at any temperature
        logits = np.log(probabilities) / temperature
    return np.asarray(softmax(logits, axis=1), dtype=np.float64)


def fit_temperature(probabilities: Floats, labels: Labels) -> float:
    """Return the temperature of least cross-entropy on the validation split (Guo et al. 2017), within bounds."""
    every = range(probabilities.shape[1])

    def loss(logarithm: float) -> float:
        return float(sk.log_loss(labels, apply_temperature(probabilities, float(np.exp(logarithm))), labels=every))

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return round(float(np.exp(found.x)), 4)


def threshold_for_sensitivity(
    probabilities: Floats, labels: Labels, *, positive: int, min_sensitivity: float, name: str
) -> tuple[float, float]:
    """Return the highest threshold that finds so much of the positive class, and the sensitivity it reaches.

    It lies midway to the next lower score, so that no image of the validation split sits on the edge.

    Raises:
        TrainerError: The validation split has no image of the class `name`.
    """
    hits = labels == positive
    if not hits.any():
        raise TrainerError(f"the valid split has no {name} images to choose a threshold on; pack it with some")
    scores = probabilities[:, positive]
    _, found, thresholds = sk.roc_curve(np.append(hits, False), np.append(scores, 0.0), drop_intermediate=False)
    at = int(np.argmax(found >= min_sensitivity))
    lower = scores[scores < thresholds[at]].max(initial=0.0)
    return float((thresholds[at] + lower) / 2), float(found[at])
