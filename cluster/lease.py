"""Who owns a run: numbered attempts, of which the highest may publish.

An attempt is a file `attempts/N.json` that only one process can create, so two never hold one number.
Its owner rewrites the beat inside it; others judge it alive by whether the beat *changes* while they watch,
on their own monotonic clock, so wall clocks that disagree between machines do no harm.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import LeaseLost, StorageError
from cluster.files import is_full, read_json, write_json
from cluster.run_paths import RunPaths

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 30.0  # six missed beats: longer than a pause of the storage, short enough not to lose a night


def latest_attempt(paths: RunPaths) -> int:
    """Return the highest attempt number claimed so far, 0 before the first."""
    numbers = [int(file.stem) for file in paths.attempts.glob("*.json") if file.stem.isdigit()]
    return max(numbers, default=0)


@dataclass
class Lease:
    """One attempt's right to publish into a run folder."""

    paths: RunPaths
    attempt: int
    beats: int = 0

    @classmethod
    def claim(cls, paths: RunPaths, *, after: int) -> "Lease":
        """Become attempt `after + 1`.

        Raises:
            LeaseLost: Another process claimed that number first.
            OSError: The storage is full; the number is free again.
        """
        paths.attempts.mkdir(parents=True, exist_ok=True)
        lease = cls(paths, after + 1)
        try:
            file = lease.file.open("x")
        except FileExistsError as error:
            raise LeaseLost(f"{paths.run_id}: attempt {lease.attempt} already belongs to another process") from error
        try:
            lease._claimed.touch()
            with file:
                json.dump(lease._content(), file)  # not synced: after a crash of the machine the attempt is over
        except OSError:
            lease.file.unlink()
            raise
        lease.check()
        return lease

    @classmethod
    def join(cls, paths: RunPaths, attempt: int) -> "Lease":
        """Act for an attempt that the process which started this one has claimed.

        Raises:
            LeaseLost: A newer attempt exists, or this one never did.
        """
        lease = cls(paths, attempt)
        if not lease.file.exists():
            raise LeaseLost(f"{paths.run_id}: attempt {attempt} was never claimed")
        lease.check()
        return lease

    @property
    def file(self) -> Path:
        """The attempt's file."""
        return self.paths.attempts / f"{self.attempt}.json"

    @property
    def _claimed(self) -> Path:
        """The file whose time says when the attempt was claimed."""
        return self.paths.attempts / f"{self.attempt}.claimed"

    def held_seconds(self) -> float:
        """Return how long ago the attempt was claimed, by the storage's own clock: those of two machines differ."""
        probe = self.paths.attempts / ".now"
        probe.touch()
        claimed = self._claimed if self._claimed.exists() else probe
        return max(0.0, probe.stat().st_mtime - claimed.stat().st_mtime)

    def heartbeat(self) -> None:
        """Say that this attempt lives; call it every `HEARTBEAT_SECONDS`.

        Raises:
            OSError: The storage is away.
        """
        self.beats += 1
        try:
            write_json(self.file, self._content(), durable=False)
        except OSError as error:
            if not is_full(error):
                raise
            self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        """Change the file that is there: a full disk must not make the living look dead.

        A reader may see half of it, which is no beat either, but one that changes.
        """
        with self.file.open("r+") as file:
            json.dump(self._content(), file)
            file.truncate()

    def check(self) -> None:
        """Call before every publish.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        newest = latest_attempt(self.paths)
        if newest > self.attempt:
            raise LeaseLost(f"{self.paths.run_id}: attempt {newest} has taken over from attempt {self.attempt}")
        if _revocation(self.paths, self.attempt).exists():
            raise LeaseLost(f"{self.paths.run_id}: attempt {self.attempt} was declared dead")
        if not self.file.exists():
            raise LeaseLost(f"{self.paths.run_id}: it was deleted while attempt {self.attempt} went on")

    def _content(self) -> dict[str, Any]:
        return {"attempt": self.attempt, "host": socket.gethostname(), "pid": os.getpid(), "beat": self.beats}


def revoke(paths: RunPaths, attempt: int) -> None:
    """Fence an attempt off before anybody acts on its death: should it come back, it publishes nothing."""
    _revocation(paths, attempt).touch()


def _revocation(paths: RunPaths, attempt: int) -> Path:
    return paths.attempts / f"{attempt}.revoked"


def heartbeat_of(paths: RunPaths) -> tuple[int, Any]:
    """Return the newest attempt's number and its beat, None before its first."""
    attempt = latest_attempt(paths)
    try:
        return attempt, read_json(paths.attempts / f"{attempt}.json").get("beat")
    except StorageError:
        return attempt, None


def heartbeat_is_ours(paths: RunPaths, attempt: int) -> bool:
    """Whether the last to beat for an attempt was this process."""
    try:
        last = read_json(paths.attempts / f"{attempt}.json")
    except StorageError:
        return False
    return bool(last.get("pid") == os.getpid() and last.get("host") == socket.gethostname())


def heartbeat_changes(
    paths: RunPaths,
    *,
    patience: float = DEAD_AFTER_SECONDS,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Watch the newest attempt for up to `patience` seconds and return whether its beat changes."""
    first, until = heartbeat_of(paths), now() + patience
    while now() < until:
        pause(min(1.0, patience / 4))
        if heartbeat_of(paths) != first:
            return True
    return False
