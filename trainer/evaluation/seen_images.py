"""How many evaluated images a model has seen before, how often a split was evaluated, and on which kind of features.

The manifest of a model lists the sha256 of the shards that it was trained on and chosen on. So images are recognised
in every data set that holds the same shards, also after images were added to it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.settings import CACHE_PRECISIONS
from data_shards.index import ShardIndex

FEATURE_PRECISION, TRAINED_PRECISION = "feature_precision", "trained_feature_precision"  # in details; one in manifests
KEY = "shards"  # of the manifest: sha256 of shards by split
TRAINED, CHOSEN = "train", "valid"  # splits: the model learns from one; epoch and temperature are chosen on the other

logger = logging.getLogger(__name__)


def shards_of_model(index: ShardIndex) -> dict[str, list[str]]:
    """Return what the manifest of a model keeps about its data set: the sha256 of the shards of both splits."""
    return {split: [shard.sha256 for shard in index.of_split(split)] for split in (TRAINED, CHOSEN)}


def seen_images(manifest: Mapping[str, Any], index: ShardIndex, split: str) -> dict[str, int] | None:
    """Return how many `images` a split has, and how many the model was `trained` and `chosen` on.

    None if that is not known: the data set shares no shard with the model's, or a manifest of version 0.1.0 lists none.
    """
    known = manifest.get(KEY)
    if not isinstance(known, Mapping):
        if manifest.get("data") != index.digest:
            return None
        known = shards_of_model(index)
    refit = bool(manifest.get("refit"))
    trained = {*_listed(known, TRAINED), *(_listed(known, CHOSEN) if refit else ())}
    chosen = _listed(known, CHOSEN) - trained
    if not any(shard.sha256 in trained | chosen for shard in index.shards):
        return None
    shards = index.of_split(split)
    return {
        "images": sum(shard.samples for shard in shards),
        "trained": sum(shard.samples for shard in shards if shard.sha256 in trained),
        "chosen": sum(shard.samples for shard in shards if shard.sha256 in chosen),
    }


def evaluation_lines(details: Mapping[str, Any], split: str) -> list[str]:
    """Return in words what the details of an evaluation say about the images of its split, and their features."""
    return [line for line in (seen_line(details), _count_line(details, split), _precision_line(details)) if line]


def seen_line(details: Mapping[str, Any]) -> str:
    """Return in words whether the model has seen the evaluated images; "" if the details do not say it."""
    if "seen" not in details:
        return ""
    seen = details["seen"]
    if not isinstance(seen, Mapping):
        return "it is not known whether the model has seen these images: they are not of the data set it was trained on"
    images, trained, chosen = (seen.get(key) for key in ("images", "trained", "chosen"))
    if trained:
        return f"warning: the model was trained on {trained} of these {images} images; new images will do worse"
    if chosen:
        return f"warning: the model was chosen on {chosen} of these {images} images; the metrics are optimistic"
    return f"the model was neither trained nor chosen on any of these {images} images"


def feature_precisions(manifest: Mapping[str, Any], evaluated: str) -> dict[str, str]:
    """Return the precisions of stored features for the details of an evaluation.

    Args:
        manifest: Of the model; one that was trained on images, or by an earlier version, says nothing of it.
        evaluated: Precision of the features that the model is evaluated on.
    """
    trained = manifest.get(FEATURE_PRECISION)
    return {FEATURE_PRECISION: evaluated, **({TRAINED_PRECISION: trained} if isinstance(trained, str) else {})}


def _precision_line(details: Mapping[str, Any]) -> str:
    """Return in words that features are not of the precision that is usual, or that the model was trained on."""
    found, trained = details.get(FEATURE_PRECISION, CACHE_PRECISIONS[0]), details.get(TRAINED_PRECISION)
    if trained not in (None, found):
        return (
            f"warning: the model was trained on features stored in {trained} and is evaluated on features in {found}; "
            f"with NIGHTSHIFT_CACHE_PRECISION={trained} both are the same"
        )
    return f"the features were stored in {found}" if found != CACHE_PRECISIONS[0] else ""


def _listed(known: Mapping[str, Any], split: str) -> set[str]:
    found = known.get(split)
    return {sha for sha in found if isinstance(sha, str)} if isinstance(found, list) else set()


def count_evaluation(storage: Path, index: ShardIndex, split: str, run_id: str) -> int | None:
    """Record that a run has evaluated a split, and return how many runs have; None if it cannot be recorded.

    One file per run in `STORAGE/evaluations/DIGEST/SPLIT/`: a retried run counts once, a deleted one still counts.
    Earlier versions of the data set count too if the split had images then.
    """
    folders = [
        storage / "evaluations" / digest / split for digest in (index.digest, *(v.digest for v in index.history))
    ]
    folder = folders[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / run_id).touch()
        return len({run.name for of_version in folders if of_version.is_dir() for run in of_version.iterdir()})
    except OSError as error:
        logger.warning("%s cannot be written (%s); this evaluation is not counted", folder, error.strerror)
        return None


def _count_line(details: Mapping[str, Any], split: str) -> str:
    count = details.get("evaluations_of_split")
    if split != "test" or not isinstance(count, int) or count <= 1:
        return ""
    return f"the test split of this data set has been evaluated {count} times: choosing by its metrics biases them"
