"""How many seconds each part of an attempt took. Imports neither torch nor ray."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

OTHER = "other"  # earlier attempts, waits between them, and the end of the process
SHORTEST_OTHER_SECONDS = 0.1
ORDER = ("queue", "start", "features", "training", "evaluation", "predicting", "report", OTHER)  # for people
LONGEST_SECONDS = 1e9  # a larger number is damage
PARTS = {"features": "features", "train": "training", "evaluate": "evaluation", "predict": "predicting"}  # by phase


@dataclass
class PhaseTimes:
    """Adds up the seconds of each part, on the monotonic clock.

    Attributes:
        seconds: By part; a part that ran several times has the sum.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _part: str | None = None
    _since: float = 0.0

    def start(self, phase: str) -> None:
        """Start the part of a phase of `progress.json`, which ends the one before; a wait or a start is no part."""
        self.stop()
        self._part, self._since = PARTS.get(phase), time.monotonic()

    def stop(self) -> None:
        """End the part that runs, if any."""
        if self._part is not None:
            self.add({self._part: time.monotonic() - self._since})
        self._part = None

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds that another process measured."""
        for part, more in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + more

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Measure the block as a part; what is added to other parts meanwhile is not counted twice."""
        began, before = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            self.add({part: time.monotonic() - began - (sum(self.seconds.values()) - before)})


def timing_text(timing: object, whole: float | None = None) -> str:
    """Return the timing in a `result.json` as text, such as `queue 0.3 s, start 2.1 s`; "" if there is none.

    `whole` are the seconds from submit to the end of the run; what the parts do not explain of them is "other".
    """
    if not isinstance(timing, Mapping):
        return ""
    known = {name: timing[name] for name in ORDER if _is_seconds(timing.get(name))}
    other = 0.0 if whole is None else whole - sum(known.values())
    if known and other >= SHORTEST_OTHER_SECONDS:
        known[OTHER] = other
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in known.items())


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < LONGEST_SECONDS
