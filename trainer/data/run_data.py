"""The data set of a run: as it was when the run started, though images may have been added to it since."""

import logging
from typing import Any

from cluster.files import read_json_object_if_any
from cluster.lease import Lease
from cluster.run_paths import RunPaths
from data_shards.index import ShardIndex, read_index

logger = logging.getLogger(__name__)


def run_index(lease: Lease, location: str) -> ShardIndex:
    """Return the index of a run's data set as it was when the run started.

    Its digest is kept in the run folder, so that all workers, trials and later attempts use the same images. After the
    data set was packed again, its images of that time are gone: then the run goes on with the new ones.

    Raises:
        BadIndex: The index cannot be read.
        LeaseLost: A newer attempt owns the run.
        StorageAway: What the run started with cannot be read now.
    """
    index = read_index(location)
    started = _started_with(lease.paths, location)
    found = index.version_with(started) if started else None
    if started and found is None:
        logger.warning("%s was packed again after the run started; the run uses it as it is", location)
    if found is None:
        lease.write_json(lease.paths.data, {"shards": location, "digest": index.digest})
    return found or index


def training_data(manifest: dict[str, Any], index: ShardIndex) -> str | None:
    """Return how much of a data set a model was made with, in words; None unless it was an earlier version of it."""
    before = index.version_with(str(manifest.get("data")))
    if before is None or before.digest == index.digest:
        return None
    return (
        f"an earlier version of this data set, with {_images(before):,} of its {_images(index):,} images "
        f"({', '.join(f'{before.samples_in(s):,} of {index.samples_in(s):,} in {s}' for s in index.splits)})"
    )


def _images(index: ShardIndex) -> int:
    return sum(shard.samples for shard in index.shards)


def _started_with(paths: RunPaths, location: str) -> str | None:
    content = read_json_object_if_any(paths.data)
    return str(content.get("digest")) if content.get("shards") == location else None
