"""All hosts and swarms that a scheduler knows, what it must look at next, and when; mutable, as `model` says."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf

from p2p.checksums import Strikes
from p2p.pieces import Bitmap
from p2p.versions import Version
from scheduler.core.model import Flight, Host, Limits, OpenHosts, Peer
from scheduler.core.swarm import Swarm


class State:
    """All hosts and swarms, what the next pass must look at, and when."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.hosts: dict[str, Host] = {}
        self.seeds: dict[str, Host] = {}
        self.open = OpenHosts(brief=False)
        self.open_for_brief = OpenHosts(brief=True)
        self.swarms: dict[str, Swarm] = {}
        self.dirty: dict[str, None] = {}
        """Versions that the next pass looks at."""
        self.freed: dict[str, None] = {}
        """Hosts that have a free slot again; the next pass offers it to those who found nothing before."""
        self.timers: list[tuple[float, int, str, str]] = []
        self.began = inf
        """When the first event came; inf: none has come yet."""
        self.earlier: dict[str, None] = {}
        """Versions that hosts were at before that."""
        self.strikes = Strikes()
        """Versions whose bytes turned out wrong."""
        self.own = ""
        self.members: tuple[str, ...] = ()
        """The names of all schedulers, and of this one among them; none where it is the only one."""
        self.members_changed: float | None = None
        """When there were others last."""
        self._timers_set = 0

    def swarm(self, version: Version) -> tuple[Swarm, bool]:
        """Return the swarm of a version and whether it had to be made."""
        swarm = self.swarms.get(version.id)
        if swarm is not None:
            return swarm, False
        swarm = self.swarms[version.id] = Swarm(version, self.open, self.open_for_brief)
        return swarm, True

    def drop(self, swarm: Swarm) -> None:
        """Forget a swarm of which nobody holds, wants or fetches anything."""
        for peer in swarm.peers.values():
            peer.host.lets_go(swarm)
        del self.swarms[swarm.id]
        self.dirty.pop(swarm.id, None)

    def look(self, host: Host) -> None:
        """Note whether a host that is there has free slots."""
        for hosts in (self.open, self.open_for_brief):
            hosts.look(host)

    def gone(self, host_id: str) -> None:
        """Note that a host is there no longer."""
        for hosts in (self.open, self.open_for_brief):
            hosts.gone(host_id)

    def touch(self, swarm: Swarm) -> None:
        """Let the next pass look at a swarm."""
        self.dirty[swarm.id] = None

    def silence(self, flight: Flight) -> float:
        """Return how many seconds without progress end a flight."""
        limits = self.limits
        allowed = limits.origin_silence if flight.parent is None else limits.parent_silence
        return allowed + flight.swarm.layout.piece_length / limits.slowest

    def arm(self, swarm: Swarm, peer: Peer, at: float) -> None:
        """Make sure that the peer is looked at when `at` has come; one that is looked at earlier arms itself again."""
        if peer.wake_at is None or at < peer.wake_at:
            peer.wake_at = at
            self._timers_set += 1
            heapq.heappush(self.timers, (at, self._timers_set, swarm.id, peer.host.id))

    def due(self, now: float) -> Iterator[tuple[Swarm, Peer]]:
        """Take the peers whose time has come."""
        while self.timers and self.timers[0][0] <= now:
            at, _, version_id, host_id = heapq.heappop(self.timers)
            swarm = self.swarms.get(version_id)
            peer = swarm.peers.get(host_id) if swarm else None
            if swarm and peer and peer.wake_at == at:
                peer.wake_at = None
                yield swarm, peer

    def start(self, flight: Flight, now: float) -> None:
        """Note that a part is being assigned."""
        swarm, child = flight.swarm, flight.child
        if not child.flights:
            child.heard = now
        for index in flight.pieces:
            child.started(index, flight)
            swarm.coming[index] += 1
            if flight.parent is None:
                swarm.origin_assigned(index)
        if flight.parent is not None:
            flight.parent.sends(flight)
            if not swarm.small:
                self.look(flight.parent)
        self.arm(swarm, child, now + self.silence(flight))

    def stop(self, flight: Flight, index: int) -> None:
        """Note that a piece of a part is in flight no longer, whether it landed or not."""
        swarm, child, parent = flight.swarm, flight.child, flight.parent
        flight.pieces.discard(index)
        child.stopped(index)
        swarm.coming[index] -= 1
        if child.missing:
            swarm.pending[child.host.id] = None
        if parent is None:
            swarm.origin_over(index)
        elif not flight.pieces:
            was_full = parent.full(brief=False)
            parent.sent(flight)
            if was_full and not swarm.small:
                self.look(parent)
                self.freed[parent.id] = None
        self.touch(swarm)

    def stop_all(self, flight: Flight) -> None:
        """Note that nothing of a part is in flight any more."""
        for index in sorted(flight.pieces):
            self.stop(flight, index)

    def withdraw(self, swarm: Swarm, peer: Peer, pieces: Bitmap) -> None:
        """End the flights that bring these pieces from a peer that no longer gives them."""
        sending = peer.host.riding if swarm.small else peer.host.uploading
        for flight in [flight for flight in sending if flight.swarm is swarm]:
            for index in [index for index in sorted(flight.pieces) if index in pieces]:
                self.stop(flight, index)
