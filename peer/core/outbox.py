"""What a host is about to say to one scheduler, in order: what nobody waits for goes with what comes next. Pure.

A reader of many small files so costs one message a file and direction: that the last one has landed is said together
with what is wanted now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from p2p.control import LAZY_REPORT_SECONDS

T = TypeVar("T")


class Timer(Protocol):
    """A call that is yet to be made."""

    def cancel(self) -> None:
        """Let it not be made."""


class Timers(Protocol):
    """What makes calls later: an event loop, or a clock of virtual time."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call in `delay` seconds."""


class Outbox(Generic[T]):
    """Messages that wait; `ready` is called when some are to be taken, perhaps more than once before they are."""

    def __init__(self, timers: Timers, ready: Callable[[], object]) -> None:
        self._timers = timers
        self._ready = ready
        self._waiting: list[T] = []
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: T, *, soon: bool = True) -> None:
        """Let a message wait: for nothing if it is to be said `soon`, else for company, LAZY_REPORT_SECONDS at most."""
        self._waiting.append(message)
        if soon:
            self._ready()
        elif self._timer is None:
            self._timer = self._timers.call_later(LAZY_REPORT_SECONDS, self._ready)

    def take(self) -> list[T]:
        """Return all that waits, the oldest first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        return waiting
