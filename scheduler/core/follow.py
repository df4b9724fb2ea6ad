"""Who is told to follow whom: which events change the stripe trees of a swarm, and what hosts hear of it.

Where there is a seed, every other host that wants something gets a parent in each stripe of which it lacks a piece. All
changes of one pass reach a host as one Following. A parent must hold or want whatever the child lacks in the stripe.
Where it no longer does, where it failed the child, or where it is gone, the child gets another; what a stripe without a
parent would have brought is assigned part by part until then. Seeds follow nobody.

A host that says that a stripe *lags* is taken seriously after a moment: by then its parent may have said the same, and
then the trouble is further up. A parent that several of its children complain about, and that is itself far slower than
most, has no children from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from statistics import median

from p2p.control import LAZY_REPORT_SECONDS, Following, KnownDigests, Parent
from p2p.pieces import Bitmap
from scheduler.core.member import Member
from scheduler.core.messages import Command, Send
from scheduler.core.model import Host, Peer
from scheduler.core.swarm import Swarm, stripes_of
from scheduler.core.swarms import State
from scheduler.core.trees import Trees

ZONE_LABEL = "zone"
"""The label of a Hello that says in which zone a host is; links within a zone are taken to be the better ones."""

_JUDGED_AFTER = 0.05
"""Seconds from a complaint to the search for its cause."""
_COMPLAINT_COUNTS = 4.5
"""Seconds for which a parent's own complaint excuses it."""
_AHEAD = 32
"""So many pieces another parent must be ahead of a child that lags."""
_SLOW = 1 / 3
"""A host that is slower than this part of the median may be the cause of its children's trouble."""
_SAMPLE = 64
"""So many hosts make the median."""
_REPORTS_A_SECOND = 500
"""Each host of so many has a second between two reports of what trees brought it. It keeps to what it was told when it
came, when there were fewer: ten thousand make 2,500 reports a second in all. A scheduler that is busy with them all the
time leaves seeds without pieces to bring. Where hosts report more seldom, how fast they are is known later."""
_REPORT_SECONDS = 10.0
"""How rare reports become at the most."""


