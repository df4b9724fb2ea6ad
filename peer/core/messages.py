"""What a download's state machine hears (events) and says (commands).

None is ever changed. Those that come for each piece are not `frozen` all the same: to make a frozen one costs thrice as
much.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2p.control import Assignment, FailureReason, Following, Lagging, Progress, Source, Unwant, Want
from p2p.pieces import Span
from p2p.urgency import DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Interest:
    """A reader wants these pieces and brings its own way to the origin."""

    reader: int
    spans: tuple[Span, ...]
    source: Source
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Disinterest:
    """A reader has what it wants, or is gone."""

    reader: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """The scheduler says where to fetch pieces."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Followed:
    """The scheduler says whom to follow."""

    following: Following


@dataclass(slots=True, unsafe_hash=True)
class ParentHas:
    """A watched parent announces that it holds these pieces."""

    parent_id: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class ParentLost:
    """A watched parent announces nothing any more: it cannot be reached, does not know the version, or is silent."""

    parent_id: str
    reason: FailureReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SchedulerUp:
    """The version's scheduler can be talked to."""


@dataclass(frozen=True, slots=True)
class SchedulerDown:
    """No scheduler can be talked to; what it assigned still stands."""


@dataclass(slots=True, unsafe_hash=True)
class PieceLanded:
    """A transfer's piece is verified and recorded by the store."""

    transfer: int
    index: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class PiecesLost:
    """Pieces that had landed were found damaged, and are not here any more."""

    spans: tuple[Span, ...]


@dataclass(slots=True, unsafe_hash=True)
class TransferEnded:
    """A transfer is over; `reason` None means that it brought all its pieces or was aborted."""

    transfer: int
    reason: FailureReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OriginOverloaded:
    """The origin asked for patience (429, 503) with a transfer's request, which is made again later."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon is ending: want nothing, fetch nothing."""


Event = (
    Interest
    | Disinterest
    | Assigned
    | Followed
    | ParentHas
    | ParentLost
    | SchedulerUp
    | SchedulerDown
    | PieceLanded
    | PiecesLost
    | OriginOverloaded
    | TransferEnded
    | Tick
    | Stop
)


@dataclass(slots=True, unsafe_hash=True)
class Tell:
    """Send this to the version's scheduler."""

    message: Want | Unwant | Progress | Lagging
    soon: bool = True
    """Whether somebody waits for it; a report of what came from followed parents is in no hurry."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Hear what a parent announces of these stripes, first all that it holds; instead of what was watched there before.

    Answered by ParentHas, again and again, and ParentLost when that ends, unless Unwatch came first.
    """

    parent_id: str
    address: str
    stripes: tuple[int, ...]
    of: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Hear nothing of a parent any more."""

    parent_id: str


@dataclass(slots=True, unsafe_hash=True)
class StartTransfer:
    """Fetch `span` from a parent (`address`, `digests`) or, if `source` is given, from the origin.

    Without `digests` the pieces come from a watched parent: the scheduler or the announcement has named theirs.
    """

    transfer: int
    span: Span
    parent_id: str
    address: str = ""
    digests: tuple[bytes, ...] = ()
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class AbortTransfer:
    """End the transfer; `TransferEnded` must still follow, when nothing writes for it any more."""

    transfer: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No way is left: every reader of now fails, with what ended `transfer` as the cause."""

    transfer: int | None
    detail: str


Command = Tell | Watch | Unwatch | StartTransfer | AbortTransfer | GiveUp
