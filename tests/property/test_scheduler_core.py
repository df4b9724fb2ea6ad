"""Whatever hosts say, in whatever order: the scheduler's invariants hold, and everyone it can help is helped."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2p.control import (
    ORIGIN,
    Assignment,
    Dropped,
    Failed,
    FailureReason,
    Following,
    Hello,
    Holding,
    Holdings,
    Lagging,
    Landed,
    Parent,
    Part,
    Progress,
    Unwant,
    Verdict,
    Want,
)
from p2p.digests import piece_digest
from p2p.pieces import Bitmap, PieceLayout, Span
from p2p.versions import Version
from scheduler.core.messages import (
    Announced,
    Command,
    DroppedPieces,
    Event,
    HostJoined,
    HostLeft,
    Journal,
    JournalRead,
    Judged,
    Lagged,
    MembersChanged,
    Progressed,
    ReadJournal,
    Send,
    Tick,
    Unwanted,
    Wanted,
)
from scheduler.core.model import Limits
from scheduler.core.state import SchedulerCore
from tests.unit.scheduler.support import Fleet, digest_of, everything, holding_of, small_version, source_of, version_of

HOSTS = st.sampled_from(["a", "b", "c", "d", "s", "t"])
PRIORITIES = st.sampled_from([0, 6, 7])
VERSIONS = st.sampled_from([version_of(7, "seven"), version_of(3, "three"), small_version()])
FLAVOURS = st.sampled_from(["", "", "", "other"])
JOURNAL = "the journal"


@st.composite
def spans(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, 6))
    return start, draw(st.integers(start + 1, 7))


class SchedulerMachine(RuleBasedStateMachine):
    """Hosts that may lie, fail and fall silent. Small windows, so that limits are reached."""

    stripes = 0

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(
            child_window=4, candidates=3, part_pieces=2, origin_depth=4, origin_bytes=0, stripes=self.stripes
        )
        self.core = SchedulerCore(random=Random(1), limits=limits)
        self.now = 0.0
        self.unread: list[str] = []
        self.parts: list[tuple[str, Version, Part]] = []
        self.witnesses: dict[tuple[str, int, bytes], set[str]] = {}
        self.following: dict[tuple[str, str], Following] = {}

    def do(self, event: Event) -> None:
        for command in self.core.apply(event, now=self.now):
            self.obey(command)

    def obey(self, command: Command) -> None:
        match command:
            case ReadJournal(version_id):
                self.unread.append(version_id)
            case Journal(version_id, digests):
                for index, digest in digests.items():
                    assert len(self.word(version_id, index, digest)) > 0, "nobody ever said so"
            case Send(host_id, Assignment() as assignment):
                for part in assignment.parts:
                    self.check_part(assignment.version, part)
                    self.parts.append((host_id, assignment.version, part))
            case Send(host_id, Following() as following):
                self.check_following(host_id, following)
                self.following[host_id, following.version.id] = following

    def word(self, version_id: str, index: int, digest: bytes) -> set[str]:
        return self.witnesses.setdefault((version_id, index, digest), set())

    def check_part(self, version: Version, part: Part) -> None:
        if part.parent_id == ORIGIN:
            assert part.digests == ()
            return
        assert len(part.digests) == len(part.span)
        for index, digest in zip(part.span, part.digests, strict=True):
            # "x fetched it" is the origin's word, brought by x; a bare name is a holder's own.
            witnesses = self.word(version.id, index, digest)
            assert witnesses - {part.parent_id}, "a digest attested by nobody but the parent itself"

    def check_following(self, host_id: str, following: Following) -> None:
        assert host_id not in "st", "a seed is to follow somebody"
        assert following.version != small_version(), "trees for a single small piece"
        hosts = {host.host_id: host for host in self.core.hosts()}
        for parent in following.parents:
            assert parent.parent_id != host_id
            assert hosts[parent.parent_id].upload_slots > 0
            assert parent.stripes
        for known in following.known:
            for index, digest in zip(known.span, known.digests, strict=True):
                assert self.word(following.version.id, index, digest), "a digest that nobody ever said"

    def clip(self, version: Version, span: tuple[int, int]) -> Span:
        [whole] = everything(version)
        start = min(span[0], whole.stop - 1)
        return Span(start, max(start + 1, min(span[1], whole.stop)))

    @rule(host=HOSTS, slots=st.sampled_from([0, 1, 2, 16]))
    def join(self, host: str, slots: int) -> None:
        self.do(HostJoined(Hello(host, f"{host}:1", host in "st", slots)))

    @rule(host=HOSTS)
    def leave(self, host: str) -> None:
        self.do(HostLeft(host))
        self.parts = [entry for entry in self.parts if entry[0] != host]

    @rule(host=HOSTS, version=VERSIONS, span=spans(), with_source=st.booleans(), priority=PRIORITIES)
    def want(self, host: str, version: Version, span: tuple[int, int], with_source: bool, priority: int) -> None:
        source = source_of(host) if with_source else None
        self.do(Wanted(host, Want(version, (self.clip(version, span),), source, priority=priority)))

    @rule(host=HOSTS, version=VERSIONS, priority=PRIORITIES)
    def become_more_or_less_urgent(self, host: str, version: Version, priority: int) -> None:
        self.do(Wanted(host, Want(version, (), None, priority=priority)))

    @rule(host=HOSTS, version=VERSIONS)
    def unwant(self, host: str, version: Version) -> None:
        self.do(Unwanted(host, Unwant(version.id)))

    @rule(host=HOSTS, version=VERSIONS, span=spans(), flavour=FLAVOURS)
    def announce(self, host: str, version: Version, span: tuple[int, int], flavour: str) -> None:
        holding = holding_of(version, (self.clip(version, span),), flavour)
        for index, digest in zip(holding.bitmap, holding.digests, strict=True):
            self.word(version.id, index, digest).add(host)
        self.do(Announced(host, Holdings((holding,))))

    @rule(host=HOSTS, version=VERSIONS, span=spans())
    def announce_what_is_on_its_way(self, host: str, version: Version, span: tuple[int, int]) -> None:
        holding = Holding(version, Bitmap(PieceLayout.of(version.length).count), (), (self.clip(version, span),))
        self.do(Announced(host, Holdings((holding,))))

    @rule(others=st.sets(st.sampled_from(["other:1", "third:1", "fourth:1"])))
    def schedulers_change(self, others: set[str]) -> None:
        self.do(MembersChanged("own:1", ("own:1", *sorted(others))))

    @rule(host=HOSTS, version=VERSIONS, span=spans())
    def drop(self, host: str, version: Version, span: tuple[int, int]) -> None:
        self.do(DroppedPieces(host, Dropped(version.id, (self.clip(version, span),))))

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), flavour=FLAVOURS, late=st.booleans())
    def land(self, data: st.DataObject, flavour: str, late: bool) -> None:
        number = data.draw(st.integers(0, len(self.parts) - 1))
        host, version, part = self.parts[number] if late else self.parts.pop(number)
        digests: tuple[bytes, ...] = ()
        if part.parent_id == ORIGIN:
            digests = tuple(digest_of(version, index, flavour) for index in part.span)
            for index, digest in zip(part.span, digests, strict=True):
                self.word(version.id, index, digest).add(f"{host} fetched it")
        self.do(Progressed(host, Progress(version.id, (Landed(part.span, part.parent_id, digests),))))

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), reason=st.sampled_from(FailureReason))
    def fail(self, data: st.DataObject, reason: FailureReason) -> None:
        host, version, part = self.parts.pop(data.draw(st.integers(0, len(self.parts) - 1)))
        failed = tuple(Failed(Span(index, index + 1), part.parent_id, reason) for index in part.span)
        self.do(Progressed(host, Progress(version.id, (), failed)))

    @precondition(lambda self: self.following)
    @rule(data=st.data(), span=spans(), honest=st.sampled_from([True, True, True, False]))
    def land_what_was_announced(self, data: st.DataObject, span: tuple[int, int], honest: bool) -> None:
        host, following, parent = self.a_parent(data)
        if parent is not None:
            pieces = self.clip(following.version, span)
            digests = b"".join(digest_of(following.version, i, "" if honest else "other") for i in pieces)
            landed = Landed(pieces, parent.parent_id, (), piece_digest(digests))
            self.do(Progressed(host, Progress(following.version.id, (landed,))))

    @precondition(lambda self: self.following)
    @rule(data=st.data(), span=spans(), reason=st.sampled_from(FailureReason))
    def lose_a_parent(self, data: st.DataObject, span: tuple[int, int], reason: FailureReason) -> None:
        host, following, parent = self.a_parent(data)
        if parent is not None:
            failed = Failed(self.clip(following.version, span), parent.parent_id, reason)
            self.do(Progressed(host, Progress(following.version.id, (), (failed,))))

    @precondition(lambda self: self.following)
    @rule(data=st.data(), stripe=st.integers(0, 4))
    def lag(self, data: st.DataObject, stripe: int) -> None:
        host, following, _ = self.a_parent(data)
        self.do(Lagged(host, Lagging(following.version.id, (stripe,))))

    def a_parent(self, data: st.DataObject) -> tuple[str, Following, Parent | None]:
        key = data.draw(st.sampled_from(sorted(self.following)))
        following = self.following[key]
        return key[0], following, data.draw(st.sampled_from(following.parents)) if following.parents else None

    @rule(host=HOSTS, version=VERSIONS)
    def want_to_compare(self, host: str, version: Version) -> None:
        self.do(Wanted(host, Want(version, everything(version), source_of(host), "md5:" + "0" * 32)))

    @rule(host=HOSTS, version=VERSIONS, sound=st.sampled_from([True, True, False]))
    def judge(self, host: str, version: Version, sound: bool) -> None:
        self.do(Judged(host, Verdict(version.id, sound)))

    @rule(host=HOSTS, version=VERSIONS)
    def drop_all(self, host: str, version: Version) -> None:
        self.do(DroppedPieces(host, Dropped(version.id)))

    @precondition(lambda self: self.unread)
    @rule(known=st.booleans())
    def read_journal(self, known: bool) -> None:
        version_id = self.unread.pop(0)
        digests = {}
        if known:
            version = next(
                v for v in (version_of(7, "seven"), version_of(3, "three"), small_version()) if v.id == version_id
            )
            digests = {index: digest_of(version, index) for index in range(3)}
            for index, digest in digests.items():
                self.word(version_id, index, digest).add(JOURNAL)
        self.do(JournalRead(version_id, digests))

    @rule()
    def tick(self) -> None:
        self.do(Tick())

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 20.0, 400.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        self.do(Tick())

    @invariant()
    def consistent(self) -> None:
        self.core.check_invariants()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class TreesMachine(SchedulerMachine):
    """The same with stripe trees."""

    stripes = 2


TestSchedulerWithTrees = TreesMachine.TestCase
TestSchedulerWithTrees.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("seed", range(12))
def test_everyone_completes_however_hosts_fail_and_leave(seed: int) -> None:
    """Hosts land, fail, fall silent, leave and return at random; then peace returns, and all have everything."""
    random = Random(seed)
    fleet = Fleet(seed)
    version = version_of(40)
    seeds = [f"seed{number}" for number in range(random.randrange(3))]
    children = [f"host{number}" for number in range(8)]
    landed: dict[str, set[int]] = {host_id: set() for host_id in (*seeds, *children)}
    fates = [f for f in FailureReason if f is not FailureReason.CORRUPT]

    def arrive(host_id: str) -> None:
        fleet.join(host_id, seed=host_id in seeds, slots=random.choice([1, 2, 16]))
        if host_id in children:
            fleet.want(host_id, version)

    for host_id in (*seeds, *children):
        arrive(host_id)
    for _ in range(250):
        fleet.advance(random.choice([0.0, 0.1, 0.5]))
        host_id = random.choice([*seeds, *children])
        assigned = list(fleet.pieces(host_id, version))
        fate = random.random()
        if fate < 0.01:
            fleet.apply(HostLeft(host_id))
            fleet.assigned.pop(host_id, None)
            landed[host_id].clear()
            arrive(host_id)
        elif assigned and fate < 0.75:
            some = random.sample(assigned, min(3, len(assigned)))
            landed[host_id].update(some)
            fleet.land(host_id, version, *some)
        elif assigned and fate < 0.85:
            fleet.fail(host_id, version, random.choice(fates), *assigned[:2])
    for _ in range(3000):
        for host_id in (*seeds, *children):
            if assigned := list(fleet.pieces(host_id, version)):
                landed[host_id].update(assigned)
                fleet.land(host_id, version, *assigned)
        if all(len(landed[host_id]) == 40 for host_id in children):
            break
        fleet.advance(0.5)
    assert {host_id: len(landed[host_id]) for host_id in children} == dict.fromkeys(children, 40)
    assert not any(peer.missing for swarm in fleet.core.swarms() for peer in swarm.peers)


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_in_peace_the_origin_gives_every_piece_once(seeds: int) -> None:
    random = Random(seeds)
    fleet = Fleet(seeds)
    version = version_of(60)
    hosts = [f"seed{number}" for number in range(seeds)] + [f"host{number}" for number in range(10)]
    for host_id in hosts:
        fleet.join(host_id, seed=host_id.startswith("seed"))
    for host_id in hosts[seeds:]:
        fleet.want(host_id, version)
    while any(fleet.pieces(host_id, version) for host_id in hosts):
        host_id = random.choice(hosts)
        if assigned := list(fleet.pieces(host_id, version)):
            fleet.land(host_id, version, *assigned[:2])
    parts = [part for send in fleet.sent for part in send.assignment.parts]
    fetched = sorted(index for part in parts if part.parent_id == ORIGIN for index in part.span)
    assert fetched == list(range(60))
    assert [swarm.tradeable for swarm in fleet.core.swarms()] == [60]
    held = [peer.held for swarm in fleet.core.swarms() for peer in swarm.peers if peer.host_id.startswith("host")]
    assert held == [60] * 10
