"""The lease on a run: attempts are numbered, and only the attempt with the highest number can publish.

An attempt is a file `attempts/N.json`. Only one process can create it, so no two processes hold the same number.
The owner increments the heartbeat counter in it. Others take the attempt for alive if the counter *changes* while
they watch, measured with their own monotonic clock: the wall clocks of the machines need not agree.

An attempt publishes with the methods of its lease. `cluster.fencing` says why a late one cannot.
"""

import json
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import fencing
from cluster.errors import LeaseLost, StorageError
from cluster.files import append_line, atomic_folder, atomic_write, is_full, json_bytes, read_json_object, write_json
from cluster.run_paths import RunPaths
from cluster.storage_marker import refuse_away

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 30.0  # six missed heartbeats: longer than a typical stall of the storage


def latest_attempt(paths: RunPaths) -> int:
    """Return the highest attempt number that was claimed, 0 if none was."""
    numbers = [int(file.stem) for file in paths.attempts.glob("*.json") if file.stem.isdecimal()]
    return max(numbers, default=0)


@dataclass
class Lease:
    """The right of one attempt to publish into a run folder."""

    paths: RunPaths
    attempt: int
    heartbeats: int = 0

    @classmethod
    def claim(cls, paths: RunPaths, *, after: int) -> "Lease":
        """Claim attempt number `after + 1`.

        Raises:
            LeaseLost: Another process claimed that number first.
            OSError: The disk is full, or the older attempts can still publish; the claim was undone.
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
                json.dump(lease._content(), file)  # not synced: a crash of the machine ends the attempt anyway
            lease.drafts.mkdir(exist_ok=True)
            fencing.fence_off(paths, before=lease.attempt)
        except OSError:
            lease.file.unlink()
            raise
        lease.check()
        return lease

    @classmethod
    def join(cls, paths: RunPaths, attempt: int) -> "Lease":
        """Return the lease of an attempt that the parent process claimed.

        Raises:
            LeaseLost: A newer attempt exists, this one has ended, or it was never claimed.
            StorageAway: The storage is not mounted.
        """
        lease = cls(paths, attempt)
        if not lease.file.exists():
            refuse_away(paths.folder.parent)
            raise LeaseLost(f"{paths.run_id}: attempt {attempt} was never claimed")
        lease.check()  # before it: the folder of an attempt that has ended must stay away
        lease.drafts.mkdir(exist_ok=True)  # a job worker of version 0.1.0 claims without it
        lease.check()  # after it: a newer attempt creates its file first and then removes this folder
        return lease

    @property
    def file(self) -> Path:
        """The attempt's file."""
        return self.paths.attempts / f"{self.attempt}.json"

    @property
    def drafts(self) -> Path:
        """The folder that this attempt publishes from; it exists until another attempt takes the run over."""
        return fencing.drafts_of(self.paths, self.attempt)

    @property
    def _claimed(self) -> Path:
        """The file whose modification time is the time of the claim."""
        return self.paths.attempts / f"{self.attempt}.claimed"

    def held_seconds(self) -> float:
        """Return the seconds since the claim, by the clock of the file system: the clocks of two machines differ."""
        probe = self.paths.attempts / ".now"
        probe.touch()
        claimed = self._claimed if self._claimed.exists() else probe
        return max(0.0, probe.stat().st_mtime - claimed.stat().st_mtime)

    def heartbeat(self) -> None:
        """Write the next heartbeat; call this every `HEARTBEAT_SECONDS`.

        Raises:
            OSError: The storage cannot be reached.
        """
        self.heartbeats += 1
        try:
            write_json(self.file, self._content(), durable=False)
        except OSError as error:
            if not is_full(error):
                raise
            self._overwrite_heartbeat()

    def _overwrite_heartbeat(self) -> None:
        """Write the heartbeat into the existing file, because a full disk has no space for a draft.

        A reader may see part of it and read None, which also counts as a change.
        """
        with self.file.open("r+") as file:
            json.dump(self._content(), file)
            file.truncate()

    def atomic_write(self, target: Path, *, durable: bool = True) -> AbstractContextManager[Path]:
        """Yield the path of a draft, which replaces the file `target` after the block; see `files.atomic_write`.

        Raises:
            LeaseLost: A newer attempt owns the run; `target` stays as it was.
            OSError: The folder is full or not writable.
        """
        if target.is_relative_to(self.paths.folder):
            return self._atomic_write(target, durable=durable)
        return self._atomic_write_outside(target)

    @contextmanager
    def _atomic_write(self, target: Path, *, durable: bool) -> Iterator[Path]:
        with self._fenced(), atomic_write(target, durable=durable, drafts=self.drafts) as draft:
            yield draft

    @contextmanager
    def _atomic_write_outside(self, target: Path) -> Iterator[Path]:
        with self._fenced(), fencing.drafts_beside(target, self.paths, self.attempt) as own:
            self.check()
            fencing.fence_off_beside(own)
            with self._fenced(own), atomic_write(target, drafts=own) as draft:
                yield draft

    @contextmanager
    def atomic_folder(self, target: Path) -> Iterator[Path]:
        """Yield an empty folder, which replaces the folder `target` of the run after the block.

        Raises:
            LeaseLost: A newer attempt owns the run; `target` stays as it was.
            OSError: The folder is full or not writable.
        """
        replaced = fencing.replaced_folder(self.paths, self.attempt, target)
        with self._fenced(), atomic_folder(target, drafts=self.drafts, replaced=replaced) as draft:
            yield draft

    def write_json(self, path: Path, value: Any, *, durable: bool = True) -> None:
        """Write `value` as JSON with `atomic_write`."""
        self.write_bytes(path, json_bytes(value), durable=durable)

    def write_text(self, path: Path, text: str) -> None:
        """Write `text` as UTF-8 with `atomic_write`."""
        self.write_bytes(path, text.encode())

    def write_bytes(self, path: Path, content: bytes, *, durable: bool = True) -> None:
        """Write `content` with `atomic_write`."""
        with self.atomic_write(path, durable=durable) as draft:
            draft.write_bytes(content)

    def append_line(self, path: Path, value: dict[str, Any]) -> None:
        """Append `value` and the attempt's number as a line of JSON.

        A line that an attempt appends late is left out by `read_attempt_lines`, because it follows one of a newer
        attempt.

        Raises:
            LeaseLost: A newer attempt owns the run.
        """
        self.check()
        append_line(path, {**value, "attempt": self.attempt})

    def remove(self, path: Path) -> None:
        """Delete a file or folder of the run, if it exists; it disappears at once.

        Raises:
            LeaseLost: A newer attempt owns the run; `path` stays.
        """
        with self._fenced():
            try:
                removed = path.rename(self.drafts / f"removed-{secrets.token_hex(4)}")
            except FileNotFoundError:
                if not self.drafts.is_dir():
                    raise
                return
        if removed.is_dir():
            shutil.rmtree(removed, ignore_errors=True)
        else:
            removed.unlink(missing_ok=True)

    @contextmanager
    def _fenced(self, drafts: Path | None = None) -> Iterator[None]:
        """Raise LeaseLost for an error of the block if the attempt's drafts were removed meanwhile."""
        self.check()
        try:
            yield
        except OSError as error:
            if (drafts or self.drafts).is_dir():
                raise
            self.check()
            raise LeaseLost(f"{self.paths.run_id}: another process ended attempt {self.attempt}") from error

    def check(self) -> None:
        """Check that this attempt may still publish.

        The methods that publish call it too. It stops a late attempt early; what makes a late publication impossible
        is `cluster.fencing`.

        Raises:
            LeaseLost: A newer attempt owns the run, or the run was deleted.
            StorageAway: The storage is not mounted, so nothing is known of the run.
        """
        newest = latest_attempt(self.paths)
        if newest > self.attempt:
            raise LeaseLost(f"{self.paths.run_id}: attempt {newest} has taken over from attempt {self.attempt}")
        if _revocation(self.paths, self.attempt).exists():
            raise LeaseLost(f"{self.paths.run_id}: attempt {self.attempt} was marked dead")
        if self.file.exists():
            return
        refuse_away(self.paths.folder.parent)
        if not self.file.exists():  # again: the storage may have come back just then
            raise LeaseLost(f"{self.paths.run_id}: the run was deleted while attempt {self.attempt} was running")

    def _content(self) -> dict[str, Any]:
        return {"attempt": self.attempt, "host": socket.gethostname(), "pid": os.getpid(), "beat": self.heartbeats}


