"""Versions that move from one scheduler to another, because one came or went.

A version belongs to the scheduler that rendezvous hashing gives for it. Hosts turn to another one at once when theirs
is gone, and tell it what they hold, want and are just fetching from the origin. For as long as some may not have
done so yet, a scheduler that takes a version up sends nobody to the origin: what is there need not be fetched again.
The same holds for one that was just started, as to versions that some host is at already: it may be the one they had.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2p.pieces import Span
from p2p.rendezvous import weight
from scheduler.core.messages import MembersChanged
from scheduler.core.model import Flight, Peer
from scheduler.core.swarm import Swarm
from scheduler.core.swarms import State


def members_changed(state: State, event: MembersChanged, now: float) -> None:
    """Take note of who shares the versions, and let go of those that are another scheduler's now."""
    state.own, state.members, state.members_changed = event.own, event.members, now
    for swarm in tuple(state.swarms.values()):
        if elsewhere(state, swarm.id):
            for peer in swarm.peers.values():
                for flight in tuple(dict.fromkeys(peer.flights.values())):
                    state.stop_all(flight)
            state.drop(swarm)


def elsewhere(state: State, version_id: str) -> bool:
    """Tell whether a version is another scheduler's."""
    if len(state.members) < 2:
        return False
    return max(state.members, key=lambda name: weight(name, version_id)) != state.own


def begun(state: State, swarm: Swarm, now: float) -> None:
    """Have a version that may have been another scheduler's a moment ago wait for what other hosts say of it."""
    settle = state.limits.settle
    if elsewhere(state, swarm.id):
        swarm.origin_from = max(swarm.origin_from, now + settle)
    elif state.members_changed is not None:
        swarm.origin_from = max(swarm.origin_from, state.members_changed + settle)
    if swarm.id in state.earlier:
        _await_the_others(state, swarm, now)


def fetching(state: State, swarm: Swarm, peer: Peer, spans: Iterable[Span], now: float) -> None:
    """Note that a host began with a version before its session, and what of it it is taking from the origin.

    That is on behalf of the scheduler that it had before: other hosts may be about to say the same.
    """
    _await_the_others(state, swarm, now)
    for span in spans:
        pieces = {i for i in span if i not in peer.held and i not in peer.flights and i not in swarm.at_origin}
        if pieces:
            state.start(Flight(swarm, peer, None, peer.source, pieces, span, now), now)


def _await_the_others(state: State, swarm: Swarm, now: float) -> None:
    """Have a version that is older than this scheduler wait until hosts have had the time to come back to it."""
    until = state.began + state.limits.settle
    if now < until:
        # Also where the swarm is forgotten meanwhile: who says that it is at a version may not have a piece of it yet.
        state.earlier[swarm.id] = None
        swarm.origin_from = max(swarm.origin_from, until)
    else:
        state.earlier.clear()
