"""Which code a process has imported: it changes when Nightshift or one of its libraries is changed or installed."""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("cluster", "data_shards", "trainer")  # what a trainer imports of Nightshift


@dataclass(frozen=True)
class CodeVersion:
    """The files of the code, each with its time of change in ns and its size in bytes."""

    files: frozenset[tuple[str, int, int]] = frozenset()

    @classmethod
    def of_installation(cls, root: Path = ROOT) -> "CodeVersion":
        """Return the code that a process would import now: our files, and the records of the installed libraries."""
        ours = (path for package in PACKAGES for path in (root / package).rglob("*.*") if path.suffix != ".pyc")
        theirs = (path for place in sys.path if place for path in Path(place).glob("*.dist-info"))
        return cls(frozenset(found for path in (*ours, *theirs) if (found := _state_of(path))))


def _state_of(path: Path) -> tuple[str, int, int] | None:
    try:
        state = path.stat()
    except OSError:  # removed by an installation that is going on
        return None
    return str(path), state.st_mtime_ns, state.st_size
