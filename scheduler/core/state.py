"""The scheduler's state machine: events in, commands out.

`apply` notes what an event says at once. What it makes assignable is handed out by the next Tick, so that a burst of
reports costs one pass: while there is something to hand out, `next_deadline` says that a Tick is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from p2p.control import ORIGIN, Assignment, OriginLoad, Part, SeedHost, Seeds, Source
from p2p.urgency import PATIENT_TURN
from scheduler.core import assign, follow, handover, integrity, transitions
from scheduler.core.assign import Choice
from scheduler.core.budget import BudgetRule, OriginBudgets, OriginView
from scheduler.core.invariants import check
from scheduler.core.messages import (
    Announced,
    Command,
    Disconnect,
    DroppedPieces,
    Event,
    HostJoined,
    HostLeft,
    HostSaid,
    JournalRead,
    Judged,
    Lagged,
    MembersChanged,
    OriginParts,
    Progressed,
    Send,
    Tick,
    Unwanted,
    UsedOrigins,
    Wanted,
)
from scheduler.core.model import Flight, Host, Limits
from scheduler.core.swarm import Swarm
from scheduler.core.swarms import State

_IMMEDIATELY = float("-inf")


@dataclass(frozen=True, slots=True)
class PeerView:
    """How far one host is with one version, in pieces."""

    host_id: str
    held: int
    missing: int
    from_parents: int
    from_origin: int


@dataclass(frozen=True, slots=True)
class SwarmView:
    """One version, for operators. Lengths are in bytes, the rest in pieces."""

    task_id: str
    version_id: str
    length: int
    pieces: int
    tradeable: int
    peers: tuple[PeerView, ...]


@dataclass(frozen=True, slots=True)
class HostView:
    """One host, for operators."""

    host_id: str
    address: str
    seed: bool
    upload_slots: int
    uploading: int
    software: str


class SchedulerCore:
    """Who fetches which pieces from whom. Pure: time is an argument, randomness an injected generator."""

    def __init__(self, *, random: Random, limits: Limits | None = None, budgets: Sequence[BudgetRule] = ()) -> None:
        self._state = State(limits or Limits())
        self._budgets = OriginBudgets(budgets)
        self._random = random
        self._now = _IMMEDIATELY

    def apply(self, event: Event, *, now: float) -> list[Command]:
        """Take an event at `now` (monotonic seconds) and return what is to be done, in order.

        A host that says something impossible is forgotten and disconnected. Events of unknown hosts are ignored.
        """
        self._now = now
        state = self._state
        state.began = min(state.began, now)
        # By keyword: for a pattern by position the interpreter makes a string each time, and keeps thousands of them.
        match event:
            case Tick():
                return self._tick(now)
            case HostJoined(hello=hello):
                before = tuple(state.seeds)
                transitions.host_joined(state, hello, now)
                return self._tell_of_seeds(before, hello.host_id)
            case HostLeft(host_id=host_id):
                before = tuple(state.seeds)
                self._budgets.host_left(host_id)
                transitions.host_left(state, host_id, now)
                return self._tell_of_seeds(before)
            case JournalRead():
                return transitions.journal_read(state, event)
            case MembersChanged():
                handover.members_changed(state, event, now)
                return []
            case OriginParts(parts=parts, rest=rest):
                self._budgets.divide(parts, rest)
                return []
        host = state.hosts.get(event.host_id)
        if host is None:
            return []
        try:
            return self._heard(host, event, now)
        except transitions.ProtocolError as error:
            before = tuple(state.seeds)
            self._budgets.host_left(host.id)
            transitions.host_left(state, host.id, now)
            return [Disconnect(host.id, str(error)), *self._tell_of_seeds(before)]

    def next_deadline(self) -> float | None:
        """Return when a Tick is due (monotonic seconds; in the past: at once), or None."""
        if self._state.dirty or self._state.freed:
            return _IMMEDIATELY
        return self._state.timers[0][0] if self._state.timers else None

    def check_invariants(self) -> None:
        """Raise AssertionError unless the state is consistent; slow, for tests."""
        check(self._state, now=self._now)

    def hosts(self) -> tuple[HostView, ...]:
        """Return what is known of every host."""
        return tuple(
            HostView(
                host_id=host.id,
                address=host.hello.address,
                seed=host.hello.seed,
                upload_slots=host.hello.upload_slots,
                uploading=len(host.uploading),
                software=host.hello.software,
            )
            for host in self._state.hosts.values()
        )

    def swarms(self) -> tuple[SwarmView, ...]:
        """Return how far every version is."""
        return tuple(
            SwarmView(
                task_id=swarm.version.task_id,
                version_id=swarm.id,
                length=swarm.version.length,
                pieces=swarm.size,
                tradeable=len(swarm.tradeable),
                peers=tuple(
                    PeerView(host_id, len(peer.held), len(peer.missing), peer.from_parents, peer.from_origin)
                    for host_id, peer in swarm.peers.items()
                ),
            )
            for swarm in self._state.swarms.values()
        )

    def origins(self, now: float) -> tuple[OriginView, ...]:
        """Return who does what at the origins that have a budget, at `now` (monotonic seconds)."""
        return self._budgets.view(now)

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of hosts and of versions."""
        return len(self._state.hosts), len(self._state.swarms)

    def _tell_of_seeds(self, before: tuple[str, ...], newcomer: str | None = None) -> list[Command]:
        """Tell a newcomer which seeds there are, and everybody if they are others than before."""
        state = self._state
        changed = before != tuple(state.seeds) or newcomer in state.seeds
        listeners = state.hosts if changed else [newcomer] if newcomer is not None else []
        seeds = Seeds(tuple(SeedHost(host.id, host.hello.address) for host in state.seeds.values()))
        return [Send(host_id, seeds) for host_id in listeners]

    def _heard(self, host: Host, event: HostSaid, now: float) -> list[Command]:
        state = self._state
        match event:
            case Announced():
                return transitions.announced(state, host, event.holdings.holdings, now)
            case DroppedPieces():
                transitions.dropped(state, host, event.dropped)
            case UsedOrigins():
                return self._allow(host, event.use.loads, now)
            case _ if integrity.stale(state, host, _version_id(event)):
                pass
            case Wanted(want=want):
                refusal = integrity.refused(state, host, want.version.id, now)
                return refusal or transitions.wanted(state, host, want, now)
            case Progressed():
                return transitions.progressed(state, host, event.progress, now)
            case Lagged(lagging=lagging):
                follow.lagging(state, host, lagging.version_id, lagging.stripes, now)
            case Unwanted():
                transitions.unwanted(state, host, event.unwant.version_id)
            case Judged():
                return integrity.judged(state, host, event.verdict, now)
        return []

    def _allow(self, host: Host, loads: Iterable[OriginLoad], now: float) -> list[Command]:
        answers = (self._budgets.used(host.id, load, seed=host.hello.seed, now=now) for load in loads)
        return [Send(host.id, allowance) for allowance in answers if allowance is not None]

    def _tick(self, now: float) -> list[Command]:
        for swarm, peer in self._state.due(now):
            transitions.overdue(self._state, swarm, peer, now)
        commands = self._offer_slots(now)
        for version_id in self._most_urgent_first(self._state.dirty):
            swarm = self._state.swarms[version_id]
            if swarm.idle:
                self._state.drop(swarm)
                continue
            commands += integrity.elect(swarm)
            if swarm.journal_read:
                commands += self._pass(swarm, now)
        self._state.dirty.clear()
        return commands

    def _most_urgent_first(self, version_ids: Iterable[str]) -> list[str]:
        """Return versions in the order in which they look around; who is first finds more."""
        swarms = self._state.swarms
        return sorted(version_ids, key=lambda version_id: swarms[version_id].urgency, reverse=True)

    def _offer_slots(self, now: float) -> list[Command]:
        """Give freed slots to those who found nothing before: a host's tasks take turns, a part each.

        The most urgent go first, but every PATIENT_TURN-th slot is for the task that has had none for longest.
        """
        state = self._state
        started: dict[str, list[Flight]] = {}
        for host in (state.hosts[host_id] for host_id in state.freed if host_id in state.hosts):
            waiting = [swarm for version_id in host.versions if (swarm := state.swarms[version_id]).hungry]
            while waiting:
                patient = (host.turns + 1) % PATIENT_TURN == 0
                swarm = waiting[0] if patient else max(waiting, key=lambda swarm: swarm.urgency)
                waiting.remove(swarm)
                flight = self._offer(host, swarm, now, urgent_first=not patient) if swarm.gives(host) else None
                if flight is not None:
                    host.turns += 1
                    started.setdefault(swarm.id, []).append(flight)
                    waiting.append(swarm)
                    del host.versions[swarm.id]
                    host.versions[swarm.id] = None
        state.freed.clear()
        return [command for version_id, flights in started.items() for command in _assignments(flights)]

    def _offer(self, host: Host, swarm: Swarm, now: float, *, urgent_first: bool) -> Flight | None:
        """Let one of those who found nothing before fetch a part from a host, if it has anything for them."""
        if not swarm.hungry or not swarm.peers[host.id].sound & swarm.craved:
            return None
        limits = self._state.limits
        choice = assign.part_from(
            swarm, swarm.peers[host.id], limits=limits, random=self._random, now=now, urgent_first=urgent_first
        )
        if choice is None:
            swarm.recount_craved()
            return None
        flight = self._start(swarm, choice, now)
        del swarm.hungry[choice.child_id]
        if assign.has_room(flight.child, limits):
            swarm.found_nothing(flight.child)
        return flight

    def _pass(self, swarm: Swarm, now: float) -> list[Command]:
        """Hand out everything that can be handed out in a swarm: children take turns, a part each."""
        state, limits = self._state, self._state.limits
        following = follow.tend(state, swarm, now)
        started: list[Flight] = []
        if swarm.origin_pending and now < swarm.origin_from:
            for host_id in islice(swarm.wanting, 1):
                state.arm(swarm, swarm.peers[host_id], swarm.origin_from)
        elif swarm.origin_pending:
            while (choice := assign.origin_part(swarm, state.seeds, limits=limits, now=now)) is not None:
                started.append(self._start(swarm, choice, now))
            swarm.origin_pending = False
        turn = list(swarm.pending)
        swarm.pending.clear()
        self._random.shuffle(turn)
        queue = deque(swarm.by_urgency(turn))
        while queue:
            child = swarm.peers[queue.popleft()]
            part = None
            if swarm.offered():
                part = assign.peer_part(swarm, child, limits=limits, random=self._random, now=now)
            if part is not None:
                started.append(self._start(swarm, part, now))
                queue.append(child.host.id)
            elif assign.has_room(child, limits):
                carried = child.follows and not child.missing - swarm.promised(child)
                if carried:
                    swarm.carried[child.host.id] = None
                else:
                    swarm.found_nothing(child)
            else:
                swarm.hungry.pop(child.host.id, None)
        return following + _assignments(started)

    def _start(self, swarm: Swarm, choice: Choice, now: float) -> Flight:
        state = self._state
        child = swarm.peer(state.hosts[choice.child_id])
        parent = None if choice.parent_id == ORIGIN else state.hosts[choice.parent_id]
        flight = Flight(swarm, child, parent, choice.source, set(choice.span), choice.span, now)
        state.start(flight, now)
        return flight


