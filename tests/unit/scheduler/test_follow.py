"""Whom hosts are told to follow, and what is then assigned to them no more."""

from __future__ import annotations

from random import Random

import pytest

from p2p.control import (
    ORIGIN,
    Condemned,
    Dropped,
    Failed,
    FailureReason,
    Following,
    Lagging,
    Landed,
    Progress,
    Unwant,
)
from p2p.digests import piece_digest
from p2p.pieces import PieceLayout, Span, spans_of
from p2p.versions import Version
from scheduler.core import follow
from scheduler.core.messages import DroppedPieces, HostLeft, Lagged, Progressed, Send, Suspect, Unwanted
from scheduler.core.model import Limits
from tests.unit.scheduler.support import Fleet, digest_of, holding_of, sends, version_of

STRIPES = 4
LIMITS = Limits(settle=0.0, stripes=STRIPES)


class Followers(Fleet):
    """A fleet whose hosts follow whom they are told to, and take what their parents have."""

    def __init__(self, seed: int = 0, limits: Limits = LIMITS) -> None:
        super().__init__(seed, limits)
        self.held: dict[str, set[int]] = {}
        self.wants: dict[str, set[int]] = {}
        self.taken = 0

    def ask(self, host_id: str, version: Version, *spans: Span) -> None:
        self.wants.setdefault(host_id, set()).update(index for span in spans for index in span)
        self.held.setdefault(host_id, set())
        self.want(host_id, version, tuple(spans))

    def own(self, host_id: str, version: Version, *spans: Span) -> None:
        self.held.setdefault(host_id, set()).update(index for span in spans for index in span)
        self.announce(host_id, holding_of(version, spans))

    def take(self, host_id: str, version: Version, at_most: int = 3) -> int:
        """Let a host land some of what was assigned to it, and of what those it follows have."""
        held = self.held.setdefault(host_id, set())
        assigned = list(self.pieces(host_id, version))[:at_most]
        if assigned:
            held.update(assigned)
            self.land(host_id, version, *assigned)
        count = len(assigned)
        for stripe, parents in self.parents(host_id, version).items():
            for parent_id in parents:
                there = self.held.get(parent_id, set())
                new = sorted(i for i in (there & self.wants.get(host_id, set())) - held if i % STRIPES == stripe)[
                    :at_most
                ]
                held.update(new)
                self.report(host_id, version, parent_id, new)
                self.taken += len(new)
                count += len(new)
        return count

    def report(self, host_id: str, version: Version, parent_id: str, indices: list[int], flavour: str = "") -> None:
        landed = tuple(
            Landed(span, parent_id, (), piece_digest(b"".join(digest_of(version, i, flavour) for i in span)))
            for span in spans_of(indices)
        )
        if landed:
            self.apply(Progressed(host_id, Progress(version.id, landed)))

    def lost(self, host_id: str, version: Version, parent_id: str, why: FailureReason, span: Span) -> None:
        self.apply(Progressed(host_id, Progress(version.id, (), (Failed(span, parent_id, why),))))

    def go(self, version: Version, *hosts: str) -> None:
        """Let all go on until nobody lands anything any more."""
        idle = 0
        while idle < 5:
            idle = 0 if sum([self.take(host_id, version) for host_id in hosts]) else idle + 1
            self.advance(0.5)


def whole(version: Version) -> Span:
    return Span(0, PieceLayout.of(version.length).count)


def crowd(fleet: Followers, version: Version, hosts: int, *, warm: bool = True) -> list[str]:
    fleet.join("seed", seed=True)
    if warm:
        fleet.own("seed", version, whole(version))
    names = [f"host{number}" for number in range(hosts)]
    for name in names:
        fleet.join(name)
        fleet.ask(name, version, whole(version))
    return names


def test_each_stripe_has_a_parent_and_nothing_is_assigned() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 9)
    for name in names:
        parents = fleet.parents(name, version)
        assert sorted(parents) == [0, 1, 2, 3]
        assert all(len(ids) == 1 for ids in parents.values())
    assert not fleet.sent
    at_seed = [name for name in names for ids in fleet.parents(name, version).values() if "seed" in ids]
    assert len(at_seed) == STRIPES, "the seed sends each piece once"
    first = next(told for host_id, told in fleet.told if host_id == "host0" and isinstance(told, Following))
    assert [len(known.span) for known in first.known] == [40]
    assert not first.cold


