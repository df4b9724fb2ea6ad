"""Who compares a version with the store's checksum, and what becomes of one that is found wrong."""

from __future__ import annotations

import pytest

from p2p.checksums import REFUSED_SECONDS
from p2p.control import ORIGIN, Condemned, Dropped, Landed, Progress, Unwant, Verdict, Verify, Want
from p2p.pieces import Span
from p2p.versions import Version
from scheduler.core.messages import (
    Command,
    DroppedPieces,
    ForgetDigests,
    HostLeft,
    Judged,
    Progressed,
    Send,
    Unwanted,
    Wanted,
)
from scheduler.journal import Journal
from tests.unit.scheduler.support import Fleet, digest_of, everything, holding_of, source_of, version_of

VERSION = version_of(4)
MD5 = "md5:" + "0" * 32


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()
    for host_id in "abc":
        fleet.join(host_id)
    return fleet


def compare(fleet: Fleet, host_id: str, version: Version = VERSION) -> list[Command]:
    return fleet.apply(Wanted(host_id, Want(version, everything(version), source_of(host_id), MD5)))


def judge(fleet: Fleet, host_id: str, *, sound: bool) -> list[Command]:
    return fleet.apply(Judged(host_id, Verdict(VERSION.id, sound, "" if sound else "bad md5")))


def drop(fleet: Fleet, host_id: str) -> None:
    fleet.apply(DroppedPieces(host_id, Dropped(VERSION.id)))
    fleet.assigned.pop(host_id, None)


def elected(commands: list[Command]) -> list[str]:
    return [c.host_id for c in commands if isinstance(c, Send) and isinstance(c.message, Verify)]


def condemned(commands: list[Command]) -> list[str]:
    return [c.host_id for c in commands if isinstance(c, Send) and isinstance(c.message, Condemned)]


def held(fleet: Fleet) -> dict[str, int]:
    return {peer.host_id: peer.held for swarm in fleet.core.swarms() for peer in swarm.peers if peer.held}


def test_one_host_is_elected_and_its_word_is_everybodys(fleet: Fleet) -> None:
    assert elected(compare(fleet, "a")) == ["a"]
    assert elected(compare(fleet, "b")) == []
    fleet.run_down("a", VERSION)
    fleet.run_down("b", VERSION)
    assert elected(judge(fleet, "a", sound=True)) == []
    assert elected(compare(fleet, "c")) == []


def test_who_knows_no_checksum_or_wants_a_part_is_not_elected(fleet: Fleet) -> None:
    assert elected(fleet.want("a", VERSION)) == []
    assert elected(fleet.apply(Wanted("b", Want(VERSION, (Span(0, 2),), source_of("b"), MD5)))) == []
    assert elected(compare(fleet, "c")) == ["c"]


def test_another_one_is_elected_when_the_first_leaves_or_wants_no_more(fleet: Fleet) -> None:
    for host_id in "abc":
        compare(fleet, host_id)
    assert elected(fleet.apply(Unwanted("a", Unwant(VERSION.id)))) == ["b"]
    assert elected(fleet.apply(HostLeft("b"))) == ["c"]


def test_who_has_all_bytes_stays_elected_though_it_wants_no_more(fleet: Fleet) -> None:
    compare(fleet, "a")
    fleet.run_down("a", VERSION)
    compare(fleet, "b")
    assert elected(fleet.apply(Unwanted("a", Unwant(VERSION.id)))) == []


def test_a_host_that_holds_everything_may_offer_itself(fleet: Fleet) -> None:
    fleet.announce("a", holding_of(VERSION))
    assert elected(fleet.apply(Wanted("a", Want(VERSION, (), None, MD5)))) == ["a"]


def test_a_condemned_version_has_no_holder_and_comes_from_the_origin_anew(fleet: Fleet) -> None:
    compare(fleet, "a")
    fleet.run_down("a", VERSION)
    compare(fleet, "b")
    commands = judge(fleet, "a", sound=False)
    assert condemned(commands) == ["a", "b"]
    assert ForgetDigests(VERSION.id) in commands
    assert held(fleet) == {}
    assert fleet.journal == {}
    for host_id in "ab":
        drop(fleet, host_id)
    assert elected(compare(fleet, "b")) == ["b"]
    assert set(fleet.pieces("b", VERSION).values()) == {ORIGIN}


def test_what_is_said_of_the_old_bytes_is_ignored(fleet: Fleet) -> None:
    compare(fleet, "a")
    compare(fleet, "b")
    fleet.run_down("a", VERSION)
    judge(fleet, "a", sound=False)
    old = Landed(Span(0, 1), ORIGIN, (digest_of(VERSION, 0),))
    fleet.apply(Progressed("b", Progress(VERSION.id, (old,))))
    assert condemned(judge(fleet, "b", sound=False)) == []  # the same bytes: no second strike
    compare(fleet, "b")
    assert held(fleet) == {}
    drop(fleet, "b")
    drop(fleet, "a")
    assert condemned(compare(fleet, "b")) == []


def test_a_version_that_is_wrong_twice_is_refused_for_a_while(fleet: Fleet) -> None:
    for _ in range(2):
        compare(fleet, "a")
        fleet.run_down("a", VERSION)
        judge(fleet, "a", sound=False)
        drop(fleet, "a")
    commands = compare(fleet, "b")
    assert condemned(commands) == ["b"]
    told = next(message for _, message in reversed(fleet.told) if isinstance(message, Condemned))
    assert "bad md5; that was so 2 times" in told.reason
    assert fleet.core.swarms() == ()
    fleet.advance(REFUSED_SECONDS)
    assert condemned(compare(fleet, "b")) == []


def test_who_was_away_drops_what_it_holds_of_a_condemned_version(fleet: Fleet) -> None:
    compare(fleet, "a")
    fleet.run_down("a", VERSION)
    judge(fleet, "a", sound=False)
    drop(fleet, "a")
    fleet.join("d")
    assert condemned(fleet.announce("d", holding_of(VERSION))) == ["d"]
    assert held(fleet) == {}
    drop(fleet, "d")
    compare(fleet, "a")
    fleet.run_down("a", VERSION)
    judge(fleet, "a", sound=True)
    assert condemned(fleet.announce("d", holding_of(VERSION))) == []


def test_a_verdict_on_a_version_nobody_knows_is_answered(fleet: Fleet) -> None:
    assert condemned(judge(fleet, "a", sound=False)) == ["a"]


async def test_the_journal_forgets_what_was_wrong() -> None:
    journal = await Journal.open(None)
    journal.record("v", {0: bytes(16)})
    journal.record("w", {0: bytes(16)})
    journal.forget("v")
    assert await journal.read("v") == {}
    assert await journal.read("w") == {0: bytes(16)}
    await journal.close()
