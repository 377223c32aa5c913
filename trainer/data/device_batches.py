"""Images of several batches together on the device: a GPU computes more at once than a loader process decodes."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class DeviceBatches:
    """Joins batches of images on a device.

    On a GPU a stream of its own copies them, so that the copies of pinned images overlap with the computation before.

    Attributes:
        images: How many images are joined; batches come as they are if they have as many or more.
    """

    def __init__(self, device: torch.device, images: int) -> None:
        self.device, self.images = device, images
        self._copies = _new_stream(device) if device.type == "cuda" else None

    def __call__(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images `(B, ...)` on the device in their order, B of all but the last at least `self.images`."""
        waiting: list[Tensor] = []
        for batch in batches:
            waiting.append(self._copied(batch))
            if sum(map(len, waiting)) >= self.images:
                yield self._joined(waiting)
                waiting = []
        if waiting:
            yield self._joined(waiting)

    def _copied(self, batch: Tensor) -> Tensor:
        if self._copies is None:
            return batch.to(self.device, non_blocking=True)
        with torch.cuda.stream(self._copies):
            return batch.to(self.device, non_blocking=True)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if self._copies is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._copies)
            for part in parts:
                part.record_stream(current)  # the stream of the copies must not reuse its memory before it was read
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
