"""The scheduler's decisions, one situation each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2p.control import ORIGIN, Dropped, Failed, FailureReason, Holding, Landed, Progress, SeedHost, Seeds, Unwant
from p2p.pieces import Bitmap, Span
from p2p.versions import Version
from scheduler.core.messages import (
    Disconnect,
    DroppedPieces,
    HostLeft,
    Journal,
    Progressed,
    ReadJournal,
    Suspect,
    Unwanted,
)
from scheduler.core.model import Limits
from tests.unit.scheduler.support import Fleet, digest_of, holding_of, sends, source_of, version_of

BIG = version_of(200)
SMALL = version_of(10, "small")


def known(fleet: Fleet, version: Version = SMALL) -> None:
    """Let the journal know every digest of a version."""
    holding = holding_of(version)
    fleet.journal[version.id] = dict(zip(holding.bitmap, holding.digests, strict=True))


def test_a_seed_fetches_what_nobody_holds_in_order_and_through_the_wanting_hosts_source() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    commands = fleet.want("a", BIG)
    [send] = sends(commands)
    assert ReadJournal(BIG.id) in commands
    assert send.host_id == "seed"
    assert send.assignment.source == source_of("a")
    assert sorted(fleet.pieces("seed", BIG)) == list(range(64))
    assert not fleet.pieces("a", BIG)
    fleet.land("seed", BIG, 0, 1, 2, 3)
    assert sorted(fleet.pieces("seed", BIG)) == list(range(4, 68))


def test_pieces_are_striped_over_all_seeds_and_none_is_fetched_twice() -> None:
    fleet = Fleet()
    for seed in ("s1", "s2", "s3"):
        fleet.join(seed, seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    assert [sorted(fleet.pieces(seed, SMALL)) for seed in ("s1", "s2", "s3")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def brought_by_two_seeds(*, slower_by: int) -> list[int]:
    """How many pieces each of two seeds brings when the second lands one while the first lands so many."""
    fleet, version = Fleet(), version_of(480)
    for host_id in ("s1", "s2"):
        fleet.join(host_id, seed=True)
    fleet.join("a")
    fleet.want("a", version)
    brought = [0, 0]
    turn = 0
    while fleet.pieces("s1", version) or fleet.pieces("s2", version):
        turn += 1
        for number, host_id in enumerate(("s1", "s2")):
            due = sorted(index for index, parent in fleet.pieces(host_id, version).items() if parent == ORIGIN)
            if due and (number == 0 or turn % slower_by == 0):
                fleet.land(host_id, version, due[0])
                brought[number] += 1
    assert sum(brought) == 480
    return brought


def test_equally_fast_seeds_bring_half_each_and_a_slow_one_what_it_can() -> None:
    assert brought_by_two_seeds(slower_by=1) == [240, 240]
    fast, slow = brought_by_two_seeds(slower_by=4)
    assert fast > 2 * slow


def test_what_a_seed_landed_goes_to_the_children_with_its_digest_and_into_the_journal() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    commands = fleet.land("seed", SMALL, 0, 1)
    [send] = [send for send in sends(commands) if send.host_id == "a"]
    [part] = send.assignment.parts
    assert (part.span, part.parent_id, part.parent_address) == (Span(0, 2), "seed", "seed:65002")
    assert part.digests == (digest_of(SMALL, 0), digest_of(SMALL, 1))
    assert send.assignment.source is None
    assert Journal(SMALL.id, {0: digest_of(SMALL, 0), 1: digest_of(SMALL, 1)}) in commands


def test_without_a_seed_the_wanting_hosts_share_the_origins_pieces() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.join("b")
    fleet.join("c")
    fleet.want("a", SMALL, (Span(0, 1),))
    fleet.want("b", SMALL)
    fleet.want("c", SMALL, source=False)
    shares = [set(fleet.pieces(host, SMALL)) for host in ("a", "b", "c")]
    assert shares == [{0}, set(range(1, 10)), set()]


def test_a_seed_that_wants_fetches_for_itself_and_for_others_at_once() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("seed", SMALL)
    fleet.want("a", SMALL)
    assert all(send.assignment.source is None for send in fleet.sent), "it has a way of its own"
    fleet.run_down("seed", SMALL)
    fleet.run_down("a", SMALL)
    assert [peer.held for swarm in fleet.core.swarms() for peer in swarm.peers] == [10, 10]


def test_two_children_are_given_different_pieces_first() -> None:
    fleet = Fleet()
    known(fleet, BIG)
    fleet.join("holder")
    fleet.announce("holder", holding_of(BIG))
    fleet.join("a")
    fleet.join("b")
    fleet.want("a", BIG)
    fleet.want("b", BIG)
    mine, other = set(fleet.pieces("a", BIG)), set(fleet.pieces("b", BIG))
    assert len(mine) == len(other) == 16
    assert len(mine & other) <= 4
    assert max(mine | other) < 48


def test_a_lone_child_is_served_from_the_front_in_joined_parts() -> None:
    fleet = Fleet()
    known(fleet, BIG)
    fleet.join("holder")
    fleet.announce("holder", holding_of(BIG))
    fleet.join("a")
    [send] = sends(fleet.want("a", BIG))
    assert [part.span for part in send.assignment.parts] == [Span(0, 4), Span(4, 8), Span(8, 12), Span(12, 16)]


def test_the_least_loaded_parent_is_taken_and_no_slot_twice() -> None:
    fleet = Fleet()
    known(fleet, BIG)
    for holder in ("p", "q"):
        fleet.join(holder, slots=2)
        fleet.announce(holder, holding_of(BIG))
    fleet.join("a")
    fleet.want("a", BIG)
    assert sorted(fleet.pieces("a", BIG).values()) == ["p"] * 8 + ["q"] * 8
    fleet.join("b")
    assert not sends(fleet.want("b", BIG)), "all slots are taken"
    served = fleet.land("a", BIG, *[index for index, parent in fleet.pieces("a", BIG).items() if parent == "p"])
    assert {send.host_id for send in sends(served)} >= {"b"}, "a free slot goes to whoever waits for it"


def test_a_holders_own_word_is_not_traded_on() -> None:
    fleet = Fleet()
    fleet.join("holder")
    fleet.announce("holder", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    assert set(fleet.pieces("a", SMALL).values()) == {ORIGIN}
    fleet.join("second")
    fleet.announce("second", holding_of(SMALL, (Span(9, 10),)))
    fleet.apply(Unwanted("a", Unwant(SMALL.id)))
    fleet.want("a", SMALL)
    assert {index for index, parent in fleet.pieces("a", SMALL).items() if parent != ORIGIN} == {9}


def test_a_fresh_fetch_makes_a_lonely_holders_word_good() -> None:
    fleet = Fleet()
    fleet.join("holder", seed=True)
    fleet.announce("holder", holding_of(SMALL))
    fleet.join("a")
    fleet.join("b")
    fleet.want("a", SMALL)
    assert not fleet.pieces("holder", SMALL), "the fresh fetch must not be the holder's"
    fleet.land("a", SMALL, 0)
    assert not [command for command in fleet.commands if isinstance(command, Suspect)]
    fleet.want("b", SMALL, (Span(0, 1),))
    assert fleet.pieces("b", SMALL)[0] in ("a", "holder")


def test_a_contradicting_announcement_is_not_used_and_logged() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.join("wrong")
    # Once the contradiction shows when the journal has been read, once as soon as the host speaks.
    for _ in range(2):
        commands = fleet.announce("wrong", holding_of(SMALL, (Span(3, 4),), "wrong"))
        assert [(c.host_id, c.index) for c in commands if isinstance(c, Suspect)] == [("wrong", 3)]
    fleet.join("right")
    fleet.announce("right", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    assert fleet.pieces("a", SMALL)[3] == "right"


def test_corrupt_bytes_of_one_parent_come_from_another() -> None:
    fleet = Fleet()
    known(fleet)
    for holder in ("p", "q"):
        fleet.join(holder)
        fleet.announce(holder, holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    guilty = fleet.pieces("a", SMALL)[0]
    commands = fleet.fail("a", SMALL, FailureReason.CORRUPT, 0)
    assert [c.host_id for c in commands if isinstance(c, Suspect)] == [guilty]
    assert fleet.pieces("a", SMALL)[0] == ({"p", "q"} - {guilty}).pop()


def test_a_digest_that_two_parents_contradict_is_asked_of_the_origin_anew() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.journal[SMALL.id][0] = digest_of(SMALL, 0, "wrong")
    fleet.join("a")
    fleet.want("a", SMALL, (Span(1, 2),))
    for holder in ("p", "q"):
        fleet.join(holder)
        fleet.apply(Progressed(holder, Progress(SMALL.id, (Landed(Span(0, 1), "gone"),))))
    fleet.want("a", SMALL, (Span(0, 1),))
    fleet.fail("a", SMALL, FailureReason.CORRUPT, 0)
    fleet.fail("a", SMALL, FailureReason.CORRUPT, 0)
    assert fleet.pieces("a", SMALL)[0] == ORIGIN
    fleet.land("a", SMALL, 0)
    assert fleet.journal[SMALL.id][0] == digest_of(SMALL, 0)


def test_fetches_from_the_origin_that_disagree_need_another_witness() -> None:
    fleet = Fleet()
    for host in ("a", "b", "c", "d"):
        fleet.join(host)
    fleet.want("a", SMALL, (Span(0, 1),))
    fleet.land("a", SMALL, 0)
    commands = fleet.apply(
        Progressed("b", Progress(SMALL.id, (Landed(Span(0, 1), ORIGIN, (digest_of(SMALL, 0, "odd"),)),)))
    )
    assert [c.host_id for c in commands if isinstance(c, Suspect)] == ["b"]
    fleet.want("c", SMALL, (Span(0, 1),))
    assert fleet.pieces("c", SMALL) == {0: ORIGIN}
    assert [c.host_id for c in fleet.land("c", SMALL, 0) if isinstance(c, Suspect)] == ["b"]
    fleet.want("d", SMALL, (Span(0, 1),))
    assert fleet.pieces("d", SMALL)[0] in ("a", "c")


def test_a_missing_piece_is_no_longer_looked_for_there() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.join("holder")
    fleet.announce("holder", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.fail("a", SMALL, FailureReason.MISSING, 2)
    assert fleet.pieces("a", SMALL)[2] == ORIGIN


def test_a_dropped_piece_is_taken_from_those_who_were_fetching_it() -> None:
    fleet = Fleet()
    known(fleet)
    for holder in ("p", "q"):
        fleet.join(holder)
        fleet.announce(holder, holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.apply(DroppedPieces("p", Dropped(SMALL.id)))
    assert set(fleet.pieces("a", SMALL).values()) == {"q"}


def test_a_busy_parent_is_asked_again_soon_and_the_origin_is_left_alone() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.join("holder")
    fleet.announce("holder", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    for _ in range(5):
        assert not sends(fleet.fail("a", SMALL, FailureReason.BUSY, *fleet.pieces("a", SMALL)))
        fleet.advance(1.0)
        assert set(fleet.pieces("a", SMALL).values()) == {"holder"}


def test_a_child_that_cannot_reach_the_only_holder_goes_to_the_origin() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.join("seed", seed=True)
    fleet.announce("seed", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    assert not sends(fleet.fail("a", SMALL, FailureReason.UNREACHABLE, *fleet.pieces("a", SMALL)))
    fleet.advance(0.6)
    assert set(fleet.pieces("a", SMALL).values()) == {"seed"}, "a second try"
    fleet.fail("a", SMALL, FailureReason.UNREACHABLE, *fleet.pieces("a", SMALL))
    assert set(fleet.pieces("a", SMALL).values()) == {ORIGIN}


def test_a_host_that_left_is_replaced_at_once() -> None:
    fleet = Fleet()
    known(fleet)
    for holder in ("p", "q"):
        fleet.join(holder)
        fleet.announce(holder, holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.apply(HostLeft("p"))
    assert set(fleet.pieces("a", SMALL).values()) == {"q"}
    fleet.apply(HostLeft("q"))
    assert set(fleet.pieces("a", SMALL).values()) == {ORIGIN}


def test_a_seed_that_left_is_replaced_by_another_and_then_by_the_wanting_host() -> None:
    fleet = Fleet()
    fleet.join("s1", seed=True)
    fleet.join("s2", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.apply(HostLeft("s1"))
    assert set(fleet.pieces("s2", SMALL)) == set(range(10))
    fleet.apply(HostLeft("s2"))
    assert set(fleet.pieces("a", SMALL)) == set(range(10))


def test_refused_credentials_are_replaced_once_and_then_everyone_goes_alone() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    for host in ("a", "b", "c"):
        fleet.join(host)
        fleet.want(host, SMALL)
    sources = []
    while pieces := fleet.pieces("seed", SMALL):
        sources.append(fleet.sent[-1].assignment.source)
        fleet.fail("seed", SMALL, FailureReason.ORIGIN_REFUSED, *pieces)
    assert sources == [source_of("a"), source_of("b")]
    alone = [fleet.pieces(host, SMALL) for host in ("a", "b", "c")]
    assert sorted(index for pieces in alone for index in pieces) == list(range(10))
    # Host a finds out with its own credentials, and says that it gives up; the others are not affected.
    fleet.fail("a", SMALL, FailureReason.ORIGIN_REFUSED, *alone[0])
    fleet.apply(Unwanted("a", Unwant(SMALL.id)))
    rest = [fleet.pieces(host, SMALL) for host in ("a", "b", "c")]
    assert not rest[0]
    assert sorted(index for pieces in rest for index in pieces) == list(range(10))


def test_a_seed_that_could_not_reach_the_origin_is_tried_again_later() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL, source=True)
    fleet.fail("seed", SMALL, FailureReason.ORIGIN_FAILED, *fleet.pieces("seed", SMALL))
    pieces = fleet.pieces("a", SMALL)
    assert set(pieces) == set(range(10))
    fleet.fail("a", SMALL, FailureReason.ORIGIN_FAILED, *pieces)
    assert not fleet.pieces("a", SMALL)
    assert not fleet.pieces("seed", SMALL)
    fleet.advance(2.5)
    assert set(fleet.pieces("seed", SMALL)) == set(range(10))


def test_failures_are_retried_ever_more_rarely() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.want("a", SMALL)
    tries = 0
    for _ in range(600):
        if pieces := fleet.pieces("a", SMALL):
            tries += 1
            fleet.fail("a", SMALL, FailureReason.ORIGIN_FAILED, *pieces)
        fleet.advance(1.0)
    assert 5 <= tries <= 16


def test_a_disk_that_is_full_is_not_the_parents_fault() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.join("holder")
    fleet.announce("holder", holding_of(SMALL))
    fleet.join("a")
    fleet.join("b")
    fleet.want("a", SMALL)
    fleet.fail("a", SMALL, FailureReason.LOCAL, *fleet.pieces("a", SMALL))
    assert not fleet.pieces("a", SMALL)
    fleet.want("b", SMALL)
    assert len(fleet.pieces("b", SMALL)) == 10
    fleet.advance(1.5)
    assert len(fleet.pieces("a", SMALL)) == 10


def test_a_silent_child_is_served_from_elsewhere_and_a_late_piece_is_welcome() -> None:
    fleet = Fleet()
    known(fleet)
    for holder in ("p", "q"):
        fleet.join(holder)
        fleet.announce(holder, holding_of(SMALL, (Span(0, 1),)))
    fleet.join("a")
    fleet.want("a", SMALL, (Span(0, 1),))
    first = fleet.pieces("a", SMALL)[0]
    fleet.advance(5.0)
    assert fleet.pieces("a", SMALL)[0] == ({"p", "q"} - {first}).pop()
    fleet.apply(Progressed("a", Progress(SMALL.id, (Landed(Span(0, 1), first),))))
    assert next(peer.held for swarm in fleet.core.swarms() for peer in swarm.peers if peer.host_id == "a") == 1


def test_a_silent_seed_is_relieved() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.advance(10.0)
    assert not fleet.pieces("a", SMALL)
    fleet.advance(1.5)
    assert set(fleet.pieces("a", SMALL)) == set(range(10))


def test_progress_keeps_slow_work_alive() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    for index in range(9):
        fleet.advance(9.0)
        fleet.land("seed", SMALL, index)
        for mine in tuple(fleet.pieces("a", SMALL)):
            fleet.land("a", SMALL, mine)
    assert ORIGIN not in {part.parent_id for s in fleet.sent if s.host_id == "a" for part in s.assignment.parts}


def test_a_failure_report_of_an_older_assignment_is_ignored() -> None:
    fleet = Fleet()
    known(fleet)
    for holder in ("p", "q"):
        fleet.join(holder)
        fleet.announce(holder, holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    current = dict(fleet.pieces("a", SMALL))
    other = {"p": "q", "q": "p"}
    stale = tuple(Failed(Span(i, i + 1), other[parent], FailureReason.STALLED) for i, parent in current.items())
    assert not sends(fleet.apply(Progressed("a", Progress(SMALL.id, (), stale))))
    assert fleet.pieces("a", SMALL) == current


def test_reports_from_before_a_restart_are_ignored() -> None:
    fleet = Fleet()
    fleet.join("a")
    assert fleet.apply(Progressed("a", Progress("0" * 32, (Landed(Span(0, 1), ORIGIN),)))) == []
    assert fleet.apply(Unwanted("a", Unwant("0" * 32)), DroppedPieces("a", Dropped("0" * 32))) == []
    assert fleet.apply(HostLeft("nobody"), Unwanted("nobody", Unwant("0" * 32))) == []


def test_a_host_that_says_the_impossible_is_disconnected_and_forgotten() -> None:
    fleet = Fleet()
    fleet.join("a")
    [command] = fleet.want("a", SMALL, (Span(0, 11),))
    assert isinstance(command, Disconnect)
    assert command.host_id == "a"
    assert fleet.core.counts == (0, 0)


def test_a_swarm_nobody_has_a_part_in_is_forgotten() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.want("a", SMALL)
    assert fleet.core.counts == (1, 1)
    fleet.apply(Unwanted("a", Unwant(SMALL.id)))
    assert fleet.core.counts == (1, 0)
    assert fleet.core.next_deadline() is None or fleet.advance(100.0) == []


def test_an_empty_object_is_no_work() -> None:
    fleet = Fleet()
    empty = version_of(0, "empty")
    fleet.join("a")
    fleet.want("a", empty, ())
    assert fleet.core.counts == (1, 0)


def test_a_host_without_slots_keeps_nobody_from_the_origin() -> None:
    fleet = Fleet()
    known(fleet)
    fleet.join("miser", slots=0)
    fleet.announce("miser", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    assert set(fleet.pieces("a", SMALL).values()) == {ORIGIN}


def test_a_seed_keeps_its_duty_when_its_own_reader_leaves() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("seed", SMALL)
    fleet.want("a", SMALL)
    assert not sends(fleet.apply(Unwanted("seed", Unwant(SMALL.id))))
    fleet.run_down("seed", SMALL)
    assert set(fleet.pieces("a", SMALL).values()) == {"seed"}


def test_views_count_pieces() -> None:
    fleet = Fleet()
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.land("seed", SMALL, 0)
    [swarm] = fleet.core.swarms()
    assert (swarm.pieces, swarm.tradeable) == (10, 1)
    peers = {peer.host_id: (peer.held, peer.missing, peer.from_parents, peer.from_origin) for peer in swarm.peers}
    assert peers == {"a": (0, 10, 1, 0), "seed": (1, 0, 0, 9)}
    assert [(host.host_id, host.seed, host.uploading) for host in fleet.core.hosts()] == [
        ("seed", True, 1),
        ("a", False, 0),
    ]


def test_a_restarted_scheduler_waits_for_the_holders_before_it_asks_the_origin_again() -> None:
    fleet = Fleet(limits=Limits(settle=2.0, stripes=0, origin_depth=64, origin_bytes=0))
    known(fleet)
    fleet.join("seed", seed=True)
    fleet.join("a")
    fleet.want("a", SMALL)
    fleet.want("a", BIG)
    assert not fleet.pieces("seed", SMALL), "somebody fetched it before, and may be about to say so"
    assert fleet.pieces("seed", BIG), "of this one the journal knows nothing"
    fleet.now = 1.0
    fleet.join("b")
    fleet.announce("b", holding_of(SMALL, (Span(0, 4),)))
    assert set(fleet.pieces("a", SMALL)) == {0, 1, 2, 3}
    fleet.now = 2.0
    fleet.apply()
    assert set(fleet.pieces("seed", SMALL)) == {4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("seed_fetches", [(), (Span(0, 4),)])
def test_a_restarted_scheduler_takes_no_version_for_new_that_a_host_was_at(seed_fetches: tuple[Span, ...]) -> None:
    fleet = Fleet(limits=Limits(settle=2.0, stripes=0, origin_depth=64, origin_bytes=0))
    under_way = Holding(SMALL, Bitmap(10), ())
    fleet.join("a")
    fleet.announce("a", under_way)
    fleet.want("a", SMALL)
    assert not fleet.pieces("a", SMALL), "a seed may be fetching it, and about to come back"
    fleet.now = 1.0
    fleet.join("seed", seed=True)
    fleet.announce("seed", replace(under_way, fetching=seed_fetches))
    assert not fleet.pieces("seed", SMALL)
    fleet.now = 2.0
    fleet.apply()
    brought = {index for span in seed_fetches for index in span}
    assert set(fleet.pieces("seed", SMALL)) == set(range(10)) - brought
    fleet.want("a", BIG)
    assert fleet.pieces("seed", BIG)


def test_a_seeds_word_is_enough_where_nobody_contradicts_it() -> None:
    fleet = Fleet()
    for host_id in ("seed", "other"):
        fleet.join(host_id, seed=host_id == "seed")
    fleet.announce("other", holding_of(SMALL, (Span(0, 2),), flavour="odd"))
    fleet.announce("seed", holding_of(SMALL))
    fleet.join("a")
    fleet.want("a", SMALL)
    assigned = fleet.pieces("a", SMALL)
    assert {parent for index, parent in assigned.items() if index >= 2} == {"seed"}
    assert {assigned.get(index) for index in (0, 1)} <= {None, ORIGIN}, "two claims, and nothing to tell them apart by"


def test_every_host_knows_which_seeds_there_are() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.join("s", seed=True)
    fleet.join("b")
    fleet.apply(HostLeft("s"))
    seeds = Seeds((SeedHost("s", "s:65002"),))
    told = [(host_id, message) for host_id, message in fleet.told if isinstance(message, Seeds)]
    assert told == [("a", Seeds(())), ("a", seeds), ("s", seeds), ("b", seeds), ("a", Seeds(())), ("b", Seeds(()))]
