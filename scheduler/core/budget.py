"""Shares of the origins' budgets: who may do how much, so that all hosts together never do more than the budget.

A share counts as in force from the moment it is sent. A smaller one frees what it takes away only once its host has
said that it heard of it (`OriginLoad.heard`), or once the lease of the larger one is over. What is free goes to hosts
as they report, up to their fair share: max-min by demand, seeds first, one connection for everybody before anybody gets
a second, and by turns where there are fewer connections than hosts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from p2p.budgets import LEASE_SECONDS, Budget
from p2p.control import Allowance, OriginLoad
from p2p.urgency import kept_for_brief
from scheduler.core.sharing import deal, max_min

TURN_SECONDS = 2.0
"""How long a host keeps a connection that others wait for."""

WINDOW_SECONDS = 10.0
"""How far back the figures for operators reach."""

_RESHARE_SECONDS = 0.1
"""Shares are worked out anew at most so often once many hosts go to an origin."""

_FEW = 16
"""So many hosts are few."""

_MEASURE_SECONDS = 1.0
"""How far back the moving averages of what hosts do reach."""

_SATURATED = 0.5
"""A host that uses so much of its share of a rate may want any amount more; the others, so many times what they use:"""
_GROWTH = 4.0

_LEAST_PART = 64
"""A host that uses next to nothing is still taken to want this part of a rate (1/64)."""

_COMMON_PART = 4
"""Which part of a rate (1/4) seeds and other hosts share alike; of the rest, seeds take what they want first."""

_SPARE_PART = 2
"""Which part of the connections that nobody wants (1/2) is given in advance; the rest is there for newcomers."""


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
    """A part of a budget; what the budget does not bound is left at 0."""

    connections: int = 0
    requests: float = 0.0
    bytes: float = 0.0

    def plus(self, other: _Part) -> _Part:
        return _Part(self.connections + other.connections, self.requests + other.requests, self.bytes + other.bytes)

    def minus(self, other: _Part) -> _Part:
        """Return what is left of it; 0 of what there is less than nothing of."""
        return _Part(
            max(0, self.connections - other.connections),
            max(0.0, self.requests - other.requests),
            max(0.0, self.bytes - other.bytes),
        )

    def most(self, other: _Part) -> _Part:
        return _Part(
            max(self.connections, other.connections), max(self.requests, other.requests), max(self.bytes, other.bytes)
        )

    def least(self, other: _Part) -> _Part:
        return _Part(
            min(self.connections, other.connections), min(self.requests, other.requests), min(self.bytes, other.bytes)
        )


_NOTHING = _Part()


@dataclass(frozen=True, slots=True)
class _Grant:
    """A share that was sent; `serial` is that of the load that it answers."""

    serial: int
    part: _Part
    expires: float


@dataclass(slots=True)
class _Claim:
    """One host at one origin. `turn` says who comes first: who has waited longest."""

    host_id: str
    seed: bool
    turn: float
    reported_at: float
    wanted: int = 0
    under_way: int = 0
    requests_rate: float | None = None
    bytes_rate: float | None = None
    holding_since: float | None = None
    target: _Part = _NOTHING
    grants: deque[_Grant] = field(default_factory=deque)

    def in_force(self, now: float) -> _Part:
        """Return the most that the host may be doing."""
        part = _Part(self.under_way) if now < self.reported_at + LEASE_SECONDS else _NOTHING
        for grant in self.grants:
            if now < grant.expires:
                part = part.most(grant.part)
        return part

    def heard(self, load: OriginLoad, now: float) -> None:
        """Take a report: what the host does, and which share it goes by."""
        elapsed = now - self.reported_at
        if elapsed > 0:
            self.requests_rate = _moved(self.requests_rate, load.requests, elapsed)
            self.bytes_rate = _moved(self.bytes_rate, load.bytes, elapsed)
        self.wanted, self.under_way, self.reported_at = load.connections, load.under_way, now
        while self.grants and (self.grants[0].serial < load.heard or self.grants[0].expires <= now):
            self.grants.popleft()

    def wanted_rates(self, whole: _Part) -> tuple[float, float]:
        """Return how many requests and bytes a second the host would like to have."""
        if not self.wanted:
            return 0.0, 0.0
        share = self.grants[-1].part if self.grants else _NOTHING
        waits = self.wanted > self.under_way
        return (
            inf if waits else _wanted(self.requests_rate, share.requests, whole.requests),
            _wanted(self.bytes_rate, share.bytes, whole.bytes),
        )


@dataclass(slots=True)
class _Origin:
    """One origin with a budget. `in_force` is never less than what is in force in all."""

    budget: Budget
    whole: _Part
    claims: dict[str, _Claim] = field(default_factory=dict)
    in_force: _Part = _NOTHING
    shared_at: float = -inf
    done: deque[tuple[float, OriginLoad]] = field(default_factory=deque)

    def forget_old(self, now: float) -> None:
        """Drop what was done too long ago, and the claims of hosts whose shares have run out."""
        while self.done and self.done[0][0] <= now - WINDOW_SECONDS:
            self.done.popleft()
        for claim in tuple(self.claims.values()):
            if now >= claim.reported_at + LEASE_SECONDS and all(now >= grant.expires for grant in claim.grants):
                del self.claims[claim.host_id]


class OriginBudgets:
    """Answers what hosts say of origins with their shares. Pure: time is an argument."""

    def __init__(self, rules: Sequence[BudgetRule] = ()) -> None:
        self._rules = tuple(rules)
        self._origins: dict[str, _Origin] = {}
        self._swept_at = -inf
        self._parts: Mapping[str, float] = {}
        self._rest = 1.0

    def divide(self, parts: Mapping[str, float], rest: float) -> None:
        """Share out only so much (0 to 1) of an origin's budget from now on, and `rest` of those that are not named.

        What other schedulers share out is theirs. A smaller part is in force once all shares have shrunk to it.
        """
        self._parts, self._rest = parts, rest
        for name, origin in self._origins.items():
            origin.whole = self._whole(name, origin.budget)

    def used(self, host_id: str, load: OriginLoad, *, seed: bool, now: float) -> Allowance | None:
        """Take what a host says of an origin at `now`; return its share, or None if it wants none any more.

        The share of an origin without a budget has no bounds.
        """
        self._sweep(now)
        origin = self._origin(load.origin)
        if origin is None:
            return Allowance(load.origin, answers=load.serial)
        origin.done.append((now, load))
        if load.connections == 0:
            # The host lets its share go before it says so, and takes none that was sent earlier.
            origin.claims.pop(host_id, None)
            return None
        claim = origin.claims.get(host_id)
        newcomer = claim is None
        if claim is None:
            claim = origin.claims[host_id] = _Claim(host_id, seed, turn=now, reported_at=now)
        before = claim.in_force(now)
        claim.heard(load, now)
        if len(origin.claims) <= _FEW or now >= origin.shared_at + _RESHARE_SECONDS:
            _share_out(origin, now)
            before = claim.in_force(now)
        elif newcomer:
            claim.target = _Part(1, origin.whole.requests / _LEAST_PART, origin.whole.bytes / _LEAST_PART)
        free = origin.whole.minus(origin.in_force.minus(before))
        part = claim.target.least(free)
        claim.grants.append(_Grant(load.serial, part, now + LEASE_SECONDS))
        origin.in_force = origin.in_force.plus(claim.in_force(now).minus(before))
        share = _budget(origin.budget, part)
        return Allowance(
            load.origin, share.connections, share.requests_per_second, share.bytes_per_second, answers=load.serial
        )

    def host_left(self, host_id: str) -> None:
        """Note that a host is gone: it wants nothing any more, but may do all that its shares allow until they end."""
        for origin in self._origins.values():
            if claim := origin.claims.get(host_id):
                claim.wanted = 0

    def view(self, now: float) -> tuple[OriginView, ...]:
        """Return every origin with a budget that hosts went to lately."""
        views = []
        for name, origin in self._origins.items():
            origin.forget_old(now)
            loads = [load for _, load in origin.done]
            shares = (
                ShareView(claim.host_id, _budget(origin.budget, claim.in_force(now)), claim.wanted, claim.under_way)
                for claim in origin.claims.values()
            )
            views.append(
                OriginView(
                    origin=name,
                    budget=origin.budget,
                    shares=tuple(shares),
                    window_seconds=WINDOW_SECONDS,
                    requests=sum(load.requests for load in loads),
                    checks=sum(load.checks for load in loads),
                    refused=sum(load.refused for load in loads),
                    bytes=sum(load.bytes for load in loads),
                )
            )
        return tuple(views)

    def _origin(self, name: str) -> _Origin | None:
        if name not in self._origins:
            budget = next((rule.budget for rule in self._rules if rule.pattern.search(name)), None)
            if not budget:
                return None
            self._origins[name] = _Origin(budget, self._whole(name, budget))
        return self._origins[name]

    def _whole(self, name: str, budget: Budget) -> _Part:
        """Return what this scheduler may share out of an origin's budget; at least one connection."""
        part = self._parts.get(name, self._rest)
        return _Part(
            max(1, int((budget.connections or 0) * part)) if budget.connections else 0,
            (budget.requests_per_second or 0.0) * part,
            (budget.bytes_per_second or 0.0) * part,
        )

    def _sweep(self, now: float) -> None:
        """Forget origins that nobody goes to any more."""
        if now < self._swept_at + LEASE_SECONDS:
            return
        self._swept_at = now
        for name, origin in tuple(self._origins.items()):
            origin.forget_old(now)
            if not origin.claims and not origin.done:
                del self._origins[name]


