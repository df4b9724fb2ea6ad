"""What the scheduler knows: hosts, versions, who holds, wants and fetches which pieces.

These objects are mutable and belong to one `SchedulerCore`. `Swarm`, and the `State` of `swarms`, keep their tallies
consistent, whoever calls them; what should happen is decided in `transitions` and `assign`. Hosts and peers are kept in
dicts, also where only membership counts: a dict's order is the order of insertion, so a run repeats exactly under the
same seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from p2p.control import ORIGIN, Hello, Source
from p2p.pieces import Bitmap, PieceLayout, Span
from p2p.versions import Version
from scheduler.core.digests import Digests


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is assigned at once and how long silence is borne."""

    child_window: int = 16
    """Pieces in flight from parents to one child, of one version."""
    candidates: int = 16
    """The window above a child's first obtainable piece within which the rarest piece goes first."""
    part_pieces: int = 4
    """Pieces of one part at the most."""
    origin_depth: int = 64
    """Pieces of one version assigned to one host from the origin at a time."""
    parent_silence: float = 3.0
    """Seconds without progress after which a child's pieces are taken from a parent, beside the time of a piece."""
    origin_silence: float = 10.0
    """The same for pieces from the origin."""
    settle: float = 2.0
    """Seconds after its start in which a scheduler sends nobody to the origin for a version it knows from before: those
    who hold it are about to say so."""
    slowest: int = 4 * 1024 * 1024
    """Bytes per second below which a piece counts as stalled."""


@dataclass(slots=True)
class Backoff:
    """Something that failed is left alone until `until`; each further failure doubles the time."""

    failures: int = 0
    until: float = 0.0
    strikes: int = 0
    """How much speaks for the way being broken, and not just busy."""

    def fail(self, now: float, *, first: float, longest: float, strikes: int = 0) -> None:
        """Count a failure; several at once (one broken host fails all it was sending) count as one."""
        if now < self.until:
            return
        self.failures += 1
        self.strikes += strikes
        self.until = now + min(longest, first * 2 ** min(self.failures - 1, 32))

    def hopeless(self, now: float) -> bool:
        """Tell whether another way should be sought while this one is left alone."""
        return now < self.until and self.strikes > 1


@dataclass(slots=True, eq=False)
class Host:
    """A machine with an open session."""

    hello: Hello
    uploading: dict[Flight, None] = field(default_factory=dict)
    """What it is sending: one upload slot each."""
    versions: dict[str, None] = field(default_factory=dict)
    """The versions of which it has a peer."""

    @property
    def id(self) -> str:
        """The host id."""
        return self.hello.host_id

    @property
    def saturated(self) -> bool:
        """Whether every upload slot is taken."""
        return len(self.uploading) >= self.hello.upload_slots


@dataclass(slots=True, eq=False)
class Flight:
    """A part that was assigned: `child` fetches `span` from `parent` (None: the origin, asked through `source`).

    What a host was told to take from the origin by another scheduler has no source that is known here.
    """

    swarm: Swarm
    child: Peer
    parent: Host | None
    source: Source | None
    pieces: set[int]
    """Those of `span` of which nothing was heard yet."""
    span: Span
    since: float

    @property
    def parent_id(self) -> str:
        """The parent's host id, or ORIGIN."""
        return ORIGIN if self.parent is None else self.parent.id


