"""The network's model against cases that are worked out by hand."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sim.clock import Clock
from bench.sim.network import RIPPLE, Channel, EvenNetwork, Flow, Link, Network


class Ground:
    """A network, and when each flow on it ended."""

    def __init__(self, kind: type[Network] = Network) -> None:
        self.clock = Clock()
        self.network = kind(self.clock)
        self.ended: dict[str, float] = {}
        self.arrived: dict[str, list[float]] = {}

    def send(self, name: str, *links: Link, sizes: tuple[int, ...]) -> Flow:
        arrivals = self.arrived.setdefault(name, [])
        return self.network.start(
            links,
            sizes,
            arrived=lambda _: arrivals.append(self.clock.now),
            ended=lambda: self.ended.update({name: self.clock.now}),
        )

    def run(self) -> None:
        while self.clock.step():
            pass


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_one_flow_has_the_narrowest_link_to_itself(ground: Ground) -> None:
    ground.send("a", Link(100), Link(50), sizes=(100, 50))
    ground.run()
    assert ground.arrived["a"] == pytest.approx([2.0, 3.0])
    assert ground.ended["a"] == pytest.approx(3.0)


def test_one_sender_shares_its_uplink_evenly(ground: Ground) -> None:
    uplink = Link(100)
    ground.send("a", uplink, Link(100), sizes=(100,))
    ground.send("b", uplink, Link(100), sizes=(200,))
    ground.run()
    # 50 each until a is through at 2 s; then b's other 100 at full rate.
    assert ground.ended == pytest.approx({"a": 2.0, "b": 3.0})
    assert uplink.bytes == 300


def test_what_a_slow_receiver_leaves_goes_to_the_other_one(ground: Ground) -> None:
    uplink = Link(100)
    ground.send("slow", uplink, Link(10), sizes=(10,))
    ground.send("fast", uplink, Link(100), sizes=(90,))
    ground.run()
    assert ground.ended == pytest.approx({"slow": 1.0, "fast": 1.0})


def test_shares_are_max_min_fair_over_two_hops(ground: Ground) -> None:
    # Three flows: x over A alone, y over A and B, z over B alone; A carries 100, B 30.
    a, b = Link(100), Link(30)
    x = ground.send("x", a, Link(1000), sizes=(1000,))
    y = ground.send("y", a, b, sizes=(1000,))
    z = ground.send("z", b, Link(1000), sizes=(1000,))
    assert (x.rate, y.rate, z.rate) == pytest.approx((85, 15, 15))


def test_a_zones_way_is_shared_by_all_who_cross(ground: Ground) -> None:
    way = Link(20)
    for name in ("a", "b"):
        ground.send(name, Link(100), way, Link(100), sizes=(10,))
    ground.run()
    assert ground.ended == pytest.approx({"a": 1.0, "b": 1.0})


def test_a_stopped_flow_says_nothing_and_frees_its_share(ground: Ground) -> None:
    uplink = Link(100)
    first = ground.send("first", uplink, Link(100), sizes=(100,))
    ground.send("second", uplink, Link(100), sizes=(100,))
    ground.clock.at(1.0, ground.network.stop, first)
    ground.run()
    assert ground.ended == pytest.approx({"second": 1.5})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(4, 7), st.integers(1, 50)), min_size=1, max_size=30))
def test_no_link_carries_more_than_it_can_nor_is_any_wasted(flows: list[tuple[int, int, int]]) -> None:
    """Every flow is held back by a full link; at every start and end."""
    ground = Ground()
    links = [Link(capacity) for capacity in (100, 70, 30, 10, 100, 60, 20, 5)]
    live: dict[int, Flow] = {}

    def check() -> None:
        used = {link: sum(flow.rate for flow in link.flows) for link in links}
        for link in links:
            assert used[link] <= link.capacity * (1 + 1e-9)
        for link in links:
            for flow in link.flows:
                assert flow.rate > 0
                assert max(used[one] / one.capacity for one in flow.links) >= 1 - 2.5 * RIPPLE

    for number, (source, target, size) in enumerate(flows):
        live[number] = ground.send(str(number), links[source], links[target], sizes=(size,))
        check()
    while ground.clock.step():
        check()
    assert len(ground.ended) == len(flows)
    assert sum(link.bytes for link in links) == 2 * sum(size for _, _, size in flows)


def test_where_links_split_evenly_what_one_cannot_use_is_wasted() -> None:
    ground = Ground(EvenNetwork)
    uplink = Link(100)
    ground.send("slow", uplink, Link(10), sizes=(10,))
    ground.send("fast", uplink, Link(100), sizes=(90,))
    ground.run()
    # 50 for the fast one until the slow one is through at 1 s, then 100.
    assert ground.ended == pytest.approx({"slow": 1.0, "fast": 1.4})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(4, 7), st.integers(1, 50)), min_size=1, max_size=30))
def test_no_flow_on_evenly_split_links_has_more_than_its_part_of_each(flows: list[tuple[int, int, int]]) -> None:
    ground = Ground(EvenNetwork)
    links = [Link(capacity) for capacity in (100, 70, 30, 10, 100, 60, 20, 5)]

    def check() -> None:
        for link in links:
            for flow in link.flows:
                assert flow.rate == min(one.capacity / len(one.flows) for one in flow.links)

    for number, (source, target, size) in enumerate(flows):
        ground.send(str(number), links[source], links[target], sizes=(size,))
        check()
    while ground.clock.step():
        check()
    assert len(ground.ended) == len(flows)


def test_messages_arrive_in_order_whatever_the_jitter() -> None:
    clock = Clock()
    channel = Channel(clock, Random(1), delay=1.0, jitter=5.0)
    heard: list[int] = []
    for number in range(100):
        channel.send(heard.append, number)
    while clock.step():
        pass
    assert heard == list(range(100))
    assert clock.now >= 1.0


def test_a_share_of_the_messages_is_lost_but_not_what_is_said_surely() -> None:
    clock = Clock()
    channel = Channel(clock, Random(1), delay=1.0, loss=0.5)
    heard: list[int] = []
    for number in range(1000):
        channel.send(heard.append, number, surely=number < 100)
    while clock.step():
        pass
    assert heard[:100] == list(range(100))
    assert 350 <= len(heard) - 100 <= 550