def _share_out(origin: _Origin, now: float) -> None:
    """Work out what every host should have, and what is in force now."""
    origin.shared_at = now
    origin.forget_old(now)
    origin.in_force = _NOTHING
    for claim in origin.claims.values():
        origin.in_force = origin.in_force.plus(claim.in_force(now))
    asking = [claim for claim in origin.claims.values() if claim.wanted]
    connections = _connections(origin.whole.connections, asking, now)
    rates = [claim.wanted_rates(origin.whole) for claim in asking]
    seeds = [claim.seed for claim in asking]
    requests = _rates(origin.whole.requests, [each for each, _ in rates], seeds)
    sizes = _rates(origin.whole.bytes, [each for _, each in rates], seeds)
    for claim in origin.claims.values():
        claim.target = _NOTHING
    for claim, number, per_second, size in zip(asking, connections, requests, sizes, strict=True):
        claim.target = _Part(number, per_second, size)
        if not claim.target.connections:
            claim.holding_since = None
        elif claim.holding_since is None:
            claim.holding_since = now


def _connections(total: int, asking: list[_Claim], now: float) -> list[int]:
    """Return everybody's connections: one each by turns, then what seeds want, then what the others want.

    Of what is left after the first a few are kept: who comes with a check must not wait for who has many.
    """
    if len(asking) > total:
        for claim in asking:
            if claim.holding_since is not None and now >= claim.holding_since + TURN_SECONDS:
                claim.turn = claim.holding_since = now
    order = sorted(range(len(asking)), key=lambda index: (asking[index].turn, not asking[index].seed, index))
    shares = [0] * len(asking)
    left = total

    def give(total: int, wants: Iterable[int]) -> int:
        given = deal(total, list(wants))
        for index, more in zip(order, given, strict=True):
            shares[index] += more
        return sum(given)

    left -= give(left, (1 for _ in order))
    left = max(0, left - kept_for_brief(total))
    for seed in (True, False):
        left -= give(left, (asking[i].wanted - shares[i] if asking[i].seed is seed else 0 for i in order))
    give(left // _SPARE_PART, (total for _ in order))
    return shares


def _rates(total: float, wanted: Sequence[float], seeds: Sequence[bool]) -> list[float]:
    """Return everybody's part of a rate: some for all alike, then what seeds want, then what the others want."""
    shares = max_min(total / _COMMON_PART, wanted)
    for seed in (True, False):
        left = max(0.0, total - sum(shares))
        missing = [
            want - share if is_seed is seed else 0.0 for want, share, is_seed in zip(wanted, shares, seeds, strict=True)
        ]
        shares = [share + more for share, more in zip(shares, max_min(left, missing), strict=True)]
    return shares


def _wanted(used: float | None, share: float, whole: float) -> float:
    if used is None or used >= share * _SATURATED:
        return inf
    return max(used * _GROWTH, whole / _LEAST_PART)


def _moved(average: float | None, amount: float, elapsed: float) -> float:
    rate = amount / elapsed
    if average is None:
        return rate
    return rate + (average - rate) * exp(-elapsed / _MEASURE_SECONDS)


def _budget(budget: Budget, part: _Part) -> Budget:
    """Return a part as a budget that bounds what the whole `budget` does."""
    return Budget(
        None if budget.connections is None else part.connections,
        None if budget.requests_per_second is None else part.requests,
        None if budget.bytes_per_second is None else part.bytes,
    )
