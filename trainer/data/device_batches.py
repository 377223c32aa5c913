"""Images of several batches together on the device: a GPU computes more at once than a loader process decodes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DeviceBatches:
    """Joins batches of images on a device.

    Attributes:
        images: How many images are joined; batches come as they are if they have as many or more.
    """

    device: torch.device
    images: int

    def __call__(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images `(B, ...)` on the device in their order, B of all but the last at least `self.images`."""
        waiting: list[Tensor] = []
        for batch in batches:
            waiting.append(batch.to(self.device, non_blocking=True))
            if sum(map(len, waiting)) >= self.images:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
