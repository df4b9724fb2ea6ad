"""Drives the core: one inbox, one owner, one timer.

Whatever hosts say lands in the inbox. The owner applies a batch of what is there, the urgent first (`scheduler.inbox`),
lets the core hand out what that made assignable (one pass for the batch), carries out the commands, and sleeps until
something arrives or falls due. Between two batches answers go out, and more is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum

from prometheus_client import Counter, Gauge, Histogram

from p2p.control import ORIGIN, Assignment, Hello, OriginLoad, PeerMessage, SchedulerMessage, Schedulers
from p2p.tasks import TaskScope
from p2p.telemetry import REGISTRY, logger
from scheduler.core.budget import OriginView
from scheduler.core.messages import (
    Command,
    Disconnect,
    Event,
    ForgetDigests,
    HostJoined,
    HostLeft,
    Journal,
    JournalRead,
    MembersChanged,
    OriginParts,
    ReadJournal,
    Send,
    Suspect,
    Tick,
    UsedOrigins,
    event_of,
)
from scheduler.core.state import HostView, SchedulerCore, SwarmView
from scheduler.inbox import Inbox
from scheduler.journal import DigestJournal

log = logger(__name__)

INBOX_EVENTS = 4096
"""Events that wait for the owner; when there are more, their hosts' streams are read no further until there is room."""

INBOX_REPORTS = 4096
"""The same for lazy reports, which so take no room from what is urgent."""

OUTBOX_MESSAGES = 1024
"""Messages that wait for one host; a host that lets more pile up is dropped."""

LABELLED_ORIGINS = 64
"""So many origins have metrics of their own; the rest are "other"."""

_ORIGIN_REQUESTS = Counter(
    "damselfly_scheduler_origin_requests_total",
    "Requests that hosts report from origins with a budget",
    ["origin"],
    registry=REGISTRY,
)
_ORIGIN_CHECKS = Counter(
    "damselfly_scheduler_origin_checks_total", "Those of them for one byte", ["origin"], registry=REGISTRY
)
_ORIGIN_REFUSED = Counter(
    "damselfly_scheduler_origin_refused_total", "Those of them answered 429 or 503", ["origin"], registry=REGISTRY
)
_ORIGIN_BYTES = Counter(
    "damselfly_scheduler_origin_bytes_total", "Bytes of their answers", ["origin"], registry=REGISTRY
)
_HOSTS = Gauge("damselfly_scheduler_hosts", "Hosts with an open session", registry=REGISTRY)
_VERSIONS = Gauge("damselfly_scheduler_versions", "Versions that somebody holds or wants", registry=REGISTRY)
_EVENTS = Counter("damselfly_scheduler_events_total", "Events applied, by kind", ["kind"], registry=REGISTRY)
_ASSIGNED = Counter(
    "damselfly_scheduler_assigned_pieces_total",
    "Pieces assigned, by where they come from",
    ["parent"],
    registry=REGISTRY,
)
_SUSPECTS = Counter(
    "damselfly_scheduler_suspect_pieces_total", "Copies that contradict the known digest", registry=REGISTRY
)
_ENDED = Counter("damselfly_scheduler_sessions_ended_total", "Sessions that ended, by why", ["why"], registry=REGISTRY)
_PASSES = Histogram(
    "damselfly_scheduler_batch_seconds",
    "Time from taking a burst of events to having queued what it led to",
    buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    registry=REGISTRY,
)


class Ending(Enum):
    """Why a session is over."""

    CLOSED = "closed"
    SILENT = "silent"
    REPLACED = "replaced"
    SLOW = "slow"
    IMPOSSIBLE = "impossible"
    STOPPING = "stopping"


