"""`train`, the driver's part: checks the data, runs `training/worker.py`, and writes the report."""

from data_shards.index import ShardIndex
from trainer.attempt import Attempt
from trainer.data.run_data import run_index
from trainer.distributed.ray_train import run_on_workers
from trainer.distributed.worker import WorkerTask
from trainer.errors import SpecError
from trainer.model.bundle import weights_sha256
from trainer.model.weights import resolve_weights
from trainer.report.write import write_report
from trainer.result import RunResult
from trainer.specs import TrainSpec
from trainer.specs.head import check_head
from trainer.specs.image_size import check_training_size
from trainer.specs.positive import refuse_unknown_positive
from trainer.specs.train import MIN_BATCH_NORM_IMAGES
from trainer.training.features import features_on_worker, run_on_features
from trainer.training.worker import train_on_worker


def train(attempt: Attempt, spec: TrainSpec) -> RunResult:
    """Train, publish the best model and return its metrics on the validation split.

    Raises:
        SpecError: This training is impossible on this data set.
        Stopped: The run was asked to stop; a checkpoint is saved.
    """
    index = run_index(attempt.lease, spec.shards)
    check_data(spec, index)
    weights = resolve_weights(spec.weights, attempt.settings.storage)
    task = WorkerTask(attempt=attempt, spec=spec, source=weights, longest_shard=index.longest_shard)
    if spec.reads_features:
        outcome = run_on_features(train_on_worker, features_on_worker, task)
    else:
        outcome = run_on_workers(train_on_worker, task)
    result = RunResult(
        kind=spec.kind,
        checkpoint=str(attempt.paths.best),
        metrics=outcome.metrics,
        seconds=round(attempt.seconds, 3),
        model_sha256=weights_sha256(attempt.paths.best),
        details=outcome.details,
    )
    write_report(attempt, spec, result)
    return result


def check_data(spec: TrainSpec, index: ShardIndex) -> None:
    """Check that this training is possible on this data set.

    Raises:
        SpecError: A split is missing, the images are smaller than the input, or a worker gets too few images per step.
    """
    for split in spec.required_splits:
        if split not in index.splits:
            raise SpecError(f"{spec.shards} has no split {split!r}; pack the data with one")
        if index.multi_label and not any(n.present + n.absent for n in index.targets_in(split)):
            raise SpecError(f"all targets of the split {split!r} of {spec.shards} are unknown; pack it with known ones")
    check_training_size(spec.image_size, index, spec.shards)
    refuse_unknown_positive(spec.positive, index.classes)
    check_head(spec, index, spec.shards)
    if not spec.trains_by_steps:
        return
    samples = index.samples_in(spec.split)
    smallest = samples // -(-samples // spec.batch_size) // spec.workers
    if smallest < MIN_BATCH_NORM_IMAGES:
        raise SpecError(
            f"{samples} images in steps of {spec.batch_size} leave a worker with {smallest} image, "
            f"and batch norm needs {MIN_BATCH_NORM_IMAGES}; use fewer --workers or another --batch-size"
        )
