"""How many connections to an origin are worth having.

Object stores limit a connection, gateways limit everybody together: more connections help with the first and only add
latency with the second. `OriginPace` finds out by trying: it doubles the number while the measured rate grows with it,
and goes back as soon as doubling did not pay.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_SECONDS = 0.15
WINDOW_PIECES = 8
WORTHWHILE_GROWTH = 1.2
RETRY_AFTER_WINDOWS = 20


@dataclass(slots=True)
class OriginPace:
    """Counts landed bytes and steps `limit`, the number of concurrent ranged requests, between two bounds."""

    lowest: int = 4
    highest: int = 16
    limit: int = 0
    _bytes: int = 0
    _pieces: int = 0
    _began: float | None = None
    _rate_before: float = 0.0
    _probing: bool = True
    _settled: int = 0

    def __post_init__(self) -> None:
        self.limit = self.limit or self.lowest

    def began(self, now: float) -> None:
        """Note that a request starts at `now` (seconds); time in which nothing was asked for does not count."""
        if self._began is None:
            self._began = now

    def idle(self) -> None:
        """Note that no request is under way any more: the window that was open says nothing."""
        self._began, self._bytes, self._pieces = None, 0, 0

    def landed(self, size: int, now: float) -> None:
        """Count a piece of `size` bytes that arrived at `now` and step the limit when a window is full."""
        self._bytes += size
        self._pieces += 1
        if self._began is None or now - self._began < WINDOW_SECONDS or self._pieces < max(WINDOW_PIECES, self.limit):
            return
        rate = self._bytes / (now - self._began)
        self._began, self._bytes, self._pieces = now, 0, 0
        self._step(rate)

    def _step(self, rate: float) -> None:
        if not self._probing:
            self._settled += 1
            self._probing = self._settled >= RETRY_AFTER_WINDOWS
            self._rate_before = rate
            return
        if rate >= self._rate_before * WORTHWHILE_GROWTH and self.limit < self.highest:
            self._rate_before = rate
            self.limit = min(self.limit * 2, self.highest)
            return
        if rate < self._rate_before * WORTHWHILE_GROWTH:
            self.limit = max(self.lowest, self.limit // 2)
        self._probing, self._settled = False, 0
