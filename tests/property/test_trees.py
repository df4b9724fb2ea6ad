"""Whoever comes, completes, slows down and goes: the stripe trees stay trees, and nobody is forgotten."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.core.member import NOWHERE, Member
from scheduler.core.trees import Trees

STRIPES = 4
HOSTS = st.integers(0, 11).map(str)


def check(trees: Trees) -> None:
    """Raise AssertionError unless these are trees, with nobody hanging loose and everybody accounted for."""
    everybody = (trees.root, *trees.members.values())
    for member in everybody:
        for stripe in range(STRIPES):
            for child in member.children[stripe]:
                assert child.parents[stripe] is member, "a child knows nothing of its parent"
                assert trees.members.get(child.host_id) is child, "a child that is gone"
            parent = member.parents[stripe]
            needed = bool(member.needs >> stripe & 1)
            assert bool(member.follows >> stripe & 1) == (parent is not None)
            if parent is not None:
                assert needed, "a parent for nothing"
                assert member in parent.children[stripe], "a parent knows nothing of its child"
                assert parent is trees.root or trees.members.get(parent.host_id) is parent, "a parent that is gone"
                assert trees.depth(member, stripe) != NOWHERE, "an island"
                assert not parent.slow, "a slow parent"
                assert parent is trees.root or parent.slots, "a parent without slots"
            assert ((member, stripe) in trees.homeless) == (needed and parent is None), "forgotten"
    for member in trees.members.values():
        over = not member.slow and member.used > member.slots
        assert (member in trees.crowded) == over, "who has too many children is miscounted"


class TreesMachine(RuleBasedStateMachine):
    """Few hosts in two zones, some of which others avoid."""

    def __init__(self) -> None:
        super().__init__()
        self.avoided: set[tuple[str, str]] = set()
        self.trees = Trees(STRIPES, lambda parent, child, _: (child.host_id, parent.host_id) not in self.avoided)
        self.trees.reseat(1, frozenset(["0"]))
        self.slots: dict[str, int] = {}

    def zone(self, host: str) -> str:
        return str(int(host) % 3 // 2)

    def some(self, data: st.DataObject) -> Member:
        return self.trees.members[data.draw(st.sampled_from(sorted(self.trees.members)))]

    @rule(host=HOSTS, needs=st.integers(1, 15), slots=st.sampled_from([0, 1, 4, 4, 4]))
    def want(self, host: str, needs: int, slots: int) -> None:
        known = self.trees.members.get(host)
        self.trees.want(host, self.zone(host), slots, needs | (known.needs if known else 0))

    @rule(host=HOSTS)
    def serve(self, host: str) -> None:
        self.trees.serve(host, self.zone(host), 4)

    @rule(host=HOSTS)
    def leave(self, host: str) -> None:
        self.trees.leave(host)

    @precondition(lambda self: self.trees.members)
    @rule(data=st.data(), have=st.sampled_from([0.0, 0.1, 0.3, 0.9]))
    def progress(self, data: st.DataObject, have: float) -> None:
        self.some(data).have = have

    @precondition(lambda self: self.trees.members)
    @rule(data=st.data())
    def spare(self, data: st.DataObject) -> None:
        self.trees.spare(self.some(data))

    @precondition(lambda self: self.trees.members)
    @rule(data=st.data(), stripe=st.integers(0, STRIPES - 1), picky=st.booleans())
    def move(self, data: st.DataObject, stripe: int, picky: bool) -> None:
        member = self.some(data)
        if member.needs >> stripe & 1:
            before = member.parents[stripe]
            moved = self.trees.move(member, stripe, fit=(lambda other: other.have > member.have) if picky else None)
            if picky and not moved:
                assert member.parents[stripe] is before

    @precondition(lambda self: self.trees.members)
    @rule(data=st.data())
    def avoid(self, data: st.DataObject) -> None:
        child = self.some(data)
        for stripe in range(STRIPES):
            parent = child.parents[stripe]
            if parent is not None:
                self.avoided.add((child.host_id, parent.host_id))
                for other in range(STRIPES):
                    if child.parents[other] is parent:
                        self.trees.move(child, other)
                break

    @rule()
    def forgive(self) -> None:
        self.avoided.clear()
        self.trees.shelter()

    @rule(seats=st.integers(0, 2))
    def reseat(self, seats: int) -> None:
        self.trees.reseat(seats, frozenset(["0"]))

    @invariant()
    def sound(self) -> None:
        check(self.trees)


TestTrees = TreesMachine.TestCase
TestTrees.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def grown(hosts: int, zones: int = 1) -> Trees:
    trees = Trees(STRIPES, lambda *_: True)
    trees.reseat(1, frozenset(["0"]))
    for number in range(hosts):
        trees.want(str(number), str(number % zones), 16, 15)
    check(trees)
    return trees


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 5, 7, 16, 64, 250, 1000])
def test_a_crowd_finds_shallow_trees_and_no_host_has_many_children_too_many(hosts: int) -> None:
    trees = grown(hosts)
    assert not trees.homeless
    assert [len(kids) for kids in trees.root.children] == [1] * STRIPES, "the seed sends each piece once"
    depths = [trees.depth(member, stripe) for member in trees.members.values() for stripe in range(STRIPES)]
    assert max(depths) <= 3 + hosts.bit_length()
    assert max(member.used for member in trees.members.values()) <= STRIPES + 1
    assert len(trees.crowded) <= hosts // 50
    free = sum(max(0, member.slots - member.used) for member in trees.members.values())
    assert free == STRIPES + sum(member.used - member.slots for member in trees.crowded), "slots are never missing"


def test_each_stripe_enters_a_zone_once() -> None:
    trees = grown(60, zones=3)
    for stripe in range(STRIPES):
        for zone in "12":
            entries = [
                member
                for member in trees.members.values()
                if member.zone == zone and (parent := member.parents[stripe]) is not None and parent.zone != zone
            ]
            assert len(entries) == 1


@pytest.mark.parametrize("hosts", [16, 64, 250])
def test_who_brings_a_stripe_into_a_zone_takes_a_slot(hosts: int) -> None:
    trees = grown(hosts, zones=2)
    trees.shelter()
    over = [member.used - member.slots for member in trees.members.values()]
    assert max(over) <= 1
    assert sum(over) == -STRIPES, "the far zone's entries and all others have slots, and those of the seed are left"
    assert len(trees.crowded) <= 1 + hosts // 50


def test_who_comes_from_afar_first_leaves_the_seed_to_those_who_are_near() -> None:
    trees = Trees(STRIPES, lambda *_: True)
    trees.reseat(1, frozenset(["here"]))
    for name, zone in (("far", "there"), ("near", "here"), ("near2", "here")):
        trees.want(name, zone, 16, 15)
    check(trees)
    assert [child.zone for kids in trees.root.children for child in kids] == ["here"] * STRIPES


@pytest.mark.parametrize("seed", range(5))
def test_half_of_all_may_go(seed: int) -> None:
    random = Random(seed)
    trees = grown(100)
    for host_id in random.sample(sorted(trees.members), 50):
        trees.leave(host_id)
        check(trees)
    assert not trees.homeless


def test_who_is_complete_serves_first_and_the_seed_last() -> None:
    trees = grown(8)
    for host_id in sorted(trees.members):
        trees.serve(host_id, "0", 16)
    check(trees)
    late = trees.want("late", "0", 16, 15)
    assert all(parent is not None and not parent.needs and parent is not trees.root for parent in late.parents)


def test_a_slow_host_has_no_children_and_its_place_is_an_others() -> None:
    trees = grown(30)
    [first] = trees.root.children[0]
    trees.spare(first)
    check(trees)
    assert not any(first.children)
    assert not trees.homeless
    assert first not in trees.root.children[0]


def test_of_a_burst_of_newcomers_few_others_are_told() -> None:
    trees = Trees(STRIPES, lambda *_: True)
    trees.reseat(1, frozenset(["0"]))
    told = 0
    for burst in range(20):
        for number in range(128):
            trees.want(f"{burst}-{number}", "0", 16, 15)
        told += len(trees.changed)
        trees.changed.clear()
    check(trees)
    assert told < 1.5 * len(trees.members), "nearly as many have to make room as come"
    depths = [trees.depth(member, stripe) for member in trees.members.values() for stripe in range(STRIPES)]
    assert max(depths) <= 3 + len(trees.members).bit_length()
