"""Files of a run that have another shape than expected: what they tell is left out, and a line says so."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cluster.errors import ClusterError, StorageError
from trainer.errors import TrainerError

T = TypeVar("T")
# What code raises on JSON of another shape: a missing key, a text for a number, a number out of range.
WRONG_SHAPE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

log = logging.getLogger("nightshift.damage")


def shown_or(empty: T, file: str, warnings: list[str], show: Callable[[], T]) -> T:
    """Return what `show` returns, or `empty` with a line in `warnings` if the file that it shows is damaged.

    Args:
        empty: What to show instead.
        file: Name of the file.
        warnings: Lines for people.
        show: Reads the file's content.
    """
    try:
        return show()
    except (ClusterError, TrainerError) as error:
        warnings.append(str(error))
    except WRONG_SHAPE as error:
        log.debug("%s has another shape", file, exc_info=error)
        warnings.append(f"{file} is damaged ({type(error).__name__}), and what it tells is not shown")
    return empty


@contextmanager
def refused_if_damaged(files: str, run_id: str) -> Iterator[None]:
    """Refuse to show files of another shape than the block expects.

    Args:
        files: Their names.
        run_id: Their run.

    Raises:
        StorageError: The block met another shape.
    """
    try:
        yield
    except WRONG_SHAPE as error:
        log.debug("%s of %s", files, run_id, exc_info=error)
        raise StorageError(
            f"{files} of {run_id} is damaged ({type(error).__name__}); restore it from a backup, or delete the run: "
            f"nightshift delete {run_id}"
        ) from error
