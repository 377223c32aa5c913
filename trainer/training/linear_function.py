"""A linear function of features, as the fits of linear heads return it."""

from dataclasses import dataclass

from trainer.training.feature_chunks import Floats


@dataclass(frozen=True, kw_only=True)
class LinearFunction:
    """Logits `features @ coefficients.T + intercepts`: (C, F) and (C,)."""

    coefficients: Floats
    intercepts: Floats