class Grove:
    """The trees of one swarm, and the complaints about them."""

    def __init__(self, swarm: Swarm, stripes: int) -> None:
        self.swarm = swarm
        self.trees = Trees(stripes, self.able)
        self.now = 0.0
        self.seeds: tuple[str, ...] = ()
        self.complaints: dict[str, dict[int, float]] = {}
        """When a host last complained of each stripe."""
        self.to_judge: dict[str, dict[int, None]] = {}
        """The stripes that hosts complained of a moment ago."""
        self.blamed: dict[str, int] = {}
        """How often each host turned out to be the one above a complaint."""
        self._known: tuple[int, Bitmap, tuple[KnownDigests, ...]] = (0, Bitmap(swarm.size), ())

    @property
    def report_seconds(self) -> float:
        """How often a host is to report what the trees bring: the more hosts, the more seldom."""
        return min(max(LAZY_REPORT_SECONDS, len(self.swarm.peers) / _REPORTS_A_SECOND), _REPORT_SECONDS)

    def stripe(self, stripe: int) -> Bitmap:
        """Return the pieces of a stripe."""
        return stripes_of(self.swarm.size, self.trees.stripes, 1 << stripe)

    def able(self, parent: Member, child: Member, stripe: int) -> bool:
        """Tell whether a host holds or wants all that another lacks in a stripe, and has not failed it lately."""
        peer = self.swarm.peers[child.host_id]
        if parent is self.trees.root:
            return not (peer.avoid and any(peer.avoids(seed, self.now) for seed in self.seeds))
        if peer.avoid and peer.avoids(parent.host_id, self.now):
            return False
        other = self.swarm.peers[parent.host_id]
        lacking = (peer.missing & self.stripe(stripe)) - other.missing
        # A holder must not vouch for its own bytes: what nobody else has said of a piece is not passed on.
        return not lacking or not (lacking - other.sound or lacking & self.swarm.digests.claimed)

    def known(self, peer: Peer) -> tuple[KnownDigests, ...]:
        """Return the digests that are known of what a host lacks: the same value for all that come at once."""
        digests = self.swarm.digests
        lacking = peer.missing & digests.settled
        changes, pieces, said = self._known
        if (changes, pieces) != (digests.changes, lacking):
            spans = lacking.spans()
            said = tuple(KnownDigests(span, tuple([digests.known[index] for index in span])) for span in spans)
            self._known = (digests.changes, lacking, said)
        return said

    def tend(self, host_id: str) -> None:
        """Give a host the place that what it holds and wants asks for, and its children others if it must."""
        trees, peer = self.trees, self.swarm.peers[host_id]
        host, missing = peer.host, peer.missing
        zone, slots = host.hello.labels.get(ZONE_LABEL, ""), host.hello.upload_slots
        known = trees.members.get(host_id)
        if missing:
            needs = sum(1 << stripe for stripe in range(trees.stripes) if missing & self.stripe(stripe))
            member = trees.want(host_id, zone, slots, needs)
            member.have = len(peer.held) / self.swarm.size
            if known is None:
                member.since, member.had = self.now, member.have
            if peer.told is None:
                trees.changed[member] = None
        elif peer.sound and slots:
            member = trees.serve(host_id, zone, slots)
            member.have = 1.0
        else:
            self.uproot(host_id)
            return
        for stripe in range(trees.stripes):
            parent = member.parents[stripe]
            if parent is not None and not self.able(parent, member, stripe):
                trees.move(member, stripe)
            for child in member.children[stripe]:
                if not self.able(member, child, stripe):
                    trees.move(child, stripe)

    def uproot(self, host_id: str) -> None:
        """Take a host out of the trees."""
        self.trees.leave(host_id)
        for by_host in (self.complaints, self.to_judge, self.blamed):
            by_host.pop(host_id, None)

    def judge(self, host_id: str) -> None:
        """Find what makes a host's stripes lag, and do something about it."""
        member = self.trees.members.get(host_id)
        for stripe in self.to_judge.pop(host_id, {}):
            if member is not None:
                self._judge(member, stripe)

    def _judge(self, member: Member, stripe: int) -> None:
        trees = self.trees
        parent = member.parents[stripe]
        if parent is None or parent is trees.root or parent.zone != member.zone:
            return
        complained = self.complaints.get(parent.host_id, {}).get(stripe)
        if parent.needs and complained is not None and self.now - complained < _COMPLAINT_COUNTS:
            return
        blamed = self.blamed[parent.host_id] = self.blamed.get(parent.host_id, 0) + 1
        if not parent.slow and blamed >= max(2, sum(map(len, parent.children)) / 2) and self._slow(parent):
            trees.spare(parent)
            return
        front = self._front(member, stripe)
        if front is not None:
            trees.move(member, stripe, fit=lambda other: other is not parent and self._ahead(other, stripe, front))

    def _front(self, member: Member, stripe: int) -> int | None:
        """Return the first piece of a stripe that a host does not hold, as far as is known."""
        return (self.stripe(stripe) - self.swarm.peers[member.host_id].held).first()

    def _ahead(self, member: Member, stripe: int, front: int) -> bool:
        theirs = self._front(member, stripe)
        return theirs is None or theirs >= front + _AHEAD

    def _slow(self, member: Member) -> bool:
        others = islice((other for other in self.trees.members.values() if other.needs), _SAMPLE)
        reported = member.have > member.had or self.now - member.since > 2 * self.report_seconds
        return bool(member.needs) and reported and self._rate(member) < _SLOW * median(map(self._rate, others))

    def _rate(self, member: Member) -> float:
        return (member.have - member.had) / max(0.1, self.now - member.since)


def tend(state: State, swarm: Swarm, now: float) -> list[Command]:
    """Bring the trees of a swarm up to date and return what hosts are to hear of it."""
    if swarm.small or not state.limits.stripes:
        swarm.replant.clear()
        return []
    seeds = [seed for seed in state.seeds.values() if seed.hello.upload_slots]
    peers = (swarm.peers.get(seed.id) for seed in seeds)
    if not any(peer is None or not peer.avoids(peer.host.id, now) for peer in peers):
        return _fell(swarm)
    grove = swarm.grove
    if grove is None:
        grove = swarm.grove = Grove(swarm, state.limits.stripes)
        swarm.replant.update(dict.fromkeys(swarm.peers))
    grove.now = now
    ids = tuple(seed.id for seed in seeds)
    if ids != grove.seeds:
        grove.seeds = ids
        grove.trees.reseat(len(ids), frozenset(seed.hello.labels.get(ZONE_LABEL, "") for seed in seeds))
        for follower in {child for kids in grove.trees.root.children for child in kids}:
            swarm.peers[follower.host_id].told = ()
    due = bool(swarm.replant)
    for host_id in swarm.replant:
        if host_id not in state.seeds:
            grove.tend(host_id)
    swarm.replant.clear()
    if due or grove.trees.changed:
        grove.trees.shelter()
    changed = tuple(grove.trees.changed)
    grove.trees.changed.clear()
    commands: list[Command] = []
    for member in changed:
        commands += _tell(state, swarm, grove, member)
    return commands