def _version_id(event: Wanted | Progressed | Lagged | Unwanted | Judged) -> str:
    match event:
        case Wanted(want=want):
            return want.version.id
        case Progressed(progress=progress):
            return progress.version_id
        case Lagged(lagging=lagging):
            return lagging.version_id
        case Unwanted(unwant=unwant):
            return unwant.version_id
        case Judged(verdict=verdict):
            return verdict.version_id


def _assignments(flights: list[Flight]) -> list[Command]:
    """Join the parts of each host, of one version, into one assignment; those with different lent sources apart."""
    if not flights:
        return []
    swarm = flights[0].swarm
    priority = swarm.urgency.priority
    joined: dict[tuple[str, bool, Source | None], list[Part]] = {}
    for flight in flights:
        lent = flight.source if flight.source != flight.child.source else None
        parent = flight.parent
        digests = () if parent is None else tuple(swarm.digests.known[index] for index in flight.span)
        address = "" if parent is None else parent.hello.address
        parts = joined.setdefault((flight.child.host.id, flight.child.cold, lent), [])
        parts.append(Part(flight.span, flight.parent_id, address, digests))
    return [
        Send(host_id, Assignment(swarm.version, tuple(parts), source, cold, priority))
        for (host_id, cold, source), parts in joined.items()
    ]
