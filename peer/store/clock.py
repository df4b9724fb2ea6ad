"""The store's time: seconds that only go forward, by which uses are put in order and versions grow old.

The clock on the wall may be set to any time at any moment. It is looked at when the store is opened; from then on
monotonic time counts. What the index remembers is never in the future, and a stop counts for a day at most: a wall
clock that is a year ahead must not make everything a year old.
"""

from __future__ import annotations

from collections.abc import Callable

STOPPED_SECONDS = 86400.0
"""For how long a store that was closed grows older at most."""

_TICK_SECONDS = 0.001


class UseClock:
    """Shows the store's time. `wall` is what the wall clock shows, `last` the latest time in the index, 0 if none."""

    def __init__(self, elapsed: Callable[[], float], *, wall: float, last: float) -> None:
        start = min(max(wall, last + _TICK_SECONDS), last + STOPPED_SECONDS) if last else wall
        self._elapsed = elapsed
        self._offset = start - elapsed()

    def __call__(self) -> float:
        """Return the store's time in seconds."""
        return self._offset + self._elapsed()
