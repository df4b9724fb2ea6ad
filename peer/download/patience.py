"""How long one origin's answers may take before a request is worth repeating elsewhere, learnt from those that came.

A store that answers in 30 ms and then takes a second has lost the request, or is slow with this one for reasons of its
own; asking again over another connection is the cure (Dean and Barroso, The Tail at Scale, 2013). Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from peer.download.connection import Progress

REMEMBERED = 64
ENOUGH = 4
"""How many answers must have come before they are taken for the rule."""

UNKNOWN_SECONDS = 1.0
"""The patience with an origin that is not known yet."""

SHORTEST_SECONDS = 0.1
LONGEST_SECONDS = 5.0
MULTIPLE = 4.0
SLOW = 8.0
"""So many times slower than the others' median, a request is a straggler, although it does make progress."""

HEDGE_SHARE = 0.1
"""The most hedges a request."""

SAVED_HEDGES = 4.0
"""How many hedges may be spent at once."""

WASTE_SHARE = 0.005
"""How much of the bytes that come may be of no use, because another request brought them too."""

WASTE_ALLOWANCE = 1024 * 1024


def _recent() -> deque[float]:
    return deque(maxlen=REMEMBERED)


@dataclass(slots=True)
class Patience:
    """What one origin's recent answers were like: seconds, and bytes a second of waiting.

    Threads call `answered`; everything else belongs to the event loop.
    """

    _first_bytes: deque[float] = field(default_factory=_recent)
    _gaps: deque[float] = field(default_factory=_recent)
    _rates: deque[float] = field(default_factory=_recent)
    _hedges: float = 1.0
    _useful: int = 0
    _wasted: int = 0

    def asked(self) -> None:
        """Count a request."""
        self._hedges = min(SAVED_HEDGES, self._hedges + HEDGE_SHARE)

    def answered(self, seconds: float) -> None:
        """Take note of how long an answer took to begin."""
        self._first_bytes.append(seconds)

    def ended(self, progress: Progress) -> None:
        """Take note of what an exchange was like that brought all it was asked for."""
        self._useful += progress.received
        self._gaps.append(progress.longest_gap)
        if progress.waited > 0:
            self._rates.append(progress.received / progress.waited)

    def wasted(self, count: int) -> None:
        """Count bytes that came and were of no use."""
        self._wasted += count

    def limit(self, progress: Progress) -> float:
        """Return for how many seconds an exchange may be without a byte."""
        return _limit(self._first_bytes if progress.first_byte < 0 else self._gaps)

    def is_straggler(self, progress: Progress) -> bool:
        """Tell whether an exchange that makes progress makes far less of it than the others did."""
        long = max(UNKNOWN_SECONDS, MULTIPLE * self.limit(progress))
        if len(self._rates) < ENOUGH or progress.waited < long:
            return False
        return progress.received / progress.waited < median(self._rates) / SLOW

    def spend(self, silent_seconds: float) -> bool:
        """Take leave for one hedge, if there is any left; a request that has been silent for very long needs none."""
        if silent_seconds >= LONGEST_SECONDS:
            return True
        if self._hedges < 1 or self._wasted > WASTE_ALLOWANCE + WASTE_SHARE * self._useful:
            return False
        self._hedges -= 1
        return True


def _limit(seen: Iterable[float]) -> float:
    known = sorted(seen)
    if len(known) < ENOUGH:
        return UNKNOWN_SECONDS
    p95 = known[min(len(known) - 1, int(len(known) * 0.95))]
    return min(LONGEST_SECONDS, max(SHORTEST_SECONDS, MULTIPLE * p95))
