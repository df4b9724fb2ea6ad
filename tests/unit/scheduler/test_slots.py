"""Who gets a slot that becomes free."""

from __future__ import annotations

from itertools import pairwise

from p2p.control import Dropped
from p2p.pieces import Span
from p2p.versions import Version
from scheduler.core.messages import DroppedPieces
from tests.unit.scheduler.support import Fleet, holding_of, sends, version_of

LARGE = version_of(400, "large")
LATER = version_of(300, "later")
TINY = version_of(1, "tiny")


def holder_of(*versions: Version, slots: int) -> Fleet:
    """Return a fleet with one host, `p`, that holds all of these versions and nothing else."""
    fleet = Fleet()
    for version in versions:
        holding = holding_of(version)
        fleet.journal[version.id] = dict(zip(holding.bitmap, holding.digests, strict=True))
    fleet.join("p", slots=slots)
    fleet.announce("p", *map(holding_of, versions))
    return fleet


def land_one_part(fleet: Fleet) -> list[tuple[str, Version, int]]:
    """Let the first part that is under way land; return who was assigned how many pieces of what for it."""
    host_id, version = next((host, of) for host, assigned in fleet.assigned.items() for of, _ in assigned)
    first = list(fleet.pieces(host_id, version))[:4]
    return [
        (sent.host_id, sent.assignment.version, sum(len(part.span) for part in sent.assignment.parts))
        for sent in sends(fleet.land(host_id, version, *first))
    ]


def test_a_small_file_waits_for_one_part_of_a_large_one() -> None:
    fleet = holder_of(LARGE, TINY, slots=2)
    for number in range(6):
        fleet.join(f"h{number}", slots=0)
        fleet.want(f"h{number}", LARGE)
    fleet.join("late", slots=0)
    assert not sends(fleet.want("late", TINY)), "all slots are taken"
    served = [host for _ in range(2) for host, _, _ in land_one_part(fleet)]
    assert "late" in served


def test_tasks_take_turns_however_many_hosts_want_each() -> None:
    fleet = holder_of(LARGE, LATER, slots=1)
    for number in range(6):
        fleet.join(f"h{number}", slots=0)
        fleet.want(f"h{number}", LARGE)
    fleet.join("alone", slots=0)
    fleet.want("alone", LATER)
    turns = [version for _ in range(8) for _, version, _ in land_one_part(fleet)]
    assert len(turns) == 8
    assert all(one != other for one, other in pairwise(turns))


def test_the_hosts_of_a_task_take_turns() -> None:
    fleet = holder_of(LARGE, slots=1)
    hosts = [f"h{number}" for number in range(5)]
    for host_id in hosts:
        fleet.join(host_id, slots=0)
        fleet.want(host_id, LARGE)
    served = [host for _ in range(10) for host, _, _ in land_one_part(fleet)]
    assert sorted(served[:5]) == hosts
    assert served[5:] == served[:5]


def test_a_freed_slot_goes_past_those_who_lack_nothing_of_what_the_host_has() -> None:
    fleet = holder_of(LARGE, slots=1)
    fleet.apply(DroppedPieces("p", Dropped(LARGE.id, (Span(100, 400),))))
    fleet.join("q", slots=1)
    fleet.announce("q", holding_of(LARGE, (Span(100, 400),)))
    for host_id, piece in (("a", 0), ("b", 200), ("first", 201), ("second", 1)):
        fleet.join(host_id, slots=0)
        fleet.want(host_id, LARGE, (Span(piece, piece + 1),))
    assert {host_id for host_id, assigned in fleet.assigned.items() if assigned} == {"a", "b"}
    assert land_one_part(fleet) == [("second", LARGE, 1)]
