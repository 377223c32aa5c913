"""Errors of settings, storage and launching.

ClusterError
├── SettingsError             an environment variable has an invalid value
├── StorageError              the storage folder cannot be read or written
│   ├── StorageAway           its folder of runs is not there: the share is not mounted, or its server does not answer
│   └── LockHeld              another process keeps the lock of a file; it may be stopped
├── UnknownRun                no run has that id, name or prefix
│   └── SeveralRuns           more than one run has that prefix
├── NewerVersion              a newer version of Nightshift wrote the run's files
├── LeaseLost                 a newer attempt owns the run; this one must not publish anything
├── LaunchError               the trainer could not be started or stopped
│   └── ClusterUnreachable    the Ray cluster does not answer; nothing was started
└── InsufficientResources     the machine or cluster can never provide what was requested
"""


class ClusterError(Exception):
    """Base of the errors of this package. The text is one line: the fault, then the cure."""


class SettingsError(ClusterError):
    """An environment variable has an invalid value."""


class StorageError(ClusterError):
    """The storage folder cannot be read or written."""


class StorageAway(StorageError):
    """The folder of runs is not there: the share is not mounted, or its server does not answer. No run was deleted."""


class LockHeld(StorageError):
    """Another process keeps the lock of a file; it may be stopped."""


class UnknownRun(ClusterError):
    """No run, or more than one, has that id, name or prefix."""


class SeveralRuns(UnknownRun):
    """More than one run has that prefix of an id."""


class NewerVersion(ClusterError):
    """A newer version of Nightshift wrote the run's files; a job worker of that version can run it."""


class LeaseLost(ClusterError):
    """A newer attempt owns the run; this one must not publish anything."""


class LaunchError(ClusterError):
    """The trainer could not be started or stopped."""


class ClusterUnreachable(LaunchError):
    """The Ray cluster does not answer; nothing was started."""


class InsufficientResources(ClusterError):
    """The machine or cluster can never provide what was requested."""
