"""Virtual time: what happens next, and when."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any


class Clock:
    """A queue of calls in order of their time; those of the same time happen in the order they were asked for."""

    __slots__ = ("_asked", "_queue", "_stopped", "now")

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = count()
        self._stopped = False

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when it is `time` (seconds; now, if that is past). A call cannot be taken back, only be ignored."""
        if time < self.now:
            time = self.now
        heappush(self._queue, (time, next(self._asked), call, arguments))

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when `delay` seconds have passed."""
        heappush(self._queue, (self.now + delay, next(self._asked), call, arguments))

    def step(self) -> bool:
        """Let the next call happen; False if there is none."""
        if not self._queue:
            return False
        self.now, _, call, arguments = heappop(self._queue)
        call(*arguments)
        return True

    def run(self, until: float) -> int:
        """Let calls happen until somebody says `stop`, it is later than `until`, or none is left; return how many."""
        queue = self._queue
        self._stopped = False
        calls = 0
        while queue and not self._stopped and self.now <= until:
            self.now, _, call, arguments = heappop(queue)
            call(*arguments)
            calls += 1
        return calls

    def stop(self) -> None:
        """Let `run` return after the call that happens now."""
        self._stopped = True
