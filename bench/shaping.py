"""Shaping: when may how many bytes leave, so that the bench's origin is as fast as a real store and no faster.

Pure: time is an argument, in seconds of any monotonic clock. A `Pacer` is a pair of GCRA lines (ITU-T I.371): one
holds the long-term rate and lets lateness be caught up with, so that coarse timers do not add up to a slower origin;
the other bounds how fast that catching up is, so that no window of 100 ms shows more than 3 % above the rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CATCH_UP = 1.01
"""How much faster than the rate lateness is caught up with."""

LATENESS_SECONDS = 0.05
"""Lateness up to this is caught up with; a sender silent for longer was idle, and idleness earns nothing."""

BURST_SECONDS = 0.002
"""What may leave at once, in seconds at the rate: a chunk, and what one late timer held up."""

_MIB = 1024 * 1024
_SMALLEST_CHUNK = 16 * 1024
_LARGEST_CHUNK = _MIB


class Pacer:
    """Grants bytes at `rate` bytes a second (math.inf: at once)."""

    __slots__ = ("_burst", "_even", "_fast", "_seconds_per_byte", "chunk_bytes")

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"not a rate in bytes per second: {rate}")
        self._seconds_per_byte = 1 / rate
        self.chunk_bytes = int(min(_LARGEST_CHUNK, max(_SMALLEST_CHUNK, rate * BURST_SECONDS / 2)))
        """The most bytes to ask for at once."""
        self._burst = max(0.0, BURST_SECONDS - self.chunk_bytes * self._seconds_per_byte)
        self._even = -math.inf
        self._fast = -math.inf

    def reserve(self, size: int, now: float) -> float:
        """Take `size` bytes and return when they may leave, in seconds of the caller's clock: `now` or later.

        Reservations are granted in the order in which they are made, so senders that each reserve their next chunk only
        when the last one has left share the rate evenly.
        """
        if now - self._even > LATENESS_SECONDS:
            self._even = now
        at = max(now, self._even, self._fast)
        cost = size * self._seconds_per_byte
        self._even += cost
        self._fast = max(self._fast, at - self._burst) + cost / CATCH_UP
        return at


@dataclass(frozen=True, slots=True)
class Profile:
    """How fast an origin is; rates in bytes a second."""

    name: str
    total_rate: float
    connection_rate: float
    first_byte_seconds: float


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("gateway", total_rate=500e6, connection_rate=math.inf, first_byte_seconds=0.005),
        Profile("s3", total_rate=1e9, connection_rate=90e6, first_byte_seconds=0.030),
        Profile("unlimited", total_rate=math.inf, connection_rate=math.inf, first_byte_seconds=0.0),
    )
}
"""What `--origin-profile` may name: a storage gateway, one S3 bucket in its own region, no limit at all."""
