"""What hosts announce to those who follow them, in which order, and when that ends."""

from __future__ import annotations

import pytest

from bench.sim.host import SimulatedHost
from bench.sim.reports import SimulatedEntry, VirtualTimers
from bench.sim.scenario import Scenario
from bench.sim.swarm import SimulatedSwarm
from p2p.control import FailureReason, Landed, PeerMessage, Progress
from p2p.pieces import Bitmap, Span
from peer.core.messages import Command, Event, ParentHas, ParentLost, Unwatch, Watch
from peer.download.reports import Reports
from tests.support.pieces import PIECE

SCENARIO = Scenario(nodes=1, size=8 * PIECE, rate=1e9, warm=True, jitter=0.0)


class Follower:
    """A host whose core is replaced: it says what it is told to, and keeps what it hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.swarm = SimulatedSwarm(SCENARIO)
        self.seed, self.host = (self._host(seed) for seed in (True, False))
        self.heard: list[tuple[float, Event]] = []
        self.says: list[Command] = []
        monkeypatch.setattr(self.host.core, "apply", self._apply)

    def _host(self, seed: bool) -> SimulatedHost:
        host = SimulatedHost(self.swarm, len(self.swarm.hosts), seed=seed, rate=1e9)
        self.swarm.hosts[host.id] = host
        return host

    def _apply(self, event: Event, *, now: float) -> list[Command]:
        self.heard.append((now, event))
        said, self.says = self.says, []
        return said

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.heard]

    def say(self, *commands: Command) -> None:
        self.says = list(commands)
        self.host.lose_scheduler()
        self.heard.clear()

    def let(self, seconds: float) -> None:
        clock = self.swarm.clock
        until = clock.now + seconds
        clock.at(until, lambda: None)
        while clock.now < until and clock.step():
            pass


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> Follower:
    return Follower(monkeypatch)


def watch(*stripes: int) -> Watch:
    return Watch("seed-0", "seed-0:1", stripes, 4)


def test_a_follower_hears_all_that_is_held_of_its_stripes_a_round_trip_later(follower: Follower) -> None:
    follower.say(watch(1, 2))
    follower.let(1.0)
    assert follower.events == [ParentHas("seed-0", (Span(1, 3), Span(5, 7)))]
    assert follower.heard[0][0] == pytest.approx(SCENARIO.rtt)


def test_a_landing_is_announced_to_the_followers_of_its_stripe_only(follower: Follower) -> None:
    follower.say(watch(1))
    follower.let(0.1)
    follower.heard.clear()
    for index in (4, 5):
        follower.seed.announce(index)
    follower.let(0.1)
    assert follower.events == [ParentHas("seed-0", (Span(5, 6),))]
    assert follower.heard[0][0] == pytest.approx(0.1 + SCENARIO.rtt / 2)


def test_who_watches_anew_hears_of_other_stripes_instead(follower: Follower) -> None:
    follower.say(watch(1), watch(3))
    follower.let(0.1)
    assert follower.events == [ParentHas("seed-0", (Span(3, 4), Span(7, 8)))]
    assert len(follower.seed.followers) == 1


def test_who_watches_no_more_hears_nothing_more(follower: Follower) -> None:
    follower.say(watch(0))
    follower.let(0.1)
    follower.say(Unwatch("seed-0"))
    follower.seed.announce(4)
    follower.let(0.1)
    assert follower.heard == []
    assert follower.seed.followers == {}


@pytest.mark.parametrize("first", [True, False], ids=["before", "while"])
def test_a_dead_parent_is_lost(follower: Follower, first: bool) -> None:
    if first:
        follower.seed.die()
    follower.say(watch(0))
    follower.let(0.1)
    if not first:
        follower.heard.clear()
        follower.seed.die()
        follower.let(0.1)
    assert follower.events == [ParentLost("seed-0", FailureReason.UNREACHABLE, FailureReason.UNREACHABLE.name)]


def test_toldthat_nobody_waits_for_wait_half_a_second_for_company(follower: Follower) -> None:
    swarm = follower.swarm
    sent: list[tuple[float, PeerMessage]] = []

    def send(message: PeerMessage, *, soon: bool = True) -> None:
        sent.append((swarm.clock.now, message))

    landed = Bitmap(len(swarm.digests), swarm.scenario.layout.everything())
    told = Reports(SimulatedEntry(swarm.version, landed, swarm.digests), send, VirtualTimers(swarm.clock))

    def report(index: int, *, soon: bool) -> None:
        told.tell(Progress("v", (Landed(Span(index, index + 1), "seed-0"),)), soon=soon)

    report(0, soon=False)
    report(1, soon=False)
    follower.let(0.4)
    assert sent == []
    follower.let(0.2)
    report(2, soon=False)
    report(4, soon=True)
    follower.let(0.6)
    assert [at for at, _ in sent] == pytest.approx([0.5, 0.602, 1.1])
    reports = [message.landed for _, message in sent if isinstance(message, Progress)]
    assert [[landed.span for landed in report] for report in reports] == [[Span(0, 2)], [Span(4, 5)], [Span(2, 3)]]
    assert [bool(report[0].proof) for report in reports] == [True, False, True]
