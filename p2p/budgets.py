"""What an origin may be asked for: so many requests at once, so many and so much a second.

Schedulers share the budgets of the cluster out among the hosts, and each host keeps to its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T", int, float)

LEASE_SECONDS = 10.0
"""For how long a share holds that is not renewed: its scheduler keeps it reserved, and its host goes by it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds on what is asked of one origin. None: no bound."""

    connections: int | None = None
    requests_per_second: float | None = None
    bytes_per_second: float | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is bounded."""
        return self != UNBOUNDED

    def within(self, other: Budget) -> Budget:
        """Return what satisfies both budgets."""
        return Budget(
            _least(self.connections, other.connections),
            _least(self.requests_per_second, other.requests_per_second),
            _least(self.bytes_per_second, other.bytes_per_second),
        )

    def reduced(self) -> Budget:
        """Return a quarter of it, and one connection at least: what is left of a share that nobody renews."""
        return Budget(
            None if self.connections is None else max(1, self.connections // 4),
            None if self.requests_per_second is None else self.requests_per_second / 4,
            None if self.bytes_per_second is None else self.bytes_per_second / 4,
        )


UNBOUNDED = Budget()


def _least(one: T | None, other: T | None) -> T | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
