"""Who gets a slot that becomes free."""

from __future__ import annotations

from itertools import pairwise

from p2p.control import Dropped, Want
from p2p.pieces import Span
from p2p.urgency import PATIENT_TURN
from p2p.versions import Version
from scheduler.core.messages import DroppedPieces, Wanted
from tests.unit.scheduler.support import Fleet, everything, holding_of, sends, version_of

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


def test_a_file_of_one_piece_does_not_wait_for_a_large_one() -> None:
    fleet = holder_of(LARGE, TINY, slots=2)
    for number in range(6):
        fleet.join(f"h{number}", slots=0)
        fleet.want(f"h{number}", LARGE)
    for late in ("late", "later"):
        fleet.join(late, slots=0)
    assert [sent.host_id for sent in sends(fleet.want("late", TINY))] == ["late"], "there is one slot on top"
    assert not sends(fleet.want("later", TINY)), "and no more than one"
    assert land_one_part(fleet) == [("later", TINY, 1)], "no large one comes before"


def test_the_most_urgent_task_goes_first_and_no_task_starves() -> None:
    fleet = holder_of(LARGE, LATER, slots=1)
    for number in range(3):
        fleet.join(f"idle{number}", slots=0)
        fleet.want(f"idle{number}", LARGE, priority=0)
        fleet.join(f"urgent{number}", slots=0)
        fleet.want(f"urgent{number}", LATER, priority=7)
    turns = [version for _ in range(2 * PATIENT_TURN) for _, version, _ in land_one_part(fleet)]
    assert turns.count(LARGE) == 2
    assert turns.count(LATER) == 2 * PATIENT_TURN - 2


def test_the_most_urgent_host_of_a_task_goes_first_and_no_host_starves() -> None:
    fleet = holder_of(LARGE, slots=1)
    for host_id, priority in (("first", 6), ("idle", 0), ("urgent", 7)):
        fleet.join(host_id, slots=0)
        fleet.want(host_id, LARGE, priority=priority)
    served = [host for _ in range(8 * PATIENT_TURN) for host, _, _ in land_one_part(fleet)]
    assert served[0] == "urgent"
    assert served.count("urgent") > served.count("first")
    assert set(served) == {"first", "idle", "urgent"}


def test_the_most_urgent_looks_around_first_and_may_say_so_later() -> None:
    fleet = holder_of(LARGE, LATER, slots=1)
    for host_id in ("a", "b"):
        fleet.join(host_id, slots=0)
    wants = (Wanted("a", Want(LARGE, everything(LARGE), None)), Wanted("b", Want(LATER, everything(LATER), None)))
    said = Wanted("b", Want(LATER, (), None, priority=7))
    assert [(sent.host_id, sent.assignment.priority) for sent in sends(fleet.apply(*wants, said))] == [("b", 7)]


def test_a_checksum_says_nothing_of_urgency() -> None:
    fleet = holder_of(LARGE, slots=1)
    fleet.join("a", slots=0)
    assert [sent.assignment.priority for sent in sends(fleet.want("a", LARGE, priority=2))] == [2]
    fleet.apply(Wanted("a", Want(LARGE, (), None, "md5:" + "0" * 32)))
    (_,) = land_one_part(fleet)
    assert fleet.sent[-1].assignment.priority == 2


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
