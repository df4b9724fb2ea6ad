"""Versions that move between schedulers: what is there, or on its way, is not fetched from the origin again."""

from __future__ import annotations

import pytest

from p2p.control import ORIGIN, Holding, Landed, Progress
from p2p.pieces import Bitmap, PieceLayout, Span
from p2p.rendezvous import weight
from p2p.versions import Version
from scheduler.core.messages import MembersChanged, Progressed
from scheduler.core.model import Limits
from tests.unit.scheduler.support import Fleet, digest_of, holding_of, version_of

NAMES = ("a:1", "b:1", "c:1")


def versions_of(name: str, names: tuple[str, ...] = NAMES) -> list[Version]:
    """Versions that rendezvous hashing gives to a scheduler."""
    found = [version_of(10, name=f"object {n}") for n in range(50)]
    return [v for v in found if max(names, key=lambda each: weight(each, v.id)) == name]


def fetching(version: Version, *spans: Span) -> Holding:
    return Holding(version, Bitmap(PieceLayout.of(version.length).count), (), spans)


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet(limits=Limits(settle=2.0, stripes=0, origin_depth=64, origin_bytes=0))
    fleet.apply(MembersChanged("a:1", NAMES))
    fleet.now = 100.0
    fleet.join("seed", seed=True)
    fleet.join("child")
    return fleet


def test_what_is_its_own_a_scheduler_hands_out_at_once(fleet: Fleet) -> None:
    version = versions_of("a:1")[0]
    fleet.want("child", version)
    assert fleet.pieces("seed", version)


def test_a_stand_in_waits_for_what_other_hosts_say(fleet: Fleet) -> None:
    version = versions_of("b:1")[0]
    fleet.want("child", version)
    assert not fleet.pieces("seed", version), "somebody may hold it, or be fetching it"
    fleet.now += 1.0
    fleet.journal[version.id] = {index: digest_of(version, index) for index in range(10)}
    fleet.announce("seed", holding_of(version, (Span(0, 3),)), fetching(version, Span(3, 6)))
    fleet.advance(1.0)
    assert set(fleet.pieces("child", version)) == {0, 1, 2}
    assert set(fleet.pieces("seed", version)) == {6, 7, 8, 9}, "not what it is fetching already"
    landed = Landed(Span(3, 6), ORIGIN, tuple(digest_of(version, index) for index in (3, 4, 5)))
    fleet.apply(Progressed("seed", Progress(version.id, (landed,))))
    assert {index for index, parent in fleet.pieces("child", version).items() if parent == "seed"} >= {3, 4, 5}


def test_what_was_being_fetched_and_does_not_come_is_fetched_anew(fleet: Fleet) -> None:
    version = versions_of("b:1")[0]
    fleet.want("child", version)
    fleet.announce("seed", fetching(version, Span(0, 2)))
    fleet.advance(2.0)
    assert set(fleet.pieces("seed", version)) == set(range(2, 10))
    fleet.run_down("seed", version)
    fleet.advance(120.0)
    assert {0, 1} <= set(fleet.pieces("seed", version)) | set(fleet.pieces("child", version))


def test_versions_of_a_newcomer_are_let_go_of(fleet: Fleet) -> None:
    fleet.apply(MembersChanged("a:1", ("a:1",)))
    fleet.now += 10.0
    ours, theirs = versions_of("a:1", ("a:1", "b:1"))[0], versions_of("b:1", ("a:1", "b:1"))[0]
    fleet.want("child", ours)
    fleet.want("child", theirs)
    assert fleet.pieces("seed", theirs)
    fleet.apply(MembersChanged("a:1", ("a:1", "b:1")))
    assert [swarm.version_id for swarm in fleet.core.swarms()] == [ours.id]


def test_a_newcomer_waits_until_the_others_have_let_go() -> None:
    fleet = Fleet(limits=Limits(settle=2.0, stripes=0, origin_depth=64, origin_bytes=0))
    fleet.apply(MembersChanged("a:1", NAMES))
    fleet.join("seed", seed=True)
    fleet.join("child")
    version = versions_of("a:1")[0]
    fleet.want("child", version)
    assert not fleet.pieces("seed", version)
    fleet.advance(2.0)
    assert fleet.pieces("seed", version)


def test_a_scheduler_without_others_waits_for_nobody() -> None:
    fleet = Fleet(limits=Limits(settle=2.0, stripes=0, origin_depth=64, origin_bytes=0))
    fleet.join("seed", seed=True)
    fleet.join("child")
    fleet.want("child", version_of(10))
    assert fleet.pieces("seed", version_of(10))
