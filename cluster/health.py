"""Checks of the storage for `nightshift doctor`: each returns what it found and, for a fault, the cure."""

import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import StorageError
from cluster.files import locked, read_json, write_json

FREE_BYTES_LEAST = 5 * 10**9  # a run with its checkpoints, and the features of a mid-size data set


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        check: What was checked.
        ok: Whether the check passed.
        found: What was found.
        cure: How to repair a fault; None if there is none.
    """

    check: str
    ok: bool
    found: str
    cure: str | None = None


def check_storage(storage: Path) -> list[CheckResult]:
    """Check that the storage is writable and has free space, and that renames are atomic and locks work."""
    try:
        storage.mkdir(parents=True, exist_ok=True)
        probe = storage / f".doctor-{secrets.token_hex(8)}"  # every container has a process 1
        probe.mkdir()
    except OSError as error:
        cure = "set NIGHTSHIFT_STORAGE to a folder that you can write to"
        return [CheckResult(check="storage", ok=False, found=f"{storage}: {error.strerror}", cure=cure)]
    try:
        checks: tuple[Callable[[Path], CheckResult], ...] = (_room, _rename, _lock)
        return [
            CheckResult(check="storage", ok=True, found=f"{storage} is writable"),
            *(check(probe) for check in checks),
        ]
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _room(folder: Path) -> CheckResult:
    free = shutil.disk_usage(folder).free
    cure = None if free >= FREE_BYTES_LEAST else "delete old runs with `nightshift delete ID`, or take a larger disk"
    return CheckResult(check="free space", ok=cure is None, found=f"{free / 10**9:.1f} GB", cure=cure)


def _rename(folder: Path) -> CheckResult:
    file = folder / "value.json"
    cure = "use a file system with atomic rename: a local disk, NFS, CephFS"
    try:
        write_json(file, 1)
        write_json(file, 2)
        ok = read_json(file) == 2  # noqa: PLR2004
    except (OSError, StorageError) as error:
        return CheckResult(check="rename", ok=False, found=str(error), cure=cure)
    return CheckResult(
        check="rename", ok=ok, found="replaces files atomically" if ok else "lost a write", cure=None if ok else cure
    )


def _lock(folder: Path) -> CheckResult:
    """Check that a lock excludes a second holder: some network file systems accept locks and ignore them."""
    entered, file = threading.Event(), folder / "lock"
    cure = "use a file system with locks (NFS 4, CephFS, a local disk), or mount it with them"

    def enter() -> None:
        with locked(file):
            entered.set()

    other = threading.Thread(target=enter, daemon=True)
    try:
        with locked(file):
            other.start()
            excluded = not entered.wait(0.2)
        freed = entered.wait(5)
    except (OSError, StorageError) as error:
        return CheckResult(check="locks", ok=False, found=str(error), cure=cure)
    ok = excluded and freed
    return CheckResult(
        check="locks",
        ok=ok,
        found="work" if ok else "exclude nobody",
        cure=None if ok else cure,
    )
