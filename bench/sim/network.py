"""How fast bytes and messages travel between simulated hosts.

A flow crosses links: its sender's uplink, its receiver's downlink, perhaps a zone's way to another. All flows of a link
get equally much of it, and what some cannot use, because another of their links gives them less, goes to the rest
(max-min fairness, Bertsekas and Gallager, Data Networks, section 6.5.2). Each link makes every flow an *offer*, and a
flow goes at the lowest offer it has. Offers are settled anew when a flow starts or ends, from there outwards, until
nothing changes by more than RIPPLE; a link never carries more than its capacity, and wastes no more than some RIPPLE.
A simpler network, where links waste what a flow cannot use, stands beside that one: for fleets of thousands of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from random import Random
from typing import Any

from bench.sim.clock import Clock

RIPPLE = 0.02
"""By what share an offer must be able to rise before anybody hears of it."""

_RISES = 2
"""How often an offer may rise while one change settles; that it may fall any number of times ends every ripple."""


class Link:
    """Something with a capacity (bytes a second) that flows share."""

    __slots__ = ("bytes", "capacity", "flows", "offer", "slack")

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.flows: dict[Flow, Link | Several] = {}
        """Its flows, each with what else it crosses."""
        self.offer = capacity
        """Bytes a second that each flow may have which gets no less elsewhere."""
        self.slack = True
        """Whether all its flows go slower than it would let them."""
        self.bytes = 0
        """What it has carried, in whole pieces."""

    def fair_offer(self) -> float:
        """Share the capacity out, given what the flows' other links offer them, and return what each may have."""
        limits = [other.offer for other in self.flows.values()]
        if not limits:
            self.slack = True
            return self.capacity
        count = len(limits)
        left = self.capacity
        if min(limits) < left / count:
            limits.sort()
            for limit in limits:
                if limit >= left / count:
                    break
                left -= limit
                count -= 1
            else:
                self.slack = True
                return left + limits[-1]
        self.slack = False
        return left / count


class Several:
    """All links but one that a flow crosses, where that is not exactly one."""

    __slots__ = ("links",)

    def __init__(self, links: tuple[Link, ...]) -> None:
        self.links = links

    @property
    def offer(self) -> float:
        """The least that one of them offers."""
        return min((link.offer for link in self.links), default=inf)


class Flow:
    """Pieces that travel one after the other: `arrived` is told the position of each, `ended` when it was the last."""

    __slots__ = ("due", "links", "next", "rate", "remaining", "since", "sizes")

    def __init__(self) -> None:
        self.links: tuple[Link, ...] = ()
        self.sizes: Sequence[int] = ()
        """The bytes of each piece."""
        self.next = 0
        self.remaining = 0.0
        self.rate = 0.0
        self.since = 0.0
        """When `remaining` was true."""
        self.due = inf
        """When the next look at it is taken."""

    def arrived(self, position: int) -> None:
        """Take note that the piece at this position has left."""

    def ended(self) -> None:
        """Take note that all have."""


class ToldFlow(Flow):
    """A flow that tells others."""

    __slots__ = ("_arrived", "_ended")

    def __init__(self, arrived: Callable[[int], None], ended: Callable[[], None] | None) -> None:
        super().__init__()
        self._arrived = arrived
        self._ended = ended

    def arrived(self, position: int) -> None:
        """Tell it."""
        self._arrived(position)

    def ended(self) -> None:
        """Tell it, if somebody wants to know."""
        if self._ended is not None:
            self._ended()


