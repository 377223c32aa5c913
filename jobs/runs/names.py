"""The names that `--name` gives to runs: one file per name, changed under one lock."""

import contextlib
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import files
from cluster.errors import StorageError
from cluster.files import locked, read_json_object, read_json_object_or_empty, write_json
from cluster.run_paths import RUN_ID, RunPaths
from jobs.errors import NameTaken
from jobs.runs.drafts import is_submitted_or_in_progress

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAME_RULE = "write up to 63 of a-z, A-Z, 0-9, '.', '-' and '_', and begin with a letter or a digit"


def claim(storage: Path, name: str, run_id: str) -> None:
    """Give a name to a run.

    Raises:
        NameTaken: Another run has it.
    """
    with locked_names(storage):
        refuse_taken(storage, name)
        write_json(storage / "names" / f"{name}.json", {"id": run_id})


def refuse_taken(storage: Path, name: str) -> None:
    """Refuse the name of another run or of a promoted model.

    Raises:
        NameTaken: It is one.
    """
    if (storage / "models" / f"{name}.json").exists():
        raise NameTaken(f"{name} is the name of a promoted model; choose another name for the run")
    owner = run_of(storage, name)
    # A submitter that died between the claim of the name and its run's publication left a name without a run.
    if owner and is_submitted_or_in_progress(RunPaths.of(storage, owner)):
        raise NameTaken(f"name {name!r} belongs to {owner}; choose another, or delete that run")


@contextlib.contextmanager
def locked_names(storage: Path) -> Iterator[None]:
    """Hold the lock under which names of runs and of promoted models are given.

    Raises:
        StorageError: A process that is stopped holds it: it must not keep the reconciler from its work.
    """
    folder = storage / "names"
    folder.mkdir(exist_ok=True)
    with locked(folder / ".lock", patience=files.LOCK_SECONDS):
        yield


def free(storage: Path, name: str, run_id: str) -> None:
    """Free the name of a deleted run, unless another run has it by now."""
    folder = storage / "names"
    with locked(folder / ".lock", patience=files.LOCK_SECONDS):
        if run_of(storage, name) == run_id:
            (folder / f"{name}.json").unlink()


def run_of(storage: Path, name: str) -> str | None:
    """Return the id of the run that has a name, None if no run has it or the name's file is damaged.

    Raises:
        OSError, StorageError: The storage does not answer, so nothing is known.
    """
    file = storage / "names" / f"{name}.json"
    return _run_id(read_json_object_or_empty(file)) if NAME.fullmatch(name) and file.is_file() else None


def close_name(storage: Path, text: str) -> str | None:
    """Return the name of a run that was probably meant by a text, None if no name is like it."""
    folder = storage / "names"
    close = difflib.get_close_matches(text, [file.stem for file in folder.glob("*.json")])
    return next((name for name in close if _owner(folder / f"{name}.json") is not None), None)  # not a damaged one


def names_of(storage: Path, run_id: str) -> list[str]:
    """Return the names of a run by looking through all names."""
    folder = storage / "names"
    return sorted(file.stem for file in folder.glob("*.json") if _owner(file) == run_id)


def _owner(file: Path) -> str | None:
    try:
        return _run_id(read_json_object(file))
    except StorageError:
        return None


def _run_id(content: dict[str, Any]) -> str | None:
    run_id = content.get("id")
    return run_id if isinstance(run_id, str) and RUN_ID.fullmatch(run_id) else None