def test_the_origin_fills_the_seed_and_the_seed_the_trees() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 9, warm=False)
    parts = [(sent.host_id, part.parent_id) for sent in fleet.sent for part in sent.assignment.parts]
    assert set(parts) == {("seed", ORIGIN)}
    fleet.go(version, "seed", *names)
    assert all(len(fleet.held[name]) == 40 for name in names)
    assert fleet.taken == 9 * 40
    parts = [(sent.host_id, part.parent_id) for sent in fleet.sent for part in sent.assignment.parts]
    assert set(parts) == {("seed", ORIGIN)}
    cold = next(told for host_id, told in fleet.told if host_id == "host0" and isinstance(told, Following))
    assert cold.cold


def test_two_seeds_are_both_followed_by_whoever_follows_the_root() -> None:
    fleet, version = Followers(), version_of(40)
    fleet.join("seed2", seed=True)
    names = crowd(fleet, version, 5, warm=False)
    tops = [ids for name in names for ids in fleet.parents(name, version).values() if ids & {"seed", "seed2"}]
    assert tops
    assert all(ids == {"seed", "seed2"} for ids in tops)
    fleet.go(version, "seed", "seed2", *names)
    assert all(len(fleet.held[name]) == 40 for name in names)


def test_without_a_seed_all_is_assigned_part_by_part() -> None:
    fleet, version = Followers(), version_of(8)
    fleet.join("a")
    fleet.ask("a", version, whole(version))
    assert not fleet.following
    assert fleet.pieces("a", version)


def test_when_the_seed_goes_parts_take_over() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 4)
    fleet.take("host0", version, 10)
    fleet.apply(HostLeft("seed"))
    del fleet.held["seed"]
    assert not any(fleet.parents(name, version) for name in names)
    fleet.go(version, *names)
    assert all(len(fleet.held[name]) == 40 for name in names)


def test_what_no_seed_has_is_assigned_from_whoever_has_it() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 4)
    for name in names:
        fleet.take(name, version, 2)
    fleet.apply(DroppedPieces("seed", Dropped(version.id, (Span(0, 2),))))
    fleet.held["seed"] -= {0, 1}
    fleet.go(version, "seed", *names)
    assert all(len(fleet.held[name]) == 40 for name in names)


def test_a_lost_parent_is_replaced_and_left_alone() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 12)
    child, stripe, parent = next(
        (name, stripe, parent)
        for name in names
        for stripe, ids in fleet.parents(name, version).items()
        for parent in ids
        if parent != "seed"
    )
    fleet.lost(child, version, parent, FailureReason.UNREACHABLE, Span(stripe, stripe + 1))
    assert stripe in fleet.parents(child, version)
    assert all(parent not in ids for ids in fleet.parents(child, version).values())


def test_who_leaves_is_followed_by_nobody() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 12)
    fleet.apply(HostLeft("host0"))
    for name in names[1:]:
        parents = fleet.parents(name, version)
        assert sorted(parents) == [0, 1, 2, 3]
        assert all("host0" not in ids for ids in parents.values())


def test_who_wants_no_more_and_is_not_complete_is_followed_by_nobody() -> None:
    fleet, version = Followers(), version_of(40)
    names = crowd(fleet, version, 12)
    fleet.apply(Unwanted("host1", Unwant(version.id)))
    for name in (*names[:1], *names[2:]):
        assert all("host1" not in ids for ids in fleet.parents(name, version).values())


def test_nobody_follows_who_does_not_want_the_same_pieces() -> None:
    fleet, version = Followers(), version_of(40)
    fleet.join("seed", seed=True)
    fleet.own("seed", version, whole(version))
    for name, span in (("front", Span(0, 8)), ("back", Span(32, 40)), ("all", Span(0, 40))):
        fleet.join(name)
        fleet.ask(name, version, span)
    assert not any("front" in ids for ids in fleet.parents("back", version).values())
    assert not any(ids & {"front", "back"} for ids in fleet.parents("all", version).values())
    fleet.go(version, "front", "back", "all")
    assert [len(fleet.held[name]) for name in ("front", "back", "all")] == [8, 8, 40]


def test_a_slow_parent_loses_its_children() -> None:
    fleet, version = Followers(), version_of(400)
    names = crowd(fleet, version, 12)
    followed = {
        name: [c for c in names if any(name in ids for ids in fleet.parents(c, version).values())] for name in names
    }
    slow = max(names, key=lambda name: len(followed[name]))
    fleet.advance(1.0)
    for name in names:
        if name != slow:
            fleet.report(name, version, "seed", list(range(100)))
    for child in followed[slow] * 2:
        stripe = next((s for s, ids in fleet.parents(child, version).items() if slow in ids), None)
        if stripe is not None:
            fleet.apply(Lagged(child, Lagging(version.id, (stripe,))))
            fleet.advance(0.1)
    assert not any(slow in ids for name in names for ids in fleet.parents(name, version).values())


