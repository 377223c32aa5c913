"""`out_of_fold.safetensors` beside a model that was cross-validated: its predictions out of fold.

The published model has learnt from all images of train and valid. What is chosen later, such as a decision threshold,
is chosen on these predictions: each image's comes from a head that was trained without the image's fold. The file holds
no names of images or patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.evaluation.intervals import group_ids
from trainer.evaluation.objective import objective_of
from trainer.evaluation.scoring import ModelOutputs
from trainer.model.checkpoint_folder import read_tensors
from trainer.model.head import HeadConfig

OUT_OF_FOLD_FILE = "out_of_fold.safetensors"
KEY = "cross_validation"  # of the manifest, and of `result.json`
NAMES = ("logits", "labels", "groups", "folds")


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Predictions out of fold of one division into folds, in the order of the images of train, then valid.

    Attributes:
        outputs: Logits, labels and groups.
        folds: `(N,) int64`, the fold of each image.
    """

    outputs: ModelOutputs
    folds: NDArray[np.int64]

    def tensors(self) -> dict[str, Tensor]:
        """Return the content of the file; groups are numbered."""
        units = group_ids(self.outputs.groups, len(self.folds))
        arrays = (self.outputs.logits, self.outputs.labels, units, self.folds)
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in zip(NAMES, arrays, strict=True)}

    @classmethod
    def read(cls, folder: Path, config: HeadConfig) -> "OutOfFold":
        """Read the file beside a published model, whose manifest has been verified.

        Raises:
            CheckpointError: It is absent, damaged, or about other classes.
        """
        path = folder / OUT_OF_FOLD_FILE
        found = read_tensors(path)
        if set(found) != set(NAMES) or found["logits"].shape != (len(found["labels"]), len(config.classes)):
            raise CheckpointError(f"{path} does not fit the model; train it again with --folds")
        logits, labels, units, folds = (found[name].numpy() for name in NAMES)
        outputs = ModelOutputs(
            logits=logits.astype(np.float64),
            labels=labels.astype(np.int64),
            groups=tuple(map(str, units.tolist())),
            objective=objective_of(config.multi_label),
        )
        return cls(outputs=outputs, folds=folds.astype(np.int64))


def is_cross_validated(manifest: Mapping[str, Any]) -> bool:
    """Return whether a model has predictions out of fold beside it, from its verified manifest."""
    return OUT_OF_FOLD_FILE in manifest["files"]
