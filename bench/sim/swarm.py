"""A whole swarm in virtual time: hosts, network, scheduler and origin, and what a scenario does to them."""

from __future__ import annotations

import gc
from random import Random

from bench.sim.clock import Clock
from bench.sim.host import SimulatedHost, digest_of
from bench.sim.network import Channel, Link, Zones
from bench.sim.origin import SimulatedOrigin
from bench.sim.pages import use_huge_pages
from bench.sim.record import Record
from bench.sim.scenario import Scenario, network_of
from bench.sim.scheduler import SimulatedScheduler
from p2p.control import Source
from p2p.errors import DamselflyError
from p2p.pieces import one_piece
from p2p.stores import Store
from p2p.versions import ValidatorKind, Version


class SimulationError(DamselflyError):
    """A run did not end as it must; the text says how to see it again."""


class SimulatedSwarm:
    """One run of a scenario. `checking` looks at the cores' invariants all the time, which is slow."""

    def __init__(self, scenario: Scenario, *, checking: bool = False) -> None:
        self.scenario = scenario
        self.checking = checking
        self.random = Random(scenario.seed)  # noqa: S311  # a run must repeat
        self.clock = Clock()
        self.network = network_of(scenario.sharing, self.clock)
        self.record = Record(slice_seconds=scenario.single_node_seconds / 50)
        self.version = Version("0" * 64, scenario.size, ValidatorKind.ETAG, '"simulated"')
        self.version_id = self.version.id
        self.source = Source("http://origin.invalid/object", store=Store.HTTP)
        pieces = range(scenario.layout.count)
        self.sizes = [scenario.layout.size(index) for index in pieces]
        """The length of each piece in bytes."""
        self.digests = [digest_of(index) for index in pieces]
        self.alone = [(one_piece(index),) for index in pieces]
        """Each piece as the spans of an announcement."""
        self.sizes_alone = [(size,) for size in self.sizes]
        """The length of each piece as those of a flow."""
        self.journal: dict[int, bytes] = {}
        if scenario.warm:
            self.journal = dict(enumerate(self.digests))
        self.scheduler = SimulatedScheduler(self)
        self.origin = SimulatedOrigin(self)
        self.hosts: dict[str, SimulatedHost] = {}
        self._waiting: dict[SimulatedHost, None] = {}
        """Nodes whose clients have not got the whole file yet; those that came for dead ones are not waited for."""
        self._living: dict[SimulatedHost, None] = {}
        """Nodes that have come and are not dead."""
        self._arrivals = 0
        self._slow = scenario.some(scenario.stragglers, self.random)
        self._slow_uplinks = scenario.some(scenario.slow_uplinks, self.random)
        self._corrupting = scenario.some(scenario.byzantine, self.random)
        self._zones = Zones(scenario.zones, scenario.zone_rate)
        self._numbers = 0

    def run(self) -> Record:
        """Let it happen, until every client has the file, has failed, or is dead. Raises SimulationError."""
        scenario = self.scenario
        for _ in range(scenario.seeds):
            self._host(seed=True, rate=scenario.rate)
        nodes = [self._node(number) for number in range(scenario.nodes)]
        for host in self.hosts.values():
            # Daemons run for long before anybody asks for anything.
            self.scheduler.know(host)
        for node, at in zip(nodes, scenario.arrival_times(self.random), strict=True):
            self.clock.at(at, self._arrive, node)
        if scenario.nodes >= _MANY_NODES:
            # A node takes more and more, most of that in its first seconds.
            for part in range(1, 33):
                later = (part / 32) ** 2 * scenario.single_node_seconds
                self.clock.at(self.clock.now + later, use_huge_pages)
        if scenario.restart_at is not None:
            self.clock.at(scenario.restart_at, self._kill_scheduler)
        if scenario.churn:
            self.clock.after(self._until_next_death(), self._churn)
        try:
            self._play()
        except (AssertionError, KeyError, IndexError) as error:
            raise SimulationError(
                f"seed {scenario.seed}: broke at {self.clock.now:.6f} s: {error!r}; {_REPLAY}"
            ) from error
        return self.record

    def channel(self) -> Channel:
        """Return a new one-way connection between a host and the scheduler."""
        scenario = self.scenario
        return Channel(self.clock, self.random, delay=scenario.rtt / 2, jitter=scenario.jitter, loss=scenario.loss)

    def path(self, parent: SimulatedHost, child: SimulatedHost) -> tuple[Link, ...]:
        """Return the links from one host to another."""
        return self._zones.path(parent.uplink, parent.zone, child.downlink, child.zone)

    def completed(self, host: SimulatedHost) -> None:
        """Note that a node's client has the last byte."""
        self.record.completed[host.number] = self.clock.now
        self._leave(host)

    def failed(self, host: SimulatedHost, reason: str) -> None:
        """Note that a node's client got an error."""
        self.record.failed[host.number] = reason
        self._leave(host)

    def _play(self) -> None:
        # What comes and goes by the million is in no cycles; looking for some takes most of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            self.record.events = self.clock.run(self.scenario.give_up_seconds)
        finally:
            if collecting:
                gc.enable()
        left = len(self._waiting) + self.scenario.nodes - self._arrivals
        if left:
            raise SimulationError(
                f"seed {self.scenario.seed}: {left} nodes had not got the file at {self.clock.now:.3f} s; {_REPLAY}"
            )

    def _leave(self, host: SimulatedHost) -> None:
        """Wait for a node no more; that was the last one, if no more come."""
        self._waiting.pop(host, None)
        if not self._waiting and self._arrivals == self.scenario.nodes:
            self.clock.stop()

    def _host(self, *, seed: bool = False, rate: float, corrupts: bool = False) -> SimulatedHost:
        zone = self._numbers % self.scenario.zones
        host = SimulatedHost(self, self._numbers, seed=seed, rate=rate, zone=zone, corrupts=corrupts)
        self._numbers += 1
        self.hosts[host.id] = host
        return host

    def _node(self, number: int) -> SimulatedHost:
        scenario = self.scenario
        slow = number in self._slow
        host = self._host(rate=scenario.rate / 10 if slow else scenario.rate, corrupts=number in self._corrupting)
        if slow:
            self.record.unhealthy.add(host.number)
        if number in self._slow_uplinks:
            host.uplink = Link(min(host.uplink.capacity, scenario.slow_uplink_rate))
        return host

    def _arrive(self, host: SimulatedHost) -> None:
        self._arrivals += 1
        self._living[host] = None
        self._waiting[host] = None
        self.record.arrived[host.number] = self.clock.now
        host.want()

    def _succeed(self) -> None:
        """Let a fresh host come instead of a dead one; nobody waits for it."""
        host = self._host(rate=self.scenario.rate)
        self._living[host] = None
        self.record.arrived[host.number] = self.clock.now
        self.record.unhealthy.add(host.number)
        host.introduce()
        host.want()

    def _until_next_death(self) -> float:
        return self.random.expovariate(self.scenario.churn * self.scenario.nodes / 60)

    def _churn(self) -> None:
        if self._living:
            victim = self.random.choice(tuple(self._living))
            del self._living[victim]
            victim.die()
            self._leave(victim)
            self.record.unhealthy.add(victim.number)
            self._succeed()
        self.clock.after(self._until_next_death(), self._churn)

    def _kill_scheduler(self) -> None:
        self.scheduler.die()
        for host in self.hosts.values():
            self.clock.after(self.scenario.rtt / 2, host.lose_scheduler)
        self.clock.after(self.scenario.restart_seconds, self._restart_scheduler)

    def _restart_scheduler(self) -> None:
        self.scheduler = SimulatedScheduler(self)
        for host in self.hosts.values():
            delay = self.scenario.rtt * (0.5 + self.random.random())
            self.clock.after(delay, host.find_scheduler)


_MANY_NODES = 1000
"""So many nodes are more than a CPU's caches hold."""

_REPLAY = "the same options and --seed show it again"
