"""The memory of this process, as /proc/self/status has it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ANONYMOUS = "RssAnon"  # without the page cache


@dataclass
class Peak:
    """The highest value that was seen."""

    kilobytes: int = 0


@contextmanager
def anonymous_peak(*, every_seconds: float) -> Iterator[Peak]:
    """Yield a peak that grows with the anonymous memory of this process while the block runs."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(every_seconds):
            peak.kilobytes = max(peak.kilobytes, memory(ANONYMOUS))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def memory(name: str) -> int:
    """Return a value of /proc/self/status in kB, such as VmHWM."""
    with Path("/proc/self/status").open() as lines:
        return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
