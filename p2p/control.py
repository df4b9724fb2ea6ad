"""What hosts and schedulers say to each other, as plain values.

These are the messages of `proto/p2p/v1/scheduler.proto` without the protobuf: both cores take and give them, the
simulator hands them over directly, and `p2p.rpc.convert` puts them on the wire. `parent_id` is a host id, or ORIGIN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from p2p.pieces import Bitmap, Span
from p2p.stores import Store
from p2p.urgency import DEFAULT_PRIORITY
from p2p.versions import Version

ORIGIN = ""
"""The `parent_id` of the origin."""

LAZY_REPORT_SECONDS = 0.5
"""How often a host reports what came from parents it follows, unless it is told otherwise."""

SMALL_BYTES = 256 * 1024
"""Versions of at most so many bytes are *small*: over a fast link they take no longer than the round trip in which a
slot would be booked and given back. So none is, and a host says that it has one when it has something else to say."""


class FailureReason(IntEnum):
    """Why an assignment came to nothing; the numbers are those of the protobuf enum."""

    UNREACHABLE = 1
    STALLED = 2
    BUSY = 3
    MISSING = 4
    CORRUPT = 5
    ORIGIN_REFUSED = 6
    ORIGIN_FAILED = 7
    VERSION_CHANGED = 8
    LOCAL = 9


@dataclass(frozen=True, slots=True)
class Source:
    """How the origin is asked: the caller's own URL and headers, byte for byte. Memory only; the repr hides both.

    With a `store` the URL is a plain one, and whoever asks signs each request with credentials of its own, in the
    dialect of that store: what travels between hosts then holds no secret.
    """

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    store: Store | None = None

    @property
    def origin(self) -> str:
        """Scheme, host and port as the URL spells them, without a user: fit for telling origins apart."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0].rpartition('@')[2]}"


@dataclass(frozen=True, slots=True)
class Hello:
    """A host announces itself; always the first message."""

    host_id: str
    address: str
    seed: bool = False
    upload_slots: int = 16
    labels: Mapping[str, str] = field(default_factory=dict)
    software: str = ""


@dataclass(frozen=True, slots=True)
class Holding:
    """The pieces a host holds of one version; `digests` are those of the pieces in `bitmap`, ascending, 16 bytes.

    `fetching` are pieces that it is just taking from the origin: a scheduler that takes over sends nobody else there.
    """

    version: Version
    bitmap: Bitmap
    digests: tuple[bytes, ...]
    fetching: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything a host holds, in one or more messages."""

    holdings: tuple[Holding, ...]
    last: bool = True


@dataclass(frozen=True, slots=True)
class Want:
    """The host wants these pieces too; `source` is its own way to the origin, if it has one.

    `checksum` ("md5:…") is the store's word on the whole object where only a pass over all its bytes in order can
    confirm it: one host of the cluster is told to make that pass (Verify). `priority` (0 to 7, `p2p.urgency`) is that
    of the most urgent request that waits here for any of the version, in place of what was said before; a message that
    only has a checksum says nothing of it.
    """

    version: Version
    spans: tuple[Span, ...]
    source: Source | None
    checksum: str = ""
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Unwant:
    """The host wants no more of this version; its assignments of it are void."""

    version_id: str


# Not frozen, though never changed: one is made for each piece, and a frozen one costs thrice as much.
@dataclass(slots=True, unsafe_hash=True)
class Landed:
    """Pieces that are verified and stored. `digests`, one a piece, come with those fetched from the origin.

    `proof` comes where a parent's announcement named the digests: the xxh3-128 of all of them, one after the other, so
    that the scheduler, who knows them from whoever went to the origin, can tell whether a true one was passed on.
    """

    span: Span
    parent_id: str
    digests: tuple[bytes, ...] = ()
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Failed:
    """Assigned pieces that did not arrive; `detail` is for the log and holds no secret."""

    span: Span
    parent_id: str
    reason: FailureReason
    detail: str = ""


# Not frozen, though never changed: one is made for each piece, and a frozen one costs thrice as much.
@dataclass(slots=True, unsafe_hash=True)
class Progress:
    """What became of assignments of one version."""

    version_id: str
    landed: tuple[Landed, ...] = ()
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True, slots=True)
class Lagging:
    """These stripes of a version come far later than the others: their parents are too slow."""

    version_id: str
    stripes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The host no longer holds these pieces; no spans means none at all."""

    version_id: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a host found when it compared a whole version with the store's checksum; `detail` is for the log."""

    version_id: str
    sound: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OriginLoad:
    """What a host did at one origin ("scheme://host:port") since it last said so, and what it would like to do.

    `connections` is how many requests it has under way or waiting for leave. `requests` counts all of them, `checks`
    those for one byte, `refused` the answers that ask for patience (429, 503), `bytes` those of bodies. `under_way` of
    the connections have leave. `serial` rises with each load, and `heard` is the serial that the allowance in force
    answered (0: none is): a share that was taken back is free for others only once its holder has heard of it.
    """

    origin: str
    connections: int
    requests: int = 0
    checks: int = 0
    refused: int = 0
    bytes: int = 0
    under_way: int = 0
    serial: int = 0
    heard: int = 0


