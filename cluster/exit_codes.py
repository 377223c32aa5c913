"""Exit codes of `python -m trainer`, as the trainer gives them and the queue reads them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How an attempt ended. Any other code is the infrastructure's fault."""

    SUCCEEDED = 0  # `result.json` is there
    FAILED = 1  # by the run's own fault, told by `error.json`
    USAGE = 2  # the spec can never work
    STOPPED = 3  # as requested, after a checkpoint
    STORAGE_FULL = 74  # failed, and the storage has no room to say why
    WORKERS_LOST = 75
    UNKNOWN = 127  # no code of the trainer: it is gone and nobody knows how it ended
