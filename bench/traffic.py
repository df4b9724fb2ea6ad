"""What an origin tells about its traffic over time: how many requests at once, in each 100 ms, and sent twice."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

WINDOW_SECONDS = 0.1
_MOST_WINDOWS = 36_000


class Traffic:
    """Counts requests in windows of WINDOW_SECONDS from `began` on (seconds of the caller's clock)."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._windows: Counter[int] = Counter()
        self._current = 0
        self.peak = 0
        """The most requests that were being answered at once."""

    @contextmanager
    def request(self, now: float) -> Iterator[None]:
        """Count a request that came at `now`, and is being answered while the context lasts."""
        window = int((now - self._began) / WINDOW_SECONDS)
        if len(self._windows) < _MOST_WINDOWS or window in self._windows:
            self._windows[window] += 1
        self._current += 1
        self.peak = max(self.peak, self._current)
        try:
            yield
        finally:
            self._current -= 1

    def windows(self) -> list[int]:
        """Return how many requests came in each window, from the first on to the last that had one."""
        return [self._windows[number] for number in range(max(self._windows, default=-1) + 1)]


class Coverage:
    """Which bytes of an object have been sent; disjoint, sorted ranges."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, start: int, stop: int) -> int:
        """Note that bytes start, …, stop - 1 were sent, and return how many of them had been sent before."""
        if start >= stop:
            return 0
        first = bisect_left(self._ranges, start, key=lambda known: known[1])
        last, repeated, low, high = first, 0, start, stop
        while last < len(self._ranges) and self._ranges[last][0] <= stop:
            known_start, known_stop = self._ranges[last]
            repeated += max(0, min(stop, known_stop) - max(start, known_start))
            low, high = min(low, known_start), max(high, known_stop)
            last += 1
        del self._ranges[first:last]
        insort(self._ranges, (low, high))
        return repeated

    def clear(self) -> None:
        """Forget what was sent."""
        self._ranges.clear()
