"""The simulated scheduler: the core that ships, behind messages that take their time, and busy for a modelled while.

As the real driver does, it takes a batch of the events that are there, the urgent first, lets the core hand out what
they made assignable, and only then looks at its inbox again. It hears all messages of a batch before it says the
first, and each takes its time.
"""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING

from p2p.control import Assignment, Following, PeerMessage
from scheduler.core.messages import (
    Command,
    Disconnect,
    Event,
    ForgetDigests,
    HostLeft,
    Journal,
    JournalRead,
    Progressed,
    ReadJournal,
    Send,
    Tick,
    event_of,
)
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore
from scheduler.inbox import Batches

if TYPE_CHECKING:
    from bench.sim.host import SimulatedHost
    from bench.sim.swarm import SimulatedSwarm

JOURNAL_SECONDS = 1e-3
"""How long a look into the journal takes."""

_CHECK_EVERY = 16
"""Batches between two checks of the core's invariants: they look at everything."""


class SimulatedScheduler:
    """One life of a scheduler; what it journals is the swarm's, and outlives it."""

    def __init__(self, swarm: SimulatedSwarm) -> None:
        self._swarm = swarm
        self._clock = swarm.clock
        self._cost = swarm.scenario.cost
        random = Random(swarm.random.random())  # noqa: S311  # breaks ties, keeps no secret
        self._core = SchedulerCore(random=random, limits=Limits(stripes=swarm.scenario.stripes))
        self._inbox = Batches()
        self._busy = False
        self._alarm: float | None = None
        self._dead = False
        self._batches = 0

    def hear(self, host_id: str, message: PeerMessage) -> None:
        """Take a message from a host."""
        self._put(event_of(host_id, message))

    def know(self, host: SimulatedHost) -> None:
        """Take a session that stood, and what was said on it, before the run began."""
        said: list[PeerMessage] = [host.hello]
        if host.holdings is not None:
            said.append(host.holdings)
        for message in said:
            for command in self._core.apply(event_of(host.id, message), now=self._clock.now):
                self._obey(command)

    def lose(self, host_id: str) -> None:
        """Notice that a host's connection is broken."""
        self._put(HostLeft(host_id))

    def die(self) -> None:
        """Hear and say nothing more."""
        self._dead = True

    def _put(self, event: Event) -> None:
        if self._dead:
            return
        self._inbox.add(event)
        if not self._busy:
            self._work()

    def _work(self) -> None:
        self._busy = False
        now = self._clock.now
        deadline = self._core.next_deadline()
        if not self._inbox and (deadline is None or deadline > now):
            self._set_alarm(deadline)
            return
        events = self._inbox.take()
        began = time.process_time()
        commands: list[Command] = []
        for event in events:
            commands += self._core.apply(event, now=now)
        deadline = self._core.next_deadline()
        if deadline is not None and deadline <= now:
            commands += self._core.apply(Tick(), now=now)
        self._swarm.record.decisions.append(time.process_time() - began)
        if self._swarm.checking and self._batches % _CHECK_EVERY == 0:
            self._core.check_invariants()
        self._batches += 1
        self._busy = True
        spent = sum(map(self._hearing_seconds, events))
        for command in commands:
            seconds = self._saying_seconds(command)
            spent += seconds
            if seconds:
                self._clock.after(spent, self._obey, command)
            else:
                self._obey(command)
        self._swarm.record.modelled_seconds += spent
        self._clock.after(spent, self._go_on)

    def _hearing_seconds(self, event: Event) -> float:
        if not isinstance(event, Progressed):
            return self._cost.message_seconds
        return self._cost.message_seconds + len(event.progress.landed) * self._cost.span_seconds

    def _saying_seconds(self, command: Command) -> float:
        match command:
            case Send(message=Assignment(parts=parts)):
                return self._cost.message_seconds + len(parts) * self._cost.part_seconds
            case Send(message=Following()):
                return self._cost.message_seconds + self._cost.placement_seconds
            case Send():
                return self._cost.message_seconds
            case _:
                return 0.0

    def _go_on(self) -> None:
        if not self._dead:
            self._work()

    def _obey(self, command: Command) -> None:
        if self._dead:
            return
        swarm = self._swarm
        match command:
            case Send(host_id, message):
                host = swarm.hosts[host_id]
                host.down.send(host.hear, message)
                swarm.record.messages_down += 1
            case ReadJournal(version_id):
                self._clock.after(JOURNAL_SECONDS, self._put, JournalRead(version_id, dict(swarm.journal)))
            case Journal(digests=digests):
                swarm.journal.update(digests)
            case ForgetDigests():
                swarm.journal.clear()
            case Disconnect(host_id, reason):
                raise AssertionError(f"the scheduler found {host_id} impossible: {reason}")
            case _:
                pass

    def _set_alarm(self, at: float | None) -> None:
        if at is not None and (self._alarm is None or at < self._alarm or self._alarm <= self._clock.now):
            self._alarm = at
            self._clock.at(at, self._wake, at)

    def _wake(self, at: float) -> None:
        if at == self._alarm and not self._busy and not self._dead:
            self._alarm = None
            self._work()
