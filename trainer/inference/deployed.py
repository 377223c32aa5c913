"""A published model as one module for other programs: from RGB bytes to calibrated probabilities, in float32."""

import json

import torch
from torch import Tensor, nn

from trainer.evaluation.calibration import Calibration
from trainer.model.efficientnet import Classifier
from trainer.model.head import HeadConfig

RESIZE = "short side to image_size with antialiased bilinear filter, then the centre square"


class Deployed(nn.Module):
    """`(B, 3, S, S) uint8` RGB images, cut to the square, to `(B, classes) float32` probabilities.

    Normalisation and temperature are inside, so that whoever runs it can get neither wrong.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, config: HeadConfig, calibration: Calibration) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.contiguous_format)
        self.temperature = calibration.temperature
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1) * 255)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of each class."""
        logits = self.model((images.float() - self.mean) / self.std)  # (B, classes)
        return torch.softmax(logits / self.temperature, dim=1)


def facts_of(config: HeadConfig, calibration: Calibration, weights: str) -> dict[str, str]:
    """Return what stands in the file as metadata, all of it text; the classes are a JSON list."""
    threshold, positive = calibration.threshold, calibration.positive
    rule = (
        "the likeliest class" if threshold is None else f"{positive} from {threshold}, else the likeliest other class"
    )
    return {
        "classes": json.dumps(config.classes),
        "input": f"images: uint8 (batch, 3, {config.image_size}, {config.image_size}), RGB, not normalised",
        "resize": RESIZE,
        "image_size": str(config.image_size),
        "normalisation": "inside",
        "mean": " ".join(map(str, config.mean)),
        "std": " ".join(map(str, config.std)),
        "temperature": f"inside, {calibration.temperature}",
        "positive": positive or "",
        "threshold": "" if threshold is None else repr(threshold),
        "decision": rule,
        "weights_sha256": weights,
    }
