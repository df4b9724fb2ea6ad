"""Virtual time: what happens next, and when."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """A queue of calls in order of their time; those of the same time happen in the order they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when it is `time` (seconds; now, if that is past). A call cannot be taken back, only be ignored."""
        self._asked += 1
        heapq.heappush(self._queue, (max(time, self.now), self._asked, call, arguments))

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when `delay` seconds have passed."""
        self.at(self.now + delay, call, *arguments)

    def step(self) -> bool:
        """Let the next call happen; False if there is none."""
        if not self._queue:
            return False
        self.now, _, call, arguments = heapq.heappop(self._queue)
        call(*arguments)
        return True
