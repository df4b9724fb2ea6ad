"""Who on this host may ask an origin now, and how fast bytes may be read: slots and buckets, in virtual time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf

from p2p.budgets import UNBOUNDED, Budget
from p2p.urgency import ORDINARY, Turns, Urgency, kept_for_brief

SLACK_SECONDS = 0.02
"""How much of a rate may be caught up on: timers are late by a millisecond or two, and rates would suffer."""

MAX_PAUSE_SECONDS = 60.0
"""The longest that everybody on this host leaves an origin alone because one answer asked for it."""

BYTES_AHEAD_SECONDS = 1.0
"""Requests wait while the bytes that were read ahead of time take longer than this to be made up for."""

_INSTANT_SECONDS = 1e-6


@dataclass(slots=True)
class Bucket:
    """A leaky bucket: what is used fills it, and it runs out at `rate` a second; None: it never fills.

    `level` is how much was used ahead of time; below zero, what may be caught up on.
    """

    rate: float | None = None
    level: float = 0.0
    _at: float = 0.0

    def set_rate(self, rate: float | None, now: float) -> None:
        """Let it run out at another rate from `now` on."""
        self._leak(now)
        self.rate = rate
        if rate is None:
            self.level = 0.0

    def use(self, amount: float, now: float) -> float:
        """Count `amount` as used and return for how many seconds to use nothing more."""
        if self.rate is None:
            return 0.0
        self._leak(now)
        self.level += amount
        return self.wait(now)

    def wait(self, now: float) -> float:
        """Return in how many seconds something may be used; infinite at a rate of 0."""
        if self.rate is None:
            return 0.0
        self._leak(now)
        if self.rate <= 0:
            return inf
        seconds = self.level / self.rate
        return seconds if seconds > _INSTANT_SECONDS else 0.0

    def _leak(self, now: float) -> None:
        if self.rate is not None:
            self.level = max(-self.rate * SLACK_SECONDS, self.level - self.rate * max(0.0, now - self._at))
        self._at = now


@dataclass(slots=True)
class Gate:
    """The way of this host's requests to one origin, within `limit`: by urgency, tasks in turn (`p2p.urgency`).

    Checks go before all others, and no pause holds them up: they are few, a client waits for each, and what the origin
    answers (with its `Retry-After`, if it still asks for patience) is the client's to know. A part of the
    connections is for checks and brief requests alone.
    """

    limit: Budget = UNBOUNDED
    under_way: int = 0
    paused_until: float = -inf
    paused_at: float = -inf
    requests: Bucket = field(default_factory=Bucket)
    bytes: Bucket = field(default_factory=Bucket)
    _checks: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _waiting: Turns = field(default_factory=Turns)
    _large: set[int] = field(default_factory=set)
    """The tickets of large requests, waiting or under way."""
    _large_under_way: int = 0
    _tickets: int = 0

    @property
    def wanted(self) -> int:
        """How many requests are under way or waiting."""
        return self.under_way + len(self._checks) + len(self._waiting)

    def set_limit(self, limit: Budget, now: float) -> None:
        """Go by another limit from `now` on; what is under way goes on."""
        self.limit = limit
        self.requests.set_rate(limit.requests_per_second, now)
        self.bytes.set_rate(limit.bytes_per_second, now)

    def enter(self, *, check: bool = False, urgency: Urgency = ORDINARY, task: str = "") -> int:
        """Queue a request, of a task if it is for one, and return its ticket."""
        self._tickets += 1
        if check:
            self._checks[self._tickets] = None
        else:
            self._waiting.add(self._tickets, urgency, task)
            if not urgency.brief:
                self._large.add(self._tickets)
        return self._tickets

    def withdraw(self, ticket: int) -> None:
        """Take back a request that has not been admitted."""
        if ticket in self._checks:
            del self._checks[ticket]
        else:
            self._waiting.remove(ticket)
            self._large.discard(ticket)

    def leave(self, ticket: int) -> None:
        """Note that a request that was admitted is over."""
        self.under_way -= 1
        if ticket in self._large:
            self._large.remove(ticket)
            self._large_under_way -= 1

    def pause(self, seconds: float, now: float) -> None:
        """Let nobody but checks in for `seconds`, within bounds: the origin asked for it."""
        self.paused_until = max(self.paused_until, now + min(seconds, MAX_PAUSE_SECONDS))
        self.paused_at = now

    def resume(self, asked_at: float) -> None:
        """End a pause if the origin has answered a request that it was sent after it had asked for the pause."""
        if asked_at > self.paused_at:
            self.paused_until = -inf

    def admit(self, now: float) -> list[int]:
        """Return the tickets of those that may go at `now`, in the order of their turns."""
        admitted: list[int] = []
        while self._delay(now) <= 0 and (ticket := self._next(now)) is not None:
            self.under_way += 1
            self._large_under_way += ticket in self._large
            self.requests.use(1, now)
            admitted.append(ticket)
        return admitted

    def next_at(self, now: float) -> float | None:
        """Return when the next one may go; None if nobody waits, or only another event can let one in."""
        delay = inf
        if self._checks:
            delay = self._delay(now)
        elif self._waiting.any_brief() or (self._waiting and not self._brief_only):
            delay = max(self.paused_until - now, self._delay(now))
        return None if delay == inf else now + delay

    @property
    def _brief_only(self) -> bool:
        """Whether large requests have all the connections that they may have."""
        connections = self.limit.connections
        return connections is not None and self._large_under_way >= connections - kept_for_brief(connections)

    def _next(self, now: float) -> int | None:
        """Take the ticket of whoever goes next, provided that there is a connection; None if nobody may."""
        if self._checks:
            return self._checks.popitem(last=False)[0]
        return None if now < self.paused_until else self._waiting.take(brief_only=self._brief_only)

    def _delay(self, now: float) -> float:
        if self.limit.connections is not None and self.under_way >= self.limit.connections:
            return inf
        # What bodies that nobody could slow down have read ahead of time is made up for here.
        return max(self.requests.wait(now), self.bytes.wait(now) - BYTES_AHEAD_SECONDS)
