"""Which schedulers there are, and which part of an origin's budget is whose.

Members come from the configuration, the DNS, or leases in Redis. While Redis is away the last known ones count, and
each scheduler shares out its part of every budget. While it answers, a budget is divided among those alone that have
lately shared it out: one, as long as all hosts agree on whose it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from prometheus_client import Gauge

from p2p.budgets import LEASE_SECONDS as BUDGET_LEASE_SECONDS
from p2p.config import Address
from p2p.dns import RESOLVE_SECONDS, DnsName
from p2p.telemetry import REGISTRY, logger
from scheduler.shared import Shared

log = logger(__name__)

LEASE_SECONDS = 3.0
"""For how long a scheduler counts that does not renew its lease."""

RENEW_SECONDS = 1.0

_MEMBERS_KEY = "schedulers"

_MEMBERS = Gauge("damselfly_scheduler_members", "Schedulers there are, as far as this one knows", registry=REGISTRY)

Dealt = Callable[[], Sequence[str]]


class Cluster:
    """The schedulers there are. `own` ("host:port") is what hosts dial to reach this one."""

    def __init__(self, own: str, configured: Sequence[Address] = (), shared: Shared | None = None) -> None:
        self.own = own
        self.members: tuple[str, ...] = (own,)
        self.parts: Mapping[str, float] = {}
        """Which part of an origin's budget is this scheduler's, by origin."""
        self.rest = 1.0
        """The same for origins that are not in `parts`."""
        self._configured = tuple(configured)
        self._shared = shared
        self._resolved: dict[DnsName, tuple[str, ...]] = {}
        self._seen: dict[str, float] = {}
        self._missed = False
        self._left = False
        self._clock = asyncio.get_running_loop().time

    @property
    def alone(self) -> bool:
        """Whether there is no way to hear of other schedulers: this is the only one."""
        return self._shared is None and not self._configured

    def state(self) -> dict[str, object]:
        """Return what /readyz says of it; nothing where there is one scheduler."""
        if self.alone:
            return {}
        state: dict[str, object] = {"schedulers": list(self.members)}
        if self._shared is not None:
            state["redis"] = "up" if self._shared.up else "away"
            if not self._shared.up:
                state["degraded"] = (
                    f"Redis at {self._shared.place} does not answer: the schedulers last known count, and each shares "
                    f"out 1/{len(self.members)} of origins' budgets"
                )
        return state

    async def look(self, dealt: Sequence[str] = ()) -> None:
        """Renew `members`, `parts` and `rest`; `dealt` are the origins whose budgets are being shared out here."""
        found = await (self._leased() if self._shared and not self._configured else self._named())
        if found is not None:
            members = tuple(sorted({self.own, *found}))
            if members != self.members:
                log.info("schedulers", members=members)
            self.members = members
        _MEMBERS.set(len(self.members))
        self.rest = 1 / len(self.members)
        self.parts = await self._parts(dealt)

    async def run(self, changed: Callable[[], Awaitable[None]], dealt: Dealt) -> None:
        """Look again and again, until `leave`; `changed` is awaited each time that something is new."""
        before = self.members, self.parts, self.rest
        while not self._left:
            await asyncio.sleep(RENEW_SECONDS)
            await self.look(dealt())
            if before != (before := (self.members, self.parts, self.rest)):
                await changed()

    async def leave(self) -> None:
        """Let others know that this scheduler stops."""
        self._left = True
        if self._shared is not None and not self._configured:
            await self._shared.release(_MEMBERS_KEY, self.own)

    async def _leased(self) -> tuple[str, ...] | None:
        assert self._shared is not None, "leases are in Redis"
        now = self._clock()
        if self._left:
            return None
        found = await self._shared.lease(_MEMBERS_KEY, self.own, LEASE_SECONDS)
        if found is None:
            self._missed = True
            return None
        if self._missed:
            # It may have lost all: the others have a lease's time to take theirs again.
            self._seen = dict.fromkeys(self.members, now + LEASE_SECONDS)
            self._missed = False
        return (*found, *(name for name, until in self._seen.items() if now < until))

    async def _named(self) -> tuple[str, ...] | None:
        for name in self._configured:
            if not isinstance(name, DnsName) or self._seen.get(str(name), 0.0) > self._clock():
                continue
            self._seen[str(name)] = self._clock() + RESOLVE_SECONDS
            found = await name.resolve()
            if found is not None:
                self._resolved[name] = found
            else:
                log.warning("name not resolved", name=str(name))
        named = [str(address) for address in self._configured if not isinstance(address, DnsName)]
        return (*named, *(address for found in self._resolved.values() for address in found))

    async def _parts(self, origins: Sequence[str]) -> dict[str, float]:
        parts: dict[str, float] = {}
        if self._shared is None or not self._shared.up:
            return parts
        for origin in origins:
            sharing = await self._shared.lease(f"origin:{origin}", self.own, BUDGET_LEASE_SECONDS)
            if sharing is None:
                return {}
            parts[origin] = 1 / len(sharing)
        return parts
