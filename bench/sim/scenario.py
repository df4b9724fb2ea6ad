"""What is simulated: how many hosts with which links, when they come, and what goes wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, log2
from random import Random

from bench.sim.clock import Clock
from bench.sim.network import EvenNetwork, Network
from p2p.errors import ConfigError
from p2p.pieces import GIB, PieceLayout


class Arrivals(StrEnum):
    """All within `arrival_seconds` at random; at random intervals (Poisson) that fill it on average; evenly spread."""

    BURST = "burst"
    POISSON = "poisson"
    ROLLING = "rolling"


class Sharing(StrEnum):
    """Flows share links max-min fairly; or each link evenly, so that what one flow cannot use is wasted."""

    FAIR = "fair"
    EVEN = "even"


@dataclass(frozen=True, slots=True)
class CostModel:
    """How long the simulated scheduler is busy: constants, so that a run does not depend on this machine.

    A message costs what grpc.aio takes for it (20,000 a second), a landed span what the core is to take for it (50,000
    a second), and a part that is assigned as much; a host's place in the trees a little more. These are the aims: the
    report shows beside them what the core took in fact. 0 for all makes the scheduler free, which shows how much of a
    result is its fault.
    """

    message_seconds: float = 50e-6
    span_seconds: float = 20e-6
    part_seconds: float = 20e-6
    placement_seconds: float = 60e-6

    def scaled(self, factor: float) -> CostModel:
        """Return the model of a scheduler that takes `factor` times as long."""
        return CostModel(
            message_seconds=self.message_seconds * factor,
            span_seconds=self.span_seconds * factor,
            part_seconds=self.part_seconds * factor,
            placement_seconds=self.placement_seconds * factor,
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rates in bytes a second, times in seconds, sizes in bytes."""

    nodes: int = 16
    seeds: int = 1
    size: int = 10 * GIB
    rate: float = 1.25e9
    """Of every uplink and every downlink."""
    rtt: float = 1e-3
    jitter: float = 0.1
    """By what share of it, at the most, a delay is longer."""
    landing_seconds: float = 0.5e-3
    """From a piece's last byte until it is verified and recorded, and others may have it."""
    upload_slots: int = 16
    warm: bool = False
    """Whether the seeds hold everything at the start; else they fetch it when it is first asked for."""
    origin_rate: float = 12.5e9
    origin_connection_rate: float = 12.5e9
    origin_latency: float = 20e-3
    arrivals: Arrivals = Arrivals.BURST
    arrival_seconds: float = 0.5
    stragglers: float = 0.0
    """Share of the nodes whose links have a tenth of the rate."""
    slow_uplinks: float = 0.0
    """Share of the nodes whose uplinks have `slow_uplink_rate`; their downlinks are like others'."""
    slow_uplink_rate: float = 3.125e8
    churn: float = 0.0
    """Share of the nodes that die a minute; a new one takes the place of each."""
    loss: float = 0.0
    """Share of the messages to and from the scheduler that are lost."""
    byzantine: float = 0.0
    """Share of the nodes that send corrupt pieces, each one in `corrupt`."""
    corrupt: float = 0.1
    restart_at: float | None = None
    """When the scheduler dies; `restart_seconds` later it is back and knows what its journal says."""
    restart_seconds: float = 1.0
    zones: int = 1
    zone_rate: float = 1.25e8
    """From each zone to each other."""
    sharing: Sharing = Sharing.FAIR
    stripes: int = 4
    """Along so many trees the scheduler lets pieces spread; 0 has it assign all of them part by part."""
    cost: CostModel = field(default_factory=CostModel)
    seed: int = 1
    """Of all randomness."""

    def __post_init__(self) -> None:
        for name in ("nodes", "seeds", "size", "rate", "slow_uplink_rate", "zones", "upload_slots"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)}; it must be more than 0")
        for name in ("stragglers", "slow_uplinks", "loss", "byzantine", "corrupt"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; it is a share, from 0 to 1")
        for name in ("rtt", "jitter", "arrival_seconds", "churn", "origin_latency"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)}; it must not be negative")

    @property
    def layout(self) -> PieceLayout:
        """How the file is cut: as the product does."""
        return PieceLayout.of(self.size)

    @property
    def single_node_seconds(self) -> float:
        """S/u: how long one node alone takes over its link."""
        return self.size / self.rate

    @property
    def t_star_seconds(self) -> float:
        """The lower bound of broadcasting K pieces to N receivers: S/(K·u) · (K - 1 + ceil(log2(N + 1)))."""
        pieces = self.layout.count
        return self.single_node_seconds / pieces * (pieces - 1 + ceil(log2(self.nodes + 1)))

    @property
    def bound_seconds(self) -> float:
        """What unequal links allow: seeds send each byte once, and all uplinks together to each node but stragglers.

        The downlinks of these nodes are no narrower than a seed's uplink, and stragglers' uplinks count in full.
        """
        stragglers, slow = round(self.stragglers * self.nodes), round(self.slow_uplinks * self.nodes)
        uplinks = slow * self.slow_uplink_rate + (self.nodes + self.seeds - slow) * self.rate
        return max(self.single_node_seconds, (self.nodes - stragglers) * self.size / uplinks)

    @property
    def give_up_seconds(self) -> float:
        """When a run has failed: far beyond what the slowest host on the slowest link needs."""
        slowest = min(0.1 if self.stragglers else 1.0, self.slow_uplink_rate / self.rate if self.slow_uplinks else 1.0)
        return 300.0 + self.arrival_seconds + 40 * self.single_node_seconds / slowest

    def some(self, share: float, random: Random) -> frozenset[int]:
        """Return which nodes, by the order of their arrival, are that share of all; to the nearest whole one."""
        return frozenset(random.sample(range(self.nodes), round(share * self.nodes)))

    def arrival_times(self, random: Random) -> list[float]:
        """Return when each node asks for the file, ascending."""
        span = self.arrival_seconds
        if self.arrivals is Arrivals.BURST:
            return sorted(random.uniform(0, span) for _ in range(self.nodes))
        if self.arrivals is Arrivals.ROLLING:
            return [span * number / max(1, self.nodes - 1) for number in range(self.nodes)]
        times, now = [], 0.0
        for _ in range(self.nodes):
            now += random.expovariate(self.nodes / span) if span else 0.0
            times.append(now)
        return times


def network_of(sharing: Sharing, clock: Clock) -> Network:
    """Return a new network whose links are shared like that."""
    return (EvenNetwork if sharing is Sharing.EVEN else Network)(clock)


_RATE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)bit(?:/s|ps)?", re.IGNORECASE)


def parse_rate(text: str) -> float:
    """Return the bytes a second that "10gbit" or "200mbit" means. Raises ConfigError."""
    found = _RATE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise ConfigError(f"{text!r} is not a rate; write it as 10gbit or 200mbit (bits a second)")
    thousands = " kmgt".index(found[2].lower() or " ")
    return float(found[1]) * float(1000**thousands) / 8
