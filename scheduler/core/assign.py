"""Which part is assigned next: the seam behind which better plans belong.

All functions look at one swarm and change nothing. They return one part at a time; the caller notes it as in flight
and asks again, so that every choice sees the slots, windows and rarities that the earlier ones left.

The objective: no slot idles while somebody with room lacks what its host has (`invariants` checks that), and no task
waits for another's bytes. A host with room looks around once, and is *hungry* if it finds nothing. From then on free
slots come to it: a slot that becomes free goes to the tasks of its host in turn, one part each, and in a task to the
hungry in turn. So a task waits for at most one part of every other task of that host, however large they are. Urgent
ones go before others, and so do brief ones among equals; every so many-th turn is everybody's (`p2p.urgency`).
Brief ones have a few slots of each host on top, which large ones never take.

What that costs, for a report that frees k slots of hosts with t tasks each: k looks at t tasks, of which those without
anybody hungry, or where nobody lacks what the host has, cost a comparison, and k walks along the hungry of one task.
Who is open is kept once for all tasks; a task gathers what its open peers offer when a host looks around, and again
only after other hosts became open. So where all slots are taken, which is where many wait, nobody is looked at.

Pieces that somebody can give go to children by windowed rarest first: among the first obtainable pieces that a child
lacks, the one fewest hosts hold or are receiving, ties broken at random (in order where a single host wants anything:
there is nobody to trade with and a reader waits for the front). It comes from the least loaded parent with a free slot.

Small versions take no part in that: whoever holds one gives it at once, and children are spread over its holders.

Pieces that nobody can give come from the origin, in ascending order, striped in runs over all seeds that work, through
the source of a host that wants them. Each seed has its own runs, equally many; a faster one takes over what a notably
slower one has left. What no seed can bring, the wanting hosts share out among themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random

from p2p.control import ORIGIN, Source
from p2p.pieces import Bitmap, Span
from scheduler.core.model import Host, Limits, Peer
from scheduler.core.swarm import Swarm

_SOURCES_A_SEED_TRIES = 2

_COMPARED = 32
"""Among so many parents, at the most, the least loaded is sought."""

LEFT_BEHIND = 0.4
"""A host that has its own share takes over another's as long as that one has more left than this part of what it has
brought: it would take so much longer yet. Hosts that are about equally fast keep to their halves."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A part to be assigned: `source` where the parent is the origin."""

    child_id: str
    parent_id: str
    span: Span
    source: Source | None = None


def peer_part(swarm: Swarm, child: Peer, *, limits: Limits, random: Random, now: float) -> Choice | None:
    """Return what `child` should fetch next from another host, or None if there is no room or nothing to be had.

    What the trees will bring it is never assigned. Costs a look at one set of pieces a parent if the child avoids some,
    and else at the parents that are compared.
    """
    if not has_room(child, limits) or child.avoids(child.host.id, now):
        return None
    lacking = swarm.lacking(child)
    if not lacking:
        return None
    lacking &= swarm.offered()
    if child.avoid and lacking:
        lacking &= _offered_to(swarm, child, now)
    if not lacking:
        return None
    first = _rarest(swarm, lacking, limits, random)
    parent = min(
        _parents(swarm, child, first, random, now), key=lambda parent: (_load(swarm, parent.host), random.random())
    )
    return Choice(child.host.id, parent.host.id, _part(swarm, first, lacking & parent.sound, limits))


def part_from(
    swarm: Swarm, parent: Peer, *, limits: Limits, random: Random, now: float, urgent_first: bool
) -> Choice | None:
    """Return what one of those who found nothing before should fetch from a host that has a free slot again, if any.

    They take turns, after those who are more urgent where these go first. Costs a look at one set of pieces where
    nobody lacks what the parent has, and else one at each of the hungry up to the first who does.
    """
    if not parent.sound & swarm.craved:
        return None
    for host_id in swarm.by_urgency(swarm.hungry) if urgent_first else swarm.hungry:
        child = swarm.peers[host_id]
        if not has_room(child, limits) or child.avoids(child.host.id, now) or child.avoids(parent.host.id, now):
            continue
        pieces = swarm.lacking(child) & parent.sound
        if pieces:
            first = _rarest(swarm, pieces, limits, random)
            return Choice(child.host.id, parent.host.id, _part(swarm, first, pieces, limits))
    return None


