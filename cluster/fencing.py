"""Fencing: an attempt renames what it publishes out of a folder of its own, which its successor removes.

A check before a write is not enough. A process can be stopped between the two (SIGSTOP, a file system that hangs) and
continue when a newer attempt has published already. So the rename itself decides: its source is below
`attempts/N.drafts/`, and whoever takes the run from attempt N moves this folder away and deletes it before it
publishes anything. From then on every rename of attempt N fails, because its source does not exist. No lock is held,
so a stopped process blocks nobody.

A file outside the run's folder has its draft in a folder beside it. The attempt creates this folder, then checks that
it is the newest attempt, and then moves the folders of older attempts away.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from cluster.run_paths import RunPaths

REPLACED = ".replaced"
_REMOVALS = 10  # a live process may add files while its folder is deleted


def drafts_of(paths: RunPaths, attempt: int) -> Path:
    """Return the folder that an attempt publishes from."""
    return paths.attempts / f"{attempt}.drafts"


def replaced_folder(paths: RunPaths, attempt: int, target: Path) -> Path:
    """Return where a folder of the run goes while an attempt replaces it; the name tells `fence_off` its place."""
    place = quote(str(target.relative_to(paths.folder)), safe="")
    return drafts_of(paths, attempt) / f"{secrets.token_hex(4)}-{place}{REPLACED}"


def fence_off(paths: RunPaths, *, before: int) -> None:
    """Make every later rename of the attempts before number `before` fail.

    A folder that one of them had moved away and not replaced yet is moved back.

    Raises:
        OSError: The folder of an attempt cannot be moved: it can still publish.
    """
    for drafts in paths.attempts.glob("*.drafts"):
        if drafts.stem.isdecimal() and int(drafts.stem) < before:
            with contextlib.suppress(FileNotFoundError):  # another process moved it just before
                drafts.rename(paths.attempts / f"{drafts.name}.{secrets.token_hex(4)}.revoked")
    for revoked in paths.attempts.glob("*.drafts.*.revoked"):
        _restore(paths, revoked)
        _delete(revoked)


@contextmanager
def drafts_beside(target: Path, paths: RunPaths, attempt: int) -> Iterator[Path]:
    """Yield a folder beside `target` for the drafts of an attempt; the caller then checks that it is the newest."""
    own = target.with_name(f".{target.name}.{paths.run_id}.{attempt}")
    own.mkdir(exist_ok=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def fence_off_beside(own: Path) -> None:
    """Move the drafts folders of older attempts into `own`, so that their renames fail."""
    prefix, _, attempt = own.name.rpartition(".")
    for other in own.parent.iterdir():
        same, _, number = other.name.rpartition(".")
        if same == prefix and number.isdecimal() and int(number) < int(attempt):
            with contextlib.suppress(FileNotFoundError):
                other.rename(own / other.name)


def _restore(paths: RunPaths, revoked: Path) -> None:
    for replaced in revoked.glob(f"*{REPLACED}"):
        target = paths.folder / unquote(replaced.name.partition("-")[2].removesuffix(REPLACED))
        if ".." in target.parts:
            continue
        with contextlib.suppress(OSError):  # the target exists: it was replaced, or another process moved it back
            replaced.rename(target)


def _delete(folder: Path) -> None:
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
