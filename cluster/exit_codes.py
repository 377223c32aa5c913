"""Exit codes of `python -m trainer`. The trainer returns them and the job worker reads them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How an attempt ended. Every other code means a fault of the infrastructure."""

    SUCCEEDED = 0  # `result.json` exists
    FAILED = 1  # the run's own fault, and `error.json` says why; without it a fault of the infrastructure
    USAGE = 2  # the spec can never work
    STOPPED = 3  # on request, after a checkpoint
    STORAGE_FULL = 74  # the disk is too full even for `error.json`
    WORKERS_LOST = 75
    NEWER_VERSION = 76  # a newer version of Nightshift wrote the spec
    UNKNOWN = 127  # not from the trainer: it is gone and its exit code is unknown
