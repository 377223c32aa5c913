"""Calls that are repeated in a background thread: a heartbeat, a check of the clock."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import LeaseLost, StorageError

logger = logging.getLogger(__name__)


@contextmanager
def periodic_calls(function: Callable[[], None], *, every_seconds: float, name: str) -> Iterator[None]:
    """Call `function` in a thread while the block runs: at once, and then every `every_seconds`.

    An `OSError` or `StorageError`, as from a storage that does not respond, is logged; the calls continue. A
    `LeaseLost` is logged and ends them.
    """
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            try:
                function()
            except LeaseLost as error:
                logger.warning("%s: %s", name, error)
                return
            except (OSError, StorageError) as error:
                logger.warning("%s: %s", name, error)
            done.wait(every_seconds)

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
