"""A whole model on a whole split, the same way whoever asks: `train` for its best, `evaluate` for any."""

from dataclasses import replace
from typing import Any

import numpy as np

from trainer.data.batches import StoredFeatures
from trainer.data.feature_extraction import Extraction
from trainer.distributed.worker import Post
from trainer.evaluation.calibration import Calibration
from trainer.evaluation.metrics import score
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.scoring import Scored, scored
from trainer.model.efficientnet import Classifier


def model_on(post: Post, extraction: Extraction, model: Classifier, split: str) -> Scored:
    """Return what the model says of each sample of a split; every rank must call it.

    The features of each shard are computed as the cache holds them, so one worker and many come to the same numbers.
    """
    extraction.prepare(split)
    found = extraction.of_split(split)
    device = post.ranks.device
    source = StoredFeatures(values={split: found.values.to(device)}, labels={split: found.labels.to(device)})
    return replace(scored(model.head, source, extraction.index, split, post.ranks), groups=found.groups)


def figures_of(
    found: Scored,
    classes: tuple[str, ...],
    calibration: Calibration,
    split: str,
    *,
    positive: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the figures of a split as `result.json` has them.

    `positive` is by default the class that the threshold was chosen for, then the first.
    """
    name = positive or calibration.positive or classes[0]
    threshold = calibration.threshold_for(name)
    figures = score(
        found.probabilities(),
        found.labels,
        classes=classes,
        positive=name,
        threshold=threshold,
        temperature=calibration.temperature,
        groups=found.groups,
        seed=seed,
    )
    wished = {} if threshold is None else {"min_sensitivity": calibration.min_sensitivity}
    return {"split": split, **figures, **wished}


def keep_predictions(post: Post, found: Scored) -> None:
    """Write what was said of each sample beside the run's other files; only the leading rank does.

    Raises:
        LeaseLost: A newer attempt owns the run.
    """
    if not post.ranks.leads:
        return
    attempt = post.order.attempt
    attempt.lease.check()
    ids = np.arange(len(found.labels), dtype=np.int64)
    Predictions(ids=ids, labels=found.labels, probabilities=found.probabilities()).write(attempt.paths.predictions)