def _rarest(swarm: Swarm, pieces: Bitmap, limits: Limits, random: Random) -> int:
    """Return the rarest of the first pieces."""
    window = islice(pieces, limits.candidates)
    if len(swarm.wanting) == 1:
        return min(window, key=lambda index: (swarm.rarity(index), index))
    return min(window, key=lambda index: (swarm.rarity(index), random.random()))


def _part(swarm: Swarm, first: int, pieces: Bitmap, limits: Limits) -> Span:
    """Return the part that begins with the piece `first`, of pieces that are no less rare."""
    stop = first + 1
    while stop - first < limits.part_pieces and stop in pieces and swarm.rarity(stop) <= swarm.rarity(first):
        stop += 1
    return Span(first, stop)


def has_room(child: Peer, limits: Limits) -> bool:
    """Tell whether a whole part fits into the child's window."""
    return child.from_parents + limits.part_pieces <= limits.child_window


def _offered_to(swarm: Swarm, child: Peer, now: float) -> Bitmap:
    """Return the pieces of the open parents that the child does not avoid."""
    offered = Bitmap(swarm.size)
    for peer in swarm.open():
        if not child.avoids(peer.host.id, now):
            offered.update(peer.sound)
    return offered


def _parents(swarm: Swarm, child: Peer, index: int, random: Random, now: float) -> list[Peer]:
    """Return peers that could give the piece to the child now: all, or in a large swarm those of a random run."""
    able = swarm.open()
    start = random.randrange(len(able)) if len(able) > _COMPARED else 0
    found: list[Peer] = []
    for at in (*range(start, len(able)), *range(start)) if start else range(len(able)):
        peer = able[at]
        if index in peer.sound and not (child.avoid and child.avoids(peer.host.id, now)):
            found.append(peer)
            if len(found) == _COMPARED:
                break
    return found


def _load(swarm: Swarm, host: Host) -> tuple[int, float, bool]:
    """Return what speaks against a parent: how busy it is, and among equals that it is a seed.

    With a small version it is first of all how many children were sent to it for such a one lately.
    """
    riding = len(host.riding) if swarm.small else 0
    return riding, len(host.uploading) / host.hello.upload_slots, host.hello.seed


