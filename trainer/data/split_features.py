"""The features of a split, read row by row from those of its shards: they are never in memory as one matrix.

The features of a shard are a view of its memory-mapped file in the feature cache. So the page cache of a machine holds
them once for all processes, and the operating system can drop pages that are not in use.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.feature_cache import Features

ROWS_AT_ONCE = 4096  # that are converted together: 21 MB of float32
MOST_OF_FREE = 0.8  # of a GPU's free memory: the training needs some too

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRows:
    """Some rows of several tensors, as if these were one tensor; only the rows that are asked for are read.

    Rows that are stored in bfloat16 are given in float32.

    Attributes:
        parts: `(n, ...)` tensors on the CPU, of one type and one shape but for n.
        chosen: `(N,) int64`, numbers of the rows, counted over all parts; None means all rows.
        on_read: Called each time before rows are read.
    """

    parts: tuple[Tensor, ...]
    chosen: Tensor | None = None
    on_read: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.chosen is None else len(self.chosen)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Return a copy of the rows with these numbers, int64 (B,), or of a slice."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        self.on_read()
        numbers = (rows if self.chosen is None else self.chosen[rows]).numpy()
        of_part = np.searchsorted(self._ends, numbers, side="right")
        found = np.empty((len(numbers), *self._row), dtype=self._arrays[0].dtype)
        for part in np.unique(of_part).tolist():
            places = np.flatnonzero(of_part == part)
            found[places] = self._arrays[part][numbers[places] - self._starts[part]]
        stored = torch.from_numpy(found)
        return stored.view(torch.bfloat16).float() if self._is_bf16 else stored

    @property
    def device(self) -> torch.device:
        """The device that rows are read to, the CPU."""
        return self.parts[0].device

    def select(self, rows: Tensor) -> "StoredRows":
        """Return only the rows with these numbers, int64 (N,); none is read."""
        return replace(self, chosen=rows if self.chosen is None else self.chosen[rows])

    @property
    def nbytes(self) -> int:
        """Size of all rows, as they are given."""
        return len(self) * math.prod(self._row) * self._dtype.itemsize

    def to(self, device: torch.device) -> "FeatureRows":
        """Return all rows as a tensor on a device; for the CPU, or a GPU without the memory, they stay here."""
        if device.type == "cpu" or not self._fits(device):
            return self
        return self._filled(torch.empty((len(self), *self._row), dtype=self._dtype, device=device))

    def _fits(self, device: torch.device) -> bool:
        if device.type != "cuda":
            return True
        free, _ = torch.cuda.mem_get_info(device)
        if self.nbytes <= free * MOST_OF_FREE:
            return True
        logger.warning(
            "features of %.1f GB stay in the memory of the machine: %s has %.1f GB free; each step copies its rows",
            *(self.nbytes / 1e9, device, free / 1e9),
        )
        return False

    def _filled(self, target: Tensor) -> Tensor:
        for start in range(0, len(self), ROWS_AT_ONCE):
            target[start : start + ROWS_AT_ONCE] = self[start : start + ROWS_AT_ONCE]
        return target

    @property
    def _row(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape[1:])

    @property
    def _is_bf16(self) -> bool:
        return self.parts[0].dtype == torch.bfloat16

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self._is_bf16 else self.parts[0].dtype

    @cached_property
    def _arrays(self) -> list[NDArray[np.generic]]:
        """The parts for NumPy, which has no bfloat16: only their bits."""
        return [(part.view(torch.int16) if self._is_bf16 else part).numpy() for part in self.parts]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        starts: NDArray[np.int64] = self._ends - np.array([len(part) for part in self.parts])
        return starts


FeatureRows: TypeAlias = Tensor | StoredRows  # what has a row of features for each image


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features and labels of the samples of a split, in the order of sample ids.

    Attributes:
        shards: Those of each shard.
        column_names: Names of the kept columns.
        on_read: Called each time before features are read.
    """

    shards: tuple[Features, ...]
    column_names: tuple[str, ...] = ()
    on_read: Callable[[], None] = lambda: None

    @cached_property
    def values(self) -> StoredRows:
        """`(N, 1280) float32`, also where they are stored in bfloat16."""
        return StoredRows(tuple(shard.values for shard in self.shards), on_read=self.on_read)

    @cached_property
    def labels(self) -> Tensor:
        """`(N,) int64` classes, or `(N, C)` targets of a multi-label data set, in memory."""
        return torch.cat([shard.labels for shard in self.shards])

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the files that the samples were packed from, for reports; never logged."""
        return _joined(shard.sources for shard in self.shards)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Patient or case of each sample; "" where unknown."""
        return _joined(shard.groups for shard in self.shards)

    @cached_property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Value of each sample in each kept column, by its name; "" where there is none."""
        found = [(shard.columns, len(shard.labels)) for shard in self.shards]
        return {
            name: _joined(columns.get(name) or ("",) * count for columns, count in found) for name in self.column_names
        }


def _joined(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(value for part in parts for value in part)
