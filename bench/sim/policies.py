"""Other ways to spread a file, to stand beside ours: over the same network, with the same links and arrivals.

Neither has a scheduler that costs time, nor messages that take any: what a child knows of its parents is free and at
once. Both are kinder to what they model than the world is.

`Tree` is like Dragonfly: a child is given up to four parents among a few earlier ones when it arrives and keeps them;
it takes the pieces in order, turn by turn from each, and a parent that has not got a piece yet sends it when it has.

`RarestFirst` is like BitTorrent without tit for tat: everybody knows fifty others and takes, from one of them with a
free slot, the rarest piece it lacks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from random import Random

from bench.sim.clock import Clock
from bench.sim.network import Link, Zones
from bench.sim.record import Record
from bench.sim.scenario import Scenario, network_of
from bench.sim.swarm import SimulationError
from p2p.pieces import Bitmap

CONCURRENT = 4
"""Pieces that a child fetches at a time."""

TREE_PARENTS = 4
TREE_CANDIDATES = 15
TREE_CHILDREN = 50
"""Dragonfly's defaults: so many parents of so many candidates, each with so many children at the most."""

NEIGHBOURS = 50
"""What a tracker names a newcomer."""

_LOOKED_AT = 48
"""Pieces, from a random one on, among which the rarest is looked for."""


class Node:
    """A host of a comparison."""

    __slots__ = (
        "children",
        "downlink",
        "flying",
        "have",
        "hungry",
        "neighbours",
        "next",
        "number",
        "uplink",
        "uploads",
        "zone",
    )

    def __init__(self, number: int, rate: float, zone: int, pieces: Bitmap) -> None:
        self.number = number
        self.zone = zone
        self.uplink = Link(rate)
        self.downlink = Link(rate)
        self.have = pieces
        self.flying = Bitmap(pieces.size)
        self.uploads = 0
        self.neighbours: list[Node] = []
        """Parents of a tree's child; else all that it knows."""
        self.children = 0
        self.next = 0
        self.hungry: dict[Node, None] = {}
        """Who waits for something of this one's."""


