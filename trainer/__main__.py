"""`python -m trainer RUN_FOLDER [--attempt N]`: runs what the folder's `spec.json` requests.

The exit codes are those of `cluster.exit_codes`.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster import stack_dumps
from cluster.access import restrict_umask
from cluster.cluster_version import record_cluster_version
from cluster.errors import ClusterError, NewerVersion, StorageAway, StorageError
from cluster.exit_codes import ExitCode
from cluster.files import is_full
from cluster.process_env import hide_gpus, set_local_ray_environment
from cluster.process_exit import end_process
from cluster.run_paths import RunPaths
from cluster.settings import Settings, umask_setting
from cluster.storage_marker import refuse_away
from cluster.version import VERSION
from data_shards.errors import ShardError
from trainer.attempt import Attempt
from trainer.distributed.child_process import LOG_FORMAT
from trainer.distributed.ray_fork_server import start_fork_server
from trainer.errors import (
    InfrastructureError,
    SpecError,
    Stopped,
    TrainerError,
    UnknownOption,
    causes,
    infrastructure_fault,
)
from trainer.progress import Progress
from trainer.result import RunResult
from trainer.specs import AnySpec, EvaluateSpec, PredictSpec, SearchSpec, TrainSpec, read_spec
from trainer.tracking.tracking import track_run

logger = logging.getLogger("trainer")


def main(arguments: list[str] | None = None) -> int:
    """Run one attempt and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Run what RUN_FOLDER/spec.json requests.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--attempt", type=int, help="number of the attempt that the caller has claimed")
    options = parser.parse_args(arguments)
    stack_dumps.enable()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    try:
        restrict_umask(umask_setting())
        attempt = Attempt.of(options.folder, options.attempt, Settings.read())
    except (ClusterError, OSError) as error:
        logger.error("%s", error)
        return ExitCode.WORKERS_LOST if infrastructure_fault(error) else ExitCode.USAGE
    try:
        spec = read_spec(attempt.paths.spec)
        if spec.gpus_per_worker == 0:
            hide_gpus()  # before torch and Ray look for them
        if attempt.settings.ray_address is None:
            set_local_ray_environment()  # before ray is imported: it reads how to authenticate only once
            if isinstance(spec, SearchSpec) or spec.workers > 1:
                start_fork_server(partial(command_for, spec))  # before the first thread
    except Exception as error:
        return _handle_error(attempt, error)
    with attempt.sending_heartbeats():
        try:
            Progress(attempt.paths, attempt.lease).write()
            if attempt.settings.ray_address is not None:
                record_cluster_version(attempt.settings.storage)
            command = command_for(spec)  # imports torch: two threads that import it at once see half of a module
            with track_run(attempt, spec):
                result = command(attempt, spec)
                seconds, timing = round(attempt.seconds, 3), attempt.timing()
                result = replace(result, seconds=seconds, timing=timing, features=attempt.features)
                result.publish(attempt.lease)
        except Exception as error:
            return _handle_error(attempt, error)
    logger.info("done in %.1f s", attempt.seconds)
    return ExitCode.SUCCEEDED


def command_for(spec: AnySpec) -> Callable[[Attempt, Any], RunResult]:
    """Return the function that runs this kind of spec; only its own imports are loaded."""
    if isinstance(spec, TrainSpec):
        from trainer.train import train  # noqa: PLC0415

        return train
    if isinstance(spec, EvaluateSpec):
        from trainer.evaluate import evaluate  # noqa: PLC0415

        return evaluate
    if isinstance(spec, SearchSpec):
        from trainer.search.run import search  # noqa: PLC0415

        return search
    if isinstance(spec, PredictSpec):
        from trainer.predict import predict  # noqa: PLC0415

        return predict
    from trainer.export import export  # noqa: PLC0415

    return export


def _handle_error(attempt: Attempt, error: Exception) -> ExitCode:
    """Log the error, write `error.json` unless the run was stopped, and return the exit code."""
    if isinstance(error, Stopped):
        logger.info("%s", error)
        return ExitCode.STOPPED
    if isinstance(error, UnknownOption):
        error = NewerVersion(
            f"Nightshift {VERSION} of the trainer does not know all of the spec ({error}); a newer "
            "version wrote it: update the job workers and the cluster"
        )
    if away := _storage_away(attempt.paths, error):
        logger.error("%s", error)
        error = away
    if isinstance(error, TrainerError | ShardError | ClusterError):
        logger.error("%s", error)
        error = infrastructure_fault(error) or error
    else:
        meaning = _storage_full(error) or _infrastructure_error(error)
        logger.exception("%s", meaning or "the run failed because of a bug in the program")
        error = meaning or error
    try:
        attempt.fail(error)
    except OSError as write_error:
        logger.error("error.json cannot be written: %s", write_error)
        return ExitCode.STORAGE_FULL if is_full(write_error) else ExitCode.WORKERS_LOST
    if isinstance(error, InfrastructureError):
        return ExitCode.WORKERS_LOST
    if isinstance(error, NewerVersion):
        return ExitCode.NEWER_VERSION
    return ExitCode.USAGE if isinstance(error, SpecError) else ExitCode.FAILED


def _storage_away(paths: RunPaths, error: Exception) -> InfrastructureError | None:
    """Return an error if the storage was away when `error` was raised, or is now.

    The error counts because the storage may be back, the storage because its files look as if somebody had deleted
    them.
    """
    try:
        refuse_away(paths.folder.parent)
        was_away = any(isinstance(cause, StorageAway) for cause in causes(error))
    except StorageAway:
        was_away = True
    if not was_away:
        return None
    return InfrastructureError(f"the storage {paths.storage} could not be reached; mount it again, or check its server")


def _storage_full(error: Exception) -> StorageError | None:
    """Return an error that says which folder is full, None for any other error."""
    if not isinstance(error, OSError) or not is_full(error):
        return None
    where = Path(error.filename).parent if isinstance(error.filename, str) else "the storage"
    return StorageError(f"{where} is full; free space there, then `nightshift retry` resumes from the last checkpoint")


def _infrastructure_error(error: Exception) -> TrainerError | None:
    """Return what an error of a library means, None for an error of this program."""
    from trainer.distributed.infrastructure import infrastructure_error  # noqa: PLC0415, imports ray

    return infrastructure_error(error)


if __name__ == "__main__":
    sys.exit(end_process(main()))