@dataclass(slots=True, eq=False)
class Peer:
    """One host's copy, whole or partial, of one version, and what it still wants of it."""

    host: Host
    held: Bitmap
    """What it says it holds."""
    sound: Bitmap
    """The pieces among these that others may have, as far as is known."""
    missing: Bitmap
    """What it wants and does not hold."""
    flying: Bitmap
    """The pieces in `flights`."""
    source: Source | None = None
    cold: bool = False
    """Whether others did not hold all that it asked for when it asked."""
    flights: dict[int, Flight] = field(default_factory=dict)
    from_origin: int = 0
    """How many of `flights` come from the origin."""
    brought: int = 0
    """How many pieces have come from there."""
    heard: float = 0.0
    """When it last reported, or was assigned something after a time without work."""
    avoid: dict[str, Backoff] = field(default_factory=dict)
    """Parents that failed this child, by host id; under its own id: its own failure to keep pieces."""
    refused: dict[Source, Backoff] = field(default_factory=dict)
    """Ways to the origin that failed this host."""
    wake_at: float | None = None

    @property
    def from_parents(self) -> int:
        """How many pieces are in flight from parents."""
        return len(self.flights) - self.from_origin

    def avoids(self, parent_id: str, now: float) -> bool:
        """Tell whether the parent (or, under its own id, this host) is being left alone at `now`."""
        backoff = self.avoid.get(parent_id)
        return backoff is not None and now < backoff.until


