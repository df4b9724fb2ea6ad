"""Whether a version's bytes in this cluster are the origin's: who compares them, and what follows from the verdict.

Where a store's checksum takes a pass over all bytes in order, one host that wants the version is to make it; another
one if that host is not going to. The bytes that hosts exchange are the same by their digests, so one verdict is
everybody's.

A bad verdict, whoever brings it and however it was found, *condemns* the version: every host is told to drop it, the
digests are forgotten, and it is fetched anew. What a condemned host says of the version until it has said that it
dropped it is about the old bytes and ignored. A version whose bytes were wrong again is refused for a while.
"""

from __future__ import annotations

from p2p.control import Condemned, Dropped, Verdict, Verify
from p2p.pieces import Bitmap
from scheduler.core.digests import Digests
from scheduler.core.messages import Command, ForgetDigests, Send
from scheduler.core.model import Host, Peer
from scheduler.core.swarm import Swarm
from scheduler.core.swarms import State


def refused(state: State, host: Host, version_id: str, now: float) -> list[Command]:
    """Return what a host is told that wants a version which is refused at present; nothing if it is not."""
    reason = state.strikes.refusal(version_id, now=now)
    return [] if reason is None else [Send(host.id, Condemned(version_id, reason))]


def stale(state: State, host: Host, version_id: str) -> bool:
    """Tell whether what a host says of a version is about bytes that it has been told to drop."""
    swarm = state.swarms.get(version_id)
    return swarm is not None and host.id in swarm.condemned


def returned(state: State, host: Host, swarm: Swarm, now: float) -> list[Command]:
    """Return what a host is told that announces a version whose bytes may be those that were condemned: to drop it.

    It may have been away then. If what it holds are the right ones already, it has them fetched again.
    """
    if not state.strikes.suspects(swarm.id, now=now):
        return []
    swarm.peer(host)
    swarm.condemned[host.id] = None
    return [Send(host.id, Condemned(swarm.id, "its bytes turned out to be wrong while this host was away"))]


def obeyed(state: State, host: Host, dropped: Dropped) -> None:
    """Note that a condemned host has dropped the version: from here on it speaks of new bytes."""
    swarm = state.swarms.get(dropped.version_id)
    if swarm is not None and not dropped.spans:
        swarm.condemned.pop(host.id, None)
        state.touch(swarm)


def elect(swarm: Swarm) -> list[Command]:
    """See to it that one host compares the version with its checksum, if any can and it is not settled."""
    if swarm.verifier is not None and not able(swarm, swarm.peers.get(swarm.verifier)):
        swarm.checkers.pop(swarm.verifier, None)
        swarm.verifier = None
    if swarm.sound or swarm.verifier is not None:
        return []
    swarm.verifier = next((host_id for host_id in swarm.checkers if able(swarm, swarm.peers.get(host_id))), None)
    return [] if swarm.verifier is None else [Send(swarm.verifier, Verify(swarm.id))]


def able(swarm: Swarm, peer: Peer | None) -> bool:
    """Tell whether a host has, or is going to have, all bytes of the version."""
    return peer is not None and len(peer.missing | peer.held) == swarm.size


def judged(state: State, host: Host, verdict: Verdict, now: float) -> list[Command]:
    """Act on what a host found: remember that the version is sound, or condemn it."""
    swarm = state.swarms.get(verdict.version_id)
    if verdict.sound:
        state.strikes.clear(verdict.version_id)
        if swarm is not None:
            swarm.sound, swarm.verifier = True, None
        return []
    detail = verdict.detail or "its bytes do not have the store's checksum"
    state.strikes.add(verdict.version_id, detail, now=now)
    reason = state.strikes.refusal(verdict.version_id, now=now) or detail
    if swarm is None:
        return [ForgetDigests(verdict.version_id), Send(host.id, Condemned(verdict.version_id, reason))]
    return _condemn(state, swarm, host, reason)


def _condemn(state: State, swarm: Swarm, judge: Host, reason: str) -> list[Command]:
    commands: list[Command] = [ForgetDigests(swarm.id)]
    swarm.peer(judge)
    for host_id, peer in swarm.peers.items():
        if host_id in swarm.condemned or not (peer.held or peer.missing or peer.flights or peer.host is judge):
            continue
        commands.append(distrusted(state, swarm, peer, reason))
    swarm.checkers.clear()
    swarm.verifier, swarm.sound, swarm.begun_anew = None, False, True
    swarm.digests = Digests(swarm.size)
    swarm.tradeable = Bitmap(swarm.size)
    swarm.recount_unassigned()
    state.touch(swarm)
    return commands


def distrusted(state: State, swarm: Swarm, peer: Peer, reason: str) -> Command:
    """Forget all that a host holds and wants of a version, and have it told to drop it."""
    for flight in tuple(dict.fromkeys(peer.flights.values())):
        state.stop_all(flight)
    held = peer.held.copy()
    swarm.lose(peer, held)
    state.withdraw(swarm, peer, held)
    swarm.unwant(peer)
    swarm.condemned[peer.host.id] = None
    state.touch(swarm)
    return Send(peer.host.id, Condemned(swarm.id, reason))
