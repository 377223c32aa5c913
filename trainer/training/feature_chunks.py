"""Rows of features a few thousand at a time, for fits that read them several times instead of holding all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from trainer.data.split_features import ROWS_AT_ONCE, FeatureRows

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class FeatureChunks:
    """Features `(N, F)` in chunks of float64, read again in each iteration.

    Attributes:
        features: Of all images.
        on_step: Called before each chunk; what it raises ends the iteration.
        numbers: Of the rows that are meant, in ascending order; None means all.
        scaler: Standardizes the rows; None leaves them as they are.
    """

    features: FeatureRows
    on_step: Callable[[], None]
    numbers: Numbers | None = None
    scaler: StandardScaler | None = None

    def __len__(self) -> int:
        return len(self.features) if self.numbers is None else len(self.numbers)

    @property
    def columns(self) -> int:
        """F."""
        return self.features[:1].shape[1]

    def __iter__(self) -> Iterator[tuple[slice, Floats]]:
        """Yield the places of the rows of a chunk among all rows that are meant, and these rows."""
        for start in range(0, len(self), ROWS_AT_ONCE):
            self.on_step()
            places = slice(start, min(start + ROWS_AT_ONCE, len(self)))
            chosen = places if self.numbers is None else torch.from_numpy(self.numbers[places])
            rows = self.features[chosen].cpu().numpy().astype(np.float64)
            yield places, rows if self.scaler is None else self.scaler.transform(rows)

    def of_rows(self, numbers: Numbers) -> "FeatureChunks":
        """Return only the rows with these numbers."""
        return replace(self, numbers=numbers)

    def standardized(self) -> "FeatureChunks":
        """Return the rows with a mean of 0 and a standard deviation of 1 in each column; all are read once for that."""
        scaler = StandardScaler()
        for _, rows in self:
            scaler.partial_fit(rows)
        return replace(self, scaler=scaler)

    def whole(self) -> Floats:
        """Return all rows in memory."""
        found = np.empty((len(self), self.columns))
        for places, rows in self:
            found[places] = rows
        return found
