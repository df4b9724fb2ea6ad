"""How fast a host sends pieces: a token bucket for all its children together. Pure; time is an argument.

The generic cell rate algorithm (ITU-T I.371, virtual scheduling): moments are absolute, so coarse timers do not add up.
"""

from __future__ import annotations

import math

STEP_SECONDS = 0.010
"""What is asked for at once, in seconds at the rate; the next children have their turn after it."""

BURST_SECONDS = 0.020
"""What may leave at once after a pause or a late wake-up, in seconds at the rate."""

_LEAST_STEP = 16 * 1024
_MOST_STEP = 1024 * 1024


class UploadLimit:
    """Grants bytes at `rate` bytes a second; raises ValueError for one that is not more than 0."""

    __slots__ = ("_credit", "_next", "_seconds_per_byte", "step")

    def __init__(self, rate: float) -> None:
        if not 0 < rate < math.inf:
            raise ValueError(f"not a rate in bytes a second: {rate}")
        self._seconds_per_byte = 1 / rate
        self.step = int(min(_MOST_STEP, max(_LEAST_STEP, rate * STEP_SECONDS)))
        """The most bytes to ask for at once."""
        self._credit = BURST_SECONDS
        self._next = -math.inf

    def reserve(self, size: int, now: float) -> float:
        """Take `size` bytes and return when they may leave: `now`, in seconds of any monotonic clock, or later.

        Whoever asked first goes first; senders that ask for a step when the last one has left share the rate evenly.
        """
        start = max(self._next, now - self._credit)
        self._next = start + size * self._seconds_per_byte
        return max(start, now)
