"""What hosts and schedulers say to each other, as plain values.

These are the messages of `proto/p2p/v1/scheduler.proto` without the protobuf: both cores take and give them, the
simulator hands them over directly, and `p2p.rpc.convert` puts them on the wire. `parent_id` is a host id, or ORIGIN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from p2p.pieces import Bitmap, Span
from p2p.versions import Version

ORIGIN = ""
"""The `parent_id` of the origin."""


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
    """How the origin is asked: the caller's own URL and headers, byte for byte. Memory only; the repr hides both."""

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


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
    """The pieces a host holds of one version; `digests` are those of the pieces in `bitmap`, ascending, 16 bytes."""

    version: Version
    bitmap: Bitmap
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything a host holds, in one or more messages."""

    holdings: tuple[Holding, ...]
    last: bool = True


@dataclass(frozen=True, slots=True)
class Want:
    """The host wants these pieces too; `source` is its own way to the origin, if it has one."""

    version: Version
    spans: tuple[Span, ...]
    source: Source | None


@dataclass(frozen=True, slots=True)
class Unwant:
    """The host wants no more of this version; its assignments of it are void."""

    version_id: str


@dataclass(frozen=True, slots=True)
class Landed:
    """Pieces that are verified and stored. `digests`, one a piece, come with those fetched from the origin."""

    span: Span
    parent_id: str
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """Assigned pieces that did not arrive; `detail` is for the log and holds no secret."""

    span: Span
    parent_id: str
    reason: FailureReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """What became of assignments of one version."""

    version_id: str
    landed: tuple[Landed, ...] = ()
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    """The host no longer holds these pieces; no spans means none at all."""

    version_id: str
    spans: tuple[Span, ...] = ()


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

    `cold` says that the cluster did not hold all that the host asked for when it asked.
    """

    version: Version
    parts: tuple[Part, ...]
    source: Source | None = None
    cold: bool = False


PeerMessage = Hello | Holdings | Want | Unwant | Progress | Dropped
SchedulerMessage = Assignment
