"""Errors of training.

TrainerError
├── SpecError          a request that can never work
│   ├── UnknownOption  an option, or a value of one, that this version does not know
│   └── UnsupportedPrecision    a GPU of the run does not compute in its precision
├── WeightsError       a weights file is missing, damaged or for another network
├── CheckpointError    a checkpoint is missing, damaged or of another version
├── ModelMismatch      the data set and the model do not fit together
├── TrainingDiverged   the loss is not finite (NaN or inf)
├── OutOfMemory        a batch does not fit into GPU memory
├── FeaturesMissing    features of several shards are not in the cache
├── StorageFull        the storage is full; the run resumes when there is space
├── InfrastructureError    a machine, a GPU, the network, Ray or the storage failed
│   └── WorkersLost        workers died or hung more often than they may be restarted
└── Stopped            the run was asked to stop and has saved a checkpoint
"""

from collections.abc import Iterator

from cluster.errors import LeaseLost, StorageAway
from cluster.files import INFRASTRUCTURE_ERRNOS, is_full
from data_shards.errors import UnreadableShard

FULL_STORAGE = "the storage is full; free space there, then retry the run"


class TrainerError(Exception):
    """Base of the errors of this package. The text is one line: the fault, then the cure."""


class SpecError(TrainerError):
    """A request that can never work; refused before it is queued."""


class UnknownOption(SpecError):
    """A spec has an option, or a value of one, that this version does not know; a newer version may."""


class UnsupportedPrecision(SpecError):
    """A device of the run does not compute in its precision; raised on all ranks."""


class WeightsError(TrainerError):
    """A weights file is missing, damaged or for another network."""


class CheckpointError(TrainerError):
    """A checkpoint is missing, damaged or of another version."""


class ModelMismatch(TrainerError):
    """The data set, or another model, has other classes than the model, or images smaller than its input."""


class TrainingDiverged(TrainerError):
    """The loss is not finite (NaN or inf); the last good checkpoint is kept."""


class OutOfMemory(TrainerError):
    """A batch does not fit into GPU memory."""


class FeaturesMissing(TrainerError):
    """Features of several shards are not in the cache, and this process is not to compute them alone."""


class StorageFull(TrainerError):
    """The storage is full; the run resumes when there is space."""


class InfrastructureError(TrainerError):
    """A machine, a GPU, the network, Ray or the storage failed: another attempt may succeed."""


class WorkersLost(InfrastructureError):
    """Workers died or hung more often than they may be restarted: the fault of the infrastructure, not of the run."""


class Stopped(TrainerError):
    """The run was asked to stop and has saved a checkpoint to resume from."""


def infrastructure_fault(error: Exception) -> InfrastructureError | None:
    """Return an error of ours as a fault of the infrastructure, None if it is the run's own.

    It is one if it says so, or was raised from an error of a disk, a file server or a network that failed.
    """
    if isinstance(error, LeaseLost):
        return None
    if isinstance(error, InfrastructureError):
        return error
    for cause in causes(error):
        failed = isinstance(cause, OSError | UnreadableShard) and cause.errno in INFRASTRUCTURE_ERRNOS
        if failed or isinstance(cause, StorageAway | InfrastructureError):
            return InfrastructureError(fault_text(error))
    return None


def storage_full(error: BaseException) -> StorageFull | None:
    """Return an error that says that the storage is full, None for any other.

    Its type says it where a process passes on an error without those that it was raised from, as workers do.
    """
    for cause in causes(error):
        if isinstance(cause, StorageFull) or (isinstance(cause, OSError) and is_full(cause)):
            return StorageFull(FULL_STORAGE if isinstance(error, OSError) else fault_text(error))
    return None


def fault_text(error: BaseException) -> str:
    """Return the line for people about an error: of one of the system's, what failed instead of its number."""
    if isinstance(error, OSError):
        return f"the machine, the network or the storage failed ({error.strerror})"
    return " ".join(str(error).split()) or type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the errors that it wraps, and those that it was raised from; the innermost last.

    Ray wraps the error of a worker: so its attributes are looked at, without an import of Ray.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or found in seen:
            continue
        seen.append(found)
        yield found
        waiting += [getattr(found, name, None) for name in ("_base_exc", "cause", "controller_failure", "__cause__")]
