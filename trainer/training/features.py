"""Work that needs only the features of a frozen backbone: it runs in this process, and needs no Ray workers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from data_shards.index import SPLITS
from trainer.distributed.local_gpus import lease_local_gpus
from trainer.distributed.ray_train import run_here, run_on_workers
from trainer.distributed.worker import S_co, WorkerContext, WorkerTask
from trainer.errors import FeaturesMissing
from trainer.specs import TrainSpec
from trainer.training.model_setup import TrainingSetup

TRAINING_SPLITS = ("train", "valid")

R = TypeVar("R")

logger = logging.getLogger(__name__)


def run_on_features(
    work: Callable[[WorkerContext[S_co]], R], extract: Callable[[WorkerContext[S_co]], object], task: WorkerTask[S_co]
) -> R:
    """Run `work` in this process; Ray workers only compute features, if those of several shards are missing.

    So the result is the same for any number of workers. On several GPUs and on a Ray cluster, `work` runs on the
    workers too: this process must not take a GPU that workers need later, and the head node of a cluster has none.

    Args:
        work: What uses the features.
        extract: Writes the missing features to the cache.
        task: Of both.
    """
    attempt, spec = task.attempt, task.spec
    if spec.workers == 1 or attempt.settings.ray_address is not None or lease_local_gpus(attempt, spec)[1]:
        return run_on_workers(work, task)
    try:
        return run_here(work, replace(task, extracts=False))
    except FeaturesMissing as error:
        logger.info("%s; %d workers compute them", error, spec.workers)
    run_on_workers(extract, task)
    return run_here(work, task)


def features_on_worker(context: WorkerContext[TrainSpec]) -> int:
    """Extract the features that a training needs and the cache lacks, those of train and valid.

    Returns:
        How many images were extracted or found in the cache.
    """
    return _extract(context, TRAINING_SPLITS)


def features_of_search_on_worker(context: WorkerContext[TrainSpec]) -> int:
    """Extract those of the test split too, on which a search evaluates its best model; return how many images."""
    return _extract(context, SPLITS)


def _extract(context: WorkerContext[TrainSpec], splits: Sequence[str]) -> int:
    setup = TrainingSetup.fresh(context)
    present = [split for split in splits if split in setup.index.splits]
    context.progress.start_phase("features", total=sum(setup.index.samples_in(split) for split in present))
    for split in present:
        setup.extractor.extract(split)
    return context.progress.done
