"""Errors of the queue.

JobError
├── QueueUnreachable   Redis does not answer
├── Refused            the request cannot be queued, or the run's state does not allow the action
│   ├── InvalidOption  an option's value is out of range; wrong usage
│   └── NameTaken      another run has the name
├── StackError         the job workers of `nightshift up` do not stay alive
└── HostileJob         a queue entry that Nightshift did not write
"""


class JobError(Exception):
    """Base of the errors of this package. The text is one line: the fault, then the cure."""


class QueueUnreachable(JobError):
    """Redis does not answer."""


class Refused(JobError):
    """The request cannot be queued, or the run's state does not allow the action."""


class InvalidOption(Refused):
    """An option's value is out of range, or contradicts another option."""


class NameTaken(Refused):
    """Another run has the name."""


class StackError(JobError):
    """The job workers of `nightshift up` do not stay alive."""


class HostileJob(JobError):
    """A queue entry with a function, an argument or a hook that Nightshift does not write."""
