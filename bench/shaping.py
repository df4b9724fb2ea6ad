"""Shaping: when may how many bytes leave, so that the bench's origin is as fast as a real store and no faster.

Pure: time is an argument, in seconds of any monotonic clock. A `Pacer` is the generic cell rate algorithm (ITU-T I.371,
the virtual-scheduling form): moments are absolute, so the coarseness of timers does not add up to a slower origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CHUNK_SECONDS = 0.003
"""What is asked for at once, in seconds at the rate. Each chunk costs two timers and a write: with a millisecond's the
origin takes 0.8 CPU-seconds a GiB from what is measured on the same machine, with three 0.5."""

BURST_SECONDS = 0.006
"""What may leave at once, in seconds at the rate: a chunk, and what the kernel's scheduler holds up when every CPU is
busy (3 ms). With less a busy machine has a slower origin; as it is, a window of 200 ms is exact to 3 %, and longer ones
are better."""

_MIB = 1024 * 1024
_SMALLEST_CHUNK = 16 * 1024
_LARGEST_CHUNK = _MIB


class Pacer:
    """Grants bytes at `rate` bytes a second (math.inf: at once)."""

    __slots__ = ("_credit", "_next", "_seconds_per_byte", "chunk_bytes")

    def __init__(self, rate: float) -> None:
        if not rate > 0:
            raise ValueError(f"not a rate in bytes per second: {rate}")
        self._seconds_per_byte = 1 / rate
        self.chunk_bytes = int(min(_LARGEST_CHUNK, max(_SMALLEST_CHUNK, rate * CHUNK_SECONDS)))
        """The most bytes to ask for at once."""
        self._credit = max(0.0, BURST_SECONDS - self.chunk_bytes * self._seconds_per_byte)
        self._next = -math.inf

    def reserve(self, size: int, now: float) -> float:
        """Take `size` bytes and return when they may leave, in seconds of the caller's clock: `now` or later.

        Reservations are granted in the order in which they are made, so senders that each reserve their next chunk only
        when the last one has left share the rate evenly.
        """
        start = max(self._next, now - self._credit)
        self._next = start + size * self._seconds_per_byte
        return max(start, now)


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
