"""Virtual time: what happens next, and when."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

_SLOTS_A_SECOND = 16000.0


class Clock:
    """A queue of calls in order of their time; those of the same time happen in the order they were asked for.

    Only the calls of the present slot of time are in order; those of a later one are put in order when it begins. With
    ten thousand hosts that is cheaper than one queue of all.
    """

    __slots__ = ("_asked", "_later", "_queue", "_slot", "_slots", "_stopped", "now")

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._slot = 0
        """Whose calls are in `_queue`; and those of earlier ones."""
        self._later: dict[int, list[tuple[float, int, Callable[..., None], tuple[Any, ...]]]] = {}
        self._slots: list[int] = []
        """The later slots, as a heap."""
        self._asked = count()
        self._stopped = False

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when it is `time` (seconds; now, if that is past). A call cannot be taken back, only be ignored."""
        if time < self.now:
            time = self.now
        slot = int(time * _SLOTS_A_SECOND)
        if slot <= self._slot:
            heappush(self._queue, (time, next(self._asked), call, arguments))
        elif slot in self._later:
            self._later[slot].append((time, next(self._asked), call, arguments))
        else:
            self._later[slot] = [(time, next(self._asked), call, arguments)]
            heappush(self._slots, slot)

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when `delay` seconds have passed."""
        self.at(self.now + delay, call, *arguments)

    def step(self) -> bool:
        """Let the next call happen; False if there is none."""
        if not self._queue and not self._go_on():
            return False
        self.now, _, call, arguments = heappop(self._queue)
        call(*arguments)
        return True

    def run(self, until: float) -> int:
        """Let calls happen until somebody says `stop`, it is later than `until`, or none is left; return how many."""
        queue = self._queue
        self._stopped = False
        calls = 0
        while not self._stopped and self.now <= until and (queue or self._go_on()):
            self.now, _, call, arguments = heappop(queue)
            call(*arguments)
            calls += 1
        return calls

    def stop(self) -> None:
        """Let `run` return after the call that happens now."""
        self._stopped = True

    def _go_on(self) -> bool:
        """Begin the next slot in which something happens; False if there is none."""
        if not self._slots:
            return False
        self._slot = heappop(self._slots)
        self._queue += self._later.pop(self._slot)
        heapify(self._queue)
        return True