def origin_part(swarm: Swarm, seeds: Mapping[str, Host], *, limits: Limits, now: float) -> Choice | None:
    """Return what some host should fetch next from the origin, or None if there is nothing or nobody has room."""
    rest = swarm.unassigned()
    fetchers: list[_Fetcher] = []
    if rest:
        for seed in seeds.values():
            peer = swarm.peers.get(seed.id)
            source = None if peer and peer.avoids(seed.id, now) else _source_for_seed(swarm, peer, now)
            if source is None:
                continue
            # What a seed holds and others may not have (its digest is its own word) someone else must fetch.
            pieces = swarm.unassigned() - peer.held - peer.flying if peer else swarm.unassigned()
            counts = (peer.from_origin, peer.brought) if peer else (0, 0)
            fetchers.append(_Fetcher(seed.id, pieces, *counts, source))
            rest = rest - pieces
    fetchers.extend(_wanting_fetchers(swarm, rest, now))
    if not fetchers:
        return None
    fair_parts = -(-swarm.size // (len(fetchers) * limits.part_pieces))
    most = limits.from_origin(swarm.layout.piece_length)
    # Less for each of several: what a slow one has not been assigned yet others can take over.
    depth = min(most // min(2, len(fetchers)), fair_parts * limits.part_pieces)
    own = _own_pieces(swarm.size, fetchers, limits)
    able = [
        (fetcher, pieces)
        for fetcher, mine in zip(fetchers, own, strict=True)
        if fetcher.fetching + limits.part_pieces <= depth
        and (pieces := mine or _left_by_slower(fetcher, fetchers, own))
    ]
    if not able:
        return None
    chosen, pieces = min(able, key=lambda one: one[0].fetching)
    first = next(iter(pieces))
    stop = first + 1
    while stop - first < limits.part_pieces and stop in pieces:
        stop += 1
    return Choice(chosen.host_id, ORIGIN, Span(first, stop), chosen.source)


@dataclass(frozen=True, slots=True)
class _Fetcher:
    host_id: str
    pieces: Bitmap
    fetching: int
    brought: int
    source: Source


def _own_pieces(size: int, fetchers: Sequence[_Fetcher], limits: Limits) -> list[Bitmap]:
    """Share out what may be fetched: equally much to each, in runs of a part, and to others what its owner cannot."""
    rota = _rota(size, len(fetchers), limits.part_pieces)
    own = [fetcher.pieces & turn for fetcher, turn in zip(fetchers, rota, strict=True)]
    taken = Bitmap(size)
    for pieces in own:
        taken |= pieces
    for index, fetcher in enumerate(fetchers):
        spare = fetcher.pieces - taken
        own[index] |= spare
        taken |= spare
    return own


@lru_cache(maxsize=64)
def _rota(size: int, count: int, length: int) -> tuple[Bitmap, ...]:
    """Return for each of `count` hosts every so many-th run of `length` pieces; not to be changed."""
    starts = [range(turn * length, size, count * length) for turn in range(count)]
    return tuple(Bitmap(size, (Span(start, min(start + length, size)) for start in mine)) for mine in starts)


def _left_by_slower(fetcher: _Fetcher, fetchers: Sequence[_Fetcher], own: Sequence[Bitmap]) -> Bitmap:
    """Return the pieces of those who are notably slower: what equals leave each other they would only both wait for.

    `fetcher` has none of its own left.
    """
    pieces = Bitmap(fetcher.pieces.size)
    for other, theirs in zip(fetchers, own, strict=True):
        if len(theirs) > LEFT_BEHIND * other.brought:
            pieces |= theirs
    return pieces & fetcher.pieces


def _source_for_seed(swarm: Swarm, seed: Peer | None, now: float) -> Source | None:
    """Return a way to the origin that has not failed this seed: its own first, and no more than two in all."""
    for source in islice(_sources(swarm, seed), _SOURCES_A_SEED_TRIES):
        backoff = seed.refused.get(source) if seed else None
        if backoff is None or now >= backoff.until:
            return source
    return None


def _sources(swarm: Swarm, first: Peer | None) -> Iterable[Source]:
    seen: set[Source] = set()
    wanting = (swarm.peers[host_id] for host_id in swarm.wanting)
    for peer in (first, *wanting) if first else wanting:
        if peer.source is not None and peer.source not in seen:
            seen.add(peer.source)
            yield peer.source


def _wanting_fetchers(swarm: Swarm, rest: Bitmap, now: float) -> Iterable[_Fetcher]:
    """Yield the wanting hosts that can go to the origin themselves for pieces of `rest`, or that have no other way."""
    for host_id in swarm.wanting if rest else swarm.avoiding:
        peer = swarm.peers[host_id]
        if peer.source is None or not (rest or peer.avoid):
            continue
        backoff = peer.refused.get(peer.source)
        if (backoff is not None and now < backoff.until) or peer.avoids(host_id, now):
            continue
        pieces = ((rest & peer.missing) | cut_off(swarm, peer, now)) - peer.flying - swarm.at_origin
        if pieces:
            yield _Fetcher(host_id, pieces, peer.from_origin, peer.brought, peer.source)


def cut_off(swarm: Swarm, child: Peer, now: float) -> Bitmap:
    """Return the pieces that others hold, yet only hosts that have failed this child again and again."""
    pieces = Bitmap(swarm.size)
    if not any(backoff.hopeless(now) for backoff in child.avoid.values()):
        return pieces
    pieces = (child.missing & swarm.tradeable) - child.flying
    for peer in swarm.peers.values():
        backoff = child.avoid.get(peer.host.id)
        if peer is not child and not (backoff and backoff.hopeless(now)):
            pieces = pieces - peer.sound
    return pieces
