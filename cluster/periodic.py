"""Something done again and again beside the work: a beat, a look at the clock."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import StorageError

logger = logging.getLogger(__name__)


@contextmanager
def periodic_calls(act: Callable[[], None], *, every_seconds: float, name: str) -> Iterator[None]:
    """Call `act` from a thread of its own while the block runs, at once and then every so many seconds.

    A storage that pauses raises `OSError` or `StorageError`; that is told, and the next call comes all the same.
    """
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            try:
                act()
            except (OSError, StorageError) as error:
                logger.warning("%s: %s", name, error)
            done.wait(every_seconds)

    thread = threading.Thread(target=go_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
