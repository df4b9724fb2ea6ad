"""Which versions make room for others: the least recently used, and no more of them than needed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Victim:
    """A version that may be evicted: nobody uses it. `size` is in bytes; `last_used` only orders."""

    version_id: str
    size: int
    last_used: float


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
