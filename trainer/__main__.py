"""`python -m trainer RUN_FOLDER [--attempt N]`: does what the folder's `spec.json` says.

Its exit codes are those of `cluster.exit_codes`.
"""

import argparse
import logging
import sys
from pathlib import Path

from cluster.errors import ClusterError, StorageError
from cluster.exit_codes import ExitCode
from cluster.files import is_full
from cluster.process_env import set_local_ray_environment
from cluster.settings import Settings
from data_shards.errors import ShardError
from trainer.attempt import Attempt
from trainer.errors import SpecError, Stopped, TrainerError, WorkersLost
from trainer.progress import Progress
from trainer.result import RunResult
from trainer.specs import AnySpec, EvaluateSpec, PredictSpec, SearchSpec, TrainSpec, read_spec
from trainer.tracking.tracking import track_run

logger = logging.getLogger("trainer")


def main(arguments: list[str] | None = None) -> int:
    """Run one attempt and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Do what RUN_FOLDER/spec.json says.")
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--attempt", type=int, help="number of the attempt that the caller has claimed")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        attempt = Attempt.of(options.folder, options.attempt, Settings.read())
    except (ClusterError, OSError) as error:
        logger.error("%s", error)
        return ExitCode.USAGE
    with attempt.sending_heartbeats():
        Progress(attempt.paths, attempt.number).write()
        return _run(attempt)


def _run(attempt: Attempt) -> int:
    try:
        spec = read_spec(attempt.paths.spec)
        if attempt.settings.ray_address is None:
            set_local_ray_environment()  # before ray is imported: it reads how to authenticate only once
        with track_run(attempt, spec) as tracking:
            result = execute(attempt, spec)
            result.publish(attempt.lease)
            tracking.result = result
    except Stopped as stopped:
        logger.info("%s", stopped)
        return ExitCode.STOPPED
    except (TrainerError, ShardError, ClusterError) as error:
        logger.error("%s", error)
        return _failed(attempt, error)
    except Exception as error:  # a bug: the log keeps the traceback, the run still says that it failed
        logger.exception("the run failed by a fault of the program")
        return _failed(attempt, _no_room(error) or error)
    logger.info("done in %.1f s", attempt.seconds)
    return ExitCode.SUCCEEDED


def execute(attempt: Attempt, spec: AnySpec) -> RunResult:
    """Do what `spec` asks for and return the outcome; each kind imports only what it needs."""
    if isinstance(spec, TrainSpec):
        from trainer.train import train  # noqa: PLC0415

        return train(attempt, spec)
    if isinstance(spec, EvaluateSpec):
        from trainer.evaluate import evaluate  # noqa: PLC0415

        return evaluate(attempt, spec)
    if isinstance(spec, SearchSpec):
        from trainer.search.run import search  # noqa: PLC0415

        return search(attempt, spec)
    if isinstance(spec, PredictSpec):
        from trainer.predict import predict  # noqa: PLC0415

        return predict(attempt, spec)
    from trainer.export import export  # noqa: PLC0415

    return export(attempt, spec)


def _no_room(error: Exception) -> StorageError | None:
    """Return what to tell of a file that found no room, None for any other error."""
    if not isinstance(error, OSError) or not is_full(error):
        return None
    where = Path(error.filename).parent if isinstance(error.filename, str) else "the storage"
    return StorageError(f"{where} is full; free space there, then `nightshift retry` goes on from the last checkpoint")


def _failed(attempt: Attempt, error: Exception) -> int:
    try:
        attempt.fail(error)
    except OSError as unsaid:
        logger.error("error.json cannot be written: %s", unsaid)
        return ExitCode.STORAGE_FULL
    return _code_of(error)


def _code_of(error: Exception) -> int:
    if isinstance(error, WorkersLost):
        return ExitCode.WORKERS_LOST
    return ExitCode.USAGE if isinstance(error, SpecError) else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
