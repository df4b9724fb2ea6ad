"""What the scheduler knows of hosts: which they are, and who holds, wants and fetches which pieces.

These objects are mutable and belong to one `SchedulerCore`. `Swarm`, and the `State` of `swarms`, keep their tallies
consistent, whoever calls them; what should happen is decided in `transitions` and `assign`. Hosts and peers are kept in
dicts, also where only membership counts: a dict's order is the order of insertion, so a run repeats exactly under the
same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

from p2p.control import ORIGIN, Hello, Source
from p2p.pieces import MIB, Bitmap, Span
from p2p.urgency import DEFAULT_PRIORITY, extra_for_brief

if TYPE_CHECKING:
    from scheduler.core.member import Member
    from scheduler.core.swarm import Swarm

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is assigned at once and how long silence is borne."""

    child_window: int = 16
    """Pieces in flight from parents to one child, of one version."""
    candidates: int = 16
    """The window above a child's first obtainable piece within which the rarest piece goes first."""
    part_pieces: int = 4
    """Pieces of one part at the most."""
    origin_depth: int = 128
    """Pieces of one version assigned to one host from the origin at a time, at the least."""
    origin_bytes: int = 512 * MIB
    """The same in bytes, if these are more: some half a second's worth at a GB/s, so that no connection waits for the
    next, and requests are no smaller than the rate makes them."""
    parent_silence: float = 3.0
    """Seconds without progress after which a child's pieces are taken from a parent, beside the time of a piece."""
    origin_silence: float = 10.0
    """The same for pieces from the origin."""
    settle: float = 2.0
    """Seconds after its start in which a scheduler sends nobody to the origin for a version it knows from before: those
    who hold it are about to say so."""
    slowest: int = 4 * MIB
    """Bytes per second below which a piece counts as stalled."""
    stripes: int = 4
    """Along so many trees the pieces of a version spread from its seeds; 0: none, all is assigned part by part."""

    def from_origin(self, piece_length: int) -> int:
        """Return how many pieces of that length one host is assigned from the origin at a time."""
        return max(self.origin_depth, self.origin_bytes // piece_length)


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
    """A machine with an open session.

    Many send nothing and have no small versions: what is empty is shared, and changed by the methods here alone.
    """

    hello: Hello
    uploading: Mapping[Flight, None] = field(default_factory=lambda: _NOTHING_SENT)
    """What it is sending: one upload slot each."""
    versions: dict[str, None] = field(default_factory=dict)
    """The versions of which it has a peer; those to which it gave a freed slot last come last."""
    riding: Mapping[Flight, None] = field(default_factory=lambda: _NOTHING_SENT)
    """What it is sending of small versions, or was a moment ago: none of these takes a slot."""
    small: Mapping[str, None] = field(default_factory=lambda: _NO_VERSIONS)
    """The small versions of which it has a peer; they are not in `versions`, for no freed slot matters to them."""
    turns: int = 0
    """How many freed slots it has given."""

    @property
    def id(self) -> str:
        """The host id."""
        return self.hello.host_id

    def full(self, *, brief: bool) -> bool:
        """Tell whether it can send nothing more of a version; brief ones have a few slots on top."""
        slots = self.hello.upload_slots
        return len(self.uploading) >= slots + (extra_for_brief(slots) if brief else 0)

    def sends(self, flight: Flight) -> None:
        """Note that it is sending a part."""
        if flight.swarm.small:
            self.riding = _with(self.riding, flight, None)
        else:
            self.uploading = _with(self.uploading, flight, None)

    def sent(self, flight: Flight) -> None:
        """Note that it is sending a part no longer."""
        if flight.swarm.small:
            self.riding = _without(self.riding, flight) or _NOTHING_SENT
        else:
            self.uploading = _without(self.uploading, flight) or _NOTHING_SENT

    def takes_up(self, swarm: Swarm) -> None:
        """Note that it has a peer of a version."""
        if swarm.small:
            self.small = _with(self.small, swarm.id, None)
        else:
            self.versions[swarm.id] = None

    def lets_go(self, swarm: Swarm) -> None:
        """Note that it has no peer of a version any more."""
        if swarm.small:
            self.small = _without(self.small, swarm.id) or _NO_VERSIONS
        else:
            del self.versions[swarm.id]


class OpenHosts:
    """The hosts with a free upload slot, or one for a brief version, and how often it has been others than before."""

    __slots__ = ("brief", "changes", "hosts")

    def __init__(self, *, brief: bool) -> None:
        self.brief = brief
        self.hosts: dict[str, Host] = {}
        self.changes = 0

    def look(self, host: Host) -> None:
        """Note whether a host that is there has a free slot."""
        if host.full(brief=self.brief):
            self.gone(host.id)
        elif self.hosts.get(host.id) is not host:
            self.hosts[host.id] = host
            self.changes += 1

    def gone(self, host_id: str) -> None:
        """Note that a host has no free slot any more, or has left."""
        if self.hosts.pop(host_id, None) is not None:
            self.changes += 1


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


@lru_cache(maxsize=1024)
def no_pieces(size: int) -> Bitmap:
    """Return the empty set of `size` pieces that all share who have none; not to be changed."""
    return Bitmap(size)


_NOTHING_SENT: Final[Mapping[Flight, None]] = MappingProxyType({})
_NO_VERSIONS: Final[Mapping[str, None]] = MappingProxyType({})
_NO_FLIGHTS: Final[Mapping[int, Flight]] = MappingProxyType({})
_NONE_AVOIDED: Final[Mapping[str, Backoff]] = MappingProxyType({})
_NONE_REFUSED: Final[Mapping[Source, Backoff]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Peer:
    """One host's copy, whole or partial, of one version, and what it still wants of it.

    There may be hundreds of thousands, most of which have nothing in flight and no failures: what is empty is shared,
    and changed by the methods here alone.
    """

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
    priority: int = DEFAULT_PRIORITY
    """How urgent that is to it, from 0 to 7."""
    flights: Mapping[int, Flight] = field(default_factory=lambda: _NO_FLIGHTS)
    """What it is fetching, by piece."""
    from_origin: int = 0
    """How many of `flights` come from the origin."""
    brought: int = 0
    """How many pieces have come from there."""
    heard: float = 0.0
    """When it last reported, or was assigned something after a time without work."""
    avoid: Mapping[str, Backoff] = field(default_factory=lambda: _NONE_AVOIDED)
    """Parents that failed this child, by host id; under its own id: its own failure to keep pieces."""
    refused: Mapping[Source, Backoff] = field(default_factory=lambda: _NONE_REFUSED)
    """Ways to the origin that failed this host."""
    wake_at: float | None = None
    follows: int = 0
    """The stripes that come from parents which it follows, as bits: nothing of these is assigned to it."""
    told: tuple[Member | None, ...] | None = None
    """Whom it was told to follow, by stripe; empty: what is true no more; None: nothing yet of what it wants now."""

    @property
    def from_parents(self) -> int:
        """How many pieces are in flight from parents."""
        return len(self.flights) - self.from_origin

    def avoids(self, parent_id: str, now: float) -> bool:
        """Tell whether the parent (or, under its own id, this host) is being left alone at `now`."""
        backoff = self.avoid.get(parent_id)
        return backoff is not None and now < backoff.until

    def started(self, index: int, flight: Flight) -> None:
        """Note that a piece is in flight."""
        if not self.flights:
            self.flying = Bitmap(self.flying.size)
        self.flights = _with(self.flights, index, flight)
        self.flying.add_piece(index)
        self.from_origin += flight.parent is None

    def stopped(self, index: int) -> None:
        """Note that a piece is in flight no longer."""
        self.from_origin -= self.flights[index].parent is None
        self.flights = _without(self.flights, index) or _NO_FLIGHTS
        if self.flights:
            self.flying.discard_piece(index)
        else:
            self.flying = no_pieces(self.flying.size)

    def failed_by(self, host_id: str) -> Backoff:
        """Return what keeps it from a parent (or, under its own id, from keeping pieces), to be counted up."""
        backoff = self.avoid.get(host_id) or Backoff()
        self.avoid = _with(self.avoid, host_id, backoff)
        return backoff

    def forgive(self, host_id: str) -> bool:
        """Avoid a host no longer; tell whether it was avoided."""
        if host_id not in self.avoid:
            return False
        self.avoid = _without(self.avoid, host_id) or _NONE_AVOIDED
        return True

    def refused_by(self, source: Source) -> Backoff:
        """Return what keeps it from a way to the origin, to be counted up."""
        backoff = self.refused.get(source) or Backoff()
        self.refused = _with(self.refused, source, backoff)
        return backoff

    def accepted_by(self, source: Source) -> None:
        """Note that a way to the origin works."""
        if source in self.refused:
            self.refused = _without(self.refused, source) or _NONE_REFUSED


def _with(mapping: Mapping[_K, _V], key: _K, value: _V) -> Mapping[_K, _V]:
    """Return what is there and one more: `mapping` itself where that can be changed."""
    changed = mapping if isinstance(mapping, dict) else {}
    changed[key] = value
    return changed


def _without(mapping: Mapping[_K, _V], key: _K) -> Mapping[_K, _V]:
    """Return what is there but for one: `mapping` itself, for what is shared has no keys."""
    if isinstance(mapping, dict):
        del mapping[key]
    return mapping
