"""This host's share of the cluster's budget of each origin: who may ask now, and how fast bytes may be read.

Requests go one after the other as the share allows, by urgency (`p2p.urgency`). Bytes are counted where they are read,
which may be in threads. An origin without a budget costs a look into a dictionary.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Literal, Protocol

from prometheus_client import Counter, Gauge

from p2p.budgets import UNBOUNDED, Budget
from p2p.control import Allowance, OriginLoad, OriginUse, PeerMessage
from p2p.errors import OriginUnreachableError
from p2p.identity import origin_key
from p2p.telemetry import REGISTRY
from p2p.urgency import ORDINARY, Urgency
from peer.source.allotment import CAUTIOUS, IDLE_SECONDS, Allotment

WAIT_SECONDS = 120.0
"""How long a request waits for leave before it fails."""

REPORT_SECONDS = 0.25
"""How often a share in use is renewed."""

URGENT_SECONDS = 0.05
"""How soon more may be asked for when requests wait."""

STARVED_SECONDS = 0.25
"""How long to read nothing while no bytes are allowed at all; the share may be another by then."""

MAX_ORIGINS = 1024
"""How many origins are remembered; those that nobody asks are forgotten first."""

LABELLED_ORIGINS = 64
OTHER_ORIGINS = "other"

Kind = Literal["check", "read", "list"]

_ADMITTED = Counter(
    "damselfly_origin_admitted_total",
    "Requests to origins that were given leave, by kind (check: for one byte; read; list)",
    ["origin", "kind"],
    registry=REGISTRY,
)
_BYTES = Counter("damselfly_origin_bytes_total", "Bytes of origins' answers", ["origin"], registry=REGISTRY)
_REFUSED = Counter(
    "damselfly_origin_refused_total", "Answers that ask for patience (429, 503)", ["origin"], registry=REGISTRY
)
_WAITING = Counter(
    "damselfly_origin_waiting_seconds_total", "Time that requests waited for leave", ["origin"], registry=REGISTRY
)
_SHARE = Gauge(
    "damselfly_origin_share_connections",
    "Requests that this host may have under way at an origin with a budget",
    ["origin"],
    registry=REGISTRY,
)
_UNCONFIRMED = Gauge(
    "damselfly_origin_share_unconfirmed",
    "1 while this host goes by a guess, since no scheduler tells it its share",
    ["origin"],
    registry=REGISTRY,
)


class Schedulers(Protocol):
    """The links to the schedulers, as a governor needs them; `peer.link.Links` is it."""

    def of(self, version_id: str) -> str | None:
        """Return which of the reachable schedulers a key belongs to, or None if none can be reached."""

    def send(self, version_id: str, message: PeerMessage) -> None:
        """Send a message to the key's scheduler, or drop it if there is none."""


@dataclass(slots=True, eq=False)
class _Origin:
    """One origin: its allotment (`lock` guards what threads touch), who waits, and when to look again."""

    allotment: Allotment
    label: str
    read_bytes: Counter
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiters: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Permit:
    """Leave for one request, for as long as it lasts."""

    def __init__(self, governor: Governor, origin: _Origin, ticket: int, admitted_at: float) -> None:
        self._governor = governor
        self._origin = origin
        self._ticket = ticket
        self._admitted_at = admitted_at

    def take(self, size: int) -> float:
        """Count `size` bytes of a body, from any thread, and return for how many seconds to read nothing."""
        return self._governor.took(self._origin, size)

    def refused(self, seconds: float = 0.0) -> None:
        """Note that the origin answered 429 or 503, and wants to be left alone for `seconds` (0: it does not say)."""
        self._governor.refused(self._origin, seconds)

    def answered(self) -> None:
        """Note that the origin answered as it does when it is not overloaded: an earlier pause is over."""
        self._governor.answered(self._origin, self._admitted_at)


