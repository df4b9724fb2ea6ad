"""What a scheduler keeps for each host and task stays small, and what hosts share while it is empty stays empty."""

from __future__ import annotations

from bench.scheduler_core import weigh_core
from bench.synthetic import Scene
from p2p.control import Hello, Source
from p2p.pieces import GIB, Bitmap, Span
from p2p.versions import ValidatorKind, Version
from scheduler.core.model import Flight, Host, OpenHosts, Peer, no_pieces
from scheduler.core.swarm import Swarm

BIG = Version("big", GIB, ValidatorKind.ETAG, '"1"')
SMALL = Version("small", 1, ValidatorKind.ETAG, '"1"')


def peer(name: str) -> Peer:
    """Return a peer of a version of eight pieces that has nothing."""
    return Peer(Host(Hello(name, f"{name}:1")), Bitmap(8), Bitmap(8), Bitmap(8), no_pieces(8))


def test_a_host_and_a_task_of_512_pieces_cost_no_more_than_two_kibibytes() -> None:
    assert weigh_core(Scene(256, 1, 2 * GIB), seconds=60.0) <= 2048


def test_failures_of_one_peer_are_no_other_ones() -> None:
    one, other, source = peer("one"), peer("other"), Source("http://origin/object")
    one.failed_by("parent").fail(1.0, first=5.0, longest=60.0)
    one.refused_by(source).fail(1.0, first=5.0, longest=60.0)
    assert one.failed_by("parent").failures == 1, "it is counted up, not begun anew"
    assert one.avoids("parent", 2.0)
    assert not other.avoid
    assert not other.refused
    one.accepted_by(source)
    assert not one.refused
    assert one.forgive("parent")
    assert not one.forgive("parent")
    assert one.avoid is other.avoid, "what is empty is shared"


def test_what_one_host_sends_is_no_other_ones() -> None:
    one, other = Host(Hello("one", "one:1")), Host(Hello("other", "other:1"))
    child = peer("child")
    big, small = (Swarm(version, *(OpenHosts(brief=brief) for brief in (False, True))) for version in (BIG, SMALL))
    for swarm, sent in ((big, "uploading"), (small, "riding")):
        flight = Flight(swarm, child, one, None, {0}, Span(0, 1), 0.0)
        one.sends(flight)
        assert list(getattr(one, sent)) == [flight]
        assert not getattr(other, sent)
        one.sent(flight)
        assert getattr(one, sent) is getattr(other, sent), "what is empty is shared"
    one.takes_up(small)
    assert list(one.small) == [small.id]
    assert not other.small
    one.lets_go(small)
    assert one.small is other.small, "what is empty is shared"
