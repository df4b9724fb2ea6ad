"""What must always be true of the scheduler's state, in words. Slow: for tests and the simulator."""

from __future__ import annotations

from collections import Counter
from random import Random

from p2p.urgency import extra_for_brief
from scheduler.core import assign, integrity
from scheduler.core.member import NOWHERE
from scheduler.core.model import Flight, Peer
from scheduler.core.swarm import Swarm
from scheduler.core.swarms import State


def check(state: State, *, now: float) -> None:
    """Raise AssertionError unless the state is consistent at `now`."""
    _check_slots(state)
    for swarm in state.swarms.values():
        _check_tallies(swarm)
        _check_flights(swarm)
        _check_integrity(state, swarm)
        _check_trees(swarm)
        for peer in swarm.peers.values():
            _check_peer(state, swarm, peer)
        if swarm.journal_read and swarm.id not in state.dirty and not state.freed and not _timer_due(state, now):
            _check_nothing_left_undone(state, swarm, now)
    assert set(state.seeds) == {host.id for host in state.hosts.values() if host.hello.seed}, "a seed is overlooked"
    assert set(state.dirty) <= set(state.swarms), "a forgotten swarm is to be looked at"


def _check_slots(state: State) -> None:
    uploading: dict[str, set[Flight]] = {host_id: set() for host_id in state.hosts}
    riding: dict[str, set[Flight]] = {host_id: set() for host_id in state.hosts}
    for swarm in state.swarms.values():
        for peer in swarm.peers.values():
            for flight in peer.flights.values():
                if flight.parent is not None:
                    assert state.hosts.get(flight.parent_id) is flight.parent, "a parent is gone, its flight is not"
                    (riding if swarm.small else uploading)[flight.parent_id].add(flight)
    assert set(state.open.hosts) <= set(state.hosts), "a host that is gone has free slots"
    for host_id, host in state.hosts.items():
        assert uploading[host_id] == set(host.uploading), f"the slots of {host_id} are miscounted"
        assert riding[host_id] == set(host.riding), f"what takes no slot of {host_id} is miscounted"
        slots = host.hello.upload_slots
        brief = sum(flight.swarm.brief for flight in host.uploading)
        assert len(host.uploading) - brief <= slots, f"the slots of {host_id} are oversubscribed"
        assert len(host.uploading) <= slots + extra_for_brief(slots), f"the slots of {host_id} are oversubscribed"
        for open_hosts in (state.open, state.open_for_brief):
            is_open = open_hosts.hosts.get(host_id) is host
            assert is_open == (not host.full(brief=open_hosts.brief)), f"{host_id} is open, or is not"
        for version_id in (*host.versions, *(host.small or ())):
            assert host_id in state.swarms[version_id].peers, f"{host_id} is thought to have a peer it has not"


def _check_tallies(swarm: Swarm) -> None:
    peers = swarm.peers.values()
    for index in range(swarm.size):
        holders = {host_id for host_id, peer in swarm.peers.items() if index in peer.sound}
        assert swarm.copies[index] == len(holders), f"copies of piece {index} are miscounted"
        assert (index in swarm.present) == bool(holders), f"copies of piece {index} are overlooked"
        assert (index in swarm.digests.settled) == (index in swarm.digests.known)
        assert swarm.coming[index] == sum(index in peer.flights for peer in peers), f"piece {index} is miscounted"
        tradeable = bool(holders) and index in swarm.digests.known
        assert (index in swarm.tradeable) == tradeable, f"whether piece {index} can be traded is mistaken"
        fetchers = [p for p in peers if index in p.flights and p.flights[index].parent is None]
        assert len(fetchers) <= 1, f"piece {index} is fetched from the origin by two hosts"
        assert (index in swarm.at_origin) == bool(fetchers), f"piece {index} is lost at the origin"
        # A wanted piece is held by somebody who gives it, on its way from the origin to somebody, or queued for that.
        wanted = any(index in peer.missing for peer in peers)
        queued = wanted and not tradeable and not fetchers
        assert (index in swarm.unassigned()) == queued, f"piece {index} is lost or queued in vain"
    able = {host_id for host_id, peer in swarm.peers.items() if swarm.gives(peer.host)}
    assert {peer.host.id for peer in swarm.open()} == able, "an open parent is overlooked"
    assert len(swarm.open()) == len(able), "an open parent is counted twice"
    assert not any(peer.sound - swarm.offered() for peer in swarm.open()), "an open parent's piece is overlooked"
    assert set(swarm.wanting) == {host_id for host_id, peer in swarm.peers.items() if peer.missing}
    assert swarm.priorities == Counter(swarm.peers[host_id].priority for host_id in swarm.wanting), (
        "how urgent a version is is mistaken"
    )


