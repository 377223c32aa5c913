"""Files of JSON lines that several attempts of a run append to: `metrics.jsonl` and `trials.jsonl`.

An append cannot be fenced as a rename can (see `cluster.fencing`): a process that was stopped may append when a newer
attempt has appended already. So each line has its attempt's number, and a line of an older attempt after one of a
newer attempt does not count.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cluster.errors import StorageError
from cluster.files import read_content

Line: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AttemptLines:
    """The lines of a file that count.

    Attributes:
        lines: In the order in which they were written.
        damaged: Numbers, from 1, of the lines that are not JSON or lack what such a line has. An incomplete last line,
            as a killed process leaves it, is not counted.
    """

    path: Path
    lines: tuple[Line, ...] = ()
    damaged: tuple[int, ...] = ()

    @property
    def warning(self) -> str | None:
        """What was left out because of damage, None if nothing was."""
        if not self.damaged:
            return None
        shown = ", ".join(map(str, self.damaged[:5])) + (", ..." if len(self.damaged) > 5 else "")  # noqa: PLR2004
        one = len(self.damaged) == 1
        return f"{self.path}: {'line' if one else 'lines'} {shown} {'is' if one else 'are'} damaged and left out"


def read_attempt_lines(path: Path, is_valid: Callable[[Line], bool]) -> AttemptLines:
    """Return the lines of a file that count; an absent file has none.

    Args:
        path: The file.
        is_valid: Whether a line has what the reader needs; it may raise KeyError, TypeError or ValueError instead.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        content = read_content(path)
    except FileNotFoundError:
        return AttemptLines(path=path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    lines, damaged, newest = list[Line](), list[int](), 0
    texts = content.split(b"\n")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        line = _parsed(text, is_valid)
        if line is None:
            damaged.append(number)
            continue
        attempt = line.get("attempt", newest)  # a line of version 0.1.0 may have none
        if isinstance(attempt, int) and attempt < newest:  # written after a newer attempt had written
            continue
        newest = attempt if isinstance(attempt, int) else newest
        lines.append(line)
    if damaged and damaged[-1] == len(texts):  # without a newline at its end
        damaged.pop()
    return AttemptLines(path=path, lines=tuple(lines), damaged=tuple(damaged))


def _parsed(text: bytes, is_valid: Callable[[Line], bool]) -> Line | None:
    try:
        line = json.loads(text.decode())
        return line if isinstance(line, dict) and is_valid(line) else None
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