class Network:
    """All flows under way."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def start(
        self,
        links: tuple[Link, ...],
        sizes: Sequence[int],
        *,
        arrived: Callable[[int], None],
        ended: Callable[[], None] | None = None,
    ) -> Flow:
        """Send pieces of `sizes` bytes over `links`; `arrived` gets the position of each in `sizes`, then `ended`."""
        flow = ToldFlow(arrived, ended)
        self.begin(flow, links, sizes)
        return flow

    def begin(self, flow: Flow, links: tuple[Link, ...], sizes: Sequence[int]) -> None:
        """Send pieces of `sizes` bytes over `links` as a flow that has not begun yet."""
        flow.links = links
        flow.sizes = sizes
        flow.remaining = float(sizes[0])
        flow.since = self._clock.now
        if len(links) == 2:
            one, other = links
            one.flows[flow] = other
            other.flows[flow] = one
        else:
            for link in links:
                link.flows[flow] = Several(tuple(each for each in links if each is not link))
        self._settle(links)

    def stop(self, flow: Flow) -> None:
        """End a flow at once; none of its calls follow."""
        flow.due = inf
        for link in flow.links:
            del link.flows[flow]
        self._settle(flow.links)

    def _settle(self, links: tuple[Link, ...]) -> None:
        """Let the offers of these links, and of all that this changes, settle; then give the flows their rates."""
        changed = dict.fromkeys(links)
        fresh = len(changed)
        rises: dict[Link, int] = {}
        offered = changed.copy()
        """Every link whose flows may have another rate."""
        while changed:
            link = next(iter(changed))
            del changed[link]
            old, new = link.offer, link.fair_offer()
            if fresh:
                fresh -= 1
            elif old <= new <= old * (1 + RIPPLE):
                continue
            if new == old:
                continue
            if new > old:
                rises[link] = risen = rises.get(link, 0) + 1
                if risen > _RISES:
                    continue
            link.offer = new
            offered[link] = None
            for others in link.flows.values():
                for other in (others,) if isinstance(others, Link) else others.links:
                    # A lower limit matters only where somebody waits for what it sets free.
                    if (new < other.offer and not other.slack) if new < old else old < other.offer:
                        changed[other] = None
        self._give_rates(offered)

    def _give_rates(self, links: Iterable[Link]) -> None:
        """Let all flows on these links go as fast as their links offer now."""
        clock = self._clock
        now = clock.now
        for link in links:
            offer = link.offer
            for flow, others in link.flows.items():
                rate = others.offer
                if rate > offer:
                    rate = offer
                before = flow.rate
                if rate == before:
                    continue
                remaining = flow.remaining = flow.remaining - before * (now - flow.since)
                flow.since = now
                flow.rate = rate
                finish = now + remaining / rate if remaining > 0.0 else now
                # A look that comes too early looks again: cheaper than one for each change of the rate.
                if finish < flow.due:
                    flow.due = finish
                    clock.at(finish, self._look, flow, finish)

    def _look(self, flow: Flow, due: float) -> None:
        if flow.due != due:
            return
        clock = self._clock
        remaining = flow.remaining
        finish = flow.since + remaining / flow.rate if remaining > 0.0 else flow.since
        if finish > due:
            flow.due = finish
            clock.at(finish, self._look, flow, finish)
            return
        position, sizes, links = flow.next, flow.sizes, flow.links
        size = sizes[position]
        for link in links:
            link.bytes += size
        position += 1
        flow.next = position
        flow.since = due
        if position < len(sizes):
            flow.remaining = float(sizes[position])
            flow.due = due + flow.remaining / flow.rate
            clock.at(flow.due, self._look, flow, flow.due)
            flow.arrived(position - 1)
            return
        self.stop(flow)
        flow.arrived(position - 1)
        flow.ended()


class EvenNetwork(Network):
    """A network where each link splits evenly: what a flow cannot use of its part is wasted.

    No flow ever goes faster than with fair shares, and a settlement reaches no further than the two links it is about,
    which is several times as fast to compute.
    """

    def _settle(self, links: tuple[Link, ...]) -> None:
        for link in links:
            flows = link.flows
            link.offer = link.capacity / len(flows) if flows else link.capacity
        self._give_rates(links)


class Zones:
    """What lies between hosts besides their own links: nothing in a zone, a shared link from one zone to another."""

    def __init__(self, count: int, rate: float) -> None:
        self.count = count
        self._ways = {(a, b): Link(rate) for a in range(count) for b in range(count) if a != b}

    def path(self, uplink: Link, from_zone: int, downlink: Link, to_zone: int) -> tuple[Link, ...]:
        """Return the links from one host to another."""
        way = self._ways.get((from_zone, to_zone))
        return (uplink, downlink) if way is None else (uplink, way, downlink)


class Channel:
    """One direction of a connection for messages: in order, delayed, and with a share of `loss` that never arrive."""

    __slots__ = ("_clock", "_delay", "_jitter", "_last", "_loss", "_random")

    def __init__(self, clock: Clock, random: Random, *, delay: float, jitter: float = 0.0, loss: float = 0.0) -> None:
        self._clock = clock
        self._random = random
        self._delay = delay
        self._jitter = jitter
        self._loss = loss
        self._last = 0.0

    def send(self, deliver: Callable[..., None], *arguments: Any, surely: bool = False) -> None:
        """Deliver after the delay (seconds) and up to `jitter` times as much again, never before an earlier one.

        What is sent `surely` is never lost: it stands for something that is said again until it is heard.
        """
        if self._loss and not surely and self._random.random() < self._loss:
            return
        delay = self._delay * (1 + self._jitter * self._random.random()) if self._jitter else self._delay
        self._last = max(self._last, self._clock.now + delay)
        self._clock.at(self._last, deliver, *arguments)
