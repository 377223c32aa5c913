"""Files and folders that appear complete or not at all. Knows nothing of shards."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename what the block writes there to `path` when the block ends.

    A file is synced first. If the block raises, what it wrote is removed and `path` stays as it was. The temporary name
    is random: two writers on shared storage, each process 1 of its container, never share one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        if temporary.is_file():
            _sync(temporary)
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file; a reader sees all of it or the file that was there before."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
