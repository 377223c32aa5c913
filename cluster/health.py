"""Checks of the storage for `nightshift doctor`: each returns what it found and, for a fault, the cure."""

import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.access import denial, is_writable, why_not
from cluster.errors import StorageError
from cluster.files import is_full, locked, read_json, write_json
from cluster.mounts import Mount, mount_of
from cluster.run_paths import RUN_ID
from cluster.settings import DATA_FOLDERS, Settings

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
    cure = "set NIGHTSHIFT_STORAGE to a folder that you can write to"
    try:
        storage.mkdir(parents=True, exist_ok=True)
        settings = Settings(storage=storage)
        is_used = settings.runs.is_dir()  # otherwise it is new, or a share that is not mounted, and stays empty
        if is_used:
            settings.with_storage_ready()  # what every command does first
        folder = settings.runs if is_used else storage
        probe = folder / f".doctor-{secrets.token_hex(8)}"  # every container has a process 1
        probe.mkdir()
    except StorageError as error:
        found, _, told = str(error).partition("; ")
        return [CheckResult(check="storage", ok=False, found=found, cure=told or cure)]
    except OSError as error:
        found, _, told = f"{storage} is not writable: {why_not(error, storage, cure)}".partition("; ")
        return [CheckResult(check="storage", ok=False, found=found, cure=told)]
    try:
        checks: tuple[Callable[[Path], CheckResult], ...] = (_room, _rename, _lock)
        return [
            CheckResult(check="storage", ok=True, found=f"{storage} is writable"),
            *_denied(settings),
            *(check(probe) for check in checks),
        ]
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _denied(settings: Settings) -> list[CheckResult]:
    """Check the folders that only some commands write to, and whether runs of other users can be changed."""
    denied = settings.denied_folders(DATA_FOLDERS)
    runs = settings.runs.iterdir() if settings.runs.is_dir() else ()
    denied += [run for run in runs if RUN_ID.fullmatch(run.name) and run.is_dir() and not is_writable(run)][:1]
    return [
        CheckResult(check="permissions", ok=False, found=what, cure=cure)
        for what, _, cure in (denial(folder).partition("; ") for folder in denied)
    ]


def _room(folder: Path) -> CheckResult:
    disk = shutil.disk_usage(folder)
    if disk.free >= FREE_BYTES_LEAST:
        return CheckResult(check="free space", ok=True, found=f"{disk.free / 10**9:.1f} GB")
    found = f"{disk.free / 10**9:.2f} GB of {disk.total / 10**9:.2f} GB; a run may need {FREE_BYTES_LEAST // 10**9} GB"
    cure = "delete runs with `nightshift delete ID`, caches with `nightshift cache prune`, or take a larger disk"
    return CheckResult(check="free space", ok=False, found=found, cure=cure)


def _rename(folder: Path) -> CheckResult:
    file = folder / "value.json"
    cure = "use a file system with atomic rename: a local disk, NFS, CephFS"
    try:
        write_json(file, 1)
        write_json(file, 2)
        ok = read_json(file) == 2  # noqa: PLR2004
    except OSError as error:
        if is_full(error):
            return CheckResult(check="rename", ok=False, found="not tried: the disk is full", cure="free some space")
        return CheckResult(check="rename", ok=False, found=error.strerror or str(error), cure=cure)
    except StorageError as error:
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
    if not (excluded and freed):
        return CheckResult(check="locks", ok=False, found="exclude nobody", cure=cure)
    return _lock_of_mount(mount_of(folder))


def _lock_of_mount(mount: Mount | None) -> CheckResult:
    """Check that locks that work on this machine also exclude other machines, as far as the mount tells."""
    if mount is None or not mount.is_network:
        return CheckResult(check="locks", ok=True, found="work")
    if mount.local_lock is not None:
        found = f"work on this machine only: the storage is mounted with {mount.local_lock}"
        cure = f"mount it without {mount.local_lock}: two machines could write the same run"
        return CheckResult(check="locks", ok=False, found=found, cure=cure)
    return CheckResult(check="locks", ok=True, found=f"work on this machine; the mount ({mount.type}) shares them")
