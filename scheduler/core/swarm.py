"""Everything about one version: who has, wants and fetches what of it, in tallies; mutable, as `model` says."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from p2p.control import SMALL_BYTES
from p2p.pieces import Bitmap, PieceLayout
from p2p.urgency import BRIEF_BYTES, LOWEST_PRIORITY, Urgency
from p2p.versions import Version
from scheduler.core.digests import Digests
from scheduler.core.model import Backoff, Host, OpenHosts, Peer, no_pieces

if TYPE_CHECKING:
    from scheduler.core.follow import Grove


class Swarm:
    """Everything about one version."""

    def __init__(self, version: Version, open_hosts: OpenHosts, open_for_brief: OpenHosts) -> None:
        """Begin with nothing known of `version`; the open hosts are those of all versions, or of brief ones."""
        self.version = version
        self.id = version.id
        self.layout = PieceLayout.of(version.length)
        self.small = version.length <= SMALL_BYTES
        """Whether its one piece rides along: any holder gives it at any time, no slot is booked, no tree is planted."""
        self.size = self.layout.count
        self.brief = version.length <= BRIEF_BYTES
        """Whether every request for it is brief."""
        self.digests = Digests(self.size)
        self.journal_read = False
        self.origin_from = -inf
        """Before this time nobody is sent to the origin."""
        self.peers: dict[str, Peer] = {}
        self.seeds: dict[str, Peer] = {}
        """The peers whose host is a seed."""
        self.copies = array("I", bytes(4 * self.size))
        """How many sound copies there are of each piece."""
        self.present = Bitmap(self.size)
        """The pieces with a sound copy."""
        self.coming = array("I", bytes(4 * self.size))
        """How often each piece is in flight."""
        self.tradeable = Bitmap(self.size)
        """Pieces with a known digest and a sound copy."""
        self.at_origin = Bitmap(self.size)
        """Pieces that some host is fetching from the origin: one each."""
        self.grove: Grove | None = None
        self.replant: dict[str, None] = {}
        """Hosts whose place in the trees the next pass must look at."""
        self.wanting: dict[str, None] = {}
        """Hosts with missing pieces."""
        self.priorities: Counter[int] = Counter()
        """How many of these there are of each priority."""
        self.pending: dict[str, None] = {}
        """Hosts that may have something to gain from the next pass."""
        self.hungry: dict[str, None] = {}
        """Hosts with room for which the last pass found nothing."""
        self.craved = Bitmap(self.size)
        """All that the hungry could be assigned if others had free slots, and perhaps more."""
        self.avoiding: dict[str, None] = {}
        """Hosts that avoid others, or have done so."""
        self.carried: dict[str, None] = {}
        """Hosts with room to whom their trees bring all that they want."""
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
        self._open_hosts = open_for_brief if self.brief else open_hosts
        self._seen = -1
        """The change of the open hosts that the next two are from."""
        self._open: list[Peer] = []
        self._offered = Bitmap(self.size)
        self._at_seeds = Bitmap(self.size)
        self._at_seeds_stale = False
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
                flying=no_pieces(self.size),
            )
            self.peers[host.id] = peer
            if host.hello.seed:
                self.seeds[host.id] = peer
            host.takes_up(self)
            if self.gives(host) and self._seen == self._changes():
                self._open.append(peer)
        return peer

    def removed(self, host_id: str) -> None:
        """Forget a host's peer, which holds and wants nothing any more."""
        del self.peers[host_id]
        self.seeds.pop(host_id, None)
        for hosts in (self.replant, self.avoiding, self.checkers, self.condemned):
            hosts.pop(host_id, None)
        for other in self.avoiding:
            self.peers[other].forgive(host_id)
        self._seen = -1

    def avoid(self, child: Peer, host_id: str) -> Backoff:
        """Return what keeps a child from a parent (or, under its own id, from keeping pieces), to be counted up."""
        self.avoiding[child.host.id] = None
        return child.failed_by(host_id)

    def gives(self, host: Host) -> bool:
        """Tell whether a host could send another piece: it has a free upload slot, or needs none."""
        return host.hello.upload_slots > 0 if self.small else not host.full(brief=self.brief)

    def open(self) -> list[Peer]:
        """Return the peers whose host could send another piece."""
        self._look()
        return self._open

    def offered(self) -> Bitmap:
        """Return the pieces of the peers in `open`."""
        self._look()
        return self._offered

    def _look(self) -> None:
        """See who is open, unless that was seen since it changed; costs the fewer of open hosts and own peers."""
        changes = self._changes()
        if self._seen == changes:
            return
        self._seen = changes
        hosts, peers = self._open_hosts.hosts, self.peers
        if self.small:
            self._open = [peer for peer in peers.values() if self.gives(peer.host)]
        elif len(hosts) < len(peers):
            self._open = [peers[host_id] for host_id in hosts if host_id in peers]
        else:
            self._open = [peer for host_id, peer in peers.items() if host_id in hosts]
        self._offered = Bitmap(self.size)
        for peer in self._open:
            self._offered.update(peer.sound)

    def _changes(self) -> int:
        return 0 if self.small else self._open_hosts.changes

    def lacking(self, peer: Peer) -> Bitmap:
        """Return what a peer could be assigned from others, had they free slots."""
        lacking = (peer.missing & self.tradeable) - peer.flying
        return lacking - self.promised(peer) if peer.follows and lacking else lacking

    def found_nothing(self, peer: Peer) -> None:
        """Note that a peer has room, and found nothing; one that did before keeps its turn."""
        self.hungry[peer.host.id] = None
        self.craved |= self.lacking(peer)

    def recount_craved(self) -> None:
        """Leave out of `craved` what none of the hungry needs any more."""
        self.craved = Bitmap(self.size)
        for host_id in self.hungry:
            self.craved |= self.lacking(self.peers[host_id])

    def strays(self) -> Bitmap:
        """Return the pieces that can be traded and that no seed has: no tree brings them to everybody."""
        if self._at_seeds_stale:
            self._at_seeds.clear()
            for peer in self.seeds.values():
                self._at_seeds.update(peer.sound)
            self._at_seeds_stale = False
        return self.tradeable - self._at_seeds

    def promised(self, peer: Peer) -> Bitmap:
        """Return the pieces that the trees bring to a peer, if it wants them."""
        if self.grove is None or not peer.follows:
            return Bitmap(self.size)
        return stripes_of(self.size, self.grove.trees.stripes, peer.follows) - self.strays()

    def rarity(self, index: int) -> int:
        """Return how many hosts hold the piece or will shortly."""
        return self.copies[index] + self.coming[index]

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

    def _wanted_less(self) -> None:
        """Note that a host wants less than before: where nothing is unassigned, nothing becomes so."""
        self._unassigned_stale = self._unassigned_stale or bool(self._unassigned)
        self.origin_pending = True

    def want(self, peer: Peer, pieces: Bitmap) -> None:
        """Add to what a peer wants; what it holds is left out."""
        new = pieces - peer.held
        if new:
            peer.missing |= new
            self.priorities[peer.priority] += peer.host.id not in self.wanting
            self.wanting[peer.host.id] = None
            self.pending[peer.host.id] = None
            self.replant[peer.host.id] = None
            self.carried.pop(peer.host.id, None)
            peer.told = None
            self._unassigned |= new - self.tradeable - self.at_origin
            self.origin_pending = True

    @property
    def urgency(self) -> Urgency:
        """How urgent the version is to whoever wants it most urgently."""
        return Urgency(max(self.priorities, default=LOWEST_PRIORITY), self.brief)

    def prioritise(self, peer: Peer, priority: int) -> None:
        """Note how urgent the version is to a host."""
        self._count_priority(peer, -1)
        peer.priority = priority
        self._count_priority(peer, 1)

    def _count_priority(self, peer: Peer, change: int) -> None:
        if peer.host.id in self.wanting:
            self.priorities[peer.priority] += change
            if not self.priorities[peer.priority]:
                del self.priorities[peer.priority]

    def by_urgency(self, host_ids: Iterable[str]) -> Iterable[str]:
        """Return hosts with a peer in the order of their priorities, and where these are alike as they come."""
        if len(self.priorities) < 2:
            return host_ids
        return sorted(host_ids, key=lambda host_id: -self.peers[host_id].priority)

    def unwant(self, peer: Peer) -> None:
        """Forget what a peer wants, and its source with it."""
        peer.missing.clear()
        self._count_priority(peer, -1)
        peer.source = None
        peer.follows, peer.told = 0, None
        for hosts in (self.wanting, self.pending, self.hungry, self.carried):
            hosts.pop(peer.host.id, None)
        self.replant[peer.host.id] = None
        self._wanted_less()

    def hold(self, peer: Peer, pieces: Bitmap, *, sound: bool = True) -> None:
        """Note that a peer holds pieces; `sound` unless their bytes are known to be wrong."""
        peer.held = held = peer.held | pieces
        # A host without upload slots gives nothing to others: its copies must not keep anybody from the origin.
        if sound and peer.host.hello.upload_slots and (new := pieces - peer.sound):
            sound_now = peer.sound | new
            # Most copies are sound: the two sets are one object then, and neither is ever changed in place.
            peer.sound = held if sound_now == held else sound_now
            copies = self.copies
            for span in new.spans():
                for index in range(span.start, span.stop):
                    copies[index] += 1
            self.present |= new
            if self.gives(peer.host):
                self._offered |= new
                if new & self.craved:
                    self.wake_hungry()
            if peer.host.hello.seed:
                self._at_seeds |= new
            self.retally(new)
        if wanted := pieces & peer.missing:
            peer.missing = peer.missing - wanted
            if wanted & self._unassigned:
                self._wanted_less()
            if not peer.missing:
                self.unwant(peer)

    def distrust(self, peer: Peer, pieces: Bitmap) -> None:
        """Use a peer's copies of pieces no longer."""
        lost = pieces & peer.sound
        if not lost:
            return
        peer.sound = peer.sound - lost
        for index in lost:
            self.copies[index] -= 1
            if not self.copies[index]:
                self.present.discard_piece(index)
        self._seen = -1
        if peer.host.hello.seed:
            self._at_seeds_stale = True
            self.wake_carried()
            self.wake_hungry()
        self.replant[peer.host.id] = None
        self.retally(lost)

    def lose(self, peer: Peer, pieces: Bitmap) -> None:
        """Note that a peer holds pieces no longer."""
        self.distrust(peer, pieces)
        peer.held = peer.held - pieces
        for index in pieces & self.digests.claimed:
            self.digests.forget(index, peer.host.id)

    def retally(self, pieces: Bitmap) -> None:
        """Work out anew which of the pieces can be traded, after their copies or their digests changed."""
        now = pieces & self.present & self.digests.settled
        gained, lost = now - self.tradeable, (pieces & self.tradeable) - now
        if gained:
            self.tradeable |= gained
            self._unassigned = self._unassigned - gained
            self.wake_hungry()
        if lost:
            self.tradeable = self.tradeable - lost
            self.recount_unassigned()
        if (gained or lost) and self.carried and self.strays():
            self.wake_carried()

    def wake_carried(self) -> None:
        """Consider every host that the trees bring all it wants in the next pass: they may not, now."""
        self.pending.update(self.carried)
        self.carried.clear()

    def wake_hungry(self) -> None:
        """Consider every host that found nothing before in the next pass."""
        if self.hungry:
            self.pending.update(self.hungry)
            self.hungry.clear()
            self.craved = Bitmap(self.size)

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


@lru_cache(maxsize=1024)
def stripes_of(size: int, stripes: int, which: int) -> Bitmap:
    """Return the pieces of the stripes `which` (bits), of `stripes` in all; not to be changed."""
    pieces = Bitmap(size)
    for stripe in range(stripes):
        if which >> stripe & 1:
            for index in range(stripe, size, stripes):
                pieces.add_piece(index)
    return pieces
