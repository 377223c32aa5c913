"""Code that runs as another user of this machine. Needs root."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")


@dataclass(frozen=True, kw_only=True)
class User:
    """A user without an entry in the system's list of users.

    Attributes:
        uid: The user's id.
        gid: The user's only group.
        umask: The user's umask.
    """

    uid: int
    gid: int
    umask: int = 0o022

    def call(self, work: Callable[[], object]) -> str:
        """Call `work` in a fork of this process as this user; return its value, or the type and text of its error."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            os.umask(self.umask)
            try:
                said = str(work())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            said = answer.read()
        os.waitpid(pid, 0)
        return said
