"""Virtual time: what happens next, and when."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from operator import itemgetter
from typing import Any

_SLOTS_A_SECOND = 64000.0

_Call = tuple[float, Callable[..., None], tuple[Any, ...]]
_time_of = itemgetter(0)


class Clock:
    """A queue of calls in order of their time; those of the same time happen in the order they were asked for.

    Only the calls of the present slot of time are in order; those of a later one are put in order when it begins, by a
    sort that keeps those of one time as they are. With ten thousand hosts that is cheaper than one queue of all.
    """

    __slots__ = ("_later", "_queue", "_slot", "_slots", "_until", "now")

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self._queue: list[_Call] = []
        self._slot = 0
        """Whose calls are in `_queue`; and those of earlier ones."""
        self._later: dict[int, list[_Call]] = {}
        self._slots: list[int] = []
        """The later slots, as a heap."""
        self._until = inf
        """When `run` returns; at once if somebody has said `stop`."""

    def at(self, time: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when it is `time` (seconds; now, if that is past). A call cannot be taken back, only be ignored."""
        slot = int(time * _SLOTS_A_SECOND)
        if slot > self._slot:
            try:
                self._later[slot].append((time, call, arguments))
            except KeyError:
                self._later[slot] = [(time, call, arguments)]
                heappush(self._slots, slot)
            return
        # No call that has happened, or happens now, is later than this one: it goes behind all of them.
        insort(self._queue, (max(time, self.now), call, arguments), key=_time_of)

    def after(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call when `delay` seconds have passed."""
        self.at(self.now + delay, call, *arguments)

    def step(self) -> bool:
        """Let the next call happen; False if there is none."""
        if not self._queue and not self._go_on():
            return False
        self.now, call, arguments = self._queue.pop(0)
        call(*arguments)
        return True

    def run(self, until: float) -> int:
        """Let calls happen until somebody says `stop`, it is later than `until`, or none is left; return how many."""
        self._until = until
        calls = 0
        while self.now <= self._until and (self._queue or self._go_on()):
            queue = self._queue
            done = 0
            # Calls that are asked for meanwhile are put behind the one that happens.
            for self.now, call, arguments in queue:
                done += 1
                call(*arguments)
                if self.now > self._until:
                    break
            del queue[:done]
            calls += done
        return calls

    def stop(self) -> None:
        """Let `run` return after the call that happens now."""
        self._until = -inf

    def _go_on(self) -> bool:
        """Begin the next slot in which something happens; False if there is none."""
        if not self._slots:
            return False
        self._slot = heappop(self._slots)
        self._queue = self._later.pop(self._slot)
        self._queue.sort(key=_time_of)
        return True
