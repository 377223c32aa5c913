"""How every benchmark measures: ours and the peer's in turn, in one process, the median of the pairs' ratios.

Turns, because a shared machine drifts: a ratio taken pair by pair holds where two absolute figures do not.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


class Absent(Exception):
    """What a benchmark needs is not on this machine; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of RESULTS.md.

    Attributes:
        what: The work that was timed.
        beside: The peer, in words.
        ours: Median of ours, in `unit`.
        peer: Median of the peer's, in `unit`.
        unit: Such as "s" or "images/s".
        ratio: How many times better ours is, the median over pairs; above 1 is better.
        spread: Lowest and highest ratio of a pair.
        pairs: How many pairs were measured.
        goal: The ratio that was aimed at, or None.
        parity: What shows that both did the same work, with its figure.
        command: What runs this benchmark alone.
        note: Why a goal was missed, or what else must be known.
    """

    what: str
    beside: str
    ours: float
    peer: float
    unit: str
    ratio: float
    spread: tuple[float, float]
    pairs: int
    goal: float | None
    parity: str
    command: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return asdict(self)


def seconds(work: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ours: Callable[[], float], peer: Callable[[], float], *, pairs: int) -> tuple[list[float], list[float]]:
    """Call both measurements `pairs` times, the order changing from pair to pair, and return their figures."""
    of_ours, of_peer = [], []
    for pair in range(pairs):
        for mine in (True, False) if pair % 2 == 0 else (False, True):
            (of_ours if mine else of_peer).append(ours() if mine else peer())
    return of_ours, of_peer


def row(ours: list[float], peer: list[float], *, more_is_better: bool, **words: Any) -> Row:
    """Make the line of a table from the figures of interleaved pairs."""
    ratios = [(a / b if more_is_better else b / a) for a, b in zip(ours, peer, strict=True)]
    return Row(
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        pairs=len(ratios),
        **words,
    )