class HostSession:
    """One host's open stream, as the driver sees it."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.outbox: asyncio.Queue[SchedulerMessage] = asyncio.Queue(OUTBOX_MESSAGES)
        self.ended: asyncio.Future[tuple[Ending, str]] = asyncio.get_running_loop().create_future()

    def end(self, why: Ending, detail: str) -> None:
        """Have the stream closed; the first reason stands."""
        if not self.ended.done():
            _ENDED.labels(why.value).inc()
            self.ended.set_result((why, detail))


class Driver:
    """The scheduler's one owner of state."""

    def __init__(self, core: SchedulerCore, journal: DigestJournal, *, clock: Callable[[], float]) -> None:
        self._core = core
        self._journal = journal
        self._clock = clock
        self._inbox = Inbox(INBOX_EVENTS, INBOX_REPORTS)
        self._sessions: dict[str, HostSession] = {}
        self._labels: set[str] = set()
        self._parts = OriginParts({})
        self.schedulers: Schedulers | None = None
        """All schedulers there are; None where this is the only one."""

    async def join(self, hello: Hello) -> HostSession:
        """Open a session for a host; one that it still has is replaced."""
        session = HostSession(hello)
        old = self._sessions.get(hello.host_id)
        if old is not None:
            old.end(Ending.REPLACED, "the host opened another session")
        self._sessions[hello.host_id] = session
        try:
            await self._inbox.put(HostJoined(hello))
        except asyncio.CancelledError:
            self.leave(session, Ending.CLOSED, "the host was gone before it could be taken in")
            raise
        return session

    async def hear(self, session: HostSession, message: PeerMessage) -> None:
        """Take what a host says, in order; waits while the inbox is full. What an ended session says is ignored."""
        event = event_of(session.hello.host_id, message)
        await self._inbox.room(event)
        if self._sessions.get(session.hello.host_id) is session:
            self._inbox.add(event)
        else:
            self._inbox.give_up(event)

    def leave(self, session: HostSession, why: Ending, detail: str) -> None:
        """End a session and forget its host, unless the host has opened another one since."""
        session.end(why, detail)
        host_id = session.hello.host_id
        if self._sessions.get(host_id) is session:
            del self._sessions[host_id]
            # A departure must not wait for room. It counts after all that the host has said by then.
            self._inbox.squeeze(HostLeft(host_id))

    def end_all(self, detail: str) -> None:
        """End every session: the scheduler is stopping."""
        for session in tuple(self._sessions.values()):
            session.end(Ending.STOPPING, detail)

    async def cluster(self, own: str, members: tuple[str, ...], parts: Mapping[str, float], rest: float) -> None:
        """Take note of which schedulers there are, and which parts of origins' budgets are this one's.

        Every host with an open session is told of schedulers that are others than before.
        """
        schedulers = Schedulers(own, members)
        if schedulers != self.schedulers:
            self.schedulers = schedulers
            await self._inbox.put(MembersChanged(own, members))
            for host_id in tuple(self._sessions):
                self._send(host_id, schedulers)
        if (shares := OriginParts(dict(parts), rest)) != self._parts:
            self._parts = shares
            await self._inbox.put(shares)

    def hosts(self) -> tuple[HostView, ...]:
        """Return what is known of every host."""
        return self._core.hosts()

    def hellos(self) -> tuple[Hello, ...]:
        """Return how every host with an open session announced itself."""
        return tuple(session.hello for session in self._sessions.values())

    def swarms(self) -> tuple[SwarmView, ...]:
        """Return how far every version is."""
        return self._core.swarms()

    def origins(self) -> tuple[OriginView, ...]:
        """Return who does what at the origins that have a budget."""
        return self._core.origins(self._clock())

    async def run(self) -> None:
        """Own the core, for ever. A defect in it ends this, and with it the process."""
        async with TaskScope() as scope:
            while True:
                events = await self._next_events()
                with _PASSES.time():
                    self._step(events, scope)

    async def _next_events(self) -> list[Event]:
        """Wait for events or the core's deadline; return a batch of the events that are there."""
        # Also where events wait already: their answers' senders, and whoever has something urgent to say, come first.
        await asyncio.sleep(0)
        events = self._inbox.take()
        if not events:
            deadline = self._core.next_deadline()
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                    await self._inbox.arrival()
            except TimeoutError:
                pass
            events = self._inbox.take()
        return events

    def _step(self, events: list[Event], scope: TaskScope) -> None:
        for event in events:
            self._apply(event, scope)
        deadline = self._core.next_deadline()
        if deadline is not None and deadline <= self._clock():
            self._apply(Tick(), scope)
        hosts, versions = self._core.counts
        _HOSTS.set(hosts)
        _VERSIONS.set(versions)

    def _apply(self, event: Event, scope: TaskScope) -> None:
        _EVENTS.labels(type(event).__name__).inc()
        if isinstance(event, UsedOrigins):
            for load in event.use.loads:
                self._count(load)
        for command in self._core.apply(event, now=self._clock()):
            self._obey(command, scope)

    def _count(self, load: OriginLoad) -> None:
        if len(self._labels) < LABELLED_ORIGINS:
            self._labels.add(load.origin)
        label = load.origin if load.origin in self._labels else "other"
        _ORIGIN_REQUESTS.labels(label).inc(load.requests)
        _ORIGIN_CHECKS.labels(label).inc(load.checks)
        _ORIGIN_REFUSED.labels(label).inc(load.refused)
        _ORIGIN_BYTES.labels(label).inc(load.bytes)

    def _obey(self, command: Command, scope: TaskScope) -> None:
        match command:
            case Send(host_id, message):
                self._send(host_id, message)
            case ReadJournal(version_id):
                scope.spawn(self._read_journal(version_id), name=f"journal of {version_id}")
            case Journal(version_id, digests):
                self._journal.record(version_id, digests)
            case ForgetDigests(version_id):
                self._journal.forget(version_id)
            case Suspect():
                _SUSPECTS.inc()
                log.warning(
                    "piece suspected",
                    host=command.host_id,
                    version=command.version_id,
                    piece=command.index,
                    reason=command.reason,
                )
            case Disconnect(host_id, reason):
                log.warning("host said something impossible", host=host_id, reason=reason)
                if session := self._sessions.get(host_id):
                    self.leave(session, Ending.IMPOSSIBLE, reason)

    def _send(self, host_id: str, message: SchedulerMessage) -> None:
        session = self._sessions.get(host_id)
        if session is None:
            return
        try:
            session.outbox.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("host too slow", host=host_id, waiting=session.outbox.qsize())
            self.leave(session, Ending.SLOW, f"{session.outbox.qsize()} messages wait to be read")
            return
        if isinstance(message, Assignment):
            for part in message.parts:
                _ASSIGNED.labels("origin" if part.parent_id == ORIGIN else "peer").inc(len(part.span))

    async def _read_journal(self, version_id: str) -> None:
        await self._inbox.put(JournalRead(version_id, await self._journal.read(version_id)))
