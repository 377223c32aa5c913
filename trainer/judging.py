"""A whole model on a whole split, the same way whoever asks: `train` for its best, `evaluate` for any."""

from typing import Any

from trainer.extraction import Extraction
from trainer.head import HeadConfig
from trainer.metrics import score
from trainer.model import Classifier
from trainer.order import Post
from trainer.scoring import Scored, scored
from trainer.sources import StoredFeatures


def model_on(post: Post, extraction: Extraction, model: Classifier, split: str) -> Scored:
    """Return what the model says of each sample of a split; every rank must call it.

    The features of each shard are computed as the cache holds them, so one worker and many come to the same numbers.
    """
    extraction.prepare(split)
    found = extraction.of_split(split)
    device = post.ranks.device
    source = StoredFeatures(values={split: found.values.to(device)}, labels={split: found.labels.to(device)})
    return scored(model.head, source, extraction.index, split, post.ranks)


def figures_of(
    found: Scored, config: HeadConfig, split: str, *, positive: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of a split as `result.json` has them."""
    figures = score(
        found.probabilities(config.temperature), found.labels, classes=config.classes, positive=positive, seed=seed
    )
    return {"split": split, **figures}
