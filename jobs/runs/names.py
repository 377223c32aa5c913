"""What `--name` calls a run: a file for each name in use, changed under one lock."""

import re
from pathlib import Path

from cluster.files import locked, read_json, write_json
from jobs.errors import NameTaken

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def claim(storage: Path, name: str, run_id: str) -> None:
    """Make a name mean a run.

    Raises:
        NameTaken: It means another one.
    """
    folder = storage / "names"
    folder.mkdir(exist_ok=True)
    with locked(folder / ".lock"):
        owner = run_of(storage, name)
        # A submitter that died between this and its run's publication left a name that means nothing.
        if owner and any((storage / "runs" / place).is_dir() for place in (owner, f".new-{owner}")):
            raise NameTaken(f"name {name!r} belongs to {owner}; choose another, or delete that run")
        write_json(folder / f"{name}.json", {"id": run_id})


def free(storage: Path, name: str, run_id: str) -> None:
    """Take a name from a run that is no more, unless it means another one by now."""
    folder = storage / "names"
    with locked(folder / ".lock"):
        if run_of(storage, name) == run_id:
            (folder / f"{name}.json").unlink()


def run_of(storage: Path, name: str) -> str | None:
    """Return the id of the run that a name was given to, None when no run has it."""
    file = storage / "names" / f"{name}.json"
    return str(read_json(file)["id"]) if NAME.fullmatch(name) and file.is_file() else None