def _check_flights(swarm: Swarm) -> None:
    for peer in swarm.peers.values():
        assert set(peer.flying) == set(peer.flights)
        origin = 0
        for index, flight in peer.flights.items():
            assert (flight.child, flight.swarm) == (peer, swarm)
            assert index in flight.pieces
            assert index in flight.span
            assert index not in peer.held, "a host is fetching what it holds"
            if flight.parent is None:
                origin += 1
                continue
            assert flight.parent is not peer.host, "a host is its own parent"
            assert index in peer.missing, "a host fetches from another what it does not want"
            assert index in swarm.peers[flight.parent_id].sound, "assigned to a parent that lacks the piece"
        assert peer.from_origin == origin


def _check_trees(swarm: Swarm) -> None:
    grove = swarm.grove
    if grove is None:
        assert not any(peer.follows for peer in swarm.peers.values()), "pieces are promised by trees that are gone"
        return
    trees = grove.trees
    assert set(trees.members) <= set(swarm.peers), "a host that is gone is in the trees"
    assert not set(trees.members) & set(swarm.seeds), "a seed follows others"
    for member in (trees.root, *trees.members.values()):
        for stripe in range(trees.stripes):
            parent = member.parents[stripe]
            if parent is not None:
                assert member in parent.children[stripe], "a parent knows nothing of its child"
                assert trees.depth(member, stripe) != NOWHERE, "a chain that does not end at a top"
                assert parent is trees.root or not parent.slow, "a slow host is followed"
            for child in member.children[stripe]:
                assert child.parents[stripe] is member, "a child knows nothing of its parent"
        over = member.used - member.slots
        assert member is trees.root or member.slow or (member in trees.crowded) == (over > 0), (
            "slots are oversubscribed"
        )
    for host_id, peer in swarm.peers.items():
        follower = trees.members.get(host_id)
        if host_id in swarm.replant:
            continue
        assert bool(peer.missing) <= (follower is not None or host_id in swarm.seeds), (
            "who wants something is no member"
        )
        if follower not in trees.changed:  # who is there is told by the next pass
            promised = follower.follows if follower and peer.missing else 0
            assert peer.follows == promised, "promised, but not by a parent"
        for stripe, above in enumerate(follower.parents if follower else ()):
            if above is None or above is trees.root or above.host_id in swarm.replant:
                continue
            lacking = (peer.missing & grove.stripe(stripe)) - swarm.peers[above.host_id].missing
            assert not lacking - swarm.peers[above.host_id].sound, "follows a host that will never have its pieces"


def _check_integrity(state: State, swarm: Swarm) -> None:
    for host_id in swarm.condemned:
        peer = swarm.peers[host_id]
        assert not peer.held, "a condemned copy is still counted"
        assert not peer.missing, "a host is to fetch what it is yet to drop"
        assert not peer.flights, "a host fetches what it is yet to drop"
    assert set(swarm.checkers) <= set(swarm.peers), "a host that is gone may be elected"
    if swarm.id in state.dirty:
        return
    verifier = swarm.peers.get(swarm.verifier or "")
    if swarm.verifier is not None:
        assert not swarm.sound, "what is known to be sound is verified"
        assert integrity.able(swarm, verifier), "the verifier is not going to have all bytes"
    elif not swarm.sound:
        assert not any(integrity.able(swarm, swarm.peers[host_id]) for host_id in swarm.checkers), "nobody verifies"


def _check_peer(state: State, swarm: Swarm, peer: Peer) -> None:
    assert state.hosts.get(peer.host.id) is peer.host, "a host is gone, its peer is not"
    assert (swarm.id in peer.host.small, swarm.id in peer.host.versions) == (swarm.small, not swarm.small)
    assert not peer.missing & peer.held, "a host wants what it holds"
    assert not peer.sound - peer.held, "a copy that is not there is thought sound"
    assert len(peer.flights) - peer.from_origin <= state.limits.child_window, "a child's window is exceeded"
    asked = sum(flight.parent is None and flight.source is not None for flight in peer.flights.values())
    assert asked <= state.limits.from_origin(swarm.layout.piece_length), "a host is swamped with the origin's pieces"
    if peer.flights:
        assert peer.wake_at is not None, "flights without a deadline"
    if peer.missing and assign.has_room(peer, state.limits):
        waiting = any(peer.host.id in hosts for hosts in (swarm.pending, swarm.hungry, swarm.carried))
        assert waiting, "a host with room would never be considered again"
    if peer.host.id in swarm.hungry and peer.host.id not in swarm.pending:
        assert not swarm.lacking(peer) - swarm.craved, "no freed slot would be offered for what a host lacks"


def _timer_due(state: State, now: float) -> bool:
    return bool(state.timers) and state.timers[0][0] <= now


def _check_nothing_left_undone(state: State, swarm: Swarm, now: float) -> None:
    """After a pass nobody can be given anything: whatever opens a way must have put it on the agenda."""
    if now >= swarm.origin_from:
        choice = assign.origin_part(swarm, state.seeds, limits=state.limits, now=now)
        assert choice is None, f"left undone: {choice}"
    random = Random(0)  # noqa: S311  # breaks ties, keeps no secret
    for host_id in swarm.wanting:
        part = assign.peer_part(swarm, swarm.peers[host_id], limits=state.limits, random=random, now=now)
        assert part is None, f"left undone: {part}"