def _fell(swarm: Swarm) -> list[Command]:
    """Have everything assigned part by part from here on."""
    if swarm.grove is None:
        return []
    stripes = swarm.grove.trees.stripes
    swarm.grove = None
    swarm.wake_carried()
    commands: list[Command] = []
    for peer in swarm.peers.values():
        if peer.missing and any(peer.told or ()):
            commands.append(Send(peer.host.id, Following(swarm.version, stripes, (), (), peer.cold)))
            swarm.pending[peer.host.id] = None
        peer.follows, peer.told = 0, None
    return commands


def _tell(state: State, swarm: Swarm, grove: Grove, member: Member) -> list[Command]:
    """Tell a host whom it is to follow, if that is not what it was told before."""
    peer = swarm.peers.get(member.host_id)
    if peer is None:
        return []
    if peer.follows != member.follows:
        peer.follows = member.follows
        if peer.missing:
            swarm.pending[peer.host.id] = None
            swarm.carried.pop(peer.host.id, None)
    if not peer.missing:
        return []
    root = grove.trees.root
    if member.parents == peer.told or (peer.told is None and not any(member.parents)):
        return []
    known = grove.known(peer) if peer.told is None else ()
    peer.told = member.parents
    stripes_from: dict[str, list[int]] = {}
    for stripe, parent in enumerate(member.parents):
        for host_id in () if parent is None else grove.seeds if parent is root else (parent.host_id,):
            stripes_from.setdefault(host_id, []).append(stripe)
    parents = tuple(
        Parent(host_id, state.hosts[host_id].hello.address, tuple(stripes), host_id in state.seeds)
        for host_id, stripes in stripes_from.items()
    )
    following = Following(swarm.version, grove.trees.stripes, parents, known, peer.cold, grove.report_seconds)
    return [Send(peer.host.id, following)]


def follows(swarm: Swarm, peer: Peer, parent_id: str) -> bool:
    """Tell whether a host was told to follow another."""
    grove = swarm.grove
    if grove is None:
        return False
    told = [parent for parent in peer.told or () if parent is not None]
    return any(parent.host_id == parent_id for parent in told) or (
        grove.trees.root in told and parent_id in grove.seeds
    )


def lagging(state: State, host: Host, version_id: str, stripes: Iterable[int], now: float) -> None:
    """Note that stripes come too slowly to a host."""
    swarm = state.swarms.get(version_id)
    if swarm is None or swarm.grove is None:
        return
    grove, peer = swarm.grove, swarm.peers.get(host.id)
    if peer is None or host.id not in grove.trees.members:
        return
    for stripe in stripes:
        if 0 <= stripe < grove.trees.stripes:
            grove.complaints.setdefault(host.id, {})[stripe] = now
            grove.to_judge.setdefault(host.id, {})[stripe] = None
    state.arm(swarm, peer, now + _JUDGED_AFTER)


def progressed(swarm: Swarm, peer: Peer) -> None:
    """Note how far a host is."""
    if swarm.grove is not None and (member := swarm.grove.trees.members.get(peer.host.id)) is not None:
        member.have = len(peer.held) / swarm.size


def woken(swarm: Swarm, peer: Peer, now: float) -> float | None:
    """Look at a host whose time has come, for what it complained of or avoided; return when to do so again, if ever."""
    grove = swarm.grove
    if grove is None:
        return None
    grove.now = now
    if peer.missing:
        swarm.replant[peer.host.id] = None
    if peer.host.id not in grove.to_judge:
        return None
    due = max(grove.complaints[peer.host.id].values()) + _JUDGED_AFTER
    if now < due:
        return due
    grove.judge(peer.host.id)
    return None


def gone(swarm: Swarm, host_id: str, now: float) -> None:
    """Give the children of a host that is gone other parents."""
    if swarm.grove is not None:
        swarm.grove.now = now
        swarm.grove.uproot(host_id)
