"""`python -m trainer RUN_FOLDER [--attempt N]`: does what the folder's `spec.json` says.

Exit codes: 0 done and `result.json` is there; 1 the run's own fault, told by `error.json`; 2 a wrong wish;
3 stopped as asked after a checkpoint; 74 failed, and so full a storage that there is no room to say why. Anything
else is the infrastructure's fault: 75 when workers were lost.
"""

import argparse
import logging
import sys
from pathlib import Path

from cluster.errors import ClusterError, StorageError
from cluster.files import is_full
from cluster.settings import Settings, prepare_for_local_ray
from data_shards.errors import ShardError
from trainer.attempt import Attempt
from trainer.errors import SpecError, Stopped, TrainerError, WorkersLost
from trainer.progress import Progress
from trainer.specs import read_spec
from trainer.tracking.tracking import tracked

OK, FAILED, WRONG, STOPPED, NO_ROOM, LOST = 0, 1, 2, 3, 74, 75

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
        return WRONG
    with attempt.beating():
        Progress(attempt.paths, attempt.number).write()
        return _run(attempt)


def _run(attempt: Attempt) -> int:
    try:
        spec = read_spec(attempt.paths.spec)
        if attempt.settings.ray_address is None:
            prepare_for_local_ray()  # before ray is imported: it reads how to authenticate only once
        from trainer.kinds import run_kind  # noqa: PLC0415 -- torch and ray only once the wish is known to be sound

        with tracked(attempt, spec) as tracking:
            result = run_kind(attempt, spec)
            result.publish(attempt.lease)
            tracking.result = result
    except Stopped as stopped:
        logger.info("%s", stopped)
        return STOPPED
    except (TrainerError, ShardError, ClusterError) as error:
        logger.error("%s", error)
        return _failed(attempt, error)
    except Exception as error:  # a bug: the log keeps the traceback, the run still says that it failed
        logger.exception("the run failed by a fault of the program")
        return _failed(attempt, _no_room(error) or error)
    logger.info("done in %.1f s", attempt.seconds)
    return OK


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
        return NO_ROOM
    return _code_of(error)


def _code_of(error: Exception) -> int:
    if isinstance(error, WorkersLost):
        return LOST
    return WRONG if isinstance(error, SpecError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
