"""Files of a run that have another shape than expected: a part of the page is left out, and a line says which."""

import logging
from collections.abc import Callable
from typing import TypeVar

from cluster.errors import ClusterError
from trainer.errors import TrainerError

T = TypeVar("T")
# What code raises on JSON of another shape: a missing key, a text for a number, a number out of range.
WRONG_SHAPE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

log = logging.getLogger("nightshift.web")


def shown_or(empty: T, file: str, warnings: list[str], show: Callable[[], T]) -> T:
    """Return what `show` returns, or `empty` with a line in `warnings` if the file that it shows is damaged.

    Args:
        empty: What to show instead.
        file: Name of the file.
        warnings: The lines of the page.
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
