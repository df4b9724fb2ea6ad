"""What the scheduler's core is told (events) and what it answers (commands).

Events wrap the values of `p2p.control` with the host that said them. Commands are carried out by the driver; the core
itself touches no socket, disk or clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2p.control import (
    Dropped,
    Hello,
    Holdings,
    Lagging,
    OriginUse,
    PeerMessage,
    Progress,
    SchedulerMessage,
    Unwant,
    Verdict,
    Want,
)


@dataclass(frozen=True, slots=True)
class HostJoined:
    """A host opened its session; if it was there already, that earlier session is over."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class HostLeft:
    """A host's session is over: nothing is expected of it or owed to it any more."""

    host_id: str


@dataclass(frozen=True, slots=True)
class Announced:
    """A host says what it holds."""

    host_id: str
    holdings: Holdings


@dataclass(frozen=True, slots=True)
class Wanted:
    """A host wants pieces."""

    host_id: str
    want: Want


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A host wants nothing more of a version."""

    host_id: str
    unwant: Unwant


@dataclass(frozen=True, slots=True)
class Progressed:
    """A host says what became of its assignments."""

    host_id: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Lagged:
    """A host says which stripes come too slowly."""

    host_id: str
    lagging: Lagging


@dataclass(frozen=True, slots=True)
class DroppedPieces:
    """A host no longer holds pieces."""

    host_id: str
    dropped: Dropped


@dataclass(frozen=True, slots=True)
class Judged:
    """A host has compared a whole version with the store's checksum."""

    host_id: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class UsedOrigins:
    """A host says what it does at origins."""

    host_id: str
    use: OriginUse


@dataclass(frozen=True, slots=True)
class JournalRead:
    """The answer to ReadJournal: the digests that are known from earlier, by piece index."""

    version_id: str
    digests: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The schedulers there are now, by the names that versions are shared out to; `own` is this one's."""

    own: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OriginParts:
    """Which part (0 to 1) of each origin's budget is this scheduler's to share out; `rest` is that of all others."""

    parts: Mapping[str, float]
    rest: float = 1.0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time to look at deadlines and to hand out what earlier events made assignable (see `next_deadline`)."""


HostSaid = Announced | Wanted | Unwanted | Progressed | Lagged | DroppedPieces | Judged | UsedOrigins
Event = HostJoined | HostLeft | HostSaid | JournalRead | MembersChanged | OriginParts | Tick


def event_of(host_id: str, message: PeerMessage) -> Event:
    """Return the event that a message of a host means."""
    match message:
        case Hello():
            return HostJoined(message)
        case Holdings():
            return Announced(host_id, message)
        case Want():
            return Wanted(host_id, message)
        case Unwant():
            return Unwanted(host_id, message)
        case Progress():
            return Progressed(host_id, message)
        case Lagging():
            return Lagged(host_id, message)
        case Dropped():
            return DroppedPieces(host_id, message)
        case Verdict():
            return Judged(host_id, message)
        case OriginUse():
            return UsedOrigins(host_id, message)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a host."""

    host_id: str
    message: SchedulerMessage = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReadJournal:
    """Look up what the journal knows of a version and answer with JournalRead, whatever happens."""

    version_id: str


@dataclass(frozen=True, slots=True)
class Journal:
    """Record these digests, by piece index; they replace earlier ones."""

    version_id: str
    digests: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class ForgetDigests:
    """Strike the digests of a version from the journal: they are of wrong bytes."""

    version_id: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A host's copy of a piece contradicts what is known: it is not used. For the log and a metric."""

    host_id: str
    version_id: str
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A host said something impossible and is no longer listened to; the core has forgotten it already."""

    host_id: str
    reason: str


Command = Send | ReadJournal | Journal | ForgetDigests | Suspect | Disconnect
