"""Which versions make room for others: the least recently used, and no more of them than needed. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Victim:
    """A version that may be evicted: nobody uses it. `size` is in bytes; `last_used` only orders."""

    version_id: str
    size: int
    last_used: float


@dataclass(frozen=True, slots=True)
class Marks:
    """How much may be held: never more than `capacity` bytes.

    Above the share `high` of it versions go without anybody having to wait for that, down to the share `low`. So they
    do not go one by one where versions are small.
    """

    capacity: int
    high: float = 1.0
    low: float = 63 / 64

    def needed(self, held: int, need: int) -> int:
        """Return how many bytes are to go before `need` more can be held; 0 if there is room."""
        return held + need - self._low if held + need > self.capacity else 0

    def ahead(self, held: int) -> int:
        """Return how many bytes are to go ahead of any need; 0 below the high mark."""
        return held - self._low if held > self.capacity * self.high else 0

    @property
    def _low(self) -> int:
        return math.ceil(self.capacity * self.low)


def choose(victims: Sequence[Victim], need: int) -> list[str]:
    """Return the versions whose eviction frees at least `need` bytes, or all that have any if they do not suffice.

    The least recently used go first (ties: in the order given). Then whatever is not needed after all is spared, the
    most recently used first: a large old version must not take the small ones before it along.
    """
    chosen: list[Victim] = []
    total = 0
    for victim in sorted(victims, key=lambda victim: victim.last_used):
        if total >= need:
            break
        chosen.append(victim)
        total += victim.size
    kept: list[str] = []
    for victim in reversed(chosen):
        # Whatever frees nothing is spared even where everything else does not suffice.
        if victim.size == 0 or total - victim.size >= need:
            total -= victim.size
        else:
            kept.append(victim.version_id)
    return kept[::-1]
