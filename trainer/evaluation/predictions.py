"""`predictions.safetensors`: label and predicted probabilities of each image of a split.

The report is rendered from it. It holds no pixels and no patient names: an image is identified by its index in the
split.
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
    """Labels and predicted probabilities, one row per image.

    Attributes:
        ids: (N,) int64, index of the image in its split.
        labels: (N,) int64, indices into the model's classes.
        probabilities: (N, C) float64, before temperature scaling.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def write(self, path: Path) -> None:
        """Write the file atomically."""
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
            CheckpointError: The file is absent or damaged.
        """
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read as predictions: {error}; evaluate the model again") from error