class Policy(ABC):
    """One run: the seeds hold everything, the nodes come as in the scenario, and each fetches until it has it all."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.random = Random(scenario.seed)  # noqa: S311  # a run must repeat
        self.clock = Clock()
        self.network = network_of(scenario.sharing, self.clock)
        self.record = Record(slice_seconds=scenario.single_node_seconds / 50)
        self.layout = scenario.layout
        self.copies = [scenario.seeds] * self.layout.count
        self._slow = scenario.some(scenario.stragglers, self.random)
        self._slow_uplinks = scenario.some(scenario.slow_uplinks, self.random)
        full = Bitmap(self.layout.count, self.layout.everything())
        self._zones = Zones(scenario.zones, scenario.zone_rate)
        self.nodes = [Node(n, scenario.rate, n % scenario.zones, full.copy()) for n in range(scenario.seeds)]

    def run(self) -> Record:
        """Let it happen until every node has everything. Raises SimulationError."""
        for at in self.scenario.arrival_times(self.random):
            self.clock.at(at, self._arrive)
        while len(self.record.completed) < self.scenario.nodes:
            if not self.clock.step():
                raise SimulationError(f"seed {self.scenario.seed}: {type(self).__name__} came to a halt")
            self.record.events += 1
        return self.record

    @abstractmethod
    def meet(self, node: Node) -> None:
        """Decide whom a newcomer knows."""

    @abstractmethod
    def fetch_more(self, node: Node) -> None:
        """Start what a node has room for."""

    def start(self, parent: Node, child: Node, index: int) -> None:
        """Have the parent send a piece, after a round trip."""
        child.flying.add_piece(index)
        parent.uploads += 1
        self.clock.after(self.scenario.rtt, self._flow, parent, child, index)

    def _arrive(self) -> None:
        slow = len(self.nodes) - self.scenario.seeds in self._slow
        rate = self.scenario.rate / 10 if slow else self.scenario.rate
        number = len(self.nodes)
        node = Node(number, rate, number % self.scenario.zones, Bitmap(self.layout.count))
        if number - self.scenario.seeds in self._slow_uplinks:
            node.uplink = Link(min(rate, self.scenario.slow_uplink_rate))
        self.record.arrived[node.number] = self.clock.now
        if slow:
            self.record.unhealthy.add(node.number)
        self.meet(node)
        self.nodes.append(node)
        self.fetch_more(node)

    def _flow(self, parent: Node, child: Node, index: int) -> None:
        size = self.layout.size(index)
        landed = partial(self._sent, parent, child, index)
        links = self._zones.path(parent.uplink, parent.zone, child.downlink, child.zone)
        self.network.start(links, [size], arrived=_ignored, ended=landed)

    def _sent(self, parent: Node, child: Node, index: int) -> None:
        size = self.layout.size(index)
        self.record.send(parent.number, size, int(self.clock.now / self.record.slice_seconds))
        if parent.number < self.scenario.seeds:
            self.record.seed_bytes += size
        else:
            self.record.peer_bytes += size
        if parent.zone != child.zone:
            self.record.crossing_bytes += size
        parent.uploads -= 1
        self.clock.after(self.scenario.landing_seconds, self.land, child, index)
        self._wake(parent)

    def land(self, child: Node, index: int) -> None:
        """Note that a piece is there; others may have it from now on."""
        child.flying.discard_piece(index)
        child.have.add_piece(index)
        self.copies[index] += 1
        self.record.landed_pieces += 1
        self.record.fingerprint = hash((self.record.fingerprint, child.number, index, self.clock.now))
        if child.have.full:
            self.record.completed[child.number] = self.clock.now
        self.fetch_more(child)
        self._wake(child)

    def _wake(self, node: Node) -> None:
        waiting, node.hungry = node.hungry, {}
        for other in waiting:
            self.fetch_more(other)


def _ignored(_: int) -> None:
    """Nothing is to be done as single pieces of a flow arrive: a flow here is a piece."""


class Tree(Policy):
    """Like Dragonfly: static parents, one way, in order, blind to who has what."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._awaited: dict[tuple[Node, int], list[Node]] = {}
        """Who has asked a parent for a piece that it has not got yet."""

    def meet(self, node: Node) -> None:
        """Take the least burdened of some earlier hosts for ever; the seed where none has room."""
        earlier = self.random.sample(self.nodes, min(TREE_CANDIDATES, len(self.nodes)))
        able = sorted((one for one in earlier if one.children < TREE_CHILDREN), key=lambda one: one.children)
        node.neighbours = able[:TREE_PARENTS] or self.nodes[:1]
        for parent in node.neighbours:
            parent.children += 1

    def fetch_more(self, node: Node) -> None:
        """Ask for the next pieces in order, each from the parent whose turn it is."""
        while len(node.flying) < CONCURRENT and node.next < self.layout.count:
            index, parent = node.next, node.neighbours[node.next % len(node.neighbours)]
            node.next += 1
            if index in parent.have:
                self.start(parent, node, index)
            else:
                node.flying.add_piece(index)
                self._awaited.setdefault((parent, index), []).append(node)

    def land(self, child: Node, index: int) -> None:
        """Send a piece on to those who have asked for it already."""
        for grandchild in self._awaited.pop((child, index), ()):
            self.start(child, grandchild, index)
        super().land(child, index)


class RarestFirst(Policy):
    """Like BitTorrent: the rarest piece that somebody with a free slot among fifty acquaintances has."""

    def meet(self, node: Node) -> None:
        """Get to know some of those that are there, and them this one."""
        node.neighbours = self.random.sample(self.nodes, min(NEIGHBOURS, len(self.nodes)))
        for other in node.neighbours:
            other.neighbours.append(node)

    def fetch_more(self, node: Node) -> None:
        """Fill the node's free transfers; if it cannot, wait for whoever has something new or a free slot."""
        while len(node.flying) < CONCURRENT and len(node.have) + len(node.flying) < self.layout.count:
            if not self._fetch_one(node):
                for other in node.neighbours:
                    other.hungry[node] = None
                return

    def _fetch_one(self, node: Node) -> bool:
        known = node.neighbours
        first = self.random.randrange(len(known))
        lacking = Bitmap(self.layout.count, self.layout.everything()) - node.have - node.flying
        for parent in known[first:] + known[:first]:
            if parent.uploads >= self.scenario.upload_slots:
                continue
            pieces = list(parent.have & lacking)
            if pieces:
                start = self.random.randrange(len(pieces))
                some = (pieces[start:] + pieces[:start])[:_LOOKED_AT]
                index = min(some, key=self.copies.__getitem__)
                self.start(parent, node, index)
                return True
        return False
