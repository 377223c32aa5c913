"""Real images to try a model on: some of the data it was trained with, or what somebody names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import ClusterError
from cluster.files import read_json
from cluster.run_paths import RunPaths
from cluster.settings import Settings
from data_shards.errors import ShardError
from data_shards.index import read_index
from data_shards.read.stream import read_samples
from trainer.data.images import Files, Part, parts_of
from trainer.errors import SpecError

COUNT = 16


def samples_for(given: str | None, settings: Settings, manifest: Mapping[str, Any], *, image_size: int) -> Tensor:
    """Return up to `COUNT` images, (n, 3, S, S) uint8, evenly drawn from `given` or from the model's own data.

    Raises:
        SpecError: There are none.
    """
    part = parts_of((given or _own_data(settings, manifest),))[-1]  # of shards the last split: test before train
    pixels = _drawn(part, image_size)
    if not len(pixels):
        raise SpecError(f"none of the images of {given} can be read; name others with --samples")
    return pixels.expand(-1, 3, -1, -1).contiguous()


def _own_data(settings: Settings, manifest: Mapping[str, Any]) -> str:
    """Return the shards of the run that published the model."""
    try:
        shards = str(read_json(RunPaths.of(settings.storage, str(manifest.get("run"))).spec)["shards"])
        read_index(shards)
    except (ClusterError, ShardError, KeyError) as error:
        raise SpecError(
            "the data that the model was trained on are not here; name images or shards with --samples"
        ) from error
    return shards


def _drawn(part: Part, image_size: int) -> Tensor:
    chosen = np.unique(np.linspace(0, len(part) - 1, COUNT).round().astype(int)).tolist()
    if isinstance(part, Files):
        files = Files(tuple(part.paths[number] for number in chosen))
        return torch.cat(
            [chunk.pixels for chunk in files.chunks(batch_size=COUNT, image_size=image_size, loader_workers=0)]
        )
    index = read_index(part.location)
    batches = read_samples(part.location, index, part.split, chosen, image_size=image_size)
    return torch.cat([batch.images for batch in batches])