class Governor:
    """Gives leave for requests to origins, within this host's share of their budgets. Belongs to the loop.

    `ceiling` holds for each origin whatever a scheduler says; `clock` gives monotonic seconds.
    """

    def __init__(self, *, ceiling: Budget = UNBOUNDED, clock: Callable[[], float] = time.monotonic) -> None:
        self._ceiling = ceiling
        self._clock = clock
        self._schedulers: Schedulers | None = None
        self._origins: dict[str, _Origin] = {}
        self._labels: set[str] = set()
        self._bounded = asyncio.Event()

    @asynccontextmanager
    async def request(
        self, url: str, *, check: bool = False, listing: bool = False, urgency: Urgency = ORDINARY, task: str = ""
    ) -> AsyncIterator[Permit]:
        """Wait for leave to send one request to the origin of `url`; leaving the context gives its slot back.

        `check` tells that it asks for one byte at most, `listing` that it lists names. Those of one `task` go in the
        order in which they came, and tasks of the same `urgency` take turns. Raises BadRequestError for a URL that
        cannot be fetched, and OriginUnreachableError when there is no leave within WAIT_SECONDS.
        """
        kind: Kind = "check" if check else "list" if listing else "read"
        permit = await self.enter(url, kind, urgency, task)
        try:
            yield permit
        finally:
            self.leave(permit)

    async def enter(self, url: str, kind: Kind, urgency: Urgency = ORDINARY, task: str = "") -> Permit:
        """Do the first half of `request`, for whoever cannot use a context; `leave` is the other. Raises alike."""
        origin = self._origin(origin_key(url))
        allotment = origin.allotment
        if kind == "list":
            urgency = Urgency(urgency.priority, brief=True)
        ticket = allotment.gate.enter(check=kind == "check", urgency=urgency, task=task)
        allotment.used_at = self._clock()
        if allotment.bounded:
            self._bounded.set()
        if allotment.to_be_asked(allotment.used_at):
            self._report(origin)
        waiter = origin.waiters[ticket] = asyncio.get_running_loop().create_future()
        self._pump(origin)
        if not waiter.done():
            await self._wait(origin, ticket, waiter)
        usage = allotment.usage
        usage.requests += 1
        usage.checks += kind == "check"
        _ADMITTED.labels(origin.label, kind).inc()
        return Permit(self, origin, ticket, self._clock())

    def leave(self, permit: Permit) -> None:
        """Give the slot of a request back that is over."""
        origin = permit._origin  # noqa: SLF001  # a permit is a part of its governor
        origin.allotment.gate.leave(permit._ticket)  # noqa: SLF001
        origin.allotment.used_at = self._clock()
        self._pump(origin)

    def took(self, origin: _Origin, size: int) -> float:
        """Count bytes of an answer, from any thread; return for how many seconds to read nothing."""
        origin.read_bytes.inc(size)
        with origin.lock:
            origin.allotment.usage.bytes += size
            wait = origin.allotment.gate.bytes.use(size, self._clock())
        return STARVED_SECONDS if wait == inf else wait

    def refused(self, origin: _Origin, seconds: float) -> None:
        """Leave an origin alone for as long as it asks; every request of this host but checks waits."""
        _REFUSED.labels(origin.label).inc()
        origin.allotment.usage.refused += 1
        origin.allotment.gate.pause(seconds, self._clock())

    def answered(self, origin: _Origin, asked_at: float) -> None:
        """End a pause that the origin asked for before it was asked what it has now answered."""
        origin.allotment.gate.resume(asked_at)
        self._pump(origin)

    def told(self, allowance: Allowance) -> None:
        """Take what a scheduler allows this host."""
        origin = self._origins.get(allowance.origin)
        if origin is None:
            return
        with origin.lock:
            to_confirm = origin.allotment.told(allowance)
        self._pump(origin)
        if origin.allotment.bounded:
            self._bounded.set()
            if to_confirm:
                self._report(origin)

    def scheduler_changed(self) -> None:
        """Ask about every origin again: another scheduler may answer, or one that knows nothing of this host."""
        for origin in self._origins.values():
            origin.allotment.lost()
            if origin.allotment.gate.wanted:
                self._report(origin)
                self._pump(origin)

    async def run(self, schedulers: Schedulers) -> None:
        """Renew the shares that are in use and give up those that are not, for ever."""
        self._schedulers = schedulers
        for origin in self._origins.values():
            origin.allotment.guess = CAUTIOUS
        while True:
            await self._bounded.wait()
            await asyncio.sleep(REPORT_SECONDS)
            self._bounded.clear()
            for origin in tuple(self._origins.values()):
                self._renew(origin)

    def _renew(self, origin: _Origin) -> None:
        allotment, now = origin.allotment, self._clock()
        if not allotment.bounded:
            return
        if allotment.gate.wanted or now < allotment.used_at + IDLE_SECONDS:
            self._report(origin)
            self._bounded.set()
        elif self._reachable(origin):
            self._send(origin, allotment.give_up)
        self._pump(origin)

    def _origin(self, key: str) -> _Origin:
        found = self._origins.get(key)
        if found is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._forget()
            if len(self._labels) < LABELLED_ORIGINS:
                self._labels.add(key)
            label = key if key in self._labels else OTHER_ORIGINS
            guess = UNBOUNDED if self._schedulers is None else CAUTIOUS
            found = self._origins[key] = _Origin(Allotment(key, self._ceiling, guess), label, _BYTES.labels(label))
        return found

    def _forget(self) -> None:
        for key, origin in tuple(self._origins.items()):
            if not origin.allotment.gate.wanted and not origin.allotment.bounded:
                del self._origins[key]
                return

    async def _wait(self, origin: _Origin, ticket: int, waiter: asyncio.Future[None]) -> None:
        began = self._clock()
        allotment = origin.allotment
        if allotment.bounded and began >= allotment.reported_at + URGENT_SECONDS:
            self._report(origin)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await waiter
        except BaseException as error:
            if origin.waiters.pop(ticket, None) is None:
                allotment.gate.leave(ticket)  # It was let in at the very moment when it gave up.
            else:
                allotment.gate.withdraw(ticket)
            self._pump(origin)
            if isinstance(error, TimeoutError):
                raise OriginUnreachableError(
                    f"no leave to ask {allotment.origin} within {WAIT_SECONDS:g} s: its budget is used up, or it asked "
                    "for patience; see /v1/origins of the scheduler, and [[origin_budgets]]"
                ) from None
            raise
        finally:
            _WAITING.labels(origin.label).inc(self._clock() - began)

    def _pump(self, origin: _Origin) -> None:
        """Let in who may go now, and look again when the next one may."""
        allotment, gate, now = origin.allotment, origin.allotment.gate, self._clock()
        limit = allotment.limit(now)
        with origin.lock:
            if limit != gate.limit:
                gate.set_limit(limit, now)
                self._show(origin, now)
            admitted = gate.admit(now)
            next_at = gate.next_at(now)
        for ticket in admitted:
            waiter = origin.waiters.pop(ticket)
            if not waiter.done():  # else it was cancelled, and leaves as soon as it runs
                waiter.set_result(None)
        if origin.timer is not None:
            origin.timer.cancel()
            origin.timer = None
        moments = [moment for moment in (next_at, allotment.changes_at(now)) if moment is not None]
        if origin.waiters and moments:
            delay = max(0.0, min(moments) - now)
            origin.timer = asyncio.get_running_loop().call_later(delay, self._pump, origin)

    def _report(self, origin: _Origin) -> None:
        if self._reachable(origin):
            self._send(origin, origin.allotment.report)

    def _reachable(self, origin: _Origin) -> bool:
        return self._schedulers is not None and self._schedulers.of(origin.allotment.origin) is not None

    def _send(self, origin: _Origin, say: Callable[[float, Callable[[OriginLoad], None]], None]) -> None:
        schedulers, key = self._schedulers, origin.allotment.origin
        assert schedulers is not None, "shares come from schedulers"
        with origin.lock:
            say(self._clock(), lambda load: schedulers.send(key, OriginUse((load,))))

    def _show(self, origin: _Origin, now: float) -> None:
        if origin.label == OTHER_ORIGINS:
            return
        limit = origin.allotment.gate.limit
        if limit.connections is not None:
            _SHARE.labels(origin.label).set(limit.connections)
        unconfirmed = self._schedulers is not None and not origin.allotment.confirmed(now)
        _UNCONFIRMED.labels(origin.label).set(unconfirmed)
