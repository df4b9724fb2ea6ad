"""Loads the scheduler's core in this process with what hosts say, in virtual time, and measures what it takes."""

from __future__ import annotations

import gc
import heapq
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random

from bench.synthetic import Member, Scene, pieces_of, quantile
from p2p.control import Assignment, Following
from scheduler.core.messages import (
    Announced,
    Command,
    Event,
    HostJoined,
    JournalRead,
    Progressed,
    ReadJournal,
    Send,
    Tick,
    Wanted,
)
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore

_BURST_SECONDS = 0.001
"""Reports that come within this time meet the scheduler together, as they do while it is at work on earlier ones."""


@dataclass(frozen=True, slots=True)
class CoreSample:
    """What the core did: pieces that landed, the reports that said so, assignments that left, and what it cost.

    The quantiles are those of decision passes, from the arrival of the first report to the departure of the last
    assignment; None without any.
    """

    pieces: int
    reports: int
    assignments: int
    cpu_seconds: float
    p50_seconds: float | None
    p99_seconds: float | None


def load_core(scene: Scene, *, alone: bool, seconds: float) -> CoreSample:
    """Run a scene until everything has landed everywhere, once all hosts want it, yet for at most `seconds`.

    `alone`: each report meets the scheduler on its own.
    """
    swarm = _Swarm(scene)
    swarm.set_up()
    swarm.run(alone=alone, seconds=seconds)
    return CoreSample(
        pieces=swarm.pieces,
        reports=swarm.reports,
        assignments=swarm.assignments,
        cpu_seconds=swarm.cpu_seconds,
        p50_seconds=quantile(swarm.decisions, 0.5),
        p99_seconds=quantile(swarm.decisions, 0.99),
    )


def weigh_core(scene: Scene, *, seconds: float) -> float:
    """Return the bytes that a core keeps a (host, task) when half of a scene has landed; takes at most `seconds`.

    Whole swarms and hosts are in it, the hosts' own state in this process is not. All allocations are counted, so
    nothing else may run in the process, and nothing runs fast.
    """
    tracemalloc.start()
    try:
        swarm = _Swarm(scene)
        swarm.set_up()
        swarm.run(alone=False, seconds=seconds, share=0.5)
        swarm.forget_hosts()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / scene.pairs
    finally:
        tracemalloc.stop()


class _Swarm:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._members = {member.hello.host_id: member for member in scene.members()}
        self._core = SchedulerCore(random=Random(0), limits=Limits(settle=0.0))  # noqa: S311  # breaks ties
        self._now = 0.0
        self._wakes: list[tuple[float, str]] = []
        self._wake_at: dict[str, float | None] = {}
        self.pieces = self.reports = self.assignments = 0
        self.cpu_seconds = 0.0
        self.decisions: list[float] = []

    def set_up(self) -> None:
        """Let everybody join, announce and want; afterwards all are at work."""
        for member in self._members.values():
            self._apply([HostJoined(member.hello)])
        for number, host_id in enumerate(self._members):
            self._apply([Announced(host_id, holdings) for holdings in self._scene.holdings(number)])
        for want in self._scene.wants():
            hosts = [host_id for host_id, member in self._members.items() if not member.hello.seed]
            self._apply([Wanted(host_id, want) for host_id in hosts])

    def run(self, *, alone: bool, seconds: float, share: float = 1.0) -> None:
        """Let pieces land and be reported, up to a part (0 to 1) of all, and count what follows from it."""
        self.assignments = 0
        deadline = time.monotonic() + seconds
        lacking = sum(map(len, (span for number in range(self._scene.hosts) for span in self._scene.lacking(number))))
        enough = share * lacking * self._scene.tasks if share < 1.0 else inf
        while self._wakes and self.pieces < enough and time.monotonic() < deadline:
            for events in self._bursts(alone=alone):
                self.pieces += sum(pieces_of(event.progress) for event in events)
                self.reports += len(events)
                began, cpu_began = time.perf_counter(), time.thread_time()
                commands = self._decide(events)
                self.cpu_seconds += time.thread_time() - cpu_began
                self.decisions.append(time.perf_counter() - began)
                self._carry_out(commands)

    def forget_hosts(self) -> None:
        """Drop what the hosts know: only the core is left."""
        for kept in (self._members, self._wakes, self._wake_at, self.decisions):
            kept.clear()

    def _bursts(self, *, alone: bool) -> Iterator[list[Progressed]]:
        """Let time go on until hosts report, and yield what meets the scheduler at once."""
        self._now = max(self._now, self._wakes[0][0]) + (0.0 if alone else _BURST_SECONDS)
        events: list[Progressed] = []
        while self._wakes and self._wakes[0][0] <= self._now:
            at, host_id = heapq.heappop(self._wakes)
            if at == self._wake_at[host_id]:
                member = self._members[host_id]
                events += [Progressed(host_id, progress) for progress in member.advance(self._now)]
                self._wake(member)
        yield from ([event] for event in events) if alone else [events] if events else []

    def _decide(self, events: Sequence[Event]) -> list[Command]:
        """Do what the driver does with a burst of events."""
        core, now = self._core, self._now
        commands = [command for event in events for command in core.apply(event, now=now)]
        deadline = core.next_deadline()
        if deadline is not None and deadline <= now:
            commands += core.apply(Tick(), now=now)
        return commands

    def _apply(self, events: Sequence[Event]) -> None:
        self._carry_out(self._decide(events))

    def _carry_out(self, commands: Sequence[Command]) -> None:
        found: list[Event] = []
        for command in commands:
            # By keyword: for a pattern by position the interpreter makes a string each time, and keeps thousands of
            # them. Those would be weighed.
            match command:
                case ReadJournal(version_id=version_id):
                    found.append(JournalRead(version_id, {}))
                case Send(host_id=host_id, message=Assignment() as assignment):
                    self.assignments += 1
                    member = self._members[host_id]
                    member.assigned(assignment, self._now)
                    self._wake(member)
                case Send(host_id=host_id, message=Following() as following):
                    self.assignments += 1
                    member = self._members[host_id]
                    member.followed(following, self._now)
                    self._wake(member)
        if found:
            self._apply(found)

    def _wake(self, member: Member) -> None:
        """Look at a host again when something of it is due; what was set earlier counts no longer."""
        host_id, at = member.hello.host_id, member.next_at()
        if at != self._wake_at.get(host_id):
            self._wake_at[host_id] = at
            if at is not None:
                heapq.heappush(self._wakes, (at, host_id))
