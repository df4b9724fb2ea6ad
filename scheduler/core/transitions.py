"""What each event changes. Nothing is assigned here: the next pass does that for every swarm that was touched.

A handler checks all of an event before it changes anything, so that an impossible one (ProtocolError) leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2p.control import ORIGIN, Dropped, Failed, FailureReason, Hello, Holding, Landed, Progress, Want
from p2p.pieces import Bitmap, PieceLayout, Span
from scheduler.core import follow, handover, integrity
from scheduler.core.messages import Command, Journal, JournalRead, ReadJournal, Suspect
from scheduler.core.model import Flight, Host, Peer
from scheduler.core.swarm import Swarm
from scheduler.core.swarms import State

_REFUSALS = (FailureReason.ORIGIN_REFUSED, FailureReason.VERSION_CHANGED)

# The first and the longest time, in seconds, that something which failed is left alone.
_BUSY = (0.05, 5.0)
_PARENT = (0.5, 60.0)
_LOCAL = (1.0, 60.0)
_ORIGIN = (2.0, 60.0)
_REFUSED = (300.0, 3600.0)
"""Credentials that were refused, or a version that is gone: the same request will hardly fare better."""

_STRIKES = {FailureReason.UNREACHABLE: 1, FailureReason.STALLED: 2}
"""A broken connection may be a matter of the moment; silence has cost seconds already. Busy is not broken."""


class ProtocolError(ValueError):
    """A host said something that cannot be; the text says what."""


def host_joined(state: State, hello: Hello, now: float) -> None:
    """Take in a host; an earlier session of it is over."""
    host_left(state, hello.host_id, now)
    host = state.hosts[hello.host_id] = Host(hello)
    state.look(host)
    if hello.seed:
        state.seeds[host.id] = host
        _reconsider_the_origin(state)


def host_left(state: State, host_id: str, now: float) -> None:
    """Forget a host: what it was sending and fetching becomes assignable again at once."""
    host = state.hosts.pop(host_id, None)
    if host is None:
        return
    if state.seeds.pop(host_id, None):
        _reconsider_the_origin(state)
    for flight in (*host.uploading, *host.riding):
        state.stop_all(flight)
    state.gone(host_id)
    for version_id in (*host.versions, *host.small):
        swarm = state.swarms[version_id]
        peer = swarm.peers[host_id]
        for index in tuple(peer.flights):
            state.stop(peer.flights[index], index)
        swarm.lose(peer, peer.held.copy())
        swarm.unwant(peer)
        swarm.removed(host_id)
        follow.gone(swarm, host_id, now)
        state.touch(swarm)


def announced(state: State, host: Host, holdings: Iterable[Holding], now: float) -> list[Command]:
    """Note what a host says it holds, and on its own word which digests."""
    for holding in holdings:
        size = PieceLayout.of(holding.version.length).count
        if (holding.bitmap.size, len(holding.bitmap)) != (size, len(holding.digests)):
            raise ProtocolError(f"holdings of version {holding.version.id} do not fit its length")
        _check_spans(holding.version.id, size, holding.fetching)
    commands: list[Command] = []
    for holding in holdings:
        swarm, made = state.swarm(holding.version)
        if made:
            handover.begun(state, swarm, now)
            commands.append(ReadJournal(swarm.id))
        commands += integrity.returned(state, host, swarm, now)
        if integrity.stale(state, host, swarm.id):
            continue
        peer = swarm.peer(host)
        settled: dict[int, bytes] = {}
        wrong = Bitmap(swarm.size)
        for index, digest in zip(holding.bitmap, holding.digests, strict=True):
            sound = not swarm.digests.contradicts(index, digest)
            if not sound:
                commands.append(Suspect(host.id, swarm.id, index, "announced with another digest than the known one"))
                _distrust(state, swarm, peer, index)
                swarm.hold(peer, _one(swarm, index), sound=False)
                wrong.add_piece(index)
            if index in peer.flights:
                state.stop(peer.flights[index], index)
        swarm.hold(peer, holding.bitmap - wrong)
        for index, digest in zip(holding.bitmap, holding.digests, strict=True):
            liars = swarm.digests.claim(index, digest, host.id, seed=host.hello.seed)
            _settled(state, swarm, index, liars, settled, commands)
        if settled:
            commands.append(Journal(swarm.id, settled))
        handover.fetching(state, swarm, peer, holding.fetching, now)
        swarm.origin_pending = True
        state.touch(swarm)
    return commands


def wanted(state: State, host: Host, want: Want, now: float) -> list[Command]:
    """Note what a host wants, and its way to the origin."""
    _check_spans(want.version.id, PieceLayout.of(want.version.length).count, want.spans)
    swarm, made = state.swarm(want.version)
    if made or not swarm.wanting:
        handover.begun(state, swarm, now)
    peer = swarm.peer(host)
    pieces = Bitmap(swarm.size, want.spans)
    if want.spans:
        peer.cold = bool(pieces - swarm.tradeable)
    if want.checksum:
        swarm.checkers[host.id] = None
    if want.spans or not want.checksum:
        swarm.prioritise(peer, want.priority)
    swarm.want(peer, pieces)
    if want.source is not None and peer.missing:
        # The host has just proved to itself that this works.
        peer.source = want.source
        peer.accepted_by(want.source)
    state.touch(swarm)
    return [ReadJournal(swarm.id)] if made else []


def unwanted(state: State, host: Host, version_id: str) -> None:
    """Void what a host was assigned for itself; a seed keeps what it brings from the origin for others."""
    swarm = state.swarms.get(version_id)
    peer = swarm.peers.get(host.id) if swarm else None
    if swarm is None or peer is None:
        return
    swarm.unwant(peer)
    if len(peer.held) < swarm.size:
        swarm.checkers.pop(host.id, None)
    for index, flight in tuple(peer.flights.items()):
        if flight.parent is not None or not host.hello.seed:
            state.stop(flight, index)
    state.touch(swarm)


def progressed(state: State, host: Host, progress: Progress, now: float) -> list[Command]:
    """Note what landed and what failed. Versions unknown here are ignored: this scheduler was started since."""
    swarm = state.swarms.get(progress.version_id)
    if swarm is None:
        return []
    _check_spans(swarm.id, swarm.size, [landed.span for landed in progress.landed])
    _check_spans(swarm.id, swarm.size, [failed.span for failed in progress.failed])
    for landed in progress.landed:
        if landed.digests and len(landed.digests) != len(landed.span):
            raise ProtocolError(f"{len(landed.digests)} digests for {len(landed.span)} pieces")
    peer = swarm.peer(host)
    peer.heard = now
    commands: list[Command] = []
    settled: dict[int, bytes] = {}
    for landed in progress.landed:
        _landed(state, swarm, peer, landed, settled, commands)
        if integrity.stale(state, host, swarm.id):
            return commands
    for failed in progress.failed:
        swarm.origin_pending = True
        _failed(state, swarm, peer, failed, now, commands)
    if settled:
        commands.append(Journal(swarm.id, settled))
    follow.progressed(swarm, peer)
    state.touch(swarm)
    return commands


def dropped(state: State, host: Host, message: Dropped) -> None:
    """Note what a host no longer holds; others that were fetching it from there are assigned anew."""
    swarm = state.swarms.get(message.version_id)
    peer = swarm.peers.get(host.id) if swarm else None
    if swarm is None or peer is None:
        return
    _check_spans(swarm.id, swarm.size, message.spans)
    integrity.obeyed(state, host, message)
    spans = message.spans or swarm.layout.everything()
    gone = Bitmap(swarm.size, spans) & peer.held
    swarm.lose(peer, gone)
    state.withdraw(swarm, peer, gone)
    swarm.origin_pending = True
    state.touch(swarm)


def journal_read(state: State, event: JournalRead) -> list[Command]:
    """Take in what is known from earlier; from here on the swarm is served."""
    swarm = state.swarms.get(event.version_id)
    commands: list[Command] = []
    if swarm is None:
        return commands
    swarm.journal_read = True
    if event.digests and not swarm.begun_anew:
        swarm.origin_from = max(swarm.origin_from, state.began + state.limits.settle)
    for index, digest in event.digests.items():
        if index < swarm.size and not swarm.begun_anew:
            liars = swarm.digests.recall(index, digest)
            _settled(state, swarm, index, liars, {}, commands)
    swarm.origin_pending = True
    state.touch(swarm)
    return commands


def overdue(state: State, swarm: Swarm, peer: Peer, now: float) -> None:
    """Take from a silent host what it was assigned and let it, or its parents, be for a while."""
    for flight in dict.fromkeys(peer.flights.values()):
        if now < max(peer.heard, flight.since) + state.silence(flight):
            continue
        reason = FailureReason.ORIGIN_FAILED if flight.parent is None else FailureReason.STALLED
        _blame(state, flight, reason, now)
        state.stop_all(flight)
    times = [max(peer.heard, f.since) + state.silence(f) for f in dict.fromkeys(peer.flights.values())]
    backoffs = (*peer.avoid.values(), *peer.refused.values())
    times += [backoff.until for backoff in backoffs if backoff.until > now]
    judged_at = follow.woken(swarm, peer, now)
    if judged_at is not None:
        times.append(judged_at)
    if times:
        state.arm(swarm, peer, min(times))
    if peer.missing:
        swarm.pending[peer.host.id] = None
    swarm.origin_pending = True
    state.touch(swarm)


def _landed(
    state: State, swarm: Swarm, peer: Peer, landed: Landed, settled: dict[int, bytes], commands: list[Command]
) -> None:
    # What was followed is reported late: the parent may have failed since.
    for recovered in (peer.host.id,) if landed.proof else (landed.parent_id, peer.host.id):
        if peer.forgive(recovered):
            swarm.origin_pending = True
            if peer.missing:
                swarm.pending[peer.host.id] = None
    if landed.parent_id == ORIGIN:
        peer.brought += len(landed.span)
    pieces = Bitmap(swarm.size, (landed.span,))
    if landed.proof and swarm.digests.proves(landed.span, landed.proof) is False:
        detail = f"passed on another digest than the known one for pieces {landed.span.start} to {landed.span.stop - 1}"
        commands.append(Suspect(peer.host.id, swarm.id, landed.span.start, detail))
        commands.append(integrity.distrusted(state, swarm, peer, "what was passed on to this host is not the origin's"))
        return
    swarm.hold(peer, pieces)
    if landed.parent_id == ORIGIN and landed.digests:
        for index, digest in zip(landed.span, landed.digests, strict=True):
            contradicted = swarm.digests.contradicts(index, digest)
            liars = swarm.digests.fetched(index, digest, peer.host.id)
            _settled(state, swarm, index, liars, settled, commands)
            if contradicted:
                commands.append(Suspect(peer.host.id, swarm.id, index, "the origin gave other bytes than before"))
    for index in pieces & peer.flying:
        flight = peer.flights[index]
        if flight.source is not None and landed.parent_id == ORIGIN:
            peer.accepted_by(flight.source)
        state.stop(flight, index)


def _failed(state: State, swarm: Swarm, peer: Peer, failed: Failed, now: float, commands: list[Command]) -> None:
    """Act on failures of what is still assigned, and of whom the host follows; what is over no longer matters."""
    if follow.follows(swarm, peer, failed.parent_id):
        _parent_failed(state, swarm, peer, failed, now, commands)
    for index in failed.span:
        flight = peer.flights.get(index)
        if flight is None or flight.parent_id != failed.parent_id:
            continue
        parent = flight.parent
        holder = swarm.peers.get(parent.id) if parent else None
        _blame(state, flight, failed.reason, now)
        state.stop(flight, index)
        if holder is None:
            continue
        _mistrust(state, swarm, holder, _one(swarm, index), failed.reason, peer, commands)


def _parent_failed(state: State, swarm: Swarm, peer: Peer, failed: Failed, now: float, commands: list[Command]) -> None:
    """Act on the failure of a parent that the host follows: it gets another one."""
    holder = swarm.peers.get(failed.parent_id)
    swarm.replant[peer.host.id] = None
    if failed.reason is FailureReason.LOCAL:
        return
    pieces = Bitmap(swarm.size, (failed.span,))
    of_a_piece = failed.reason in (FailureReason.MISSING, FailureReason.CORRUPT)
    if of_a_piece and holder is not None and (pieces := pieces & holder.sound):
        _mistrust(state, swarm, holder, pieces, failed.reason, peer, commands)
        return
    times = _BUSY if failed.reason is FailureReason.BUSY else _PARENT
    backoff = swarm.avoid(peer, failed.parent_id)
    backoff.fail(now, first=times[0], longest=times[1], strikes=_STRIKES.get(failed.reason, 0))
    state.arm(swarm, peer, backoff.until)


def _mistrust(
    state: State, swarm: Swarm, holder: Peer, pieces: Bitmap, why: FailureReason, child: Peer, commands: list[Command]
) -> None:
    """Act on what a child says of pieces that a host was thought to hold."""
    if why is FailureReason.MISSING:
        swarm.lose(holder, pieces)
        state.withdraw(swarm, holder, pieces)
    elif why is FailureReason.CORRUPT:
        for index in pieces:
            commands.append(Suspect(holder.host.id, swarm.id, index, f"sent corrupt bytes to {child.host.id}"))
            _distrust(state, swarm, holder, index)
            swarm.digests.corrupt(index, holder.host.id)
        swarm.retally(pieces)


def _blame(state: State, flight: Flight, reason: FailureReason, now: float) -> None:
    """Leave alone for a while whatever made a flight fail."""
    child, parent = flight.child, flight.parent
    if reason is FailureReason.LOCAL:
        backoff, times = flight.swarm.avoid(child, child.host.id), _LOCAL
    elif parent is None:
        if flight.source is None:
            return
        backoff = child.refused_by(flight.source)
        times = _REFUSED if reason in _REFUSALS else _ORIGIN
    elif reason in (FailureReason.MISSING, FailureReason.CORRUPT):
        return  # the piece is to blame, not the way: the caller sees to it
    else:
        backoff = flight.swarm.avoid(child, parent.id)
        times = _BUSY if reason is FailureReason.BUSY else _PARENT
    backoff.fail(now, first=times[0], longest=times[1], strikes=_STRIKES.get(reason, 0))
    state.arm(flight.swarm, child, backoff.until)


def _settled(
    state: State,
    swarm: Swarm,
    index: int,
    liars: tuple[str, ...] | None,
    settled: dict[int, bytes],
    commands: list[Command],
) -> None:
    """Act on a digest that may have become known, or disputed."""
    if liars is not None:
        settled[index] = swarm.digests.known[index]
        for host_id in liars:
            peer = swarm.peers.get(host_id)
            if peer is not None:
                commands.append(Suspect(host_id, swarm.id, index, "holds other bytes than the known digest says"))
                _distrust(state, swarm, peer, index)
    swarm.retally(_one(swarm, index))


def _reconsider_the_origin(state: State) -> None:
    """Let the next pass look at all that is wanted: another number of seeds means other shares."""
    for swarm in state.swarms.values():
        if swarm.wanting:
            swarm.origin_pending = True
            state.touch(swarm)


def _distrust(state: State, swarm: Swarm, peer: Peer, index: int) -> None:
    pieces = _one(swarm, index)
    swarm.distrust(peer, pieces)
    state.withdraw(swarm, peer, pieces)


def _one(swarm: Swarm, index: int) -> Bitmap:
    return Bitmap(swarm.size, (Span(index, index + 1),))


def _check_spans(version_id: str, size: int, spans: Iterable[Span]) -> None:
    for span in spans:
        if span.stop > size:
            raise ProtocolError(f"pieces {span.start}..{span.stop} of version {version_id}, which has {size}")
