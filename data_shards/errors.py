"""Errors of data.

ShardError
├── SourceError      the folder or archive to pack cannot be used
├── BadIndex         index.json is missing, damaged or of another version
├── BadImage         one image cannot be decoded
│   ├── TooManyPixels    it is larger than the limit
│   └── NoImage          it is a DICOM object that holds no image
├── DamagedShard     a shard's bytes, sample count or labels differ from the index
│   └── UnreadableShard  it cannot be read: its disk or server failed, or access is denied
├── RemoteError      a remote shard cannot be downloaded
│   └── DownloadFailed   a file cannot be downloaded from an address
├── OptionError      an option, or a combination of options, cannot be used
├── PlanError        an epoch cannot be planned as requested
├── SharedMemoryFull shared memory has no space for the batches of loader processes
└── LeakageError     the same image or group is in two splits
"""

import shlex
from typing import Self


class ShardError(Exception):
    """Base of the errors of this package. The text is one line: the fault, then the cure."""


class SourceError(ShardError):
    """The folder or archive to pack cannot be used."""


class BadIndex(ShardError):
    """index.json is missing, damaged or of another version."""


class BadImage(ShardError):
    """One image cannot be decoded. The text says why; the caller adds the file, or the shard and key."""


class TooManyPixels(BadImage):
    """An image has more pixels than the limit allows."""


class NoImage(BadImage):
    """A DICOM file is sound, but holds no image: a report, a document, a presentation state, a list of files."""


class DamagedShard(ShardError):
    """A shard's bytes, sample count or labels differ from what the index says."""


class UnreadableShard(DamagedShard):
    """A shard cannot be read: its disk or server failed, or access is denied.

    Attributes:
        errno: Number of the system's error, which a loader process cannot pass on itself.
    """

    errno: int | None = None

    @classmethod
    def by(cls, error: OSError, what: str) -> Self:
        """Return the error for a shard, or a sample of one, that the system could not read."""
        found = cls(
            f"{what} cannot be read ({error.strerror}); check its disk, its server and its permissions, "
            "or copy it again"
        )
        found.errno = error.errno
        return found


class RemoteError(ShardError):
    """A remote shard cannot be downloaded."""


class DownloadFailed(RemoteError):
    """A file cannot be downloaded from an address.

    Attributes:
        reason: Why, without the address.
    """

    def __init__(self, address: object, reason: str, cure: str) -> None:
        super().__init__(f"{address} cannot be downloaded: {reason}; {cure}")
        self.reason = reason


class OptionError(ShardError):
    """An option, or a combination of options, cannot be used: wrong usage."""


class PlanError(ShardError):
    """An epoch cannot be planned as requested."""


class SharedMemoryFull(ShardError):
    """Shared memory (/dev/shm) has no space for the batches of loader processes."""


class LeakageError(ShardError):
    """The same image, or images of the same group, are in two splits.

    Attributes:
        findings: One line for each.
    """

    def __init__(self, text: str, findings: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.findings = findings


def verify_hint(location: str) -> str:
    """Return which command lists all damaged shards of a data set."""
    return f"`nightshift shards verify {shlex.quote(location)}` lists all damaged shards"
