"""Small versions: given at once by whoever holds them, without slots and without trees."""

from __future__ import annotations

from collections import Counter

from p2p.control import ORIGIN, SMALL_BYTES, Dropped, FailureReason
from p2p.urgency import extra_for_brief
from p2p.versions import Version
from scheduler.core.messages import Command, DroppedPieces, HostLeft
from scheduler.core.model import Limits
from tests.unit.scheduler.support import Fleet, holding_of, sends, small_version, version_of

LARGE = version_of(400, "large")
SMALL = small_version()


def holders(*hosts: str, version: Version = SMALL, slots: int = 16, stripes: int = 0) -> Fleet:
    """A fleet with these hosts, the first of them a seed, all of which hold a small version and the large one."""
    fleet = Fleet(limits=Limits(settle=0.0, stripes=stripes))
    for each in (version, LARGE):
        holding = holding_of(each)
        fleet.journal[each.id] = dict(zip(holding.bitmap, holding.digests, strict=True))
    for host in hosts:
        fleet.join(host, seed=host == hosts[0], slots=slots)
        fleet.announce(host, holding_of(version), holding_of(LARGE))
    return fleet


def parent_of(commands: list[Command]) -> str:
    """Return whom the one host that was assigned something was sent to."""
    (one,) = sends(commands)
    (part,) = one.assignment.parts
    return part.parent_id


def children(fleet: Fleet, count: int, version: Version = SMALL) -> list[str]:
    """Let so many hosts want a version; return whom each was sent to."""
    parents = []
    for number in range(count):
        fleet.join(f"c{number}", slots=0)
        parents.append(parent_of(fleet.want(f"c{number}", version)))
    return parents


def test_no_slot_is_needed() -> None:
    fleet = holders("p", slots=1)
    fleet.join("large", slots=0)
    fleet.want("large", LARGE)
    assert [host.uploading for host in fleet.core.hosts() if host.host_id == "p"] == [1]
    assert children(fleet, 40) == ["p"] * 40
    assert [host.uploading for host in fleet.core.hosts() if host.host_id == "p"] == [1]


def test_one_byte_more_takes_a_slot() -> None:
    larger = Version(SMALL.task_id, SMALL_BYTES + 1, SMALL.kind, '"larger"')
    fleet = holders("p", version=larger, slots=1)
    places = 1 + extra_for_brief(1)
    assert children(fleet, places, larger) == ["p"] * places
    fleet.join("late", slots=0)
    assert sends(fleet.want("late", larger)) == []
    assert [sent.host_id for sent in sends(fleet.land("c0", larger, 0))] == ["late"]


def test_children_are_spread_over_the_holders() -> None:
    fleet = holders("s", "p", "q", "r")
    assert Counter(children(fleet, 12)) == {"s": 3, "p": 3, "q": 3, "r": 3}


def test_a_seed_is_spared_among_equals() -> None:
    fleet = holders("s", "p")
    fleet.join("c", slots=0)
    for _ in range(8):
        assert parent_of(fleet.want("c", SMALL)) == "p"
        fleet.land("c", SMALL, 0)
        fleet.apply(DroppedPieces("c", Dropped(SMALL.id)))


def test_a_host_without_slots_gives_nothing() -> None:
    fleet = Fleet()
    fleet.journal[SMALL.id] = {0: holding_of(SMALL).digests[0]}
    fleet.join("none", slots=0)
    fleet.announce("none", holding_of(SMALL))
    fleet.join("c")
    assert parent_of(fleet.want("c", SMALL)) == ORIGIN


def test_nobody_is_told_to_follow_anybody() -> None:
    fleet = holders("s", "p", stripes=4)
    children(fleet, 8)
    assert fleet.following == {}
    fleet.want("c0", LARGE)
    assert set(fleet.following) == {("c0", LARGE.id)}


def test_one_that_nobody_holds_comes_from_the_origin_once_and_then_to_all() -> None:
    fleet = Fleet(limits=Limits(settle=0.0))
    fleet.join("s", seed=True)
    for host in "abc":
        fleet.join(host)
        fleet.want(host, SMALL)
    assert fleet.pieces("s", SMALL) == {0: ORIGIN}
    assert not any(fleet.pieces(host, SMALL) for host in "abc")
    assert {sent.host_id for sent in sends(fleet.land("s", SMALL, 0))} == set("abc")
    assert [fleet.pieces(host, SMALL) for host in "abc"] == [{0: "s"}] * 3


def test_a_holder_that_goes_is_replaced_at_once() -> None:
    fleet = holders("s", "p")
    assert children(fleet, 1) == ["p"]
    assert parent_of(fleet.apply(HostLeft("p"))) == "s"
    fleet.apply(DroppedPieces("s", Dropped(SMALL.id)))
    assert fleet.pieces("s", SMALL) == {0: ORIGIN}, "nobody holds it any more"


def test_a_holder_that_is_busy_is_left_alone_for_a_moment() -> None:
    fleet = holders("s", "p")
    assert children(fleet, 1) == ["p"]
    assert parent_of(fleet.fail("c0", SMALL, FailureReason.BUSY, 0)) == "s"
    assert sends(fleet.fail("c0", SMALL, FailureReason.BUSY, 0)) == []
    assert parent_of(fleet.advance(0.2)) in {"s", "p"}


def test_a_child_of_which_nothing_is_heard_is_sent_to_another() -> None:
    fleet = holders("s", "p")
    assert children(fleet, 1) == ["p"]
    assert parent_of(fleet.advance(5.0)) == "s"
