"""Shares of the origins' budgets: who may do how much, so that all hosts together never do more than the budget.

A share counts as in force from the moment it is sent. A smaller one frees what it takes away only once its host has
said that it heard of it (`OriginLoad.heard`), or once the lease of the larger one is over. What is free goes to hosts
as they report, up to their fair share: max-min by demand, seeds first, one connection for everybody before anybody gets
a second, and by turns where there are fewer connections than hosts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from p2p.budgets import LEASE_SECONDS, Budget
from p2p.control import Allowance, OriginLoad

TURN_SECONDS = 1.0
"""How long a host keeps a connection that others wait for."""

WINDOW_SECONDS = 10.0
"""How far back the figures for operators reach."""

_RESHARE_SECONDS = 0.1
"""Shares are worked out anew at most so often once many hosts go to an origin."""

_FEW = 16
_MEASURE_SECONDS = 1.0
_SATURATED = 0.5
_GROWTH = 4.0
_LEAST_PART = 64
_COMMON_PART = 4


@dataclass(frozen=True, slots=True)
class BudgetRule:
    """The `budget` of every origin ("scheme://host:port") that `pattern` is found in."""

    pattern: re.Pattern[str]
    budget: Budget


@dataclass(frozen=True, slots=True)
class ShareView:
    """One host at one origin, for operators: its share in force, and what it last said."""

    host_id: str
    share: Budget
    wanted: int
    under_way: int


@dataclass(frozen=True, slots=True)
class OriginView:
    """One origin with a budget, for operators; what was done there within the last `window_seconds`."""

    origin: str
    budget: Budget
    shares: tuple[ShareView, ...]
    window_seconds: float
    requests: int
    checks: int
    refused: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Part:
    """An amount of each thing that a budget bounds; infinite where it does not."""

    connections: float = 0.0
    requests: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.connections + other.connections, self.requests + other.requests, self.bytes + other.bytes)

    def most(self, other: _Part) -> _Part:
        return _Part(
            max(self.connections, other.connections), max(self.requests, other.requests), max(self.bytes, other.bytes)
        )

    def least(self, other: _Part) -> _Part:
        return _Part(
            min(self.connections, other.connections), min(self.requests, other.requests), min(self.bytes, other.bytes)
        )

    def without(self, other: _Part) -> _Part:
        """Return what is left of it; nothing where there is less than nothing."""

        def left(whole: float, part: float) -> float:
            return inf if whole == inf else max(0.0, whole - part)

        return _Part(
            left(self.connections, other.connections),
            left(self.requests, other.requests),
            left(self.bytes, other.bytes),
        )


@dataclass(frozen=True, slots=True)
class _Grant:
    serial: int
    part: _Part
    expires: float


@dataclass(slots=True)
class _Claim:
    """One host at one origin."""

    host_id: str
    seed: bool
    turn: float
    reported_at: float
    wanted: int = 0
    under_way: int = 0
    waiting: bool = False
    requests_rate: float = inf
    bytes_rate: float = inf
    holding_since: float | None = None
    target: _Part | None = None
    grants: deque[_Grant] = field(default_factory=deque)

    def in_force(self, now: float) -> _Part:
        """Return the most that the host may be doing."""
        part = _Part(float(self.under_way)) if now < self.reported_at + LEASE_SECONDS else _Part()
        for grant in self.grants:
            if now < grant.expires:
                part = part.most(grant.part)
        return part

    def measure(self, load: OriginLoad, now: float) -> None:
        """Note what the host did since its last report: a moving average, infinite while nothing is known."""
        elapsed = now - self.reported_at
        if elapsed > 0:
            self.requests_rate = _moved(self.requests_rate, load.requests / elapsed, elapsed)
            self.bytes_rate = _moved(self.bytes_rate, load.bytes / elapsed, elapsed)
        self.wanted, self.under_way, self.reported_at = load.connections, load.under_way, now
        self.waiting = load.connections > load.under_way


@dataclass(slots=True)
class _Origin:
    """One origin with a budget."""

    budget: Budget
    whole: _Part
    claims: dict[str, _Claim] = field(default_factory=dict)
    total: _Part = _Part()
    """At least what is in force in all; exactly that as of `shared_at`."""
    shared_at: float = -inf
    done: deque[tuple[float, OriginLoad]] = field(default_factory=deque)


class OriginBudgets:
    """Answers what hosts say of origins with their shares. Pure: time is an argument."""

    def __init__(self, rules: Sequence[BudgetRule] = ()) -> None:
        self._rules = tuple(rules)
        self._origins: dict[str, _Origin] = {}
        self._swept_at = -inf

    def used(self, host_id: str, load: OriginLoad, *, seed: bool, now: float) -> Allowance | None:
        """Take what a host says of an origin at `now`; return its share, or None if it wants none any more.

        The share of an origin without a budget has no bounds.
        """
        origin = self._origin(load.origin)
        if origin is None:
            return Allowance(load.origin, answers=load.serial)
        self._sweep(now)
        claim = origin.claims.get(host_id)
        newcomer = claim is None
        if claim is None:
            claim = origin.claims[host_id] = _Claim(host_id, seed, turn=now, reported_at=now)
        before = claim.in_force(now)
        claim.measure(load, now)
        origin.done.append((now, load))
        _forget_use(origin, now)
        if load.connections == 0:
            # The host lets its share go before it says so, and takes none that was sent earlier.
            del origin.claims[host_id]
            origin.total = _Part(*map(sum, zip(*map(_numbers, _forces(origin, now)), strict=True)))
            return None
        while claim.grants and (claim.grants[0].serial < load.heard or claim.grants[0].expires <= now):
            claim.grants.popleft()
        if len(origin.claims) <= _FEW or now >= origin.shared_at + _RESHARE_SECONDS:
            _share_out(origin, now)
        elif newcomer:
            claim.target = _Part(1.0, origin.whole.requests / _LEAST_PART, origin.whole.bytes / _LEAST_PART)
            origin.total += claim.in_force(now)
        else:
            origin.total = origin.total.without(before) + claim.in_force(now)
        return self._grant(origin, claim, load, now)

    def host_left(self, host_id: str) -> None:
        """Note that a host is gone: it wants nothing any more, but may do all that its shares allow until they end."""
        for origin in self._origins.values():
            if claim := origin.claims.get(host_id):
                claim.wanted = 0
                claim.waiting = False