class Swarm:
    """Everything about one version."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.id = version.id
        self.layout = PieceLayout.of(version.length)
        self.size = self.layout.count
        self.digests = Digests()
        self.journal_read = False
        self.origin_from = -inf
        """Before this time nobody is sent to the origin."""
        self.peers: dict[str, Peer] = {}
        self.open: dict[str, Peer] = {}
        """The peers whose host has a free upload slot."""
        self.holders: list[dict[str, Peer]] = [{} for _ in range(self.size)]
        """The peers with a sound copy of each piece."""
        self.coming = [0] * self.size
        """How often each piece is in flight."""
        self.tradeable = Bitmap(self.size)
        """Pieces with a known digest and a sound copy."""
        self.at_origin = Bitmap(self.size)
        """Pieces that some host is fetching from the origin: one each."""
        self.wanting: dict[str, None] = {}
        """Hosts with missing pieces."""
        self.pending: dict[str, None] = {}
        """Hosts that may have something to gain from the next pass."""
        self.hungry: dict[str, None] = {}
        """Hosts with room for which the last pass found nothing."""
        self.origin_pending = False
        """Whether the next pass may have something to assign from the origin."""
        self.checkers: dict[str, None] = {}
        """Hosts that know a checksum of the version which takes a pass over all bytes to compare."""
        self.verifier: str | None = None
        """The one of them that makes the pass."""
        self.sound = False
        """Whether a host has found the version to be the origin's."""
        self.condemned: dict[str, None] = {}
        """Hosts that were told to drop the version, and have not said yet that they did."""
        self.begun_anew = False
        """Whether it was condemned, so that digests of before must not come back from the journal."""
        self._offered = Bitmap(self.size)
        self._offered_stale = False
        self._unassigned = Bitmap(self.size)
        self._unassigned_stale = False

    @property
    def idle(self) -> bool:
        """Whether nobody holds, wants or fetches anything of this version, or is yet to drop it."""
        return not self.condemned and not any(peer.held or peer.missing or peer.flights for peer in self.peers.values())

    def peer(self, host: Host) -> Peer:
        """Return the host's peer, which is made if there is none."""
        peer = self.peers.get(host.id)
        if peer is None:
            peer = Peer(
                host,
                held=Bitmap(self.size),
                sound=Bitmap(self.size),
                missing=Bitmap(self.size),
                flying=Bitmap(self.size),
            )
            self.peers[host.id] = peer
            host.versions[self.id] = None
            if not host.saturated:
                self.opened(peer)
        return peer

    def opened(self, peer: Peer) -> None:
        """Note that a peer's host has a free upload slot."""
        self.open[peer.host.id] = peer
        self._offered.update(peer.sound)

    def closed(self, host_id: str) -> None:
        """Note that a host has no free upload slot any more, or is gone."""
        if self.open.pop(host_id, None):
            self._offered_stale = True

    def offered(self) -> Bitmap:
        """Return the pieces of the peers in `open`, and maybe others (see `recount_offered`)."""
        return self._offered

    def recount_offered(self) -> None:
        """Leave out of `offered` what no peer in `open` has any more: worth it before many look, not for each."""
        if self._offered_stale:
            self._offered.clear()
            for peer in self.open.values():
                self._offered.update(peer.sound)
            self._offered_stale = False

    def rarity(self, index: int) -> int:
        """Return how many hosts hold the piece or will shortly."""
        return len(self.holders[index]) + self.coming[index]

    def unassigned(self) -> Bitmap:
        """Return the pieces that somebody wants, nobody can give and nobody is fetching from the origin."""
        if self._unassigned_stale:
            wanted = Bitmap(self.size)
            for host_id in self.wanting:
                wanted |= self.peers[host_id].missing
            self._unassigned = wanted - self.tradeable - self.at_origin
            self._unassigned_stale = False
        return self._unassigned

    def recount_unassigned(self) -> None:
        """Note that `unassigned` may have gained or lost pieces in a way that is not tracked."""
        self._unassigned_stale = True
        self.origin_pending = True

    def want(self, peer: Peer, pieces: Bitmap) -> None:
        """Add to what a peer wants; what it holds is left out."""
        new = pieces - peer.held
        if new:
            peer.missing |= new
            self.wanting[peer.host.id] = None
            self.pending[peer.host.id] = None
            self._unassigned |= new - self.tradeable - self.at_origin
            self.origin_pending = True

    def unwant(self, peer: Peer) -> None:
        """Forget what a peer wants, and its source with it."""
        peer.missing.clear()
        peer.source = None
        for hosts in (self.wanting, self.pending, self.hungry):
            hosts.pop(peer.host.id, None)
        self.recount_unassigned()

    def hold(self, peer: Peer, index: int, *, sound: bool = True) -> None:
        """Note that a peer holds a piece; `sound` unless its bytes are known to be wrong."""
        peer.held.add_piece(index)
        # A host without upload slots gives nothing to others: its copies must not keep anybody from the origin.
        if sound and index not in peer.sound and peer.host.hello.upload_slots:
            peer.sound.add_piece(index)
            self.holders[index][peer.host.id] = peer
            self._offered.add_piece(index)
            if index in self.tradeable and not peer.host.saturated:
                self.wake_hungry()
        self.retally(index)
        if index in peer.missing:
            peer.missing.discard_piece(index)
            if index not in self.tradeable:
                self.recount_unassigned()
            if not peer.missing:
                self.unwant(peer)

    def distrust(self, peer: Peer, index: int) -> None:
        """Use a peer's copy of a piece no longer."""
        if index in peer.sound:
            peer.sound.discard_piece(index)
            del self.holders[index][peer.host.id]
            self.retally(index)

    def lose(self, peer: Peer, index: int) -> None:
        """Note that a peer holds a piece no longer."""
        self.distrust(peer, index)
        peer.held.discard_piece(index)
        self.digests.forget(index, peer.host.id)

    def retally(self, index: int) -> None:
        """Work out anew whether a piece can be traded, after its copies or its digest changed."""
        tradeable = bool(self.holders[index]) and index in self.digests.known
        if tradeable == (index in self.tradeable):
            return
        if tradeable:
            self.tradeable.add_piece(index)
            self._unassigned.discard_piece(index)
            self.wake_hungry()
        else:
            self.tradeable.discard_piece(index)
            self.recount_unassigned()

    def wake_hungry(self) -> None:
        """Consider every host that found nothing before in the next pass."""
        self.pending.update(self.hungry)
        self.hungry.clear()

    def origin_assigned(self, index: int) -> None:
        """Note that a host is fetching the piece from the origin."""
        self.at_origin.add_piece(index)
        self._unassigned.discard_piece(index)

    def origin_over(self, index: int) -> None:
        """Note that the piece is not being fetched from the origin any more."""
        self.at_origin.discard_piece(index)
        self.origin_pending = True
        if index not in self.tradeable:
            self.recount_unassigned()
