"""`predictions.safetensors`: what a model said of each image of a split, so that a report can be drawn again.

Pixels and patients are not in it: an image is named by its number in the split.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from cluster.files import write_bytes
from trainer.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Rows in the order of `ids`.

    Attributes:
        ids: (N,) int64, number of the image in its split.
        labels: (N,) int64, positions in the model's classes.
        probabilities: (N, C) float64, as the model gives them, before any temperature.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        arrays: dict[str, NDArray[Any]] = {
            "ids": self.ids,
            "labels": self.labels,
            "probabilities": np.ascontiguousarray(self.probabilities),
        }
        write_bytes(path, save(arrays))

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read the file.

        Raises:
            CheckpointError: It is absent or damaged.
        """
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read as predictions: {error}; evaluate the model again") from error
