"""Measure Nightshift and a peer alternately in one process, and return the median of the pairs' ratios.

The measurements alternate because the speed of a shared machine changes over time. A ratio per pair stays valid when
two absolute figures do not.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


class Absent(Exception):
    """This machine lacks something that a benchmark needs; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of RESULTS.md.

    Attributes:
        what: The work that was timed.
        beside: Description of the peer.
        ours: Median of Nightshift, in `unit`.
        peer: Median of the peer, in `unit`.
        unit: Such as "s" or "images/s".
        ratio: How many times better Nightshift is, the median over pairs; above 1 is better.
        spread: Lowest and highest ratio of a pair.
        pairs: How many pairs were measured.
        goal: The target ratio, or None.
        parity: The evidence that both did the same work, with its figure.
        command: The command that runs this benchmark alone.
        note: Why a goal was missed, or other remarks.
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
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ours: Callable[[], float], peer: Callable[[], float], *, pairs: int) -> tuple[list[float], list[float]]:
    """Call both measurements `pairs` times, in an order that alternates from pair to pair, and return their figures."""
    of_ours, of_peer = [], []
    for pair in range(pairs):
        for mine in (True, False) if pair % 2 == 0 else (False, True):
            (of_ours if mine else of_peer).append(ours() if mine else peer())
    return of_ours, of_peer


def row(ours: list[float], peer: list[float], *, more_is_better: bool, **words: Any) -> Row:
    """Return a table row from the figures of interleaved pairs."""
    ratios = [(a / b if more_is_better else b / a) for a, b in zip(ours, peer, strict=True)]
    return Row(
        ours=statistics.median(ours),
        peer=statistics.median(peer),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        pairs=len(ratios),
        **words,
    )