@dataclass(frozen=True, slots=True)
class OriginUse:
    """The host goes to these origins; each is answered with an allowance."""

    loads: tuple[OriginLoad, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One span from one parent. `digests`, one a piece, are given unless the parent is the origin."""

    span: Span
    parent_id: str
    parent_address: str = ""
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a host is to fetch which pieces; `source` comes where a part is the origin's and the host offered none.

    `cold` says that the cluster did not hold all that the host asked for when it asked. `priority` is that of the most
    urgent of all hosts that want the version.
    """

    version: Version
    parts: tuple[Part, ...]
    source: Source | None = None
    cold: bool = False
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Parent:
    """A host to follow in some stripes, and what to dial for it ("host:port"); a seed is asked for no others."""

    parent_id: str
    address: str
    stripes: tuple[int, ...]
    seed: bool = False


@dataclass(frozen=True, slots=True)
class KnownDigests:
    """The digests of the pieces of a span, one a piece, 16 bytes each."""

    span: Span
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Following:
    """From whom a host takes what it wants of a version, piece by piece as these parents announce that they have it.

    Piece i belongs to stripe i modulo `stripes`. `parents` replace all that were named before; a stripe without a
    parent comes by way of assignments. `known` digests count more than what a parent announces; `cold` is as with
    Assignment. What comes from these parents is reported every `report_seconds`.
    """

    version: Version
    stripes: int
    parents: tuple[Parent, ...]
    known: tuple[KnownDigests, ...] = ()
    cold: bool = False
    report_seconds: float = LAZY_REPORT_SECONDS


@dataclass(frozen=True, slots=True)
class SeedHost:
    """A seed peer and what other hosts dial to reach it ("host:port")."""

    host_id: str
    address: str


@dataclass(frozen=True, slots=True)
class Seeds:
    """All seed peers there are; said at the start of a session and whenever one comes or goes."""

    hosts: tuple[SeedHost, ...]


@dataclass(frozen=True, slots=True)
class Schedulers:
    """All schedulers there are ("host:port"), and which of them says so; said at first and whenever one comes or goes.

    Every host opens a session with each; rendezvous hashing over these names says which of them a version is for.
    """

    own: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verify:
    """This host is to compare the whole version with the store's checksum, and to say what it found (Verdict)."""

    version_id: str


@dataclass(frozen=True, slots=True)
class Condemned:
    """The version's bytes in this cluster are not the origin's: drop them. `reason` is for people."""

    version_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Allowance:
    """This host's share of an origin's budget: at most so many requests at once, so many and so much a second.

    None: the budget does not bound it. It `answers` the load with that serial.
    """

    origin: str
    connections: int | None = None
    requests_per_second: float | None = None
    bytes_per_second: float | None = None
    answers: int = 0


PeerMessage = Hello | Holdings | Want | Unwant | Progress | Lagging | Dropped | Verdict | OriginUse
SchedulerMessage = Assignment | Following | Seeds | Schedulers | Verify | Condemned | Allowance