def test_a_host_that_was_told_wrong_digests_drops_the_version() -> None:
    fleet, version = Followers(), version_of(40)
    crowd(fleet, version, 3)
    fleet.told.clear()
    fleet.commands.clear()
    fleet.report("host1", version, "host0", [4, 5], flavour="other")
    assert [host_id for host_id, told in fleet.told if isinstance(told, Condemned)] == ["host1"]
    assert any(isinstance(command, Suspect) and command.host_id == "host1" for command in fleet.commands)
    assert all("host1" not in ids for ids in fleet.parents("host2", version).values())


def test_one_host_in_each_zone_brings_a_stripe_there() -> None:
    fleet, version = Followers(), version_of(40)
    fleet.join("seed", seed=True, zone="here")
    fleet.own("seed", version, whole(version))
    zones = {f"host{number}": ("here", "there")[number % 2] for number in range(20)}
    for name, zone in zones.items():
        fleet.join(name, zone=zone)
        fleet.ask(name, version, whole(version))
    for stripe in range(STRIPES):
        crossing = [
            name
            for name, zone in zones.items()
            if zone == "there" and any(zones.get(p, "here") == "here" for p in fleet.parents(name, version)[stripe])
        ]
        assert len(crossing) == 1


def test_hosts_of_a_large_swarm_report_the_more_seldom_the_more_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_REPORTS_A_SECOND", 10)
    fleet, version = Followers(), version_of(40)
    crowd(fleet, version, 19)
    messages = [command.message for command in fleet.commands if isinstance(command, Send)]
    said = [told.report_seconds for told in messages if isinstance(told, Following)]
    assert said[0] == 0.5
    assert said[-1] == pytest.approx(2.0)
    assert said == sorted(said)


@pytest.mark.parametrize("seed", range(12))
def test_everybody_completes_whatever_happens_to_the_trees(seed: int) -> None:
    """Hosts take, lose parents, evict, lag, leave and come back at random; then peace returns, and all complete."""
    random = Random(seed)
    fleet, version = Followers(seed), version_of(60)
    seeds = [f"seed{number}" for number in range(random.choice([1, 1, 2]))]
    children = [f"host{number}" for number in range(10)]

    def arrive(host_id: str) -> None:
        fleet.held[host_id] = set()
        fleet.join(host_id, seed=host_id in seeds, slots=random.choice([1, 2, 16]))
        if host_id in children:
            fleet.ask(host_id, version, whole(version))

    for host_id in (*seeds, *children):
        arrive(host_id)
    reasons = [why for why in FailureReason if why not in (FailureReason.CORRUPT, FailureReason.LOCAL)]
    for _ in range(300):
        fleet.advance(random.choice([0.0, 0.1, 0.5]))
        host_id = random.choice([*seeds, *children])
        fate = random.random()
        parents = sorted((s, p) for s, ids in fleet.parents(host_id, version).items() for p in ids)
        if fate < 0.02:
            fleet.apply(HostLeft(host_id))
            fleet.assigned.pop(host_id, None)
            fleet.following.pop((host_id, version.id), None)
            arrive(host_id)
        elif fate < 0.05 and fleet.held[host_id] and host_id in seeds:
            index = random.choice(sorted(fleet.held[host_id]))
            fleet.held[host_id].discard(index)
            fleet.apply(DroppedPieces(host_id, Dropped(version.id, (Span(index, index + 1),))))
        elif fate < 0.15 and parents:
            stripe, parent = random.choice(parents)
            fleet.lost(host_id, version, parent, random.choice(reasons), Span(stripe, stripe + 1))
        elif fate < 0.2 and parents:
            fleet.apply(Lagged(host_id, Lagging(version.id, (random.choice(parents)[0],))))
        elif fate < 0.25 and (assigned := list(fleet.pieces(host_id, version))):
            fleet.fail(host_id, version, random.choice(reasons), *assigned[:2])
        else:
            fleet.take(host_id, version)
    for _ in range(400):
        for host_id in (*seeds, *children):
            fleet.take(host_id, version, 60)
        if all(len(fleet.held[host_id]) == 60 for host_id in children):
            break
        fleet.advance(1.0)
    assert {host_id: len(fleet.held[host_id]) for host_id in children} == dict.fromkeys(children, 60)
    assert not sends(fleet.apply())