def revoke(paths: RunPaths, attempt: int) -> None:
    """Mark an attempt dead or ended, so that it can publish nothing if a process of it comes back or starts late.

    Raises:
        OSError: The storage cannot be written.
    """
    _revocation(paths, attempt).touch()
    fencing.fence_off(paths, before=attempt + 1)


def _revocation(paths: RunPaths, attempt: int) -> Path:
    return paths.attempts / f"{attempt}.revoked"


def heartbeat_of(paths: RunPaths) -> tuple[int, int | float | str | None]:
    """Return the newest attempt's number and its last heartbeat, None if there is none or its file is damaged."""
    attempt = latest_attempt(paths)
    try:
        beat = read_json_object(paths.attempts / f"{attempt}.json").get("beat")
    except StorageError:
        return attempt, None
    if isinstance(beat, float) and not math.isfinite(beat):  # NaN differs from itself: it would seem to change forever
        return attempt, None
    return attempt, beat if isinstance(beat, int | float | str) else None


def heartbeat_is_ours(paths: RunPaths, attempt: int) -> bool:
    """Return whether this process wrote the last heartbeat of an attempt."""
    try:
        last = read_json_object(paths.attempts / f"{attempt}.json")
    except StorageError:
        return False
    return bool(last.get("pid") == os.getpid() and last.get("host") == socket.gethostname())


def heartbeat_changes(
    paths: RunPaths,
    *,
    patience: float = DEAD_AFTER_SECONDS,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Watch the newest attempt for up to `patience` seconds and return whether its heartbeat changes."""
    first, until = heartbeat_of(paths), time.monotonic() + patience
    while time.monotonic() < until:
        pause(min(1.0, patience / 4))
        if heartbeat_of(paths) != first:
            return True
    return False
