"""Hosts, versions and digests for tests of the scheduler."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

from p2p.control import (
    ORIGIN,
    Assignment,
    Failed,
    FailureReason,
    Following,
    Hello,
    Holding,
    Holdings,
    Landed,
    Progress,
    SchedulerMessage,
    Source,
    Want,
)
from p2p.pieces import Bitmap, PieceLayout, Span
from p2p.urgency import DEFAULT_PRIORITY
from p2p.versions import ValidatorKind, Version
from scheduler.core.messages import (
    Announced,
    Command,
    Event,
    ForgetDigests,
    HostJoined,
    Journal,
    JournalRead,
    Progressed,
    ReadJournal,
    Send,
    Tick,
    Wanted,
)
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore
from tests.support.pieces import PIECE


def version_of(pieces: int, name: str = "a") -> Version:
    """A version of `pieces` pieces, the last of them short."""
    length = pieces * PIECE - 1 if pieces else 0
    return Version(hashlib.sha256(name.encode()).hexdigest(), length, ValidatorKind.ETAG, f'"{name}"')


def small_version(name: str = "config") -> Version:
    """A small version: of one piece, for which no slot is booked."""
    return Version(hashlib.sha256(name.encode()).hexdigest(), 4096, ValidatorKind.ETAG, f'"{name}"')


def digest_of(version: Version, index: int, flavour: str = "") -> bytes:
    """The digest of a piece; another `flavour` stands for other bytes."""
    return hashlib.sha256(f"{version.id}/{index}/{flavour}".encode()).digest()[:16]


def source_of(host_id: str) -> Source:
    return Source(f"https://origin.test/model?signature={host_id}")


def everything(version: Version) -> tuple[Span, ...]:
    return PieceLayout.of(version.length).everything()


def holding_of(version: Version, spans: tuple[Span, ...] | None = None, flavour: str = "") -> Holding:
    bitmap = Bitmap(PieceLayout.of(version.length).count, everything(version) if spans is None else spans)
    return Holding(version, bitmap, tuple(digest_of(version, index, flavour) for index in bitmap))


@dataclass(frozen=True)
class Sent:
    """An assignment and the host it was sent to."""

    host_id: str
    assignment: Assignment


class Fleet:
    """A core that has settled, without trees unless told; keeps what was assigned, and answers for the journal."""

    def __init__(self, seed: int = 0, limits: Limits | None = None) -> None:
        self.core = SchedulerCore(
            random=Random(seed), limits=limits or Limits(settle=0.0, stripes=0, origin_depth=64, origin_bytes=0)
        )
        self.now = 0.0
        self.assigned: dict[str, dict[tuple[Version, int], str]] = {}
        self.sent: list[Sent] = []
        self.told: list[tuple[str, SchedulerMessage]] = []
        """Everything but assignments that was sent."""
        self.commands: list[Command] = []
        self.journal: dict[str, dict[int, bytes]] = {}
        self.following: dict[tuple[str, str], Following] = {}
        """Whom a host was told to follow, by host and version."""

    def apply(self, *events: Event) -> list[Command]:
        """Apply events and the Tick they make due; returns all commands."""
        commands: list[Command] = []
        queue = list(events)
        while queue or self._tick_is_due():
            event = queue.pop(0) if queue else Tick()
            for command in self.core.apply(event, now=self.now):
                commands.append(command)
                if isinstance(command, ReadJournal):
                    queue.append(JournalRead(command.version_id, self.journal.get(command.version_id, {})))
                elif isinstance(command, Journal):
                    self.journal.setdefault(command.version_id, {}).update(command.digests)
                elif isinstance(command, ForgetDigests):
                    self.journal.pop(command.version_id, None)
                elif isinstance(command, Send):
                    self._sent(command)
            self.core.check_invariants()
        self.commands += commands
        return commands

    def _tick_is_due(self) -> bool:
        deadline = self.core.next_deadline()
        return deadline is not None and deadline <= self.now

    def _sent(self, send: Send) -> None:
        assignment = send.message
        if isinstance(assignment, Following):
            self.following[send.host_id, assignment.version.id] = assignment
        if not isinstance(assignment, Assignment):
            self.told.append((send.host_id, assignment))
            return
        self.sent.append(Sent(send.host_id, assignment))
        for part in assignment.parts:
            for index in part.span:
                self.assigned.setdefault(send.host_id, {})[assignment.version, index] = part.parent_id

    def join(self, host_id: str, *, seed: bool = False, slots: int = 16, zone: str = "") -> None:
        labels = {"zone": zone} if zone else {}
        self.apply(HostJoined(Hello(host_id, f"{host_id}:65002", seed, slots, labels)))

    def announce(self, host_id: str, *holdings: Holding) -> list[Command]:
        return self.apply(Announced(host_id, Holdings(holdings)))

    def want(
        self,
        host_id: str,
        version: Version,
        spans: tuple[Span, ...] | None = None,
        *,
        source: bool = True,
        priority: int = DEFAULT_PRIORITY,
    ) -> list[Command]:
        spans = everything(version) if spans is None else spans
        want = Want(version, spans, source_of(host_id) if source else None, priority=priority)
        return self.apply(Wanted(host_id, want))

    def land(self, host_id: str, version: Version, *indices: int, flavour: str = "") -> list[Command]:
        """Let assigned pieces land, as the host would report them."""
        landed = []
        for index in indices:
            parent_id = self.assigned[host_id].pop((version, index))
            digests = (digest_of(version, index, flavour),) if parent_id == ORIGIN else ()
            landed.append(Landed(Span(index, index + 1), parent_id, digests))
        return self.apply(Progressed(host_id, Progress(version.id, tuple(landed))))

    def fail(self, host_id: str, version: Version, reason: FailureReason, *indices: int) -> list[Command]:
        failed = []
        for index in indices:
            parent_id = self.assigned[host_id].pop((version, index))
            failed.append(Failed(Span(index, index + 1), parent_id, reason))
        return self.apply(Progressed(host_id, Progress(version.id, (), tuple(failed))))

    def pieces(self, host_id: str, version: Version) -> dict[int, str]:
        """What a host has been assigned and has not reported on: piece -> parent."""
        assigned = self.assigned.get(host_id, {})
        return {index: parent for (of, index), parent in assigned.items() if of == version}

    def parents(self, host_id: str, version: Version) -> dict[int, set[str]]:
        """Whom a host follows in each stripe, as it was told last."""
        following = self.following.get((host_id, version.id))
        parents: dict[int, set[str]] = {}
        for parent in following.parents if following else ():
            for stripe in parent.stripes:
                parents.setdefault(stripe, set()).add(parent.parent_id)
        return parents

    def run_down(self, host_id: str, version: Version) -> None:
        """Let everything that is assigned to a host land, until nothing is left."""
        while assigned := self.pieces(host_id, version):
            self.land(host_id, version, *assigned)

    def advance(self, seconds: float) -> list[Command]:
        """Let time pass, ticking at every deadline on the way."""
        commands: list[Command] = []
        end = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            commands += self.apply()
        self.now = end
        return commands


def sends(commands: list[Command]) -> list[Sent]:
    return [
        Sent(command.host_id, command.message)
        for command in commands
        if isinstance(command, Send) and isinstance(command.message, Assignment)
    ]
