"""Inference with a published model: calibrated probabilities and decisions."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.transforms import normalised
from trainer.evaluation.calibration import Calibration, Floats, Labels
from trainer.evaluation.named_thresholds import StoredModel, read_calibration
from trainer.evaluation.objective import Objective, objective_of
from trainer.model.bundle import read_model
from trainer.model.efficientnet import Head, LinearHead
from trainer.model.folded_backbone import FoldedBackbone
from trainer.model.head import HeadConfig
from trainer.model.precision import is_supported


@dataclass(frozen=True)
class Predictor:
    """A published model with the precision, temperature and threshold that `evaluate` uses."""

    config: HeadConfig
    calibration: Calibration
    backbone: FoldedBackbone
    head: Head | LinearHead

    @classmethod
    def load(cls, folder: Path, device: torch.device, threshold: str | None = None) -> "Predictor":
        """Load a published model; it decides at the threshold of that name, without one by the most probable class.

        Raises:
            CheckpointError: It does not exist, is damaged or has another version.
            SpecError: It has no threshold of that name.
        """
        model, config, manifest = read_model(folder)
        calibration = read_calibration(StoredModel.of(folder, config, manifest), threshold)
        precision = config.precision if is_supported(config.precision, device) else "fp32"
        return cls(config, calibration, FoldedBackbone(model.backbone, precision, device), model.head)

    @property
    def objective(self) -> Objective:
        """Probabilities and decisions of the model's labels."""
        return objective_of(self.config.multi_label)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Floats:
        """Return the calibrated probabilities (B, C) float64 of (B, 1 or 3, S, S) uint8 images."""
        if not len(images):
            return np.empty((0, len(self.config.classes)))
        features = self.backbone(images, partial(normalised, config=self.config))
        logits = self.head(features).double().numpy()
        probabilities = self.objective.probabilities(logits)
        return self.objective.calibrated(probabilities, self.calibration, self.config.classes)

    def decisions(self, probabilities: Floats) -> Labels:
        """Return the predicted class of each row (B,), or its labels (B, C), at the loaded thresholds."""
        return self.objective.decisions(probabilities, self.calibration, self.config.classes)
