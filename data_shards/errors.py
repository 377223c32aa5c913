"""Errors of data.

ShardError
├── SourceError      the folder or archive to pack cannot be used
├── BadIndex         index.json is absent, damaged or of another version
├── BadImage         one image cannot be decoded
├── DamagedShard     a shard's bytes, count or labels differ from the index
├── RemoteError      a remote shard cannot be brought to this machine
├── PlanError        the shards cannot be divided as asked
└── LeakageError     the same image, or the same group, stands in two splits
"""


class ShardError(Exception):
    """Base of the errors of this package. The text is one line: what is wrong, then the cure."""


class SourceError(ShardError):
    """The folder or archive to pack cannot be used."""


class BadIndex(ShardError):
    """index.json is absent, damaged or of another version."""


class BadImage(ShardError):
    """One image cannot be decoded; the text says why, the catcher names the file or the shard and key."""


class DamagedShard(ShardError):
    """A shard's bytes, count or labels differ from what the index says."""


class RemoteError(ShardError):
    """A remote shard cannot be brought to this machine."""


class PlanError(ShardError):
    """The shards cannot be divided as asked."""


class LeakageError(ShardError):
    """The same image, or images of the same group, stand in two splits.

    Attributes:
        findings: A line for each of them.
    """

    def __init__(self, text: str, findings: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.findings = findings
