"""The one pass of the backbone that a whole search pays for, shared out over all workers."""

from typing import Any

from data_shards.index import read_index
from trainer.distributed.worker import Post, in_worker
from trainer.training.model_setup import extraction_for, fresh_model


def features_on_worker(config: dict[str, Any]) -> Any:
    """Compute what the cache lacks; the entry point of each Ray Train worker."""
    return in_worker(_features, config)


def _features(post: Post) -> int:
    """Return how many images this worker has sent through the backbone or found in the cache."""
    spec = post.order.spec
    index = read_index(spec.shards)
    model, config = fresh_model(post, index)
    extraction = extraction_for(post, spec.shards, index, model, config, cached=True)
    post.progress.begin("features", total=sum(index.samples_in(split) for split in index.splits))
    for split in index.splits:
        extraction.prepare(split)
    return post.progress.done
