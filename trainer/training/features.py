"""Work that needs only the features of a frozen backbone: it runs in one process, and other workers only compute them.

A step of a head is too short to be divided: with 8 ranks it is 6 collectives, and a few images on each rank.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from data_shards.index import SPLITS
from trainer.distributed.local_gpus import lease_local_gpus
from trainer.distributed.ray_train import run_here, run_on_workers
from trainer.distributed.worker import S_co, WorkerContext, WorkerTask
from trainer.errors import FeaturesMissing
from trainer.result import FeatureCounts
from trainer.specs import TrainSpec
from trainer.training.model_setup import TrainingSetup

TRAINING_SPLITS = ("train", "valid")

R = TypeVar("R")

logger = logging.getLogger(__name__)


def run_on_features(
    work: Callable[[WorkerContext[S_co]], R], extract: Callable[[WorkerContext[S_co]], object], task: WorkerTask[S_co]
) -> R:
    """Run `work` in this process; Ray workers only compute features, if those of several shards are missing.

    So the result is the same for any number of workers. On several GPUs and on a Ray cluster, `work` starts on all
    workers: this process must not take a GPU that workers need later, and the head node of a cluster has none.

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
    return _extract(TrainingSetup.fresh(context), TRAINING_SPLITS)


def features_of_search_on_worker(context: WorkerContext[TrainSpec]) -> int:
    """Extract those of the test split too, on which a search evaluates its best model; return how many images."""
    return _extract(TrainingSetup.fresh(context), SPLITS)


def setup_of_training(context: WorkerContext[TrainSpec]) -> TrainingSetup | None:
    """Return the setup of a training on this rank, None if it has nothing to train; every rank must call this.

    Rank 0 trains a head on features alone; before, all ranks together extract these. A rank that gets None is done: it
    must not wait for rank 0 in a collective, because the training can take longer than their timeout.

    Raises:
        Stopped: The run was asked to stop; the features of finished shards are cached.
    """
    setup, group = TrainingSetup.fresh(context), context.process_group
    if group.world_size == 1 or not context.spec.trains_on_rank_zero:
        return setup
    if context.spec.cache:
        _extract(setup, TRAINING_SPLITS)
    alone = group.dissolved()
    if not group.is_rank_zero:
        return None
    logger.info("one worker trains the head; the other %d were only needed for features", group.world_size - 1)
    found = replace(setup, context=replace(context, process_group=alone))
    if context.spec.cache:
        # It has what this rank has computed, also where the cache could not keep it; all images are counted already.
        found.__dict__["extractor"] = replace(setup.extractor, process_group=alone, counts=FeatureCounts())
    return found


def _extract(setup: TrainingSetup, splits: Sequence[str]) -> int:
    present, progress = [split for split in splits if split in setup.index.splits], setup.context.progress
    progress.start_phase("features", total=sum(setup.index.samples_in(split) for split in present))
    setup.extractor.extract(*present)
    return progress.done
