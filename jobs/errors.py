"""Errors of the queue.

JobError
├── QueueUnreachable   Redis does not answer
├── Refused            what was asked cannot be queued or done in this state
│   └── NameTaken      another run has the name
└── HostileJob         an entry of the queue that is none of ours
"""


class JobError(Exception):
    """Base of the errors of this package. The text is one line: what is wrong, then the cure."""


class QueueUnreachable(JobError):
    """Redis does not answer."""


class Refused(JobError):
    """What was asked cannot be queued, or not be done in the run's present state."""


class NameTaken(Refused):
    """Another run has the name."""


class HostileJob(JobError):
    """An entry of the queue that names a function, argument or hook which is none of ours."""
