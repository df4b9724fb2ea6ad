"""Which share of an origin's budget this host goes by, and what it tells the scheduler of it. Belongs to the loop.

A scheduler is asked when the first request comes, and tells a share that holds for a lease. While requests go on the
share is renewed; when they have ended it is given up. An origin without a budget is asked about once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from p2p.budgets import LEASE_SECONDS, UNBOUNDED, Budget
from p2p.control import Allowance, OriginLoad
from peer.core.budget import Gate

ANSWER_SECONDS = 1.0
"""How long a first request waits to be told its share."""

CAUTIOUS = Budget(connections=64)
"""What a host goes by while no scheduler tells it anything."""

IDLE_SECONDS = 2.0
"""A share that nobody has used for so long is given up."""

_NONE = Budget(connections=0)


@dataclass(slots=True)
class Usage:
    """What was done at one origin since the last report."""

    requests: int = 0
    checks: int = 0
    refused: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Allotment:
    """One origin. `share` is what the scheduler gave, None before it did; it holds until `until`.

    `guess` is gone by while nobody tells it a share, and `ceiling` holds in any case.
    """

    origin: str
    ceiling: Budget
    guess: Budget = UNBOUNDED
    gate: Gate = field(default_factory=Gate)
    usage: Usage = field(default_factory=Usage)
    share: Budget | None = None
    until: float = -inf
    stale: bool = True
    used_at: float = -inf
    reported_at: float = -inf
    _asked_at: float | None = None
    _serial: int = 0
    _heard: int = 0
    _given_up: int = 0
    _sent_at: dict[int, float] = field(default_factory=dict)

    @property
    def bounded(self) -> bool:
        """Whether its share is to be renewed."""
        return self.share is not None and bool(self.share)

    def to_be_asked(self, now: float) -> bool:
        """Tell whether a request at `now` is to ask for a share, the last question having come to nothing."""
        return self.stale or (self.share is None and now >= self.reported_at + ANSWER_SECONDS)

    def confirmed(self, now: float) -> bool:
        """Tell whether the scheduler's word on it still holds."""
        return self.share is not None and (not self.share or now < self.until)

    def limit(self, now: float) -> Budget:
        """Return what holds at `now`."""
        if self.share is not None:
            return (self.share if self.confirmed(now) else self.share.reduced()).within(self.ceiling)
        if self._asked_at is not None and now < self._asked_at + ANSWER_SECONDS:
            return _NONE
        return self.guess.within(self.ceiling)

    def changes_at(self, now: float) -> float | None:
        """Return when `limit` becomes another unless something is heard; None for never."""
        if self.bounded and now < self.until:
            return self.until
        if self.share is None and self._asked_at is not None and now < self._asked_at + ANSWER_SECONDS:
            return self._asked_at + ANSWER_SECONDS
        return None

    def report(self, now: float, send: Callable[[OriginLoad], None]) -> None:
        """Say what is done and wanted; without a share, requests wait for the answer."""
        if self.share is None and self._asked_at is None:
            self._asked_at = now
        self.stale = False
        # One more than now is under way, for the request that is about to come.
        send(self._load(now, max(1, self.gate.wanted)))

    def give_up(self, now: float, send: Callable[[OriginLoad], None]) -> None:
        """Let the share go: nobody has used it for a while. Whatever is on its way here counts no more."""
        self.share, self._asked_at = None, None
        self.stale = True
        load = self._load(now, 0)
        self._given_up = load.serial
        send(load)

    def lost(self) -> None:
        """Note that the scheduler is another, or knows nothing any more: it is to be asked again."""
        self.stale = True

    def told(self, allowance: Allowance) -> bool:
        """Take a share; return whether it is to be confirmed at once, since it takes something away."""
        answers = allowance.answers
        if answers <= self._given_up or answers < self._heard or answers not in self._sent_at:
            return False
        before, self.share = self.share, _budget(allowance)
        self._heard = answers
        self.until = self._sent_at[answers] + LEASE_SECONDS
        self._asked_at = None
        for serial in [serial for serial in self._sent_at if serial < answers]:
            del self._sent_at[serial]
        return before is not None and before.within(self.share) != before

    def _load(self, now: float, connections: int) -> OriginLoad:
        usage, self.usage = self.usage, Usage()
        self._serial += 1
        self._sent_at[self._serial] = self.reported_at = now
        if len(self._sent_at) > _UNANSWERED:
            del self._sent_at[next(iter(self._sent_at))]
        return OriginLoad(
            self.origin,
            connections,
            usage.requests,
            usage.checks,
            usage.refused,
            usage.bytes,
            under_way=self.gate.under_way,
            serial=self._serial,
            heard=self._heard,
        )


_UNANSWERED = 64


def _budget(allowance: Allowance) -> Budget:
    share = Budget(allowance.connections, allowance.requests_per_second, allowance.bytes_per_second)
    return share or UNBOUNDED
