"""How an origin that cannot answer now is asked again: after a pause that doubles, is jittered, and is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Ask at most `attempts` times, with pauses from `first_seconds` on that never exceed `longest_seconds`."""

    attempts: int = 4
    first_seconds: float = 0.2
    longest_seconds: float = 5.0

    def pause(self, failures: int, wanted_seconds: float, random: Random) -> float | None:
        """Return for how many seconds to leave the origin alone after `failures` in a row; None to ask no more.

        `wanted_seconds` is what the origin asks for (`Retry-After`), 0 if it does not say.
        """
        if failures >= self.attempts or wanted_seconds > self.longest_seconds:
            return None
        longest = min(self.longest_seconds, self.first_seconds * 2 ** (failures - 1))
        # At least half of it, so that a struggling origin does get its rest, and jittered, so that hosts spread out.
        return max(wanted_seconds, random.uniform(longest / 2, longest))
