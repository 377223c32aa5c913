"""Errors of places and files.

ClusterError
├── SettingsError       a setting of the environment is unusable
├── StorageError        the shared folder cannot be read or written
├── UnknownRun          no run has that id, name or prefix
├── LeaseLost           a newer attempt owns the run; this one must publish nothing
├── LaunchError         the trainer could not be started or stopped
│   └── PlaceAway       the place where it was to run does not answer at present
└── ResourcesShort      the machine or cluster can never give what was asked
"""


class ClusterError(Exception):
    """Base of the errors of this package. The text is one line: what is wrong, then the cure."""


class SettingsError(ClusterError):
    """A setting of the environment is unusable."""


class StorageError(ClusterError):
    """The shared folder cannot be read or written."""


class UnknownRun(ClusterError):
    """No run, or more than one, answers to that id, name or prefix."""


class LeaseLost(ClusterError):
    """A newer attempt owns the run; this one must publish nothing."""


class LaunchError(ClusterError):
    """The trainer could not be started or stopped."""


class ClusterUnreachable(LaunchError):
    """The place where the trainer was to run does not answer at present; nothing was started there."""


class InsufficientResources(ClusterError):
    """The machine or cluster can never give what was asked."""
